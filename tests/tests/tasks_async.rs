//! Tasks that outlive their connections: accepted, repeated, cancelled, listed.

use rbee_tests::harness::events::assert_task_failed;
use rbee_tests::harness::{Home, Queen, Shared, StubEngine, assert_error, eventually, raw};
use rbee_tests::words;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::thread;
use std::time::Duration;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

const SECOND: Duration = Duration::from_secs(1);

/// A stub that answers in words, with one slot, for a model of its own.
struct House {
    shared: Arc<(Queen, Home)>,
    stub: StubEngine,
    model: String,
}

fn shared() -> Arc<(Queen, Home)> {
    static QUEEN: Shared<(Queen, Home)> = Shared::new();
    QUEEN.get(|| {
        let home = Home::new();
        let launch = home.queen().config("retry.backoff_first = \"60s\"");
        (launch.start(), home)
    })
}

impl House {
    fn new(model: &str, args: &[&str]) -> Self {
        let shared = shared();
        let args: Vec<&str> = [&["--words"], args].concat();
        let stub = shared.1.stub(&args);
        let model = format!("file:{model}");
        shared.0.register(&stub, &model, &json!({}));
        House {
            shared,
            stub,
            model,
        }
    }

    fn queen(&self) -> &Queen {
        &self.shared.0
    }

    fn task(&self, tokens: u64) -> Value {
        task(&self.model, tokens)
    }

    #[track_caller]
    fn works(&self) {
        eventually("the engine works", 5 * SECOND, || {
            self.stub.count("in_flight") == 1
        });
    }

    /// Cancels a task that is open; its reader, its record and its engine all learn of it.
    #[track_caller]
    fn cancels(&self, job_id: &str) {
        let reader = self.queen().follow(job_id, None).expect("an answer");
        let path = format!("/v2/tasks/{job_id}");
        let reply = self.queen().delete(&path).expect("an answer");
        assert_eq!(reply.status, 202, "{}", reply.text);
        assert_task_failed(&reader.rest(), "CANCELLED", &[]);
        let task = self.queen().assert_task_ends(job_id, "cancelled");
        assert_eq!(task["error"]["code"], "CANCELLED", "{task}");
        eventually("the engine is free", SECOND, || {
            self.stub.count("in_flight") == 0
        });
        // Once more changes nothing.
        for (method, path) in [("DELETE", path.clone()), ("POST", path + "/cancel")] {
            let again = self.queen().send(method, &path, &[]).expect("an answer");
            assert_eq!(again.status, 200, "{}", again.text);
            assert_eq!(again.json()["state"], "cancelled", "{}", again.text);
        }
    }
}

fn task(model: &str, tokens: u64) -> Value {
    json!({"model": model, "prompt": "x", "max_tokens": tokens})
}

fn keyed(task: &Value, key: &str) -> Value {
    let mut task = task.clone();
    task["idempotency_key"] = json!(key);
    task
}

#[test]
fn either_way_of_asking_is_accepted_and_the_result_kept() {
    let house = House::new("accepted", &[]);
    let mut batch = house.task(4);
    batch["priority"] = json!("batch");
    let queen = house.queen();
    for reply in [
        queen.try_submit(&house.task(4)),
        queen.ask("/v2/tasks", &batch),
    ] {
        let job_id = reply.accepted();
        let path = format!("/v2/tasks/{job_id}");
        assert_eq!(reply.header("location"), path);
        let accepted = reply.json();
        assert_eq!(accepted["status"], "queued", "{accepted}");
        assert!(accepted["queue_position"].is_u64(), "{accepted}");
        assert_eq!(accepted["events_url"], format!("{path}/events"));

        let task = queen.assert_task_ends(&job_id, "complete");
        assert_eq!(task["asynchronous"], true, "{task}");
        assert_eq!(task["attempts"], 1, "{task}");
        assert_eq!(task["tokens_out"], 4, "{task}");
        assert_eq!(task["stop_reason"], "MAX_TOKENS", "{task}");
        for key in ["tokens_in", "inference_ms", "slot_ms"] {
            assert!(task[key].is_u64(), "{key}: {task}");
        }
        for key in [
            "submitted_at",
            "started_at",
            "ended_at",
            "worker_id",
            "result",
        ] {
            assert!(task[key].is_string(), "{key}: {task}");
        }
    }
}

#[test]
fn a_repeated_key_finds_the_first_task_whatever_became_of_it() {
    let house = House::new("repeated", &["--itl-ms", "20"]);
    let queen = house.queen();
    let wish = keyed(&house.task(4), "once");
    let first = queen.submit(&wish);
    let again = queen.try_submit(&wish);
    assert_eq!(again.accepted(), first);
    assert_eq!(again.header("location"), format!("/v2/tasks/{first}"));
    // The header is the same as the field.
    let by_header = queen.header("idempotency-key", "once");
    let by_header = by_header.header("prefer", "respond-async");
    let reply = by_header.post("/v2/tasks", &house.task(4));
    assert_eq!(reply.expect("an answer").accepted(), first);

    let other = queen.try_submit(&keyed(&house.task(5), "once"));
    assert_error(&other, 409, "CONFLICT", &["idempotency key"]);
    assert_ne!(queen.submit(&keyed(&house.task(4), "twice")), first);

    queen.assert_task_ends(&first, "complete");
    let late = queen.try_submit(&wish);
    assert_eq!(late.accepted(), first);
    assert_eq!(late.json()["status"], "complete", "{}", late.text);
}

