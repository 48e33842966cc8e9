//! A request for a model that no hive has: a hive fetches it, and the request is served.

use rbee_tests::harness::events::assert_task_completed;
use rbee_tests::harness::{EventStream, Home, Hub, Launch, OldHive, Queen, assert_error, until};
use serde_json::{Value, json};
use std::fs;
use std::thread;
use std::time::Duration;

const SECOND: Duration = Duration::from_secs(1);
const REF: &str = "hf:org/repo/m.stub";

/// A queen with a hive that fetches from this hub.
fn queen_with<'h>(home: &'h Home, hub: &Hub) -> Launch<'h> {
    home.queen()
        .env("HF_ENDPOINT", hub.url())
        .env("HF_HOME", &home.path().join("hf").to_string_lossy())
        .env("HF_TOKEN", "")
}

/// A behaviour file for the stub engine, long enough to come in two halves.
fn content() -> Vec<u8> {
    format!("# {}\n", "x".repeat(200_000)).into_bytes()
}

fn task(model: &str) -> Value {
    json!({"model": model, "prompt": "x", "max_tokens": 3})
}

/// Reads on until the download is told of with a percentage.
fn until_it_comes(stream: &mut EventStream) -> Value {
    loop {
        let event = stream.json();
        let told = event["human"].as_str().unwrap_or_default();
        if event["action"] == "provision" && told.ends_with(" %") {
            return event;
        }
        assert_ne!(event["type"], "error", "{event}");
    }
}

fn is_there(queen: &Queen, model_ref: &str) -> bool {
    let list = queen.look("/v2/models/list").json();
    let models = list["models"].as_array().cloned().unwrap_or_default();
    let there = |model: &Value| model["model_ref"] == model_ref && model["state"] != "downloading";
    models.iter().any(there)
}

fn wait_for(queen: &Queen, model_ref: &str) {
    let there = until(20 * SECOND, || is_there(queen, model_ref).then_some(()));
    assert!(there.is_some(), "{model_ref} did not come\n{}", queen.log());
}

#[test]
fn a_request_for_an_absent_model_tells_of_the_download_and_is_served() {
    let (home, hub) = (Home::new(), Hub::with("m.stub", &content()));
    let queen = queen_with(&home, &hub).start();
    let mut asked = queen
        .stream("/v2/tasks", &task("org/repo/m.stub"))
        .expect("an answer");
    let told = until_it_comes(&mut asked);
    // What is on its way is no model that OpenAI's clients could choose yet.
    let listed = queen.look("/v1/models").json();
    assert_eq!(listed["data"], json!([]));
    let listed = queen.look("/v2/models/list").json();
    assert_eq!(listed["models"][0]["state"], "downloading", "{listed}");
    assert_eq!(
        (&told["actor"], &told["target"]),
        (&json!("queen"), &json!("localhost"))
    );
    hub.open();
    let events = asked.rest();
    let kinds: Vec<&str> = events.iter().filter_map(|e| e["type"].as_str()).collect();
    assert_eq!(kinds.last(), Some(&"end"), "{events:#?}");
    let started = events.iter().find(|event| event["type"] == "started");
    assert_eq!(started.expect("it ran")["model"], REF);
    assert_eq!(kinds.iter().filter(|kind| **kind == "token").count(), 3);
    // The full name and OpenAI's endpoint find the same now.
    let chat = json!({"model": "hf:org/repo/m.stub", "max_tokens": 2,
                      "messages": [{"role": "user", "content": "x"}]});
    let reply = queen.ask("/v1/chat/completions", &chat);
    assert_eq!(reply.status, 200, "{}", reply.text);
    assert_eq!(hub.downloads(), 1);
}

#[test]
fn a_hundred_requests_at_once_cause_one_download() {
    let (home, hub) = (Home::new(), Hub::with("m.stub", &content()));
    let queen = queen_with(&home, &hub).start();
    let opener = until_begun(&queen, &hub);
    thread::scope(|scope| {
        let ask = |at: usize| {
            let mut task = task(["org/repo/m.stub", "hf:org/repo/m.stub"][at % 2]);
            task["stream"] = json!(false);
            queen.ask("/v2/tasks", &task)
        };
        let asked: Vec<_> = (0..100).map(|at| scope.spawn(move || ask(at))).collect();
        let waiting = until(20 * SECOND, || {
            let tasks = queen.look("/v2/tasks?state=queued&limit=500").json();
            (tasks["tasks"].as_array().map_or(0, Vec::len) > 50).then_some(())
        });
        hub.open();
        assert!(waiting.is_some(), "they wait together");
        for reply in asked {
            let reply = reply.join().expect("no panic");
            assert_eq!(reply.status, 200, "{}", reply.text);
        }
    });
    assert_eq!(hub.downloads(), 1);
    assert_eq!(queen.workers().len(), 1);
    drop(opener);
}

/// A request that began a download.
fn until_begun(queen: &Queen, hub: &Hub) -> EventStream {
    let mut asked = queen
        .stream("/v2/tasks", &task("org/repo/m.stub"))
        .expect("an answer");
    until_it_comes(&mut asked);
    let begun = until(10 * SECOND, || (hub.downloads() == 1).then_some(()));
    assert!(begun.is_some(), "half of it came");
    asked
}

