//! The whole way to a real model: queen, hive, llama-server, SmolLM2.
//!
//! `tests/parts.sh --tests` installs the engine, the model and OpenAI's client and writes where
//! they are; `make test` does all of it. What the model says is only asserted on where it is
//! predictable: with the system message below and temperature 0.

use rbee_tests::harness::events::assert_task_completed;
use rbee_tests::harness::{Client, Home, Queen, Shared, assert_error, until};
use rbee_tests::proc;
use rustix::process::Signal;
use serde_json::{Value, json};
use std::env;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::Duration;

const MODEL: &str = "smollm2";
const CHAT: &str = "/v1/chat/completions";

fn part(name: &str) -> PathBuf {
    let value = env::var_os(name).unwrap_or_else(|| {
        panic!("{name} is not set: run `make test`, or `tests/parts.sh --tests` and source .cache/parts.env")
    });
    value.into()
}

/// A home whose models are the real one.
fn home() -> Home {
    let home = Home::new();
    let model = part("RBEE_TEST_MODEL");
    let place = home.models().join(format!("{MODEL}.gguf"));
    std::os::unix::fs::symlink(model, place).expect("the folder is ours");
    // Without any configuration the hive serves it by the llama-server that it finds.
    home.without_hive_config();
    part("RBEE_LLAMA_SERVER");
    home
}

/// One queen for all tests here; her engine has two slots at least.
fn shared() -> Arc<(Queen, Home)> {
    static QUEEN: Shared<(Queen, Home)> = Shared::new();
    QUEEN.get(|| {
        let home = home();
        let queen = home.queen().start();
        (queen, home)
    })
}

fn capital(stream: bool) -> Value {
    json!({
        "model": MODEL, "temperature": 0, "max_tokens": 32, "stream": stream,
        "messages": [{"role": "system", "content": "You are a helpful assistant."},
                     {"role": "user", "content": "What is the capital of France?"}],
    })
}

#[test]
fn a_task_streams_a_story_from_a_cold_start() {
    let shared = shared();
    let task = json!({"model": MODEL, "prompt": "Once upon a time", "max_tokens": 20});
    let stream = shared.0.stream("/v2/tasks", &task).expect("an answer");
    assert_eq!(stream.status, 200);
    let events = stream.rest();
    let text = assert_task_completed(&events);
    assert!(!text.trim().is_empty(), "{events:#?}");
    let end = events.last().expect("an end");
    let tokens = end["tokens_out"].as_u64().unwrap_or_default();
    assert!((1..=20).contains(&tokens), "{end}");
    if tokens == 20 {
        assert_eq!(end["stop_reason"], "MAX_TOKENS", "{end}");
    }
}

#[test]
fn an_unstreamed_task_brings_the_whole_text() {
    let shared = shared();
    let mut task = capital(false);
    let done = shared.0.ask("/v2/tasks", &task);
    assert_eq!(done.status, 200, "{}", done.text);
    assert!(done.text.contains("Paris"), "{}", done.text);
    let done = done.json();
    assert_eq!(done["state"], "complete", "{done}");
    let stop = &done["stop_reason"];
    assert!(stop.is_null() || stop == "EOS", "{done}");
    task["stop"] = json!(["Paris"]);
    let stopped = shared.0.ask("/v2/tasks", &task);
    assert_eq!(stopped.json()["state"], "complete", "{}", stopped.text);
}

#[test]
fn a_chat_answers_whole_and_in_a_stream() {
    let shared = shared();
    let whole = shared.0.ask(CHAT, &capital(false));
    assert_eq!(whole.status, 200, "{}", whole.text);
    let whole = whole.json()["choices"][0]["message"]["content"].clone();
    let whole = whole.as_str().expect("a text").to_owned();
    assert!(whole.contains("Paris"), "{whole}");
    let stream = shared.0.stream(CHAT, &capital(true)).expect("an answer");
    let events = stream.rest();
    let text: String = events
        .iter()
        .filter_map(|e| e["choices"][0]["delta"]["content"].as_str())
        .collect();
    assert_eq!(text, whole);
    assert!(events.len() > 3, "in pieces: {events:#?}");
}