#[test]
fn a_crowd_that_asks_with_one_key_gets_one_task() {
    let house = House::new("crowd", &[]);
    let wish = keyed(&house.task(2), "crowd");
    let ids: BTreeSet<String> = thread::scope(|scope| {
        let asking: Vec<_> = (0..16)
            .map(|_| scope.spawn(|| house.queen().submit(&wish)))
            .collect();
        let answers = asking.into_iter();
        answers
            .map(|asked| asked.join().expect("it is accepted"))
            .collect()
    });
    assert_eq!(ids.len(), 1, "{ids:?}");
    let of_model = format!("model={}", house.model);
    assert_eq!(house.queen().tasks(&of_model).len(), 1);
}

#[test]
fn a_key_finds_its_task_whatever_the_headers_of_the_repetition_say() {
    let house = House::new("headers", &[]);
    let wish = keyed(&house.task(2), "headers");
    let first = house.queen().submit(&wish);
    let later = OffsetDateTime::now_utc() + Duration::from_secs(60);
    let later = later.format(&Rfc3339).expect("a time can be written");
    let again = house.queen().header("x-request-deadline", &later);
    let again = again.header("x-request-timeout-ms", "30000");
    let again = again.header("prefer", "respond-async");
    let reply = again.post("/v2/tasks", &wish).expect("an answer");
    assert_eq!(reply.accepted(), first);
}

#[test]
fn a_client_that_leaves_while_its_keyed_task_comes_in_leaves_no_slot_taken() {
    let house = House::new("left", &["--itl-ms", "50"]);
    let mut wish = house.task(1000);
    for number in 0..20 {
        wish["idempotency_key"] = json!(format!("left-{number}"));
        let stream = raw::post(house.queen(), "/v2/tasks", &[], &wish.to_string());
        drop(stream.expect("the queen listens"));
    }
    eventually("nobody works for those who left", 5 * SECOND, || {
        let open = |state: &str| {
            let query = format!("model={}&state={state}", house.model);
            house.queen().tasks(&query).len()
        };
        open("queued") + open("running") == 0 && house.stub.count("in_flight") == 0
    });
}

#[test]
fn a_task_is_cancelled_while_it_waits() {
    let house = House::new("waits", &["--itl-ms", "50"]);
    let running = house.queen().submit(&house.task(100));
    house.works();
    let waiting = house.queen().submit(&house.task(4));
    let reader = house.queen().follow(&waiting, None).expect("an answer");
    let path = format!("/v2/tasks/{waiting}/cancel");
    let reply = house.queen().send("POST", &path, &[]).expect("an answer");
    assert_eq!(reply.status, 202, "{}", reply.text);
    assert_task_failed(&reader.rest(), "CANCELLED", &[]);
    let task = house.queen().assert_task_ends(&waiting, "cancelled");
    assert_eq!(task["attempts"], 0, "{task}");
    assert_eq!(house.stub.count("requests"), 1);
    house.cancels(&running);
}

#[test]
fn a_task_is_cancelled_before_the_headers_before_the_first_token_and_in_midstream() {
    for (model, args, fault) in [
        ("no-headers", ["--itl-ms", "0"], "stall_after=0"),
        ("no-token", ["--ttft-ms", "30000"], "none"),
        ("midstream", ["--itl-ms", "50"], "none"),
    ] {
        let house = House::new(model, &args);
        house
            .stub
            .control(&format!("fault={fault}"))
            .expect("a known fault");
        let job_id = house.queen().submit(&house.task(100));
        house.works();
        if model == "midstream" {
            let reader = house.queen().follow(&job_id, None);
            reader.expect("an answer").until_type("token");
        }
        house.cancels(&job_id);
        house.queen().assert_no_slot_leaked_of(&house.model);
    }
}

#[test]
fn a_task_is_cancelled_while_it_waits_for_its_next_attempt() {
    let house = House::new("backoff", &[]);
    house
        .stub
        .control("fault=drop_mid_stream=1")
        .expect("a known fault");
    let job_id = house.queen().submit(&house.task(4));
    eventually("the first attempt has failed", 5 * SECOND, || {
        let task = house.queen().task(&job_id);
        task["state"] == "queued" && task["attempts"] == 1
    });
    let task = house.queen().task(&job_id);
    assert!(task["not_before"].is_string(), "{task}");
    house.cancels(&job_id);
    assert_eq!(house.stub.count("requests"), 1);
}

