//! What a client sees when all is well, on every endpoint and with every kind of worker.

use rbee_tests::harness::events::{Event, assert_task_completed};
use rbee_tests::harness::{Home, Queen, Shared, StubEngine, assert_error};
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::{Duration, Instant};

const CHAT: &str = "/v1/chat/completions";

/// A queen with one registered worker of each kind.
struct House {
    queen: Queen,
    _openai: StubEngine,
    rbee: StubEngine,
    old: StubEngine,
    _home: Home,
}

fn house() -> Arc<House> {
    static HOUSE: Shared<House> = Shared::new();
    HOUSE.get(|| {
        let home = Home::new();
        let openai = home.stub(&["--model", "served-name"]);
        let rbee = home.stub(&["--protocol", "rbee"]);
        let old = home.stub(&["--protocol", "old_rbee"]);
        let queen = home
            .queen()
            .config("aliases.nick = \"file:openai\"")
            .start();
        queen.register(&openai, "file:openai", &json!({"slots_total": 64}));
        let rbee_protocol = json!({"protocol": "rbee", "slots_total": 64});
        queen.register(&rbee, "file:rbee", &rbee_protocol);
        queen.register(&old, "file:old", &json!({"protocol": "rbee"}));
        House {
            queen,
            _openai: openai,
            rbee,
            old,
            _home: home,
        }
    })
}

fn chat(stream: bool) -> Value {
    json!({"model": "file:openai", "messages": [{"role": "user", "content": "x"}],
           "max_tokens": 4, "stream": stream})
}

/// The numbers of the stub's tokens, without their stamps.
fn tokens(text: &str) -> Vec<&str> {
    let tokens = text.split_ascii_whitespace();
    tokens.map(|t| t.split('@').next().unwrap_or(t)).collect()
}

const FOUR: [&str; 4] = ["t0", "t1", "t2", "t3"];

#[test]
fn a_task_streams_its_events_whatever_the_worker_speaks() {
    let house = house();
    for model in ["file:openai", "file:rbee", "file:old", "nick"] {
        let task = json!({"model": model, "prompt": "x", "max_tokens": 4});
        let stream = house.queen.stream("/v2/tasks", &task).expect("an answer");
        assert_eq!(stream.status, 200);
        let content_type = stream.headers["content-type"].to_str();
        let content_type = content_type.expect("it is ASCII").to_owned();
        assert!(
            content_type.starts_with("text/event-stream"),
            "{content_type}"
        );
        let events = stream.rest();
        assert_eq!(tokens(&assert_task_completed(&events)), FOUR, "{model}");
        let started = events.iter().find(|e| e["type"] == "started");
        let started = started.expect("it started");
        for key in ["job_id", "model", "started_at", "worker_id"] {
            assert!(started[key].is_string(), "{key}: {started}");
        }
        assert_eq!(started["attempt"], 1);
        let end = events.last().expect("an end");
        assert_eq!(end["tokens_out"], 4, "{end}");
        assert_eq!(end["stop_reason"], "MAX_TOKENS", "{end}");
        assert!(end["decode_time_ms"].is_u64(), "{end}");
    }
}

#[test]
fn the_headers_of_a_task_go_out_before_a_worker_is_found() {
    let home = Home::new();
    home.add_model("slow.stub", "load_ms = 2000");
    let queen = home.queen().start();
    let task = json!({"model": "slow", "prompt": "x", "max_tokens": 2});
    // The hive is known only once it runs, and so is the model.
    let asked = Instant::now();
    let stream = queen.stream("/v2/tasks", &task).expect("an answer");
    let took = asked.elapsed();
    assert!(took < Duration::from_secs(1), "{took:?}");
    let events = stream.rest();
    assert_task_completed(&events);
    let narrated = events.iter().find(|e| e["type"] == "narration");
    let narrated = narrated.unwrap_or_else(|| panic!("no narration: {events:#?}"));
    for key in ["actor", "action", "human"] {
        assert!(narrated[key].is_string(), "{key}: {narrated}");
    }
}

