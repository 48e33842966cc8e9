//! Batch tasks and those who wait for their answers, on the slots of one engine.

use rbee_tests::harness::{Client, Home, Queen, StubEngine, eventually};
use rbee_tests::words;
use serde_json::{Value, json};
use std::time::Duration;

const SECOND: Duration = Duration::from_secs(1);
const MODEL: &str = "file:shared";

/// A queen with a worker of so many slots, whose answers take as long as they have words.
struct House {
    queen: Queen,
    stub: StubEngine,
    _home: Home,
}

impl House {
    fn new(slots: &str, config: &[&str]) -> Self {
        let home = Home::new();
        let stub = home.stub(&["--words", "--journal", "--itl-ms", "100", "--slots", slots]);
        let slots = slots.parse().expect("a number");
        let mut launch = home.queen().worker(&stub, MODEL, slots);
        launch = launch
            .config("hives.local = false")
            .config("timeouts.drain = \"100ms\"");
        for line in config {
            launch = launch.config(line);
        }
        House {
            queen: launch.start(),
            stub,
            _home: home,
        }
    }

    fn batch(&self, name: &str, words: u64) -> String {
        let mut task = task(name, words);
        task["priority"] = "batch".into();
        self.queen.submit(&task)
    }

    /// What the engine did with the requests, in this order.
    fn journal(&self) -> Vec<(String, String)> {
        let (noted, _) = self.stub.journal(0).expect("it keeps one");
        let noted = noted.into_iter();
        noted
            .map(|entry| (entry.what, entry.correlation_id))
            .collect()
    }
}

fn task(name: &str, words: u64) -> Value {
    json!({"model": MODEL, "prompt": name, "max_tokens": words})
}

/// Streams a task to its end; returns its events.
fn ask(client: &Client, name: &str, words: u64) -> Vec<Value> {
    let client = client.header("x-correlation-id", name);
    let stream = client.stream("/v2/tasks", &task(name, words));
    stream.expect("an answer").rest()
}

fn types(events: &[Value]) -> Vec<&str> {
    let types = events.iter().filter_map(|event| event["type"].as_str());
    types
        .filter(|name| !["metrics", "token"].contains(name))
        .collect()
}

#[test]
fn an_interactive_request_has_a_slot_at_once_however_many_batch_tasks_there_are() {
    let house = House::new("2", &[]);
    let jobs = ["b1", "b2", "b3", "b4", "b5", "b6"].map(|name| house.batch(name, 100));
    eventually("a batch task runs", 10 * SECOND, || {
        house.stub.count("in_flight") == 1
    });
    let events = ask(&house.queen, "me", 3);
    // It never waited: no place in the queue was told, and nothing was taken from the batch task.
    assert_eq!(types(&events), ["started", "end"], "{events:?}");
    let first = house.queen.task(&jobs[0]);
    assert_eq!(
        (&first["state"], &first["attempts"]),
        (&json!("running"), &json!(1))
    );
    assert_eq!(house.stub.count("requests"), 2, "the others wait");
    assert_eq!(house.stub.count("disconnects"), 0);
}

#[test]
fn an_only_slot_goes_to_who_waits_and_the_batch_task_begins_anew() {
    let house = House::new(
        "1",
        &["queue.batch_quiet = \"3s\"", "retry.attempts_async = 1"],
    );
    let job = house.batch("b1", 20);
    let followed = house.queen.follow(&job, None).expect("its events");
    eventually("it runs", 10 * SECOND, || house.stub.count("tokens") > 2);
    let events = ask(&house.queen, "me", 3);
    assert_eq!(types(&events).last(), Some(&"end"), "{events:?}");
    let waits = house.queen.task(&job);
    assert_eq!(
        (&waits["attempts"], &waits["error"]),
        (&json!(1), &Value::Null),
        "{waits}"
    );

    let ended = house.queen.assert_task_ends(&job, "complete");
    assert_eq!(ended["attempts"], 2, "{ended}");
    assert_eq!(ended["result"], words::text("b1", 2, 20));
    // Who followed it was told, and read the second attempt from its beginning.
    let told = followed.rest();
    let narrated = |event: &&Value| event["type"] == "narration" && event["action"] == "retry";
    let retry = told.iter().find(narrated).expect("it was told");
    let human = retry["human"].as_str().unwrap_or_default();
    assert!(human.contains("interactive request"), "{human}");
    let started = told.iter().filter(|event| event["type"] == "started");
    let attempts: Vec<&Value> = started.map(|event| &event["attempt"]).collect();
    assert_eq!(attempts, [1, 2]);

    let journal = house.journal();
    let mine = ("arrived".to_owned(), "me".to_owned());
    let at = journal.iter().position(|entry| *entry == mine);
    let before = &journal[..at.expect("it ran")];
    assert_eq!(before.last().map(|(what, _)| what.as_str()), Some("closed"));
    assert_eq!(house.stub.count("requests"), 3);
}

#[test]
fn a_task_that_gave_its_slot_back_is_not_lost_with_the_queen() {
    let home = Home::new();
    let stub = home.stub(&["--words", "--itl-ms", "100", "--slots", "1"]);
    let launch = home.queen().worker(&stub, MODEL, 1);
    let launch = launch
        .config("hives.local = false")
        .config("retry.attempts_async = 1");
    let queen = launch.start();
    let mut task = task("b1", 20);
    task["priority"] = "batch".into();
    let job = queen.submit(&task);
    eventually("it runs", 10 * SECOND, || stub.count("tokens") > 2);
    ask(&queen, "me", 1);
    assert_eq!(queen.task(&job)["state"], "queued");
    queen.kill();
    let queen = launch.start();
    let ended = queen.assert_task_ends(&job, "complete");
    assert_eq!(ended["attempts"], 2, "{ended}");
    assert_eq!(ended["result"], words::text("b1", 2, 20));
}

#[test]
fn where_nothing_is_to_be_given_back_who_waits_waits() {
    let house = House::new("1", &["queue.batch_gives_back = 0"]);
    let job = house.batch("b1", 10);
    eventually("it runs", 10 * SECOND, || {
        house.stub.count("in_flight") == 1
    });
    let events = ask(&house.queen, "me", 1);
    assert_eq!(types(&events), ["queued", "started", "end"], "{events:?}");
    let ended = house.queen.assert_task_ends(&job, "complete");
    assert_eq!(ended["attempts"], 1, "{ended}");
}
