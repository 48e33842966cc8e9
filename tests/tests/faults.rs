//! Engines that fail while another one is there, or while a task can wait for a second try.

use rbee_tests::harness::events::{assert_task_completed, assert_task_failed};
use rbee_tests::harness::{Home, Queen, Shared, StubEngine, assert_error, eventually};
use rbee_tests::words;
use rustix::process::Signal;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::{Duration, Instant};

const CHAT: &str = "/v1/chat/completions";
const SECOND: Duration = Duration::from_secs(1);

/// A queen who loses patience soon, and tries again as often as a test may want at once.
fn shared() -> Arc<(Queen, Home)> {
    static QUEEN: Shared<(Queen, Home)> = Shared::new();
    QUEEN.get(|| {
        let home = Home::new();
        let queen = home
            .queen()
            .config("timeouts.first_token = \"1s\"")
            .config("timeouts.between_tokens = \"1s\"")
            .config("retry.backoff_first = \"50ms\"")
            .config("retry.budget_ratio = 1.0")
            .start();
        (queen, home)
    })
}

/// A model of its own with its engines.
struct House {
    shared: Arc<(Queen, Home)>,
    model: String,
}

impl House {
    fn new(model: &str) -> Self {
        House {
            shared: shared(),
            model: format!("file:{model}"),
        }
    }

    fn queen(&self) -> &Queen {
        &self.shared.0
    }

    /// One more engine for the model.
    fn engine(&self, fault: &str) -> StubEngine {
        let stub = self.shared.1.stub(&["--words", "--journal"]);
        let slots = json!({"slots_total": 8});
        self.queen().register(&stub, &self.model, &slots);
        set(&stub, fault);
        stub
    }

    fn task(&self, stream: bool) -> Value {
        json!({"model": self.model, "prompt": "x", "max_tokens": 4, "stream": stream})
    }

    fn chat(&self, stream: bool) -> Value {
        json!({"model": self.model, "messages": [{"role": "user", "content": "x"}],
               "max_tokens": 4, "stream": stream})
    }

    /// Each kind of interactive request is answered in full.
    #[track_caller]
    fn serves(&self) {
        let queen = self.queen();
        let stream = queen.stream("/v2/tasks", &self.task(true));
        let stream = stream.expect("an answer");
        assert_eq!(stream.status, 200);
        assert_completed_at_last(&stream.rest());
        let stream = queen.stream(CHAT, &self.chat(true)).expect("an answer");
        assert_eq!(stream.status, 200);
        let events = stream.rest();
        assert!(events.iter().all(|e| e["error"].is_null()), "{events:#?}");
        assert!(events.len() > 4, "{events:#?}");
        for (path, body) in [("/v2/tasks", self.task(false)), (CHAT, self.chat(false))] {
            let reply = queen.ask(path, &body);
            assert_eq!(reply.status, 200, "{}", reply.text);
        }
    }

    /// Asks until `bad` has had its share; each time the client is served.
    #[track_caller]
    fn serves_in_spite_of(&self, bad: &StubEngine) {
        for _ in 0..8 {
            self.serves();
            if bad.count("requests") > 0 {
                return self.queen().assert_no_slot_leaked_of(&self.model);
            }
        }
        panic!("the bad engine was never asked");
    }

    /// Streams tasks until `bad` gets one; returns that one's events.
    #[track_caller]
    fn stream_on(&self, bad: &StubEngine) -> Vec<Value> {
        for _ in 0..8 {
            let before = bad.count("requests");
            let stream = self.queen().stream("/v2/tasks", &self.task(true));
            let events = stream.expect("an answer").rest();
            if bad.count("requests") > before {
                return events;
            }
            assert_task_completed(&events);
        }
        panic!("the bad engine was never asked");
    }
}

#[track_caller]
fn set(stub: &StubEngine, fault: &str) {
    stub.control(&format!("fault={fault}"))
        .expect("a known fault");
}

/// Checks that a stream completes, whatever attempts it took before its first token.
#[track_caller]
fn assert_completed_at_last(events: &[Value]) -> String {
    let last = events.iter().rposition(|e| e["type"] == "started");
    let last = last.unwrap_or_else(|| panic!("never started: {events:#?}"));
    let (before, attempt) = events.split_at(last);
    let relayed = before.iter().any(|e| e["type"] == "token");
    assert!(!relayed, "a token of an attempt that is void: {events:#?}");
    assert_task_completed(attempt)
}

#[test]
fn before_the_first_byte_another_engine_takes_over() {
    for fault in [
        "status_500",
        "status_503",
        "status_429",
        "close_without_a_byte",
    ] {
        let house = House::new(fault);
        let bad = house.engine(fault);
        let _good = house.engine("none");
        house.serves_in_spite_of(&bad);
    }
}

#[test]
fn an_engine_that_was_killed_costs_nobody_an_answer() {
    let house = House::new("killed");
    let mut bad = house.engine("none");
    let good = house.engine("none");
    bad.daemon().kill();
    for _ in 0..4 {
        house.serves();
    }
    assert_eq!(good.count("requests"), 16);
}