#[test]
fn a_client_that_waits_hears_comments() {
    let home = Home::new();
    home.add_model("slow.stub", "load_ms = 2500");
    let launch = home.queen().config("timeouts.keep_alive = \"500ms\"");
    let queen = launch.config("timeouts.stream_status = \"500ms\"").start();
    let body = json!({"model": "slow", "stream": true, "max_tokens": 2,
                      "messages": [{"role": "user", "content": "x"}]});
    let mut stream = queen.stream(CHAT, &body).expect("an answer");
    assert_eq!(stream.status, 200);
    let Some(Event::Comment(_)) = stream.next() else {
        panic!("no comment while the model loads");
    };
    let events = stream.rest();
    assert!(events[0]["choices"].is_array(), "{events:#?}");
}

#[test]
fn an_unstreamed_task_is_the_finished_task() {
    let house = house();
    for model in ["file:openai", "file:rbee", "file:old"] {
        let task = json!({"model": model, "prompt": "x", "max_tokens": 4, "stream": false});
        let done = house.queen.ask("/v2/tasks", &task);
        assert_eq!(done.status, 200, "{}", done.text);
        let done = done.json();
        assert_eq!(done["state"], "complete", "{done}");
        let id = done["job_id"].as_str().expect("an id");
        let kept = house.queen.assert_task_becomes(id, "complete");
        assert_eq!(kept["job_id"], done["job_id"]);
        assert_eq!(kept["tokens_out"], 4, "{kept}");
        assert_eq!(kept["attempts"], 1, "{kept}");
        assert!(kept["worker_id"].is_string(), "{kept}");
    }
}

#[test]
fn tasks_are_listed_newest_first_in_pages() {
    let home = Home::new();
    let stub = home.stub(&[]);
    let queen = home.queen().start();
    queen.register(&stub, "file:m", &json!({}));
    let task = json!({"model": "file:m", "prompt": "x", "max_tokens": 1, "stream": false});
    let mut ids: Vec<Value> = (0..5)
        .map(|_| queen.ask("/v2/tasks", &task).json()["job_id"].clone())
        .collect();
    ids.reverse();
    let mut seen = Vec::new();
    let mut path = "/v2/tasks?state=complete&model=file:m&limit=2".to_owned();
    loop {
        let page = queen.look(&path).json();
        let tasks = page["tasks"].as_array().expect("a list of tasks");
        assert!(tasks.len() <= 2);
        seen.extend(tasks.iter().map(|task| task["job_id"].clone()));
        let Some(next) = page["next"].as_str() else {
            break;
        };
        path = format!("/v2/tasks?state=complete&model=file:m&limit=2&after={next}");
    }
    assert_eq!(seen, ids);
}

#[test]
fn a_chat_is_the_workers_own_bytes() {
    let house = house();
    let reply = house.queen.ask(CHAT, &chat(false));
    assert_eq!(reply.status, 200, "{}", reply.text);
    let text = &reply.json()["choices"][0]["message"]["content"];
    assert_eq!(tokens(text.as_str().expect("a text")), FOUR);
    assert_ne!(reply.header("x-job-id"), "");
    assert_eq!(reply.header("content-type"), "application/json");

    let stream = house.queen.stream(CHAT, &chat(true)).expect("an answer");
    assert_eq!(stream.status, 200);
    let job_id = stream.headers["x-job-id"].to_str().expect("an id");
    let job_id = job_id.to_owned();
    let events = stream.rest();
    let text: String = events
        .iter()
        .filter_map(|e| e["choices"][0]["delta"]["content"].as_str())
        .collect();
    assert_eq!(tokens(&text), FOUR);
    let usage = events.iter().filter(|e| e["usage"].is_object());
    assert_eq!(usage.count(), 0, "nobody asked for usage: {events:#?}");
    let task = house.queen.assert_task_becomes(&job_id, "complete");
    assert_eq!(task["tokens_out"], 4, "{task}");
    assert_eq!(task["tokens_in"], 8, "{task}");
}

#[test]
fn usage_comes_to_those_who_ask() {
    let house = house();
    let mut asking = chat(true);
    asking["stream_options"] = json!({"include_usage": true});
    let stream = house.queen.stream(CHAT, &asking).expect("an answer");
    let events = stream.rest();
    let last = events.last().expect("a usage chunk");
    assert_eq!(last["usage"]["completion_tokens"], 4, "{last}");
    assert_eq!(last["choices"], json!([]));
}