#[test]
fn a_name_that_the_hub_does_not_have_is_not_found_as_a_status() {
    let (home, hub) = (Home::new(), Hub::with("m.stub", &content()));
    home.add_model("here.stub", "");
    let queen = queen_with(&home, &hub).start();
    for model in ["org/other", "hf:org/repo/none.gguf"] {
        for path in ["/v1/chat/completions", "/v2/tasks"] {
            let asked = json!({"model": model, "stream": path == "/v1/chat/completions",
                               "messages": [{"role": "user", "content": "x"}]});
            let reply = queen.ask(path, &asked);
            assert_error(
                &reply,
                404,
                "MODEL_NOT_FOUND",
                &[model, "the hub has no", "here"],
            );
        }
    }
    let bare = queen.ask(
        "/v2/tasks",
        &json!({"model": "none", "prompt": "x", "stream": false}),
    );
    assert_error(&bare, 404, "MODEL_NOT_FOUND", &["none", "here"]);
}

#[test]
fn a_file_of_the_main_branch_is_found_however_it_is_written() {
    let (home, hub) = (Home::new(), Hub::with("m.stub", &content()));
    hub.open();
    let queen = queen_with(&home, &hub).start();
    for model in [
        "hf:org/repo@main::file=m.stub",
        "org/repo::file=m.stub",
        "org/repo@main/m.stub",
    ] {
        let whole = json!({"model": model, "prompt": "x", "max_tokens": 2, "stream": false});
        let reply = queen.ask("/v2/tasks", &whole);
        assert_eq!(reply.status, 200, "{model}: {}", reply.text);
    }
    assert_eq!(hub.downloads(), 1);
    assert_eq!(queen.workers().len(), 1);
}

#[test]
fn what_the_hub_refuses_is_told_with_its_reason_and_remembered() {
    for (status, code, http, words) in [
        (401, "MODEL_NOT_FOUND", 404, "HF_TOKEN"),
        (403, "DOWNLOAD_FAILED", 502, "HF_TOKEN"),
        (500, "DOWNLOAD_FAILED", 502, "500"),
    ] {
        let (home, hub) = (Home::new(), Hub::with("m.stub", &content()));
        hub.refuse(Some(status));
        let queen = queen_with(&home, &hub)
            .config("hives.retry_after = \"2s\"")
            .start();
        let asked = json!({"model": "org/repo/m.stub", "prompt": "x", "stream": false});
        for _ in 0..2 {
            let reply = queen.ask("/v2/tasks", &asked);
            assert_error(&reply, http, code, &["hf:org/repo/m.stub", words]);
        }
        let log = queen.log();
        assert_eq!(log.matches("a download failed").count(), 1, "{log}");
        hub.refuse(None);
        hub.open();
        let served = until(20 * SECOND, || {
            (queen.ask("/v2/tasks", &asked).status == 200).then_some(())
        });
        assert!(served.is_some(), "it is tried again: {}", queen.log());
    }
}

#[test]
fn a_wrong_checksum_is_told_and_nothing_is_left_of_the_file() {
    let (home, hub) = (Home::new(), Hub::with("m.stub", &content()));
    hub.open();
    hub.lie();
    let queen = queen_with(&home, &hub).start();
    let reply = queen.ask(
        "/v2/tasks",
        &json!({"model": "org/repo/m.stub", "prompt": "x", "stream": false}),
    );
    assert_error(&reply, 502, "DOWNLOAD_FAILED", &["wrong checksum"]);
    assert!(!is_there(&queen, REF));
}

#[test]
fn a_download_that_was_cut_goes_on_where_it_stopped() {
    let (home, hub) = (Home::new(), Hub::with("m.stub", &content()));
    hub.cut_at(Some(50_000));
    let queen = queen_with(&home, &hub)
        .config("hives.retry_after = \"100ms\"")
        .start();
    let asked = json!({"model": "org/repo/m.stub", "prompt": "x", "stream": false});
    let reply = queen.ask("/v2/tasks", &asked);
    assert_error(
        &reply,
        502,
        "DOWNLOAD_FAILED",
        &["goes on where it stopped"],
    );
    hub.cut_at(None);
    hub.open();
    let served = until(20 * SECOND, || {
        (queen.ask("/v2/tasks", &asked).status == 200).then_some(())
    });
    assert!(served.is_some(), "{}", queen.log());
    let begins = hub.begins();
    assert!(begins.last().is_some_and(|from| *from > 0), "{begins:?}");
}

