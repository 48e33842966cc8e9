//! Engines that fail, in every way that an engine can: the client gets a clean end, and the slot
//! is free again.

use rbee_tests::harness::events::{assert_task_completed, assert_task_failed};
use rbee_tests::harness::{Home, Queen, Shared, StubEngine, assert_error, eventually};
use rustix::process::Signal;
use serde_json::{Value, json};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

const CHAT: &str = "/v1/chat/completions";

/// A queen who loses patience soon, and leaves no engine alone however often it fails.
fn queen(home: &Home) -> Queen {
    home.queen()
        .config("timeouts.between_tokens = \"1s\"")
        .config("breaker = { failures = 1000, min_attempts = 1000 }")
        .start()
}

fn shared() -> Arc<(Queen, Home)> {
    static QUEEN: Shared<(Queen, Home)> = Shared::new();
    QUEEN.get(|| {
        let home = Home::new();
        (queen(&home), home)
    })
}

/// A stub with a fault, registered for a model of its own.
struct Faulty {
    shared: Arc<(Queen, Home)>,
    stub: StubEngine,
    model: String,
}

impl Faulty {
    fn new(fault: &str) -> Self {
        let shared = shared();
        let stub = shared.1.stub(&["--tokens", "4"]);
        let model = format!("file:{}", fault.replace('=', "-"));
        shared.0.register(&stub, &model, &json!({}));
        stub.control(&format!("fault={fault}"))
            .expect("a known fault");
        Faulty {
            shared,
            stub,
            model,
        }
    }

    fn queen(&self) -> &Queen {
        &self.shared.0
    }

    fn task(&self, stream: bool) -> Value {
        json!({"model": self.model, "prompt": "x", "max_tokens": 4, "stream": stream})
    }

    fn chat(&self, stream: bool) -> Value {
        json!({"model": self.model, "messages": [{"role": "user", "content": "x"}],
               "max_tokens": 4, "stream": stream})
    }

    /// The streamed task's events end with this error.
    #[track_caller]
    fn fails_task(&self, code: &str) {
        let task = self.task(true);
        let stream = self.queen().stream("/v2/tasks", &task);
        let stream = stream.expect("an answer");
        assert_eq!(stream.status, 200);
        assert_task_failed(&stream.rest(), code, &[]);
    }

    /// The chat stream, once under way, ends with this error and `[DONE]`, every event whole.
    #[track_caller]
    fn fails_chat_midway(&self, code: &str, tokens: usize) {
        let stream = self.queen().stream(CHAT, &self.chat(true));
        let stream = stream.expect("an answer");
        assert_eq!(stream.status, 200);
        let events = stream.rest();
        let last = events.last().expect("the error");
        assert_eq!(last["error"]["code"], code, "{events:#?}");
        let content = |e: &&Value| e["choices"][0]["delta"]["content"].is_string();
        assert_eq!(events.iter().filter(content).count(), tokens, "{events:#?}");
    }

    /// Without a stream both kinds of request are refused so.
    #[track_caller]
    fn fails_whole(&self, status: u16, code: &str) {
        let reply = self.queen().ask("/v2/tasks", &self.task(false));
        assert_error(&reply, status, code, &[]);
        let reply = self.queen().ask(CHAT, &self.chat(false));
        assert_error(&reply, status, code, &[]);
    }

    /// Nothing is held: not by the queen, not by the engine; and healed, it serves.
    #[track_caller]
    fn is_clean(&self) {
        eventually("the engine is free", Duration::from_secs(1), || {
            self.stub.count("in_flight") == 0
        });
        let is_free = |w: &Value| w["slots_available"] == w["slots_total"];
        let own = |w: &&Value| w["model_ref"] == *self.model;
        eventually("the slot is free", Duration::from_secs(1), || {
            self.queen().workers().iter().find(own).is_none_or(is_free)
        });
        self.stub.control("fault=none").expect("a known key");
        eventually("it serves again", Duration::from_secs(10), || {
            let reply = self.queen().ask("/v2/tasks", &self.task(false));
            reply.status == 200
        });
    }
}

