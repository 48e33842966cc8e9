//! Hives that end, die and come back: no worker is lost, none is left over.

use rustix::process::Signal;
use serde_json::json;

use crate::support::{Home, is_alive, next, pid, queen, text, until};

#[tokio::test]
async fn after_kill_dash_nine_serving_workers_are_adopted_and_others_ended() {
    let (url, mut callbacks) = queen().await;
    let home = Home::new().env("QUEEN_CALLBACK_URL", url);
    home.model("hang.stub", "hang child");
    let hive = home.start().await;
    let port = hive.port;
    hive.spawn("serving", "file:ok.stub").await;
    hive.spawn("hanging", "file:hang.stub").await;
    let before = hive.worker_in("serving", "idle").await;
    next(&mut callbacks).await;
    until("the hanging engine has its child", async || {
        (home.engines().len() == 3).then_some(())
    })
    .await;
    hive.kill_dash_nine().await;
    assert_eq!(home.engines().len(), 3, "engines outlive their hive");

    let mut hive = home.start_on(port).await;
    let after = hive.worker_in("serving", "idle").await;
    assert_eq!(after, before);
    assert_eq!(hive.workers().await.len(), 1);
    assert_eq!(next(&mut callbacks).await.2["worker_id"], "serving");
    until("only the adopted engine is left", async || {
        (home.engines() == [pid(&after)]).then_some(())
    })
    .await;

    // An adopted worker is watched, logged and ended like any other.
    let say = format!("{}/say", text(&after, "url"));
    reqwest::Client::new()
        .post(say)
        .body("still here")
        .send()
        .await
        .unwrap();
    until("its log goes on", async || {
        let logs = hive
            .request("GET", "/v1/logs?worker_id=serving")
            .send()
            .await
            .ok()?;
        logs.text().await.ok()?.contains("still here").then_some(())
    })
    .await;
    hive.signal(Signal::TERM);
    assert_eq!(hive.exited().await.code(), Some(0));
    home.no_engine_is_left().await;
}

#[tokio::test]
async fn an_adopted_worker_that_dies_is_reported() {
    let home = Home::new();
    let hive = home.start().await;
    let port = hive.port;
    hive.spawn("w", "ok").await;
    let worker = hive.worker_in("w", "idle").await;
    hive.kill_dash_nine().await;
    let hive = home.start_on(port).await;
    crate::support::signal(pid(&worker), Signal::KILL);
    let failed = hive.worker_in("w", "failed").await;
    assert!(text(&failed, "error").contains("is gone"), "{failed}");
}

#[tokio::test]
async fn a_hive_ends_what_a_dead_one_beside_it_left_and_no_living_ones_workers() {
    let home = Home::new();
    home.model("child.stub", "child");
    let dead = home.start().await;
    let living = home.start().await;
    dead.spawn("left", "child").await;
    living.spawn("kept", "ok").await;
    let left = dead.worker_in("left", "idle").await;
    let kept = living.worker_in("kept", "idle").await;
    dead.kill_dash_nine().await;

    let third = home.start().await;
    until("the dead hive's engine is ended", async || {
        (home.engines() == [pid(&kept)] && !is_alive(pid(&left))).then_some(())
    })
    .await;
    assert!(third.workers().await.is_empty());
    assert_eq!(living.worker("kept").await.unwrap()["state"], "idle");
}

#[tokio::test]
async fn sigterm_and_the_shutdown_call_leave_nothing() {
    let home = Home::new();
    home.configure("stop_grace_secs = 1");
    home.model("stubborn.stub", "stubborn child");
    home.model("hang.stub", "hang");
    for by_call in [false, true] {
        let mut hive = home.start().await;
        for model in ["ok", "stubborn", "hang"] {
            hive.spawn(model, model).await;
        }
        hive.worker_in("ok", "idle").await;
        hive.worker_in("stubborn", "idle").await;
        // One that follows the logs must not hold the hive up.
        let logs = hive
            .request("GET", "/v1/logs?follow=true")
            .send()
            .await
            .unwrap();
        match by_call {
            true => assert_eq!(hive.post("/v1/shutdown", &json!({})).await.0, 200),
            false => hive.signal(Signal::TERM),
        }
        assert_eq!(hive.exited().await.code(), Some(0));
        assert!(
            home.engines().is_empty(),
            "they are gone before the hive is"
        );
        drop(logs);
    }
}

#[tokio::test]
async fn a_hive_that_shuts_down_starts_no_workers() {
    let home = Home::new();
    home.model("stubborn.stub", "stubborn");
    let mut hive = home.start().await;
    hive.spawn("w", "stubborn").await;
    hive.worker_in("w", "idle").await;
    hive.signal(Signal::INT);
    hive.worker_in("w", "draining").await;
    let (status, answer) = hive
        .post("/v1/workers/spawn", &json!({"model_ref": "ok"}))
        .await;
    assert_eq!(
        (status.as_u16(), &answer["error"]["code"]),
        (503, &json!("SHUTTING_DOWN"))
    );
    // Asked again, it does not wait for the grace.
    hive.signal(Signal::INT);
    assert_eq!(hive.exited().await.code(), Some(0));
    home.no_engine_is_left().await;
}