#[test]
fn a_worker_sees_the_body_but_for_two_values_and_no_secrets() {
    // A worker of its own: another test's request must not be the last one.
    let home = Home::new();
    let stub = home.stub(&[]);
    let queen = home.queen().start();
    queen.register(&stub, "file:only", &json!({}));
    let client = queen
        .header("authorization", "Bearer a-client's-own")
        .header("cookie", "session=secret")
        .header("x-correlation-id", "trace-7");
    let body = r#"{"model":"file:only", "stream":true, "messages":[{"role":"user","content":"ü \u0041"}],"tools":[], "max_tokens":2,"x":1e2}"#;
    let reply = client.send("POST", CHAT, body.as_bytes());
    assert_eq!(reply.expect("an answer").status, 200);
    let last = stub.last_request().expect("it remembers");
    let headers = &last["headers"];
    assert_eq!(headers["authorization"], Value::Null, "{headers}");
    assert_eq!(headers["cookie"], Value::Null, "{headers}");
    assert_eq!(headers["x-correlation-id"], "trace-7", "{headers}");
    let seen: Value =
        serde_json::from_str(last["body"].as_str().expect("a text")).expect("the worker gets JSON");
    let mut expected: Value = serde_json::from_str(body).expect("the body is JSON");
    expected["stream_options"] = json!({"include_usage": true});
    expected["model"] = seen["model"].clone();
    assert_eq!(seen, expected);
}

#[test]
fn completions_and_embeddings_come_through() {
    let house = house();
    for model in ["file:openai", "file:rbee"] {
        let body = json!({"model": model, "prompt": "x", "max_tokens": 4});
        let reply = house.queen.ask("/v1/completions", &body);
        assert_eq!(reply.status, 200, "{}", reply.text);
        let text = &reply.json()["choices"][0]["text"];
        assert_eq!(tokens(text.as_str().expect("a text")), FOUR, "{model}");
        let mut body = body;
        body["stream"] = json!(true);
        let stream = house.queen.stream("/v1/completions", &body);
        let events = stream.expect("an answer").rest();
        let text: String = events
            .iter()
            .filter_map(|e| e["choices"][0]["text"].as_str())
            .collect();
        assert_eq!(tokens(&text), FOUR, "{model}");
    }
    let body = json!({"model": "file:openai", "input": ["a", "b", "c"]});
    let reply = house.queen.ask("/v1/embeddings", &body);
    let vectors = reply.json()["data"].as_array().map(Vec::len);
    assert_eq!(vectors, Some(3), "{}", reply.text);
}

#[test]
fn what_an_rbee_worker_cannot_do_is_refused_clearly() {
    let house = house();
    let messages = json!([{"role": "user", "content": "x"}]);
    let task = json!({"model": "file:rbee", "messages": messages, "stream": false});
    let reply = house.queen.ask("/v2/tasks", &task);
    assert_error(&reply, 400, "INVALID_REQUEST", &["file:rbee", "prompt"]);
    let reply = house
        .queen
        .ask(CHAT, &json!({"model": "file:rbee", "messages": messages}));
    assert_error(&reply, 400, "INVALID_REQUEST", &["file:rbee"]);
    let body = json!({"model": "file:rbee", "input": "x"});
    let reply = house.queen.ask("/v1/embeddings", &body);
    assert_error(&reply, 400, "INVALID_REQUEST", &["file:rbee"]);
    assert_eq!(house.rbee.count("not_found"), 0);
    assert_eq!(house.old.count("in_flight"), 0);
}

#[test]
fn models_are_listed_and_found_one_by_one() {
    let house = house();
    let list = house.queen.look("/v1/models").json();
    assert_eq!(list["object"], "list");
    let models = list["data"].as_array().expect("a list").clone();
    let ids: Vec<&str> = models.iter().filter_map(|m| m["id"].as_str()).collect();
    for id in ["file:rbee", "nick"] {
        assert!(ids.contains(&id), "no {id} in {ids:?}");
    }
    for model in &models {
        assert_eq!(model["object"], "model", "{model}");
        assert!(model["created"].is_u64(), "{model}");
        assert!(model["owned_by"].is_string(), "{model}");
    }
    let one = house.queen.look("/v1/models/file:openai");
    assert_eq!(
        (one.status, &one.json()["id"]),
        (200, &json!("file:openai"))
    );
    let encoded = house.queen.look("/v1/models/file%3Aopenai");
    assert_eq!(encoded.status, 200);
    let none = house.queen.look("/v1/models/no-such");
    assert_error(&none, 404, "MODEL_NOT_FOUND", &["no-such"]);
}

