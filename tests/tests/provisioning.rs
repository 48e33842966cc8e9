//! Models that come to hives and go, their logs, and which hives are listed.

use rbee_tests::harness::{Event, Home, Hub, Launch, Queen, assert_error, until};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader};
use std::time::Duration;

const SECOND: Duration = Duration::from_secs(1);

/// A queen with a hive that fetches from this hub; its one file is a model for the stub engine.
fn queen_with<'h>(home: &'h Home, hub: &Hub) -> Launch<'h> {
    home.queen()
        .env("HF_ENDPOINT", hub.url())
        .env("HF_HOME", &home.path().join("hf").to_string_lossy())
}

fn models(queen: &Queen) -> Vec<Value> {
    let list = queen.look("/v2/models/list").json();
    list["models"].as_array().cloned().unwrap_or_default()
}

fn state_of(queen: &Queen, model_ref: &str) -> Option<Value> {
    let models = models(queen).into_iter();
    let mut of_model = models.filter(|model| model["model_ref"] == model_ref);
    of_model.next().map(|model| model["state"].clone())
}

/// A behaviour file for the stub engine, long enough to come in two halves.
fn content() -> Vec<u8> {
    format!("# {}\n", "x".repeat(200_000)).into_bytes()
}

#[test]
fn a_model_comes_once_for_all_who_ask_and_serves_at_once() {
    let (home, hub) = (Home::new(), Hub::with("m.stub", &content()));
    let queen = queen_with(&home, &hub).start();
    let asked = json!({"model": "org/repo/m.stub"});
    let mut first = queen
        .stream("/v2/models/download", &asked)
        .expect("an answer");
    assert_eq!(first.status, 200);
    let told = first.json();
    assert_eq!(
        (&told["type"], &told["action"], &told["node"]),
        (
            &json!("narration"),
            &json!("provision"),
            &json!("localhost")
        )
    );
    let reference = "hf:org/repo/m.stub";
    assert_eq!(state_of(&queen, reference), Some(json!("downloading")));

    let later = queen.header("prefer", "respond-async");
    let later = later.send("POST", "/v2/models/download", asked.to_string().as_bytes());
    let later = later.expect("an answer");
    assert_eq!(
        (later.status, &later.json()["status"]),
        (202, &json!("downloading"))
    );

    hub.open();
    let mut events = vec![told];
    while let Some(event) = first.next() {
        match event {
            Event::Json(event) => events.push(event),
            Event::Comment(_) => {}
            Event::Done => break,
        }
    }
    let last = events.last().expect("there was one");
    assert_eq!(
        (&last["type"], &last["model"]),
        (&json!("complete"), &json!(reference)),
        "{events:#?}"
    );
    assert!(first.next().is_none(), "nothing comes after the end");
    assert_eq!(hub.downloads(), 1);
    assert_eq!(state_of(&queen, reference), Some(json!("available")));
    let task = json!({"model": "org/repo", "prompt": "x", "max_tokens": 2, "stream": false});
    let answer = queen.ask("/v2/tasks", &task);
    assert_eq!(answer.status, 200, "{}", answer.text);

    let remove = json!({"model": "org/repo"});
    assert_error(
        &queen.ask("/v2/models/remove", &remove),
        409,
        "CONFLICT",
        &["worker"],
    );
    let workers = queen.workers();
    queen.ask(
        "/v2/workers/shutdown",
        &json!({"worker_id": workers[0]["worker_id"]}),
    );
    let removed = until(10 * SECOND, || {
        let reply = queen.ask("/v2/models/remove", &remove);
        (reply.status == 200).then_some(())
    });
    assert!(removed.is_some());
    assert_eq!(state_of(&queen, reference), None);
}

#[test]
fn a_download_ends_with_its_hive_and_all_who_wait_are_told() {
    let (home, hub) = (Home::new(), Hub::with("m.stub", &content()));
    let queen = queen_with(&home, &hub).start();
    let asked = json!({"model": "org/repo/m.stub", "prompt": "x"});
    let mut waits = queen.stream("/v2/tasks", &asked).expect("an answer");
    waits.until_type("narration");
    let begun = until(10 * SECOND, || (hub.downloads() == 1).then_some(()));
    assert!(begun.is_some(), "half of it came");
    let mut follows = queen
        .stream("/v2/models/download", &asked)
        .expect("an answer");
    let removed = queen.ask(
        "/v2/registry/beehives/remove",
        &json!({"node_name": "localhost"}),
    );
    assert_eq!(removed.status, 200, "{}", removed.text);
    let error = waits.until_type("error");
    assert_eq!(error["code"], "MODEL_NOT_FOUND", "{error}");
    let error = follows.until_type("error");
    assert_eq!(error["code"], "HIVE_UNREACHABLE", "{error}");
    let why = error["message"].as_str().unwrap_or_default();
    assert!(why.contains("was removed"), "{error}");
    assert!(models(&queen).is_empty());
}