#[test]
fn a_download_goes_on_when_nobody_waits_and_when_the_queen_dies() {
    let (home, hub) = (Home::new(), Hub::with("m.stub", &content()));
    let queen = queen_with(&home, &hub).start();
    drop(until_begun(&queen, &hub));
    let gone = until(10 * SECOND, || {
        let tasks = queen.look("/v2/tasks?state=cancelled").json();
        tasks["tasks"]
            .as_array()
            .is_some_and(|t| !t.is_empty())
            .then_some(())
    });
    assert!(gone.is_some(), "the request ended with its client");
    queen.kill();
    let queen = queen_with(&home, &hub).start();
    let mut asked = queen
        .stream("/v2/tasks", &task("org/repo/m.stub"))
        .expect("an answer");
    until_it_comes(&mut asked);
    hub.open();
    let events = asked.rest();
    assert_eq!(
        events.last().map(|e| &e["type"]),
        Some(&json!("end")),
        "{events:#?}"
    );
    assert_eq!(hub.downloads(), 1, "it is the same download");
    wait_for(&queen, REF);
}

#[test]
fn who_waits_too_short_is_told_that_the_download_goes_on() {
    let (home, hub) = (Home::new(), Hub::with("m.stub", &content()));
    let queen = queen_with(&home, &hub).start();
    drop(until_begun(&queen, &hub));
    let mut asked = task("org/repo/m.stub");
    (asked["stream"], asked["queue_timeout_ms"]) = (json!(false), json!(300));
    let reply = queen.ask("/v2/tasks", &asked);
    assert_error(&reply, 503, "MODEL_LOADING", &["goes on", "%"]);
    hub.open();
    wait_for(&queen, REF);
    assert!(queen.workers().is_empty(), "nobody waits for it any more");
}

#[test]
fn without_auto_download_only_an_administrator_brings_models() {
    let (home, hub) = (Home::new(), Hub::with("m.stub", &content()));
    hub.open();
    let queen = queen_with(&home, &hub)
        .config("hives.auto_download = false")
        .start();
    let asked = json!({"model": "org/repo/m.stub", "prompt": "x", "stream": false});
    let reply = queen.ask("/v2/tasks", &asked);
    assert_error(
        &reply,
        404,
        "MODEL_NOT_FOUND",
        &["POST /v2/models/download"],
    );
    assert_eq!(
        queen
            .ask("/v2/models/download", &json!({"model": "org/repo/m.stub"}))
            .status,
        200
    );
    wait_for(&queen, REF);
    assert_eq!(queen.ask("/v2/tasks", &asked).status, 200);
}

#[test]
fn the_real_engine_answers_with_a_model_that_came_for_the_request() {
    let Some(model) = std::env::var_os("RBEE_TEST_MODEL") else {
        panic!("RBEE_TEST_MODEL is not set: run `make test`");
    };
    let model = fs::read(model).expect("the model is there");
    let (home, hub) = (Home::new(), Hub::with("smollm2-Q4_1.gguf", &model));
    hub.open();
    home.without_hive_config();
    let queen = queen_with(&home, &hub).start();
    let asked = json!({"model": "org/repo", "temperature": 0, "max_tokens": 16, "messages": [
        {"role": "system", "content": "You are a helpful assistant."},
        {"role": "user", "content": "What is the capital of France?"}]});
    let reply = queen.ask("/v1/chat/completions", &asked);
    assert_eq!(reply.status, 200, "{}", reply.text);
    assert!(reply.text.contains("Paris"), "{}", reply.text);
}

#[test]
fn an_old_hive_fetches_the_model_and_is_told_its_file() {
    let home = Home::new();
    let stub = home.stub(&["--protocol", "rbee"]);
    let hive = OldHive::start(stub.url());
    let queen = home.queen().config("hives.local = false").start();
    let added = queen.ask("/v2/registry/beehives/add", &hive.registration());
    assert_eq!(added.status, 200, "{}", added.text);
    let asked = queen
        .stream("/v2/tasks", &task("org/repo"))
        .expect("an answer");
    let events = asked.rest();
    assert_task_completed(&events);
    let fetched = hive.calls("/v1/models/download");
    assert_eq!(fetched, [json!({"model_ref": "hf:org/repo"})]);
    let spawns = hive.calls("/v1/workers/spawn");
    assert_eq!(spawns.len(), 1, "{spawns:?}");
    assert_eq!(spawns[0]["model_path"], "/old/models/m.gguf");
    // The second finds the worker.
    let again = json!({"model": "hf:org/repo", "prompt": "x", "stream": false});
    assert_eq!(queen.ask("/v2/tasks", &again).status, 200);
    assert_eq!(hive.calls("/v1/workers/spawn").len(), 1);
}

#[test]
fn a_file_of_a_web_server_comes_for_a_request_too() {
    let (home, hub) = (Home::new(), Hub::with("m.stub", &content()));
    hub.open();
    let queen = queen_with(&home, &hub)
        .env("RBEE_HIVE_PLAIN_LOOPBACK", "1")
        .start();
    let address = hub.url().replace("http:", "https:");
    let model = format!("{address}/org/repo/resolve/main/m.stub");
    let asked = json!({"model": model, "prompt": "x", "stream": false});
    let reply = queen.ask("/v2/tasks", &asked);
    assert_eq!(reply.status, 200, "{}", reply.text);
    assert!(is_there(&queen, &model));
    let missing = json!({"model": format!("{address}/none.stub"), "prompt": "x", "stream": false});
    assert_error(
        &queen.ask("/v2/tasks", &missing),
        404,
        "MODEL_NOT_FOUND",
        &["none.stub"],
    );
}