#[test]
fn more_requests_than_slots_wait_their_turn_and_all_are_served() {
    let home = Home::new();
    let stub = home.stub(&["--itl-ms", "5"]);
    let queen = home.queen().start();
    queen.register(&stub, "file:m", &json!({"slots_total": 3}));
    let body = json!({"model": "file:m", "prompt": "x", "max_tokens": 5});
    std::thread::scope(|scope| {
        for _ in 0..30 {
            scope.spawn(|| {
                let stream = queen.stream("/v2/tasks", &body).expect("an answer");
                assert_task_completed(&stream.rest());
            });
        }
    });
    assert_eq!(stub.count("finished"), 30);
    assert_eq!(stub.count("max_in_flight"), 3);
    queen.assert_no_slot_leaked();
}

#[test]
fn a_worker_is_spawned_and_shut_down_by_hand() {
    let home = Home::new();
    home.add_model("m.stub", "load_ms = 200");
    let queen = home.queen().start();
    let spawned = queen.ask("/v2/workers/spawn", &json!({"model": "m"}));
    assert_eq!(spawned.status, 202, "{}", spawned.text);
    let spawned = spawned.json();
    assert_eq!(spawned["state"], "loading", "{spawned}");
    assert_eq!(spawned["hive_id"], "localhost", "{spawned}");
    rbee_tests::harness::eventually("it is ready", Duration::from_secs(10), || {
        let workers = queen.workers();
        workers
            .iter()
            .any(|w| w["worker_id"] == spawned["worker_id"] && w["state"] == "idle")
    });
    let health = queen.look("/v2/workers/health?node=localhost").json();
    assert_eq!(health["workers"][0]["ready"], true, "{health}");
    let models = queen.look("/v2/models/list").json();
    assert_eq!(models["models"][0]["model_ref"], "file:m.stub", "{models}");
    let body = json!({"worker_id": spawned["worker_id"]});
    let shut = queen.ask("/v2/workers/shutdown", &body);
    assert_eq!(shut.json()["success"], true, "{}", shut.text);
    rbee_tests::harness::eventually("it is gone", Duration::from_secs(10), || {
        queen.workers().is_empty() && home.engines().is_empty()
    });
    let again = queen.ask("/v2/workers/shutdown", &body);
    assert_error(&again, 404, "WORKER_NOT_FOUND", &[]);
}

#[test]
fn hives_are_registered_listed_and_removed_as_existing_clients_do() {
    let home = Home::new();
    let queen = home.queen().start();
    let hive = json!({"node_name": "gpu-0", "hostname": "192.0.2.7", "port": 9200,
                      "backends": "[\"cuda\"]", "devices": "{\"cuda\":2}",
                      "git_repo_url": "https://example.org/x.git", "git_branch": "main"});
    for _ in 0..2 {
        let added = queen.ask("/v2/registry/beehives/add", &hive);
        assert_eq!(added.status, 200, "{}", added.text);
        let added = added.json();
        assert_eq!(added["success"], true);
        assert_eq!(added["node_name"], "gpu-0");
    }
    let list = queen.look("/v2/registry/beehives/list").json();
    let nodes = list["nodes"].as_array().expect("a list");
    let names: Vec<&Value> = nodes.iter().map(|n| &n["node_name"]).collect();
    assert_eq!(names, ["gpu-0", "localhost"]);
    for node in nodes {
        for key in [
            "ssh_host",
            "ssh_user",
            "git_repo_url",
            "git_branch",
            "install_path",
            "status",
        ] {
            assert!(node[key].is_string(), "{key}: {node}");
        }
        assert!(node["ssh_port"].is_u64(), "{node}");
    }
    assert_eq!(nodes[0]["git_branch"], "main");
    let removed = queen.ask(
        "/v2/registry/beehives/remove",
        &json!({"node_name": "gpu-0"}),
    );
    assert_eq!(removed.json()["success"], true, "{}", removed.text);
    let list = queen.look("/v2/registry/beehives/list").json();
    assert_eq!(list["nodes"].as_array().map(Vec::len), Some(1), "{list}");
}