#[test]
fn an_engine_that_answers_500_is_a_failed_worker() {
    let faulty = Faulty::new("status_500");
    faulty.fails_task("WORKER_FAILED");
    faulty.fails_whole(502, "WORKER_FAILED");
    let reply = faulty.queen().ask(CHAT, &faulty.chat(true));
    assert_error(&reply, 502, "WORKER_FAILED", &["500"]);
    faulty.is_clean();
}

#[test]
fn what_an_engine_refuses_its_client_hears_in_the_engines_words() {
    let faulty = Faulty::new("status_400");
    for stream in [false, true] {
        let reply = faulty.queen().ask(CHAT, &faulty.chat(stream));
        assert_eq!(reply.status, 400, "{}", reply.text);
        let error = &reply.json()["error"];
        assert_eq!(error["message"], "the stub says 400", "{error}");
        assert_eq!(error["type"], "invalid_request_error", "{error}");
    }
    let reply = faulty.queen().ask("/v2/tasks", &faulty.task(false));
    assert_error(&reply, 400, "INVALID_REQUEST", &["the stub says 400"]);
    faulty.is_clean();
}

#[test]
fn half_an_event_is_never_passed_on() {
    let faulty = Faulty::new("half_event=2");
    faulty.fails_task("WORKER_FAILED");
    faulty.fails_chat_midway("WORKER_FAILED", 2);
    let reply = faulty.queen().ask("/v2/tasks", &faulty.task(false));
    assert_error(&reply, 502, "WORKER_FAILED", &[]);
    let reply = faulty.queen().ask(CHAT, &faulty.chat(false));
    assert_error(&reply, 502, "UPSTREAM_INVALID", &[]);
    faulty.is_clean();
}

#[test]
fn garbage_is_told_as_such() {
    let faulty = Faulty::new("garbage");
    faulty.fails_task("UPSTREAM_INVALID");
    faulty.fails_chat_midway("UPSTREAM_INVALID", 0);
    faulty.fails_whole(502, "UPSTREAM_INVALID");
    faulty.is_clean();
}

#[test]
fn a_web_page_in_place_of_an_answer_is_told_as_such() {
    let faulty = Faulty::new("wrong_content_type");
    faulty.fails_task("UPSTREAM_INVALID");
    faulty.fails_whole(502, "UPSTREAM_INVALID");
    let reply = faulty.queen().ask(CHAT, &faulty.chat(true));
    assert_error(&reply, 502, "UPSTREAM_INVALID", &["text/html"]);
    faulty.is_clean();
}

#[test]
fn an_only_engine_that_closes_without_a_byte_is_tried_three_times() {
    let faulty = Faulty::new("close_without_a_byte");
    faulty.fails_whole(502, "WORKER_FAILED");
    let reply = faulty.queen().ask(CHAT, &faulty.chat(true));
    assert_error(&reply, 502, "WORKER_FAILED", &[]);
    faulty.fails_task("WORKER_FAILED");
    let requests = faulty.stub.count("requests");
    // Four requests; of each attempt's two calls the first may be on a kept connection.
    assert!((12..=24).contains(&requests), "{requests}");
    faulty.is_clean();
}

#[test]
fn a_connection_that_breaks_midway_ends_the_stream_cleanly() {
    let faulty = Faulty::new("drop_mid_stream=2");
    faulty.fails_task("WORKER_FAILED");
    faulty.fails_chat_midway("WORKER_FAILED", 2);
    faulty.fails_whole(502, "WORKER_FAILED");
    faulty.is_clean();
}

#[test]
fn an_engine_that_stalls_between_tokens_is_cut_off() {
    let faulty = Faulty::new("stall_after=2");
    let asked = Instant::now();
    faulty.fails_task("TIMEOUT");
    faulty.fails_chat_midway("TIMEOUT", 2);
    let took = asked.elapsed();
    assert!(took < Duration::from_secs(5), "{took:?}");
    faulty.is_clean();
}

