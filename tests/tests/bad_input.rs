//! What a client can get wrong, and what it is told.

use rbee_tests::harness::{Home, Launch, Queen, Shared, StubEngine, assert_error, raw};
use rbee_tests::proc;
use serde_json::{Value, json};
use std::io::Write;
use std::sync::Arc;

/// A queen with one model behind her, `file:good`, on a server that no hive owns.
struct House {
    queen: Queen,
    stub: StubEngine,
    home: Home,
}

impl House {
    fn new(launch: impl FnOnce(Launch<'_>) -> Launch<'_>) -> Self {
        let home = Home::new();
        home.add_model("on-the-hive.stub", "");
        let stub = home.stub(&[]);
        let queen = launch(home.queen()).start();
        queen.register(&stub, "file:good", &json!({"slots_total": 2}));
        House { queen, stub, home }
    }

    /// That the queen still serves, with every slot free.
    fn assert_unharmed(&self) {
        let reply = self
            .queen
            .ask("/v2/tasks", &task(&json!({"stream": false})));
        assert_eq!(reply.status, 200, "{}", reply.text);
        self.queen.assert_no_slot_leaked();
        assert_eq!(self.stub.count("in_flight"), 0);
    }
}

/// Tests run at once, so each may find another's request in a slot; none of theirs lasts.
fn house() -> Arc<House> {
    static HOUSE: Shared<House> = Shared::new();
    HOUSE.get(|| House::new(|launch| launch))
}

/// A good task, but for `changes`; null removes a field.
fn task(changes: &Value) -> Value {
    let mut task = json!({"model": "file:good", "prompt": "hello", "max_tokens": 2});
    for (key, value) in changes.as_object().into_iter().flatten() {
        match value {
            Value::Null => drop(task.as_object_mut().map(|task| task.remove(key))),
            value => task[key] = value.clone(),
        }
    }
    task
}

const CHAT: &str = "/v1/chat/completions";

fn chat(changes: &Value) -> Value {
    let mut chat = json!({"model": "file:good", "max_tokens": 2,
                          "messages": [{"role": "user", "content": "hello"}]});
    for (key, value) in changes.as_object().into_iter().flatten() {
        match value {
            Value::Null => drop(chat.as_object_mut().map(|chat| chat.remove(key))),
            value => chat[key] = value.clone(),
        }
    }
    chat
}

/// Every change to a good task is refused with 400, and the message names what it says.
#[track_caller]
fn refuses(queen: &Queen, changes: &[(Value, &str)]) {
    for (change, named) in changes {
        let reply = queen.ask("/v2/tasks", &task(change));
        assert_error(&reply, 400, "INVALID_REQUEST", &[named]);
    }
}

#[test]
fn malformed_json_is_refused_on_every_endpoint_that_takes_some() {
    let house = house();
    for path in [
        "/v2/tasks",
        CHAT,
        "/v1/completions",
        "/v1/embeddings",
        "/v2/workers/register",
        "/v2/workers/ready",
        "/v2/workers/spawn",
        "/v2/workers/shutdown",
        "/v2/registry/beehives/add",
        "/v2/registry/beehives/remove",
        "/v2/registry/beehives/drain",
        "/v2/registry/beehives/resume",
        "/v2/workers/failed",
        "/v2/models/download",
        "/v2/models/remove",
        "/v2/tenants/add",
        "/v2/tenants/remove",
    ] {
        for body in [
            &br#"{"model": "#[..],
            b"[]",
            b" \n[\"a\", \"a\", null, null, null]",
            b"[\"a\"]",
            b"null",
            b"7",
            b"\"text\"",
            b"\xff\xfe",
            b"{} {}",
        ] {
            let reply = house.queen.send("POST", path, body).expect("an answer");
            assert_error(&reply, 400, "INVALID_REQUEST", &[]);
        }
    }
    house.assert_unharmed();
}

#[test]
fn an_empty_body_is_refused() {
    let reply = house().queen.send("POST", "/v2/tasks", b"");
    assert_error(&reply.expect("an answer"), 400, "INVALID_REQUEST", &[]);
}

#[test]
fn a_field_of_the_wrong_type_is_named() {
    let house = house();
    let wrong = [
        (json!({"model": 5}), "model"),
        (json!({"prompt": {"text": "x"}}), "prompt"),
        (json!({"max_tokens": "many"}), "max_tokens"),
        (json!({"temperature": "hot"}), "temperature"),
        (json!({"stream": "yes"}), "stream"),
        (json!({"stop": 7}), "stop"),
        (json!({"prompt": null, "messages": "hello"}), "messages"),
        (json!({"node": 1}), "node"),
        (json!({"device": "first"}), "device"),
        (json!({"prompt": ["x"]}), "prompt"),
    ];
    refuses(&house.queen, &wrong);
    house.assert_unharmed();
}

#[test]
fn a_task_without_a_model_or_anything_to_say_is_refused() {
    let house = house();
    let wrong = [
        (json!({"model": null}), "model"),
        (json!({"model": ""}), "model"),
        (json!({"prompt": null}), "prompt"),
        (json!({"prompt": null}), "messages"),
    ];
    refuses(&house.queen, &wrong);
    let reply = house.queen.ask(CHAT, &chat(&json!({"model": null})));
    assert_error(&reply, 400, "INVALID_REQUEST", &["model"]);
}

#[test]
fn an_unknown_priority_is_refused_with_its_name() {
    let wrong = [
        (json!({"priority": "urgent"}), "urgent"),
        (json!({"priority": 1}), "priority"),
    ];
    refuses(&house().queen, &wrong);
}

#[test]
fn negative_and_absurd_numbers_are_refused() {
    let house = house();
    let wrong = [
        (json!({"max_tokens": -1}), "max_tokens"),
        (json!({"max_tokens": 1e30}), "max_tokens"),
        (json!({"max_tokens": 1.5}), "max_tokens"),
        (json!({"temperature": -0.1}), "temperature"),
        (json!({"temperature": 1e9}), "temperature"),
        (json!({"top_p": 1.5}), "top_p"),
        (json!({"top_k": -3}), "top_k"),
        (json!({"timeout_ms": 0}), "timeout_ms"),
        (json!({"timeout_ms": -5}), "timeout_ms"),
        (json!({"queue_timeout_ms": -1}), "queue_timeout_ms"),
        (json!({"device": -1}), "device"),
        (json!({"seed": -1.5}), "seed"),
    ];
    refuses(&house.queen, &wrong);
    house.assert_unharmed();
}

#[test]
fn a_null_is_the_same_as_an_absent_field() {
    let house = house();
    let mut body = task(&json!({}));
    for key in [
        "temperature",
        "messages",
        "seed",
        "stop",
        "priority",
        "stream",
        "timeout_ms",
        "node",
        "device",
        "tenant_id",
        "idempotency_key",
    ] {
        body[key] = Value::Null;
    }
    let events = house.queen.stream("/v2/tasks", &body).expect("an answer");
    assert_eq!(events.status, 200);
    rbee_tests::harness::events::assert_task_completed(&events.rest());
}

#[test]
fn a_body_of_100_mb_is_refused_without_being_kept() {
    let house = house();
    let before = proc::usage(&[house.queen.pid()]).rss_kb;
    let size = 100 * 1000 * 1000;
    for path in ["/v2/tasks", CHAT] {
        let head = format!(
            "POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n\
             content-length: {size}\r\nconnection: close\r\n\r\n"
        );
        let mut stream = raw::connect(&house.queen).expect("the queen listens");
        stream.write_all(head.as_bytes()).expect("a head is small");
        // She may refuse at once and close; then the rest cannot be written.
        let piece = vec![b'x'; 1 << 20];
        let mut left = size;
        while left > 0 && stream.write_all(&piece[..piece.len().min(left)]).is_ok() {
            left = left.saturating_sub(piece.len());
        }
        let (status, text) = raw::answer(&mut stream).expect("an answer");
        assert_eq!(status, 413, "{text}");
        assert!(text.contains("PAYLOAD_TOO_LARGE"), "{text}");
    }
    let grown = proc::usage(&[house.queen.pid()])
        .rss_kb
        .saturating_sub(before);
    // Another test sends a body of up to 64 MiB to the same queen meanwhile.
    assert!(grown < 90_000, "{grown} KiB");
    house.assert_unharmed();
}

#[test]
fn a_body_that_tells_no_length_is_cut_off_at_the_limit() {
    let house = house();
    let mut stream = raw::connect(&house.queen).expect("the queen listens");
    let head = b"POST /v2/tasks HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\
                 connection: close\r\n\r\n";
    stream.write_all(head).expect("a head is small");
    let mut chunk = format!("{:x}\r\n", 1 << 20).into_bytes();
    chunk.resize(chunk.len() + (1 << 20), b' ');
    chunk.extend(b"\r\n");
    for _ in 0..70 {
        if stream.write_all(&chunk).is_err() {
            break;
        }
    }
    // She may have closed by now; if not, she reads on so that this is not lost on a client.
    let _ = stream.write_all(b"0\r\n\r\n");
    let (status, text) = raw::answer(&mut stream).expect("an answer");
    assert_eq!(status, 413, "{text}");
    house.assert_unharmed();
}

#[test]
fn the_limit_of_a_body_is_configurable() {
    let house = House::new(|launch| launch.config("limits.max_body_bytes = 1000"));
    let long = task(&json!({"prompt": "x".repeat(1000)}));
    let reply = house.queen.ask("/v2/tasks", &long);
    assert_error(&reply, 413, "PAYLOAD_TOO_LARGE", &["1000"]);
    house.assert_unharmed();
}

#[test]
fn an_unknown_model_is_not_found_and_the_known_ones_are_named() {
    let house = house();
    let unknown = json!({"model": "file:no-such-model", "stream": false});
    let reply = house.queen.ask("/v2/tasks", &task(&unknown));
    let named = ["file:no-such-model", "on-the-hive", "file:good"];
    assert_error(&reply, 404, "MODEL_NOT_FOUND", &named);
    let reply = house.queen.ask(CHAT, &chat(&unknown));
    assert_error(&reply, 404, "MODEL_NOT_FOUND", &named);
    let error = &reply.json()["error"];
    assert!(error["type"].is_string(), "{error}");
    assert_eq!(error["param"], "model");
}

#[test]
fn a_model_name_cannot_climb_out_of_its_folder() {
    let house = house();
    for name in [
        "file:../../etc/passwd",
        "file:a/../b.stub",
        "file:/models/../../etc/passwd",
        "hf:org/../repo",
        "..",
        "file:..\\windows",
    ] {
        for (path, body) in [
            ("/v2/tasks", task(&json!({"model": name}))),
            (CHAT, chat(&json!({"model": name}))),
            ("/v2/workers/spawn", json!({"model": name})),
        ] {
            let reply = house.queen.ask(path, &body);
            assert_error(&reply, 400, "INVALID_REQUEST", &["model"]);
        }
    }
}

#[test]
fn link_local_and_metadata_addresses_are_refused_unless_they_are_listed() {
    let house = house();
    let queen = &house.queen;
    for host in [
        "169.254.169.254",
        "[::ffff:169.254.169.254]",
        "[fe80::1]",
        "2852039166",
    ] {
        let worker = json!({"url": format!("http://{host}:80"), "model_ref": "file:x"});
        let reply = queen.ask("/v2/workers/register", &worker);
        assert_error(&reply, 400, "INVALID_REQUEST", &["allowed_addresses"]);
        for field in ["hostname", "ssh_host"] {
            let hive = json!({"node_name": "far", "port": 80, field: host, "preflight": false});
            let reply = queen.ask("/v2/registry/beehives/add", &hive);
            assert_error(&reply, 400, "INVALID_REQUEST", &["allowed_addresses"]);
        }
        let model = format!("https://{host}/m.gguf");
        for (path, body) in [
            ("/v2/models/download", json!({"model": model})),
            ("/v2/workers/spawn", json!({"model": model})),
            ("/v2/tasks", task(&json!({"model": model, "stream": false}))),
            (CHAT, chat(&json!({"model": model}))),
        ] {
            let reply = queen.ask(path, &body);
            assert_error(&reply, 400, "INVALID_REQUEST", &["allowed_addresses"]);
        }
    }
    let listed = House::new(|launch| launch.config("allowed_addresses = [\"169.254.7.7\"]"));
    let worker = json!({"url": "http://169.254.7.7:80", "model_ref": "file:x"});
    let reply = listed.queen.ask("/v2/workers/register", &worker);
    assert_eq!(reply.status, 200, "{}", reply.text);
}

#[test]
fn a_registration_is_answered_alike_whatever_listens_there() {
    let house = House::new(|launch| launch);
    let closed = std::net::TcpListener::bind(("127.0.0.1", 0)).expect("a port");
    let silent = std::net::TcpListener::bind(("127.0.0.1", 0)).expect("a port");
    let port = |listener: &std::net::TcpListener| listener.local_addr().expect("bound").port();
    let (closed_port, silent_port) = (port(&closed), port(&silent));
    drop(closed);
    let answers = [closed_port, silent_port].map(|port| {
        let worker = json!({"worker_id": "w", "url": format!("http://127.0.0.1:{port}"), "model_ref": "file:y"});
        let reply = house.queen.ask("/v2/workers/register", &worker);
        (reply.status, reply.text)
    });
    assert_eq!(answers[0], answers[1]);
    assert_eq!(answers[0].0, 200);
}

#[test]
fn a_model_name_has_a_length_and_no_control_characters() {
    let house = house();
    let long = "m".repeat(513);
    for name in [long.as_str(), "file:a\nb", "file:a\u{0}b", "a\u{1b}[31m"] {
        let reply = house.queen.ask("/v2/tasks", &task(&json!({"model": name})));
        assert_error(&reply, 400, "INVALID_REQUEST", &["model"]);
        assert!(!reply.text.contains('\u{1b}'), "{:?}", reply.text);
    }
}

#[test]
fn an_unknown_node_is_not_found() {
    let house = house();
    let elsewhere = json!({"node": "gpu-77", "stream": false});
    let reply = house.queen.ask("/v2/tasks", &task(&elsewhere));
    assert_error(&reply, 404, "HIVE_NOT_FOUND", &["gpu-77"]);
    let spawn = json!({"node": "gpu-77", "model": "on-the-hive"});
    let reply = house.queen.ask("/v2/workers/spawn", &spawn);
    assert_error(&reply, 404, "HIVE_NOT_FOUND", &["gpu-77"]);
    let remove = json!({"node_name": "gpu-77"});
    let reply = house.queen.ask("/v2/registry/beehives/remove", &remove);
    assert_error(&reply, 404, "HIVE_NOT_FOUND", &["gpu-77"]);
    assert_eq!(reply.json()["success"], false);
    assert_eq!(reply.json()["node_name"], "gpu-77");
}

#[test]
fn an_id_with_newlines_is_refused_and_never_reaches_the_log_as_lines() {
    let house = house();
    let forged = "a\nFORGED LINE";
    let worker = json!({"worker_id": forged, "url": house.stub.url(), "model_ref": "file:x"});
    let reply = house.queen.ask("/v2/workers/register", &worker);
    assert_error(&reply, 400, "INVALID_REQUEST", &["worker's id"]);
    for key in ["hive_id", "node_name"] {
        let hive = json!({key: forged, "hostname": "127.0.0.1", "port": 9});
        let reply = house.queen.ask("/v2/registry/beehives/add", &hive);
        assert_error(&reply, 400, "INVALID_REQUEST", &[]);
        assert_eq!(reply.json()["success"], false);
        assert!(reply.json()["message"].is_string());
    }
    refuses(
        &house.queen,
        &[(json!({"tenant_id": forged}), "tenant's id")],
    );
    let reply = house.queen.look("/v2/tasks/a%0AFORGED%20LINE");
    assert_error(&reply, 404, "TASK_NOT_FOUND", &[]);
    let log = house.queen.log();
    assert!(!log.lines().any(|line| line.starts_with("FORGED")), "{log}");
}

#[test]
fn a_correlation_id_comes_back_and_a_bad_one_is_replaced() {
    let house = house();
    for name in ["x-correlation-id", "x-request-id"] {
        let reply = house.queen.header(name, "trace.me-1").get("/health");
        let reply = reply.expect("an answer");
        assert_eq!(reply.header("x-correlation-id"), "trace.me-1");
    }
    let bad = "x".repeat(129);
    let reply = house.queen.header("x-correlation-id", &bad).get("/health");
    let id = reply.expect("an answer").header("x-correlation-id").len();
    assert!((1..=128).contains(&id), "{id}");
}

#[test]
fn unknown_routes_and_methods_are_told_apart() {
    let house = house();
    let reply = house.queen.look("/v2/no-such-thing");
    assert_error(&reply, 404, "NOT_FOUND", &["/v2/no-such-thing"]);
    let reply = house.queen.send("DELETE", "/health", b"");
    assert_eq!(reply.expect("an answer").status, 405);
}

#[test]
fn calls_about_models_and_logs_say_what_is_wrong_with_them() {
    let house = house();
    let queen = &house.queen;
    for (body, named) in [
        (json!({}), "model"),
        (json!({"model": "file:../x"}), ".."),
        (json!({"model": "org/repo", "node": "a b"}), "a b"),
    ] {
        for call in ["/v2/models/download", "/v2/models/remove"] {
            assert_error(&queen.ask(call, &body), 400, "INVALID_REQUEST", &[named]);
        }
    }
    let elsewhere = json!({"model": "org/repo", "node": "nowhere"});
    for call in ["/v2/models/download", "/v2/models/remove"] {
        assert_error(
            &queen.ask(call, &elsewhere),
            404,
            "HIVE_NOT_FOUND",
            &["nowhere"],
        );
    }
    let none = queen.ask("/v2/models/remove", &json!({"model": "org/none"}));
    assert_error(&none, 404, "MODEL_NOT_FOUND", &["org/none"]);
    assert_error(
        &queen.look("/v2/logs?node=nowhere"),
        404,
        "HIVE_NOT_FOUND",
        &["nowhere"],
    );
    for (query, named) in [
        ("tail=many", "many"),
        ("tail=10001", "10000"),
        ("follow=perhaps", "perhaps"),
        ("worker_id=a%20b", "a b"),
        ("node=-x", "-x"),
    ] {
        let reply = queen.look(&format!("/v2/logs?{query}"));
        assert_error(&reply, 400, "INVALID_REQUEST", &[named]);
    }
    for (query, named) in [("status=happy", "happy"), ("min_vram_bytes=8G", "8G")] {
        let reply = queen.look(&format!("/v2/registry/beehives/list?{query}"));
        assert_error(&reply, 400, "INVALID_REQUEST", &[named]);
    }
}

#[test]
fn a_web_page_cannot_drive_a_queen_without_tokens() {
    let house = house();
    let body = task(&json!({"stream": false})).to_string();
    let post = |headers: &[(&str, &str)]| {
        let stream = raw::post(&house.queen, "/v2/tasks", headers, &body);
        let mut stream = stream.expect("the queen listens");
        raw::answer(&mut stream).expect("an answer")
    };
    let port = house.queen.port();
    let before = house.stub.count("requests");
    for forged in [
        ("origin", "https://evil.example"),
        ("origin", "null"),
        ("origin", "http://localhost.evil.example"),
        ("host", "evil.example"),
        ("host", &format!("evil.example:{port}")),
        ("host", "127.0.0.1.evil.example"),
    ] {
        let (status, text) = post(&[forged]);
        assert_eq!(status, 403, "{forged:?}: {text}");
        assert!(text.contains("\"FORBIDDEN\""), "{forged:?}: {text}");
        let allows = text.to_lowercase().contains("access-control-allow-origin");
        assert!(!allows, "{forged:?}: {text}");
    }
    assert_eq!(house.stub.count("requests"), before);
    for genuine in [
        ("host", &*format!("localhost:{port}")),
        ("host", &format!("127.0.0.1:{port}")),
        ("host", &format!("[::1]:{port}")),
        ("origin", &format!("http://localhost:{port}")),
        ("origin", &format!("http://127.0.0.1:{port}")),
    ] {
        let (status, text) = post(&[genuine]);
        assert_eq!(status, 200, "{genuine:?}: {text}");
    }
}

#[test]
fn nothing_of_all_this_is_left_when_the_queen_stops() {
    let house = House::new(|launch| launch);
    let unknown = json!({"model": "file:no-such-model", "stream": false});
    let reply = house.queen.ask("/v2/tasks", &task(&unknown));
    assert_eq!(reply.status, 404);
    let House { queen, stub, home } = house;
    drop(queen);
    drop(stub);
    home.assert_nothing_runs();
}