#[test]
fn an_engine_that_hangs_is_given_up_before_its_first_token() {
    let house = House::new("hung");
    let mut bad = house.engine("none");
    let _good = house.engine("none");
    bad.daemon().signal(Signal::STOP);
    let asked = Instant::now();
    for _ in 0..2 {
        let stream = house.queen().stream("/v2/tasks", &house.task(true));
        assert_completed_at_last(&stream.expect("an answer").rest());
    }
    let took = asked.elapsed();
    assert!(took < 8 * SECOND, "{took:?}");
    bad.daemon().signal(Signal::CONT);
    eventually("it finds what it was sent", 5 * SECOND, || {
        bad.count("requests") > 0
    });
}

#[test]
fn an_engine_that_says_200_and_nothing_more_is_given_up_too() {
    let house = House::new("nothing");
    let bad = house.engine("headers_then_nothing");
    let _good = house.engine("none");
    let events = house.stream_on(&bad);
    assert_completed_at_last(&events);
}

#[test]
fn a_slow_engine_is_waited_for_as_long_as_a_first_token_may_take() {
    let house = House::new("slow");
    let slow = house.engine("none");
    slow.control("ttft_ms=500").expect("a known key");
    let stream = house.queen().stream("/v2/tasks", &house.task(true));
    assert_task_completed(&stream.expect("an answer").rest());
    assert_eq!(slow.count("requests"), 1);
    let _good = house.engine("none");
    slow.control("ttft_ms=3000").expect("a known key");
    assert_completed_at_last(&house.stream_on(&slow));
}

#[test]
fn after_the_first_byte_a_stream_ends_with_one_error_and_is_not_tried_again() {
    for (fault, code) in [
        ("drop_mid_stream=2", "WORKER_FAILED"),
        ("half_event=2", "WORKER_FAILED"),
        ("stall_after=2", "TIMEOUT"),
    ] {
        let house = House::new(&fault.replace('=', "-with-a-second-"));
        let bad = house.engine(fault);
        let good = house.engine("none");
        let events = house.stream_on(&bad);
        assert_task_failed(&events, code, &[]);
        let tokens = events.iter().filter(|e| e["type"] == "token");
        assert_eq!(tokens.count(), 2, "{events:#?}");
        let asked = bad.count("requests") + good.count("requests");
        let list = house
            .queen()
            .look(&format!("/v2/tasks?model={}", house.model));
        let tasks = list.json()["tasks"].as_array().map_or(0, Vec::len);
        assert_eq!(asked, tasks as u64, "each was asked for once");
    }
}

#[test]
fn a_lying_engine_ends_a_request_once_and_as_what_it_is() {
    for fault in ["garbage", "wrong_content_type"] {
        let house = House::new(&format!("{fault}-with-a-second"));
        let bad = house.engine(fault);
        let _good = house.engine("none");
        let events = house.stream_on(&bad);
        if events.last().is_some_and(|last| last["type"] == "end") {
            assert_completed_at_last(&events);
        } else {
            assert_task_failed(&events, "UPSTREAM_INVALID", &[]);
        }
    }
}

#[test]
fn what_an_engine_refuses_no_other_is_asked() {
    let house = House::new("refused");
    let engines = [house.engine("status_400"), house.engine("status_400")];
    for n in 1..=4 {
        let reply = house.queen().ask(CHAT, &house.chat(false));
        assert_eq!(reply.status, 400, "{}", reply.text);
        let asked: u64 = engines.iter().map(|e| e.count("requests")).sum();
        assert_eq!(asked, n);
    }
}

#[test]
fn what_fails_on_two_engines_is_given_to_no_third() {
    for fault in ["status_500", "close_without_a_byte"] {
        let house = House::new(&format!("{fault}-on-two"));
        let engines = [fault; 4].map(|fault| house.engine(fault));
        let reply = house.queen().ask(CHAT, &house.chat(false));
        assert_error(&reply, 502, "WORKER_FAILED", &["no other worker"]);
        let asked = engines.iter().filter(|e| e.count("requests") > 0);
        assert_eq!(asked.count(), 2, "{fault}");
        house.queen().assert_no_slot_leaked_of(&house.model);
    }
}

#[test]
fn an_only_engine_that_answers_500_is_asked_once_and_serves_the_next_at_once() {
    let house = House::new("once");
    let stub = house.engine("none");
    for n in 1..=12 {
        set(&stub, "status_500");
        let reply = house.queen().ask(CHAT, &house.chat(n % 2 == 0));
        assert_error(&reply, 502, "WORKER_FAILED", &["the stub says 500"]);
        assert_eq!(stub.count("requests"), n);
    }
    let job_id = house.queen().submit(&house.task(true));
    house.queen().assert_task_ends(&job_id, "failed");
    assert_eq!(stub.count("requests"), 13);
    set(&stub, "none");
    house.serves();
}

