//! A hive's disk is short of room: models go that can come again, and no others.

use rbee_tests::harness::{Home, Hub, Launch, Queen, SmallDisk, assert_error, until};
use rustix::process::Signal;
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::symlink;
use std::time::Duration;

const SECOND: Duration = Duration::from_secs(1);
const MIB: usize = 1 << 20;

/// A home whose models are on a disk of 8 MiB, of which one is to stay free. `None` where the system
/// does not let us make one.
fn home() -> Option<(Home, SmallDisk)> {
    let home = Home::new();
    let disk = SmallDisk::mount(&home.path().join("disk"), 8)?;
    let config = home.path().join("hive.toml");
    let text = fs::read_to_string(&config).expect("the folder is ours");
    fs::write(&config, format!("keep_free_mib = 1\n{text}")).expect("the folder is ours");
    Some((home, disk))
}

/// Three models of 3 MiB: two fit.
fn hub() -> Hub {
    let content = format!("# {}\n", "x".repeat(3 * MIB)).into_bytes();
    let names = ["a.stub", "b.stub", "c.stub"];
    let hub = Hub::with_files(&names.map(|name| (name, content.as_slice())));
    hub.open();
    hub
}

fn queen_with<'h>(home: &'h Home, hub: &Hub, disk: &SmallDisk) -> Launch<'h> {
    home.queen()
        .env("HF_ENDPOINT", hub.url())
        .env("HF_HOME", &home.path().join("hf").to_string_lossy())
        .env("RBEE_HIVE_MODELS", &disk.path().to_string_lossy())
        .config("hives.retry_after = \"100ms\"")
}

fn task(model: &str) -> Value {
    json!({"model": format!("org/repo/{model}.stub"), "prompt": "x", "max_tokens": 1,
           "stream": false})
}

/// Runs a request with each, and ends its worker.
fn run(queen: &Queen, models: &[&str]) {
    for model in models {
        let reply = queen.ask("/v2/tasks", &task(model));
        assert_eq!(reply.status, 200, "{model}: {}", reply.text);
        for worker in queen.workers() {
            let stop = json!({"worker_id": worker["worker_id"]});
            queen.ask("/v2/workers/shutdown", &stop);
        }
        let idle = until(10 * SECOND, || queen.workers().is_empty().then_some(()));
        assert!(idle.is_some(), "its worker ends");
    }
}

fn listed(queen: &Queen) -> Vec<String> {
    let list = queen.look("/v2/models/list").json();
    let models = list["models"].as_array().cloned().unwrap_or_default();
    let names = models
        .iter()
        .filter_map(|model| model["model_ref"].as_str());
    let names = names.filter_map(|name| name.strip_prefix("hf:org/repo/"));
    let mut names: Vec<String> = names.map(str::to_owned).collect();
    names.sort_unstable();
    names
}

#[test]
fn the_least_recently_used_model_makes_room_even_after_a_restart() {
    let Some((home, disk)) = home() else { return };
    let hub = hub();
    let queen = queen_with(&home, &hub, &disk).start();
    run(&queen, &["a", "b", "a"]);
    queen.stop(Signal::TERM);
    let queen = queen_with(&home, &hub, &disk).start();
    run(&queen, &["c"]);
    assert_eq!(listed(&queen), ["a.stub", "c.stub"]);
    // An administrator's download makes room as well.
    let asked = json!({"model": "org/repo/b.stub"});
    let download = queen.stream("/v2/models/download", &asked);
    let events = download.expect("an answer").rest();
    assert_eq!(
        events.last().map(|e| &e["type"]),
        Some(&json!("complete")),
        "{events:?}"
    );
    assert_eq!(listed(&queen), ["b.stub", "c.stub"]);
}

#[test]
fn a_model_in_a_linked_folder_runs_and_is_never_removed() {
    let Some((home, disk)) = home() else { return };
    let hub = hub();
    let elsewhere = home.path().join("elsewhere");
    fs::create_dir(&elsewhere).expect("the folder is ours");
    let kept = elsewhere.join("a.stub");
    fs::write(&kept, vec![b'#'; 3 * MIB]).expect("there is room");
    let organisation = disk.path().join("hf/org");
    fs::create_dir_all(&organisation).expect("there is room");
    symlink(&elsewhere, organisation.join("linked")).expect("a link");
    let queen = queen_with(&home, &hub, &disk).start();
    let linked = json!({"model": "org/linked/a.stub"});
    let mut first = task("a");
    first["model"] = linked["model"].clone();
    assert_eq!(queen.ask("/v2/tasks", &first).status, 200);
    let worker = json!({"worker_id": queen.workers()[0]["worker_id"]});
    queen.ask("/v2/workers/shutdown", &worker);
    // It was used least recently, and is not what makes room.
    run(&queen, &["a", "b", "c"]);
    assert_eq!(listed(&queen), ["b.stub", "c.stub"]);
    let list = queen.look("/v2/models/list").json();
    let mut models = list["models"].as_array().expect("a list").iter();
    let there = models.find(|model| model["model_ref"] == "hf:org/linked/a.stub");
    assert_eq!(there.map(|model| &model["removable"]), Some(&json!(false)));
    let reply = queen.ask("/v2/models/remove", &linked);
    let said = ["outside of the models folder", "take the link away"];
    assert_error(&reply, 409, "CONFLICT", &said);
    assert!(kept.exists());
}

#[test]
fn a_model_that_is_pinned_in_use_or_somebodys_own_stays() {
    let Some((home, disk)) = home() else { return };
    let hub = hub();
    let queen = queen_with(&home, &hub, &disk)
        .config("hives.pinned_models = [\"org/repo/a.stub\"]")
        .start();
    run(&queen, &["a"]);
    // It goes on running.
    assert_eq!(queen.ask("/v2/tasks", &task("b")).status, 200);
    fs::write(disk.path().join("own.stub"), vec![b'#'; MIB / 2]).expect("there is room");
    let reply = queen.ask("/v2/tasks", &task("c"));
    let said = ["a.stub is pinned", "b.stub is in use", "MiB are missing"];
    assert_error(&reply, 507, "INSUFFICIENT_DISK", &said);
    assert_eq!(listed(&queen), ["a.stub", "b.stub"]);
    assert!(disk.path().join("own.stub").exists());
    run(&queen, &["b"]);
    let served = until(10 * SECOND, || {
        (queen.ask("/v2/tasks", &task("c")).status == 200).then_some(())
    });
    assert!(served.is_some(), "{}", queen.log());
    assert_eq!(listed(&queen), ["a.stub", "c.stub"]);
}

#[test]
fn a_disk_that_fills_up_during_a_download_is_told_and_the_rest_comes_later() {
    let Some((home, disk)) = home() else { return };
    let content = format!("# {}\n", "x".repeat(3 * MIB)).into_bytes();
    let hub = Hub::with("a.stub", &content);
    let queen = queen_with(&home, &hub, &disk).start();
    let mut asked = task("a");
    asked["stream"] = json!(true);
    let stream = queen.stream("/v2/tasks", &asked).expect("an answer");
    let begun = until(10 * SECOND, || (hub.downloads() > 0).then_some(()));
    assert!(begun.is_some(), "it comes");
    disk.fill();
    hub.open();
    let events = stream.rest();
    let last = events.last().expect("there was one");
    assert_eq!(last["code"], "INSUFFICIENT_DISK", "{events:?}");
    disk.free();
    let served = until(10 * SECOND, || {
        (queen.ask("/v2/tasks", &task("a")).status == 200).then_some(())
    });
    assert!(served.is_some(), "{}", queen.log());
}