#[test]
fn two_requests_at_once_run_on_two_slots() {
    let shared = shared();
    // The engine is there before the two begin, so that they meet.
    assert_eq!(shared.0.ask(CHAT, &capital(false)).status, 200);
    let workers = shared.0.workers();
    let slots = workers[0]["slots_total"].as_u64().unwrap_or_default();
    assert!(slots >= 2, "{workers:#?}");
    let meet = Barrier::new(2);
    let generate = || {
        let task = json!({"model": MODEL, "prompt": "Count to a hundred: 1, 2, 3,",
                          "max_tokens": 120, "temperature": 0});
        let mut stream = shared.0.stream("/v2/tasks", &task).expect("an answer");
        stream.until_type("token");
        // Neither comes past this before the other has its first token too.
        meet.wait();
        let rest = stream.rest();
        assert_eq!(rest.last().map(|e| e["type"].clone()), Some(json!("end")));
    };
    thread::scope(|scope| {
        let both = [scope.spawn(generate), scope.spawn(generate)];
        for one in both {
            one.join().expect("both are served");
        }
    });
    assert_eq!(shared.0.workers().len(), 1, "one engine serves both");
}

#[test]
fn embeddings_of_like_things_are_alike() {
    let shared = shared();
    let body = json!({"model": MODEL, "input": ["a cat", "a kitten"]});
    let reply = shared.0.ask("/v1/embeddings", &body);
    assert_eq!(reply.status, 200, "{}", reply.text);
    let data = reply.json()["data"].as_array().expect("vectors").clone();
    assert_eq!(data.len(), 2);
    let size = |v: &Value| v["embedding"].as_array().map_or(0, Vec::len);
    assert!(size(&data[0]) > 100);
    assert_eq!(size(&data[0]), size(&data[1]));
}

#[test]
fn a_client_that_leaves_frees_the_real_engines_slot_within_a_second() {
    let shared = shared();
    let task = json!({"model": MODEL, "prompt": "Once upon a time", "max_tokens": 2000});
    let mut stream = shared.0.stream("/v2/tasks", &task).expect("an answer");
    let started = stream.until_type("started");
    stream.until_type("token");
    let job_id = started["job_id"].as_str().expect("an id").to_owned();
    drop(stream);
    shared.0.assert_task_becomes(&job_id, "cancelled");
}

#[test]
fn what_the_engine_refuses_comes_through_in_its_words() {
    let shared = shared();
    let mut chat = capital(false);
    chat["messages"] = json!([{"role": "user"}]);
    let reply = shared.0.ask(CHAT, &chat);
    assert!((400..500).contains(&reply.status), "{}", reply.text);
    let message = &reply.json()["error"]["message"];
    assert!(message.is_string(), "{}", reply.text);
    let mut none = capital(false);
    none["model"] = json!("smollm3");
    let reply = shared.0.ask(CHAT, &none);
    assert_error(&reply, 404, "MODEL_NOT_FOUND", &["smollm3", "smollm2"]);
}

fn run_openai_client(script: &str, args: &[&str], key: &str) {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests");
    let mut client = Command::new(part("RBEE_TEST_PYTHON"));
    client
        .arg(folder.join(script))
        .args(args)
        .env("OPENAI_API_KEY", key);
    // The queen is on this machine, whatever proxy the shell knows.
    let out = client.env("NO_PROXY", "*").output().expect("Python runs");
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{said}");
}

#[test]
fn openais_own_client_works_unchanged() {
    let shared = shared();
    run_openai_client("openai_client.py", &[shared.0.base(), MODEL], "none");
}

#[test]
fn openais_own_client_understands_every_refusal() {
    let home = Home::new();
    let mut launch = home
        .queen()
        .config("queue.timeout = \"1s\"")
        .config("tenants.default.weight = 1")
        .config("tenants.red.requests_per_minute = 1");
    let mut engines = Vec::new();
    for (model, fault) in [
        ("file:m", "none"),
        ("file:overrun", "status_429=2"),
        ("file:away", "status_503=3"),
        ("file:breaks", "drop_mid_stream=2"),
    ] {
        let stub = home.stub(&[]);
        stub.control(&format!("fault={fault}"))
            .expect("a known fault");
        launch = launch.worker(&stub, model, 1);
        engines.push(stub);
    }
    let queen = launch.start();
    run_openai_client("openai_refusals.py", &[queen.base()], "none");
}