#[test]
fn an_rbee_worker_is_told_and_one_that_cannot_cancel_delays_nobody() {
    let (queen, home) = &*shared();
    for protocol in ["rbee", "old_rbee"] {
        let stub = home.stub(&["--protocol", protocol, "--itl-ms", "40"]);
        let model = format!("file:cancel-{protocol}");
        queen.register(&stub, &model, &json!({"protocol": "rbee"}));
        let job_id = queen.submit(&task(&model, 60));
        eventually("it works", 5 * SECOND, || stub.count("in_flight") == 1);
        let path = format!("/v2/tasks/{job_id}");
        let reply = queen.delete(&path).expect("an answer");
        assert_eq!(reply.status, 202, "{}", reply.text);
        eventually("it is cancelled", 5 * SECOND, || {
            queen.task(&job_id)["state"] == "cancelled"
        });
        if protocol == "rbee" {
            eventually("it is told", SECOND, || stub.count("cancels") == 1);
        }
    }
}

#[test]
fn what_has_ended_or_never_was_cannot_be_cancelled() {
    let house = House::new("ended", &[]);
    let queen = house.queen();
    let job_id = queen.submit(&house.task(2));
    queen.assert_task_ends(&job_id, "complete");
    let reply = queen.delete(&format!("/v2/tasks/{job_id}"));
    let reply = reply.expect("an answer");
    assert_eq!(reply.status, 200, "{}", reply.text);
    assert_eq!(reply.json()["state"], "complete", "{}", reply.text);
    assert_eq!(queen.task(&job_id)["state"], "complete");
    for id in ["00000000-0000-7000-8000-000000000000", "nonsense"] {
        let reply = queen.delete(&format!("/v2/tasks/{id}"));
        assert_error(&reply.expect("an answer"), 404, "TASK_NOT_FOUND", &[id]);
    }
}

#[test]
fn an_interactive_stream_can_be_cancelled_from_outside() {
    let house = House::new("outside", &["--itl-ms", "50"]);
    let stream = house.queen().stream("/v2/tasks", &house.task(100));
    let mut stream = stream.expect("an answer");
    let started = stream.until_type("started");
    stream.until_type("token");
    let job_id = started["job_id"].as_str().expect("an id");
    let reply = house.queen().delete(&format!("/v2/tasks/{job_id}"));
    assert_eq!(reply.expect("an answer").status, 202);
    assert_task_failed(&stream.rest(), "CANCELLED", &[]);
    house.queen().assert_task_ends(job_id, "cancelled");
}

#[test]
fn an_absolute_deadline_ends_a_task_wherever_it_is_and_a_timeout_counts_from_the_dispatch() {
    let house = House::new("deadline", &["--itl-ms", "30"]);
    let queen = house.queen();
    let running = queen.submit(&house.task(50));
    house.works();
    let mut patient = house.task(2);
    patient["timeout_ms"] = json!(1000);
    let patient = queen.submit(&patient);
    let due = |deadline: &str| {
        let client = queen.header("x-request-deadline", deadline);
        let client = client.header("prefer", "respond-async");
        client.post("/v2/tasks", &house.task(2)).expect("an answer")
    };
    let past = due("2020-01-01T00:00:00Z");
    assert_error(&past, 504, "TIMEOUT", &["deadline"]);
    let soon = OffsetDateTime::now_utc() + SECOND / 2;
    let soon = soon.format(&Rfc3339).expect("a time of our years");
    let soon = queen.assert_task_ends(&due(&soon).accepted(), "failed");
    assert_eq!(soon["error"]["code"], "TIMEOUT", "{soon}");
    assert_eq!(soon["attempts"], 0, "{soon}");
    // It waited longer than its time-out, which did not count meanwhile.
    queen.assert_task_ends(&running, "complete");
    queen.assert_task_ends(&patient, "complete");
}

#[test]
fn tasks_are_listed_page_by_page_newest_first() {
    let house = House::new("pages", &[]);
    let queen = house.queen();
    let mut ids: Vec<String> = (0..7).map(|_| queen.submit(&house.task(1))).collect();
    for id in &ids {
        queen.assert_task_ends(id, "complete");
    }
    ids.reverse();
    let all = queen.tasks(&format!("model={}&limit=3", house.model));
    let listed: Vec<&str> = all.iter().filter_map(|t| t["job_id"].as_str()).collect();
    assert_eq!(listed, ids);
    let complete = format!("model={}&state=complete", house.model);
    assert_eq!(queen.tasks(&complete).len(), 7);
    let failed = format!("model={}&state=failed", house.model);
    assert_eq!(queen.tasks(&failed), Vec::<Value>::new());
    let reply = queen.look("/v2/tasks?after=nonsense");
    assert_error(&reply, 400, "INVALID_REQUEST", &["after"]);
}

#[test]
fn the_result_is_the_text_of_the_engine() {
    let house = House::new("text", &[]);
    let job_id = house.queen().submit(&house.task(30));
    let task = house.queen().assert_task_ends(&job_id, "complete");
    assert_eq!(task["result"], words::text("x", 1, 30));
}