#[test]
fn what_can_not_be_had_is_refused_and_remembered_for_a_moment() {
    let (home, hub) = (Home::new(), Hub::with("m.gguf", &content()));
    let queen = queen_with(&home, &hub).start();
    let asked = json!({"model": "org/repo/none.gguf"});
    for _ in 0..2 {
        let reply = queen.ask("/v2/models/download", &asked);
        assert_error(&reply, 404, "MODEL_NOT_FOUND", &["none.gguf"]);
    }
    let queen_log = queen.log();
    assert_eq!(
        queen_log.matches("a download failed").count(),
        1,
        "{queen_log}"
    );
}

#[test]
fn a_download_that_stands_still_is_given_up() {
    let (home, hub) = (Home::new(), Hub::with("m.gguf", &content()));
    let queen = queen_with(&home, &hub)
        .config("timeouts.download_stall = \"1s\"")
        .start();
    let asked = json!({"model": "org/repo"});
    let mut events = queen
        .stream("/v2/models/download", &asked)
        .expect("an answer");
    let last = loop {
        let event = events.json();
        if event["type"] != "narration" {
            break event;
        }
    };
    assert_eq!(
        (&last["type"], &last["code"]),
        (&json!("error"), &json!("TIMEOUT"))
    );
    assert_eq!(events.next(), Some(Event::Done));
}

#[test]
fn a_hives_log_is_followed_and_read_from_its_file_when_it_hangs() {
    let home = Home::new();
    home.add_model("m.stub", "");
    let queen = home.queen().config("timeouts.hive_call = \"1s\"").start();
    let task = json!({"model": "m", "prompt": "x", "max_tokens": 2, "stream": false});
    assert_eq!(queen.ask("/v2/tasks", &task).status, 200);
    let all = queen.look("/v2/logs?node=localhost&tail=50");
    assert_eq!(all.header("content-type"), "text/event-stream");
    assert!(all.text.contains("data: hive: "), "{}", all.text);
    let few = queen.look("/v2/logs?tail=1");
    assert_eq!(few.text.matches("data: ").count(), 1, "{}", few.text);
    let unknown = queen.look("/v2/logs?worker_id=none");
    assert_error(&unknown, 404, "WORKER_NOT_FOUND", &["none"]);

    let followed = queen.open("GET", "/v2/logs?follow=true&tail=1", b"");
    let body = followed.expect("an answer").into_body().into_reader();
    let mut lines = BufReader::new(body).lines();
    let mut next = || loop {
        let line = lines.next().expect("it goes on").expect("it is whole");
        if let Some(line) = line.strip_prefix("data: ") {
            return line.to_owned();
        }
    };
    next();
    let worker = queen.workers()[0]["worker_id"].clone();
    queen.ask("/v2/workers/shutdown", &json!({ "worker_id": worker }));
    while !next().contains("stopped") {}

    let mut running = home.processes().into_iter();
    let hive = running.find(|process| process.command.contains("rbee-hive"));
    let hive = hive.expect("the hive runs").pid;
    let hive = Pid::from_raw(i32::try_from(hive).expect("a pid")).expect("a pid");
    kill_process(hive, Signal::STOP).expect("it is ours");
    let from_file = queen.look("/v2/logs?node=localhost&follow=true");
    kill_process(hive, Signal::CONT).expect("it is ours");
    assert!(
        from_file.text.starts_with(": from the hive's log file"),
        "{}",
        from_file.text
    );
    assert!(
        from_file.text.contains("worker ready"),
        "{}",
        from_file.text
    );
}

#[test]
fn hives_are_listed_by_what_they_are_and_have() {
    let home = Home::new();
    home.add_model("m.stub", "");
    let queen = home.queen().start();
    let far = json!({"node_name": "far", "hostname": "192.0.2.1", "port": 9, "mode": "network",
                     "backends": ["cuda"], "labels": {"rack": "7", "spare": ""}});
    assert_eq!(queen.ask("/v2/registry/beehives/add", &far).status, 200);
    assert!(!models(&queen).is_empty(), "the local hive has reported");
    let listed = |query: &str| {
        let list = queen
            .look(&format!("/v2/registry/beehives/list?{query}"))
            .json();
        let nodes = list["nodes"].as_array().cloned().unwrap_or_default();
        let names = nodes
            .iter()
            .map(|node| node["node_name"].as_str().unwrap_or("").to_owned());
        names.collect::<Vec<_>>().join(" ")
    };
    for (query, names) in [
        ("", "far localhost"),
        ("status=online", "localhost"),
        ("backend=cpu", "localhost"),
        ("backend=cuda", "far"),
        ("gpu=true", ""),
        ("gpu=false", "far localhost"),
        ("gpu=rtx", ""),
        ("min_vram_bytes=1", "localhost"),
        ("min_vram_bytes=9000000000000000", ""),
        ("model=m", "localhost"),
        ("model=org/none", ""),
        ("label=rack", "far"),
        ("label=rack=7&label=spare", "far"),
        ("label=rack=8", ""),
        ("backend=cpu&label=rack", ""),
    ] {
        assert_eq!(listed(query), names, "{query}");
    }
}
