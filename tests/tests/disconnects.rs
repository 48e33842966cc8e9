//! Clients that go away, in each phase of a request: what they held is free within a second.

use rbee_tests::harness::{Home, Queen, Shared, StubEngine, eventually, raw};
use serde_json::{Value, json};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;

const CHAT: &str = "/v1/chat/completions";
const SECOND: Duration = Duration::from_secs(1);

fn shared() -> Arc<(Queen, Home)> {
    static QUEEN: Shared<(Queen, Home)> = Shared::new();
    QUEEN.get(|| {
        let home = Home::new();
        let queen = home.queen().start();
        (queen, home)
    })
}

/// An engine with one slot, for a model of its own.
struct OneSlot {
    shared: Arc<(Queen, Home)>,
    stub: StubEngine,
    model: String,
}

impl OneSlot {
    fn new(model: &str, args: &[&str], protocol: &str) -> Self {
        let shared = shared();
        let stub = shared.1.stub(args);
        let model = format!("file:{model}");
        shared
            .0
            .register(&stub, &model, &json!({"protocol": protocol}));
        OneSlot {
            shared,
            stub,
            model,
        }
    }

    fn queen(&self) -> &Queen {
        &self.shared.0
    }

    fn task(&self) -> Value {
        json!({"model": self.model, "prompt": "x", "max_tokens": 100})
    }

    fn chat(&self, stream: bool) -> Value {
        json!({"model": self.model, "messages": [{"role": "user", "content": "x"}],
               "max_tokens": 100, "stream": stream})
    }

    /// Sends a request and reads nothing.
    fn send(&self, path: &str, body: &Value) -> TcpStream {
        let stream = raw::post(self.queen(), path, &[], &body.to_string());
        stream.expect("the queen listens")
    }

    #[track_caller]
    fn runs(&self) {
        eventually("the engine works", Duration::from_secs(5), || {
            self.stub.count("in_flight") == 1
        });
    }

    /// The engine knows within a second, and the queen too.
    #[track_caller]
    fn is_free_at_once(&self) {
        eventually("the engine has dropped it", SECOND, || {
            self.stub.count("in_flight") == 0
        });
        let own = |w: &&Value| w["model_ref"] == *self.model;
        eventually("the slot is free", SECOND, || {
            let workers = self.queen().workers();
            let worker = workers.iter().find(own).expect("it stays registered");
            worker["slots_available"] == 1 && worker["state"] == "idle"
        });
    }
}

#[test]
fn one_who_leaves_the_queue_never_reaches_the_engine() {
    let house = OneSlot::new("queued", &["--itl-ms", "100"], "openai");
    let mut first = house
        .queen()
        .stream("/v2/tasks", &house.task())
        .expect("an answer");
    first.until_type("token");
    let mut second = house
        .queen()
        .stream("/v2/tasks", &house.task())
        .expect("an answer");
    let queued = second.until_type("queued");
    let job_id = queued["job_id"].as_str().expect("an id").to_owned();
    let chat = house.send(CHAT, &house.chat(true));
    let whole = house.send(CHAT, &house.chat(false));
    drop((second, chat, whole));
    house.queen().assert_task_becomes(&job_id, "cancelled");
    drop(first);
    house.is_free_at_once();
    assert_eq!(house.stub.count("requests"), 1);
}

#[test]
fn one_who_leaves_before_the_headers_frees_the_slot() {
    let house = OneSlot::new("no-headers", &[], "openai");
    house
        .stub
        .control("fault=stall_after=0")
        .expect("a known fault");
    for body in [house.chat(false), house.chat(true)] {
        let client = house.send(CHAT, &body);
        house.runs();
        drop(client);
        house.is_free_at_once();
    }
    let mut whole = house.task();
    whole["stream"] = json!(false);
    let client = house.send("/v2/tasks", &whole);
    house.runs();
    drop(client);
    house.is_free_at_once();
    assert_eq!(house.stub.count("disconnects"), 3);
}

