//! Each engine has a key, which only this hive and its queen know.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use crate::support::{Home, next, pid, queen, status, text, until};

#[tokio::test]
async fn each_worker_has_a_key_of_its_own_that_outlives_its_hive() {
    let (url, mut callbacks) = queen().await;
    let home = Home::new().env("QUEEN_CALLBACK_URL", url);
    let hive = home.start().await;
    let port = hive.port;
    let told = hive.spawn("w", "ok").await;
    let worker = hive.worker_in("w", "idle").await;
    let key = text(&worker, "api_key");
    assert_eq!(
        (
            text(&told, "api_key"),
            next(&mut callbacks).await.2["api_key"].as_str()
        ),
        (key, Some(key))
    );
    hive.spawn("other", "ok").await;
    let other = hive.worker_in("other", "idle").await;
    let other = text(&other, "api_key");
    assert_ne!(key, other);
    for (shown, expected) in [(None, 401), (Some(other), 401), (Some(key), 200)] {
        assert_eq!(status(&worker, "/", shown).await, expected, "{shown:?}");
    }

    let record = home.path(&format!("state/{port}/workers/w.json"));
    // As a hive of another time may have left it.
    let leftover = record.with_extension("new");
    fs::write(&leftover, "").unwrap();
    fs::set_permissions(&leftover, fs::Permissions::from_mode(0o644)).unwrap();
    hive.kill_dash_nine().await;
    let hive = home.start_on(port).await;
    assert_eq!(hive.worker_in("w", "idle").await, worker);
    until("it is written down for its user alone", async || {
        let (meta, text) = (
            fs::metadata(&record).ok()?,
            fs::read_to_string(&record).ok()?,
        );
        let is_private = meta.permissions().mode() & 0o777 == 0o600;
        (is_private && !leftover.exists() && text.contains(key)).then_some(())
    })
    .await;
}

#[tokio::test]
async fn no_list_of_processes_and_no_log_has_the_key() {
    let home = Home::new();
    let hive = home.start().await;
    hive.spawn("w", "ok").await;
    let worker = hive.worker_in("w", "idle").await;
    let key = text(&worker, "api_key");
    let command = fs::read(format!("/proc/{}/cmdline", pid(&worker))).unwrap();
    assert!(!String::from_utf8_lossy(&command).contains(key));
    let logs = until("the engine has printed its key", async || {
        let logs = hive.request("GET", "/v1/logs").send().await.ok()?;
        let logs = logs.text().await.ok()?;
        logs.contains("stub: key ").then_some(logs)
    })
    .await;
    assert!(logs.contains("stub: key … end"), "{logs}");
    assert!(!logs.contains(key), "{logs}");
    let log = home.path(&format!("state/{}/logs/w.log", hive.port));
    let mode = fs::metadata(log).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode, 0o600);
}

#[tokio::test]
async fn an_engine_that_is_started_again_has_another_key() {
    let home = Home::new();
    home.model("taken.stub", "port-taken");
    let hive = home.start().await;
    let told = hive.spawn("w", "taken").await;
    let worker = hive.worker_in("w", "idle").await;
    assert_ne!(told["url"], worker["url"]);
    assert_ne!(told["api_key"], worker["api_key"]);
    let key = text(&worker, "api_key");
    assert_eq!(status(&worker, "/", Some(key)).await, 200);
}

#[tokio::test]
async fn an_engine_that_takes_no_key_is_open() {
    let home = Home::new();
    home.configure_engine("stop_grace_secs = 5", "api_key = false");
    let hive = home.start().await;
    let told = hive.spawn("w", "ok").await;
    let worker = hive.worker_in("w", "idle").await;
    assert_eq!((told.get("api_key"), worker.get("api_key")), (None, None));
    assert_eq!(status(&worker, "/", None).await, 200);
}
