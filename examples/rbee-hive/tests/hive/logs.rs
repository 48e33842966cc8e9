//! What engines print.

use serde_json::json;

use crate::support::{Home, text, until};

#[tokio::test]
async fn logs_are_tailed_followed_and_end_with_the_worker() {
    let home = Home::new();
    let hive = home.start().await;
    hive.spawn("w", "ok").await;
    let worker = hive.worker_in("w", "idle").await;
    let say = async |line: &str| {
        let url = format!("{}/say", text(&worker, "url"));
        let client = reqwest::Client::new();
        client.post(url).body(line.to_owned()).send().await.unwrap();
    };
    let tail = async |query: &str| {
        let answer = hive
            .request("GET", &format!("/v1/logs{query}"))
            .send()
            .await
            .unwrap();
        assert_eq!(answer.headers()["content-type"], "text/event-stream");
        answer.text().await.unwrap()
    };
    say("first\nsecond").await;
    until("both lines are there", async || {
        (tail("?worker_id=w&tail=2").await == "data: first\n\ndata: second\n\n").then_some(())
    })
    .await;
    let all = tail("").await;
    assert!(all.contains("data: w: first\n\n"), "{all}");
    assert!(
        all.contains("data: hive: ") && all.contains("worker ready"),
        "{all}"
    );

    let mut followed = hive.request("GET", "/v1/logs?follow=true&worker_id=w&tail=1");
    followed = followed.timeout(crate::support::DEADLINE);
    let mut followed = followed.send().await.unwrap();
    assert_eq!(followed.chunk().await.unwrap().unwrap(), "data: second\n\n");
    say("third").await;
    assert_eq!(followed.chunk().await.unwrap().unwrap(), "data: third\n\n");
    hive.post("/v1/workers/shutdown", &json!({"worker_id": "w"}))
        .await;
    while let Some(rest) = followed.chunk().await.unwrap() {
        assert!(!rest.starts_with(b"data"), "{rest:?}");
    }
    hive.worker_gone("w").await;
    let log = home.path(&format!("state/{}/logs/w.log", hive.port));
    assert!(
        std::fs::read_to_string(log).unwrap().contains("third"),
        "the file stays"
    );
}