#[test]
fn an_engine_that_never_says_a_word_is_bounded_by_the_requests_own_time() {
    for fault in ["headers_then_nothing", "stall_after=0"] {
        let faulty = Faulty::new(fault);
        let mut task = faulty.task(true);
        task["timeout_ms"] = json!(1500);
        let stream = faulty.queen().stream("/v2/tasks", &task);
        let events = stream.expect("an answer").rest();
        assert_task_failed(&events, "TIMEOUT", &["1500"]);
        task["stream"] = json!(false);
        let reply = faulty.queen().ask("/v2/tasks", &task);
        assert_error(&reply, 504, "TIMEOUT", &[]);
        let hurried = faulty.queen().header("x-request-timeout-ms", "1500");
        let reply = hurried.post(CHAT, &faulty.chat(false)).expect("an answer");
        assert_error(&reply, 504, "TIMEOUT", &[]);
        faulty.is_clean();
    }
}

#[test]
fn an_engine_that_exits_while_loading_is_told_with_its_exit_code() {
    let home = Home::new();
    home.add_model("broken.stub", "load_ms = 200\nexit_while_loading = 42");
    let queen = queen(&home);
    let task = json!({"model": "broken", "prompt": "x", "max_tokens": 2});
    let stream = queen.stream("/v2/tasks", &task).expect("an answer");
    let events = stream.rest();
    let narrated = events.iter().any(|e| e["type"] == "narration");
    assert!(narrated, "{events:#?}");
    assert_task_failed(&events, "WORKER_FAILED", &["42"]);
    assert_eq!(queen.workers(), Vec::<Value>::new());
    eventually("no engine is left", Duration::from_secs(5), || {
        home.engines().is_empty()
    });
    // Mended, it is loaded anew.
    home.add_model("broken.stub", "");
    let whole = json!({"model": "broken", "prompt": "x", "max_tokens": 2, "stream": false});
    eventually("the mended model serves", Duration::from_secs(30), || {
        queen.ask("/v2/tasks", &whole).status == 200
    });
    drop(queen);
    home.assert_nothing_runs();
}

#[test]
fn while_an_engine_hangs_loading_requests_are_sent_away_and_then_it_is_ended() {
    let home = Home::new();
    home.add_model("stuck.stub", "hang_while_loading = true");
    home.add_model("quick.stub", "");
    let queen = queen(&home);
    let impatient = json!({"model": "stuck", "prompt": "x", "queue_timeout_ms": 1000});
    let stream = queen.stream("/v2/tasks", &impatient).expect("an answer");
    let events = stream.rest();
    assert_task_failed(&events, "MODEL_LOADING", &["stuck"]);
    let last = events.last().expect("the error");
    assert!(last["retry_after_ms"].is_u64(), "{last}");
    let mut whole = impatient;
    whole["stream"] = json!(false);
    let reply = queen.ask("/v2/tasks", &whole);
    assert_error(&reply, 503, "MODEL_LOADING", &["stuck"]);
    assert_eq!(home.engines().len(), 1, "the load goes on, once");
    // Another model does not wait behind it.
    let quick = json!({"model": "quick", "prompt": "x", "max_tokens": 2});
    let stream = queen.stream("/v2/tasks", &quick).expect("an answer");
    assert_task_completed(&stream.rest());
    // The hive gives up after 4 s (its load_timeout_secs).
    let is_stuck = || home.engines().iter().any(|p| p.command.contains("stuck"));
    eventually("it is ended", Duration::from_secs(15), || !is_stuck());
    drop(queen);
    home.assert_nothing_runs();
}