#[test]
fn an_engine_that_always_fails_is_left_alone() {
    let house = House::new("breaker");
    let bad = house.engine("status_500");
    let _good = house.engine("none");
    for _ in 0..40 {
        let reply = house.queen().ask("/v2/tasks", &house.task(false));
        assert_eq!(reply.status, 200, "{}", reply.text);
    }
    let asked = bad.count("requests");
    // Five failures in a row open its breaker; a probe may come within the test.
    assert!((1..=8).contains(&asked), "{asked}");
    // An engine that is merely busy is none that fails.
    let house = House::new("no-breaker");
    let busy = house.engine("status_503=1");
    let _good = house.engine("none");
    house.serves_in_spite_of(&busy);
    set(&busy, "none");
    house.serves_in_spite_of(&busy);
}

#[test]
fn an_asynchronous_task_is_tried_again_and_its_text_is_that_of_one_attempt() {
    for fault in [
        "close_without_a_byte",
        "drop_mid_stream=2",
        "half_event=2",
        "stall_after=2",
    ] {
        let house = House::new(&format!("{fault}-again").replace('=', "-"));
        let stub = house.engine(fault);
        stub.control("fault_times=1").expect("a known key");
        let job_id = house.queen().submit(&house.task(true));
        let stream = house.queen().follow(&job_id, None).expect("an answer");
        let events = stream.rest();
        // The reader may have come after the first attempt began to fail, never after the second.
        let started: Vec<&Value> = events.iter().filter(|e| e["type"] == "started").collect();
        let second = started.last().expect("it started");
        assert_eq!(second["attempt"], 2, "{fault}: {events:#?}");
        let from = events.iter().rposition(|e| e["type"] == "started");
        let text = assert_task_completed(&events[from.expect("it started")..]);
        let task = house.queen().task(&job_id);
        assert_eq!(task["state"], "complete", "{fault}: {task}");
        assert_eq!(task["attempts"], 2, "{fault}: {task}");
        assert_eq!(task["result"], text, "{fault}");
        let generation = words::generation(&text).expect("the stub speaks words");
        assert_eq!(text, words::text("x", generation, 4), "{fault}");
        assert_eq!(task["tokens_out"], 4, "only one attempt counts: {task}");
    }
}

#[test]
fn an_asynchronous_task_tells_of_the_retry_and_gives_up_after_five_attempts() {
    let house = House::new("five");
    let stub = house.engine("drop_mid_stream=1");
    let job_id = house.queen().submit(&house.task(true));
    let stream = house.queen().follow(&job_id, None).expect("an answer");
    let events = stream.rest();
    assert_task_failed(&events, "WORKER_FAILED", &[]);
    let retries = events
        .iter()
        .filter(|e| e["type"] == "narration" && e["action"] == "retry");
    assert!(retries.count() >= 1, "{events:#?}");
    let task = house.queen().task(&job_id);
    assert_eq!(task["state"], "failed", "{task}");
    assert_eq!(task["attempts"], 5, "{task}");
    assert_eq!(task["error"]["code"], "WORKER_FAILED", "{task}");
    assert_eq!(stub.count("requests"), 5);
    house.queen().assert_no_slot_leaked_of(&house.model);
}

#[test]
fn an_engine_that_says_when_to_come_back_is_not_asked_before() {
    let house = House::new("later");
    let stub = house.engine("status_503=2");
    stub.control("fault_times=1").expect("a known key");
    let job_id = house.queen().submit(&house.task(true));
    let stream = house.queen().follow(&job_id, None).expect("an answer");
    let events = stream.rest();
    assert_eq!(
        events.last().expect("an ending")["type"],
        "end",
        "{events:#?}"
    );
    let (noted, _) = stub.journal(0).expect("it keeps one");
    let arrived: Vec<u64> = noted
        .iter()
        .filter(|entry| entry.what == "arrived")
        .map(|entry| entry.at_ns)
        .collect();
    assert_eq!(arrived.len(), 2);
    let waited = Duration::from_nanos(arrived[1] - arrived[0]);
    assert!(waited >= 2 * SECOND && waited < 6 * SECOND, "{waited:?}");
}

#[test]
fn an_only_engine_that_is_overrun_is_told_with_its_own_time() {
    let home = Home::new();
    let stub = home.stub(&[]);
    // However often it is asked again within the time that a request may wait.
    let launch = home.queen().worker(&stub, "file:overrun", 1);
    let queen = launch.config("queue.timeout = \"1s\"").start();
    set(&stub, "status_503=3");
    let chat = json!({"model": "file:overrun", "messages": [{"role": "user", "content": "x"}]});
    let asked = Instant::now();
    let reply = queen.ask(CHAT, &chat);
    assert_eq!(reply.status, 503, "{}", reply.text);
    let after: u64 = reply.header("retry-after").parse().expect("seconds");
    assert!((1..=3).contains(&after), "{after}");
    let took = asked.elapsed();
    assert!(took < 5 * SECOND, "{took:?}");
    queen.assert_no_slot_leaked_of("file:overrun");
}
