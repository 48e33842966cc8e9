//! SIGHUP without a terminal: the configuration is read again.

use rustix::process::Signal;
use serde_json::json;

use crate::support::{Hive, Home, until};

/// How often the hive has said this.
async fn said(hive: &Hive, words: &str) -> Option<usize> {
    let logs = hive.request("GET", "/v1/logs").send().await.ok()?;
    Some(logs.text().await.ok()?.matches(words).count())
}

/// Hangs up, and waits until the hive has said this once more.
async fn hang_up(hive: &Hive, words: &str) {
    let before = said(hive, words).await;
    hive.signal(Signal::HUP);
    until(words, async || {
        (said(hive, words).await > before).then_some(())
    })
    .await;
}

async fn spawn_status(hive: &Hive, model: &str, args: &[&str]) -> u16 {
    let body = json!({"model_ref": model, "worker_id": model, "args": args});
    hive.post("/v1/workers/spawn", &body).await.0.as_u16()
}

#[tokio::test]
async fn what_begins_from_then_on_follows_it_and_what_runs_stays_as_it_is() {
    let home = Home::new();
    home.model("m.other", "ok");
    let hive = home.start().await;
    hive.spawn("old", "ok").await;
    let old = hive.worker_in("old", "idle").await;
    assert_eq!(old["slots_total"], 4);
    assert_eq!(spawn_status(&hive, "m", &[]).await, 404);
    assert_eq!(spawn_status(&hive, "ok", &["--more"]).await, 403);

    home.configure_engine(
        "slots = 2\n[aliases]\nanother-name = \"file:ok.stub\"",
        "allowed_args = [\"--more\"]",
    );
    let text = std::fs::read_to_string(home.path("hive.toml")).unwrap();
    let text = text.replace("[\"stub\"]", "[\"stub\", \"other\"]");
    std::fs::write(home.path("hive.toml"), text).unwrap();
    hang_up(&hive, "from now on: aliases, engines, slots").await;
    assert_eq!(spawn_status(&hive, "another-name", &["--more"]).await, 200);
    assert_eq!(spawn_status(&hive, "m", &[]).await, 200);
    let new = hive.worker_in("m", "idle").await;
    assert_eq!(new["slots_total"], 2);
    assert_eq!(hive.worker("old").await.unwrap(), old);
}

#[tokio::test]
async fn a_file_that_is_wrong_changes_nothing() {
    let home = Home::new();
    home.configure("slots = 3");
    let hive = home.start().await;
    for wrong in [
        "slots = 0",
        "slot = 1",
        "slots = 1\n[engines.broken]\ncommand = [\"{oops}\"]\nextensions = []",
        "slots = 1\n[aliases]\nbad = \"file:../x\"",
    ] {
        home.configure(wrong);
        hang_up(&hive, "nothing is changed").await;
    }
    std::fs::remove_file(home.path("hive.toml")).unwrap();
    hang_up(&hive, "can't read the configuration file").await;
    hive.spawn("w", "ok").await;
    assert_eq!(hive.worker_in("w", "idle").await["slots_total"], 3);
}

#[tokio::test]
async fn what_takes_a_restart_is_told() {
    let home = Home::new();
    home.configure("slots = 3");
    let hive = home.start().await;
    home.configure("slots = 3\nhead_timeout_secs = 7");
    hang_up(&hive, "only by a restart of the hive: head_timeout_secs").await;
    home.configure("slots = 3");
    hang_up(&hive, "nothing new is taken in").await;
}