#[test]
fn an_engine_that_dies_midway_leaves_the_registry_and_the_next_request_gets_a_new_one() {
    let home = Home::new();
    home.add_model("mortal.stub", "fault = \"die_mid_stream = 2\"");
    let queen = queen(&home);
    let task = json!({"model": "mortal", "prompt": "x", "max_tokens": 4});
    let stream = queen.stream("/v2/tasks", &task).expect("an answer");
    assert_task_failed(&stream.rest(), "WORKER_FAILED", &[]);
    home.add_model("mortal.stub", "");
    eventually("a new one serves", Duration::from_secs(30), || {
        let stream = queen.stream("/v2/tasks", &task).expect("an answer");
        let events = stream.rest();
        events.last().is_some_and(|last| last["type"] == "end")
    });
    assert_eq!(home.engines().len(), 1);
    queen.assert_no_slot_leaked();
    drop(queen);
    home.assert_nothing_runs();
}

#[test]
fn an_engine_deaf_to_sigterm_is_killed_when_the_queen_stops() {
    let home = Home::new();
    home.add_model("deaf.stub", "ignore_sigterm = true");
    let queen = queen(&home);
    let task = json!({"model": "deaf", "prompt": "x", "max_tokens": 2});
    let stream = queen.stream("/v2/tasks", &task).expect("an answer");
    assert_task_completed(&stream.rest());
    assert_eq!(home.engines().len(), 1);
    drop(queen);
    home.assert_nothing_runs();
}

#[test]
fn a_worker_that_is_to_stop_at_once_loses_its_callers_first() {
    let home = Home::new();
    // As llama-server, it is asked to end and stays; unlike it, it would go on to speak.
    home.add_model("deaf.stub", "ignore_sigterm = true\nitl_ms = 100");
    let queen = queen(&home);
    let task = json!({"model": "deaf", "prompt": "x", "max_tokens": 600});
    let mut stream = queen.stream("/v2/tasks", &task).expect("an answer");
    stream.until_type("token");
    let worker_id = queen.workers()[0]["worker_id"].clone();
    let engine = queen.stub_behind("file:deaf.stub");
    let stop = json!({"worker_id": worker_id, "force": true});
    thread::scope(|scope| {
        scope.spawn(|| queen.ask("/v2/workers/shutdown", &stop));
        assert_task_failed(&stream.rest(), "WORKER_FAILED", &["is being stopped"]);
        assert_eq!(engine.count("in_flight"), 0, "it lives, and serves nobody");
    });
}

#[test]
fn a_frozen_engine_costs_its_request_and_no_more() {
    let home = Home::new();
    let queen = queen(&home);
    let mut stub = home.stub(&["--tokens", "4"]);
    queen.register(&stub, "file:frozen", &json!({}));
    let task = |timeout: u64| json!({"model": "file:frozen", "prompt": "x", "max_tokens": 4, "timeout_ms": timeout});
    stub.daemon().signal(Signal::STOP);
    let stream = queen.stream("/v2/tasks", &task(500)).expect("an answer");
    assert_task_failed(&stream.rest(), "TIMEOUT", &["timeout_ms"]);
    // It is in doubt until it answers: what comes meanwhile waits, and is not sent to it.
    let mut waiting = queen.stream("/v2/tasks", &task(20_000)).expect("an answer");
    waiting.until_type("queued");
    stub.daemon().signal(Signal::CONT);
    assert_task_completed(&waiting.rest());
    queen.assert_no_slot_leaked();
}

#[test]
fn who_is_no_hive_takes_no_worker_out() {
    let home = Home::new();
    let queen = queen(&home);
    let stub = home.stub(&["--tokens", "4"]);
    queen.register(&stub, "file:slandered", &json!({"worker_id": "slandered"}));
    let said = queen.ask("/v2/workers/failed", &json!({"worker_id": "slandered"}));
    assert_eq!(said.status, 200);
    let message = said.json()["message"].to_string();
    assert!(message.contains("being checked"), "{message}");
    let task = json!({"model": "file:slandered", "prompt": "x", "max_tokens": 4});
    let stream = queen.stream("/v2/tasks", &task).expect("an answer");
    assert_task_completed(&stream.rest());
    assert_eq!(queen.workers().len(), 1);
}