#[test]
fn openais_own_client_brings_a_token_where_one_is_needed() {
    let home = home();
    let file = home.path().join("token");
    fs::write(&file, "the-right-token").expect("the folder is ours");
    let private = fs::Permissions::from_mode(0o600);
    fs::set_permissions(&file, private).expect("the file is ours");
    let queen = home
        .queen()
        .arg("--token-file")
        .arg(&file.to_string_lossy())
        .start();
    run_openai_client(
        "openai_client.py",
        &[queen.base(), MODEL],
        "the-right-token",
    );
}

#[test]
fn a_real_engine_is_gone_when_the_queen_has_stopped() {
    let home = home();
    let queen = home.queen().start();
    assert_eq!(queen.ask(CHAT, &capital(false)).status, 200);
    let runs = |name: &str| home.processes().iter().any(|p| p.command.contains(name));
    let up = until(Duration::from_secs(1), || {
        runs("smollm2.gguf").then_some(())
    });
    assert!(up.is_some(), "{:#?}", home.processes());
    queen.stop(Signal::TERM);
    home.assert_nothing_runs();
}

#[test]
fn a_real_engines_port_is_of_no_use_without_the_key_which_outlives_hive_and_queen() {
    let home = home();
    let launch = home.queen();
    let queen = launch.start();
    assert_eq!(queen.ask(CHAT, &capital(false)).status, 200);
    let url = queen.workers()[0]["url"].clone();
    let direct = Client::new(url.as_str().expect("a URL"));
    for path in ["/props", "/slots"] {
        let refused = direct.get(path).expect("it answers");
        assert_eq!(refused.status, 401, "{path}: {}", refused.text);
    }
    let refused = direct.post(CHAT, &capital(false)).expect("it answers");
    assert_eq!(refused.status, 401, "{}", refused.text);

    let engine = || {
        let mut all = home.processes().into_iter();
        all.find(|process| process.command.contains("smollm2.gguf"))
    };
    let before = engine().expect("it runs");
    let hive = home.processes().into_iter();
    let hive = hive.filter(|process| process.command.contains("rbee-hive daemon"));
    let hive: Vec<u32> = hive.map(|process| process.pid).collect();
    queen.kill();
    for pid in hive {
        proc::kill(pid);
    }
    let queen = launch.start();
    let reply = queen.ask(CHAT, &capital(false));
    assert_eq!(reply.status, 200, "{}", reply.text);
    assert_eq!(engine(), Some(before), "no second engine");
    assert_eq!(direct.get("/props").expect("it answers").status, 401);
}

#[test]
fn a_callers_mistake_is_told_at_once_in_the_engines_words_and_nobody_else_notices() {
    let shared = shared();
    let queen = &shared.0;
    let hi = json!({"role": "user", "content": "hi"});
    let image = json!({"role": "user", "content": [
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}]});
    let call = json!({"role": "assistant", "tool_calls": [
        {"id": "1", "function": {"name": "f", "arguments": "{}"}}]});
    let said_by = |messages: Value| json!({"model": MODEL, "max_tokens": 2, "messages": messages});
    let mut no_function = said_by(json!([hi]));
    no_function["tools"] = json!([{"type": "function"}]);
    for (bad, words) in [
        (said_by(json!([{"content": "x"}])), "Missing 'role'"),
        (said_by(json!([image])), "image input is not supported"),
        (said_by(json!([hi, call])), "Missing tool call type"),
        (no_function, "Missing tool function"),
    ] {
        for _ in 0..4 {
            let reply = queen.ask(CHAT, &bad);
            assert_error(&reply, 400, "INVALID_REQUEST", &[words]);
            let kind = &reply.json()["error"]["type"];
            assert_eq!(kind, "invalid_request_error", "{}", reply.text);
            let id = reply.header("x-job-id");
            assert_eq!(queen.task(id)["attempts"], 1, "{words}");
        }
        let good = queen.ask(CHAT, &said_by(json!([hi])));
        assert_eq!(good.status, 200, "{}", good.text);
    }
    let job_id = queen.submit(&said_by(json!([image])));
    queen.assert_task_ends(&job_id, "failed");
    let task = queen.task(&job_id);
    assert_eq!(task["attempts"], 1, "{task}");
    assert_eq!(task["error"]["code"], "INVALID_REQUEST", "{task}");
}