#[test]
fn one_who_leaves_before_the_first_token_frees_the_slot() {
    let house = OneSlot::new("no-token", &["--ttft-ms", "30000"], "openai");
    let mut task = house
        .queen()
        .stream("/v2/tasks", &house.task())
        .expect("an answer");
    let started = task.until_type("started");
    house.runs();
    drop(task);
    house.is_free_at_once();
    let job_id = started["job_id"].as_str().expect("an id");
    house.queen().assert_task_becomes(job_id, "cancelled");

    let chat = house.queen().stream(CHAT, &house.chat(true));
    let chat = chat.expect("an answer");
    let job_id = chat.headers["x-job-id"].to_str().expect("an id").to_owned();
    house.runs();
    drop(chat);
    house.is_free_at_once();
    house.queen().assert_task_becomes(&job_id, "cancelled");
}

#[test]
fn one_who_leaves_in_midstream_frees_the_slot() {
    let house = OneSlot::new("midstream", &["--itl-ms", "50"], "openai");
    let mut task = house
        .queen()
        .stream("/v2/tasks", &house.task())
        .expect("an answer");
    let started = task.until_type("started");
    for i in 0..3 {
        assert_eq!(task.until_type("token")["i"], i);
    }
    drop(task);
    house.is_free_at_once();
    let job_id = started["job_id"].as_str().expect("an id");
    let task = house.queen().assert_task_becomes(job_id, "cancelled");
    assert_eq!(task["error"]["code"], "CANCELLED", "{task}");

    let mut chat = house
        .queen()
        .stream(CHAT, &house.chat(true))
        .expect("an answer");
    for _ in 0..3 {
        chat.json();
    }
    drop(chat);
    house.is_free_at_once();
}

#[test]
fn an_rbee_worker_is_told_too() {
    let args = ["--protocol", "rbee", "--itl-ms", "50"];
    let house = OneSlot::new("rbee", &args, "rbee");
    let mut task = house
        .queen()
        .stream("/v2/tasks", &house.task())
        .expect("an answer");
    task.until_type("token");
    drop(task);
    house.is_free_at_once();
}

#[test]
fn an_old_worker_that_cannot_cancel_is_busy_until_it_answers_again() {
    let args = ["--protocol", "old_rbee", "--itl-ms", "30"];
    let house = OneSlot::new("old", &args, "rbee");
    let mut task = house
        .queen()
        .stream("/v2/tasks", &house.task())
        .expect("an answer");
    task.until_type("started");
    house.runs();
    drop(task);
    let state = || {
        let workers = house.queen().workers();
        let own = workers.iter().find(|w| w["model_ref"] == *house.model);
        own.expect("it stays registered")["state"].clone()
    };
    // It computes 100 tokens for 3 s, and hears nothing meanwhile.
    assert_eq!(state(), "busy");
    eventually("it is idle again", Duration::from_secs(20), || {
        state() == "idle"
    });
    assert_eq!(house.stub.count("in_flight"), 0);
    let mut whole = house.task();
    whole["stream"] = json!(false);
    whole["max_tokens"] = json!(2);
    let reply = house.queen().ask("/v2/tasks", &whole);
    assert_eq!(reply.status, 200, "{}", reply.text);
    assert_eq!(house.stub.count("max_in_flight"), 1);
}

#[test]
fn a_hundred_who_leave_at_once_leave_nothing() {
    let home = Home::new();
    let stub = home.stub(&["--itl-ms", "50"]);
    let queen = home.queen().start();
    queen.register(&stub, "file:crowd", &json!({"slots_total": 40}));
    let body = json!({"model": "file:crowd", "prompt": "x", "max_tokens": 100}).to_string();
    let send = |_| raw::post(&queen, "/v2/tasks", &[], &body).expect("the queen listens");
    let crowd: Vec<TcpStream> = (0..100).map(send).collect();
    eventually("every slot is taken", Duration::from_secs(5), || {
        stub.count("in_flight") == 40
    });
    drop(crowd);
    eventually("the engine is free", SECOND, || {
        stub.count("in_flight") == 0
    });
    queen.assert_no_slot_leaked();
    assert_eq!(stub.count("max_in_flight"), 40);
    let running = queen.look("/v2/tasks?state=running").json();
    assert_eq!(running["tasks"], json!([]), "{running}");
    let queued = queen.look("/v2/tasks?state=queued").json();
    assert_eq!(queued["tasks"], json!([]), "{queued}");
}
