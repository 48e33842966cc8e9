//! What the database keeps, over kills, and for how long.

use rbee_tests::harness::events::assert_task_completed;
use rbee_tests::harness::{Home, Launch, Queen, StubEngine, eventually};
use serde_json::{Value, json};
use std::time::Duration;

fn task(tokens: u64) -> Value {
    json!({"model": "file:m", "prompt": "x", "max_tokens": tokens})
}

fn keyed(tokens: u64, key: &str) -> Value {
    let mut task = task(tokens);
    task["idempotency_key"] = json!(key);
    task
}

/// A queen whose worker is in her configuration, so that each of her lives knows it.
fn launch<'h>(home: &'h Home, stub: &StubEngine) -> Launch<'h> {
    home.queen().worker(stub, "file:m", 1)
}

#[test]
fn what_was_accepted_survives_a_kill_in_its_order() {
    let home = Home::new();
    let stub = home.stub(&["--words", "--journal", "--itl-ms", "20"]);
    let queen = launch(&home, &stub).start();
    let submit = |number: u64| {
        let named = queen.header("x-correlation-id", &format!("job-{number}"));
        let named = named.header("prefer", "respond-async");
        let wish = keyed(20, &format!("key-{number}"));
        named
            .post("/v2/tasks", &wish)
            .expect("an answer")
            .accepted()
    };
    let ids: Vec<String> = (0..5).map(submit).collect();
    let reader = queen.follow(&ids[0], None);
    reader.expect("an answer").until_type("token");
    queen.kill();

    let queen = launch(&home, &stub).start();
    let again = queen.submit(&keyed(20, "key-3"));
    assert_eq!(again, ids[3]);
    let ended = ids.iter().map(|id| queen.assert_task_ends(id, "complete"));
    let attempts: Vec<Value> = ended.map(|task| task["attempts"].clone()).collect();
    assert_eq!(attempts, [2, 1, 1, 1, 1], "only the first was running");
    let (noted, _) = stub.journal(0).expect("it keeps one");
    let arrived = noted.iter().filter(|entry| entry.what == "arrived");
    let order: Vec<&str> = arrived.map(|e| e.correlation_id.as_str()).collect();
    assert_eq!(
        order,
        ["job-0", "job-0", "job-1", "job-2", "job-3", "job-4"]
    );
    let usage = queen.look("/v2/usage").json();
    let row = &usage["usage"][0];
    assert_eq!(row["jobs"], 5, "{usage}");
    assert_eq!(
        row["tokens_out"], 100,
        "what a crash cut off is not charged: {usage}"
    );
}

#[test]
fn an_attempt_of_which_a_token_was_relayed_is_not_given_out_again() {
    let home = Home::new();
    // The first token comes after the answer to its submission.
    let stub = home.stub(&["--words", "--ttft-ms", "200", "--itl-ms", "20"]);
    let launch = launch(&home, &stub);
    let dies = home.queen().worker(&stub, "file:m", 1);
    let mut queen = dies.env("QUEEN_TEST_KILL_AT", "mid-stream:1").start();
    let job_id = queen.submit(&task(10));
    let killed = queen.ended(Duration::from_secs(10));
    assert!(killed.is_some_and(|status| !status.success()), "{killed:?}");
    let queen = launch.start();
    let ended = queen.assert_task_ends(&job_id, "complete");
    // A reader may have its first words: those of the next attempt are others.
    assert_eq!(ended["attempts"], 2, "{ended}");
    assert_eq!(stub.count("requests"), 2);
}

#[test]
fn tasks_outlive_a_worker_that_is_away_for_longer_than_their_attempts_last() {
    let home = Home::new();
    let stub = home.stub(&["--words"]);
    let launch = launch(&home, &stub)
        .config("hives.check_interval = \"200ms\"")
        .config("retry.backoff_first = \"10ms\"")
        .config("retry.backoff_max = \"50ms\"");
    let queen = launch.start();
    let warm = queen.submit(&task(1));
    queen.assert_task_ends(&warm, "complete");
    let port = stub.port().to_string();
    drop(stub);
    // Before and after the queen knows that the worker is away.
    let ids: Vec<String> = (1..=6).map(|tokens| queen.submit(&task(tokens))).collect();
    let waits_for = |queen: &Queen, id: &str| {
        let task = queen.task(id);
        let waits_for = task["waits_for"].as_str().unwrap_or_default();
        waits_for.contains("does not answer its health check")
    };
    eventually(
        "they are told for what they wait",
        Duration::from_secs(10),
        || ids.iter().all(|id| waits_for(&queen, id)),
    );
    queen.kill();
    let queen = launch.start();
    eventually(
        "those of the last life as well",
        Duration::from_secs(10),
        || ids.iter().all(|id| waits_for(&queen, id)),
    );
    let _stub = home.stub(&["--words", "--port", &port]);
    for (id, tokens) in ids.iter().zip(1..) {
        let ended = queen.assert_task_ends(id, "complete");
        assert_eq!(ended["tokens_out"], tokens, "{ended}");
    }
}

#[test]
fn back_pressure_before_a_kill_is_no_failure() {
    let home = Home::new();
    let stub = home.stub(&["--words", "--itl-ms", "50"]);
    let launch = launch(&home, &stub).config("retry.attempts_async = 2");
    let queen = launch.start();
    stub.control("fault=status_503=1&fault_times=4")
        .expect("it takes it");
    let id = queen.submit(&task(20));
    eventually("it runs at last", Duration::from_secs(30), || {
        let task = queen.task(&id);
        task["attempts"] == 5 && task["state"] == "running"
    });
    queen.kill();
    let queen = launch.start();
    let ended = queen.assert_task_ends(&id, "complete");
    assert_eq!(ended["attempts"], 6, "{ended}");
}

/// A task whose message has an object nested so deep.
fn nested(depth: usize) -> Value {
    let mut inside = json!("x");
    for _ in 0..depth {
        inside = json!({ "a": inside });
    }
    let message = json!({"role": "user", "content": "x", "extra": inside});
    json!({"model": "file:m", "messages": [message], "max_tokens": 1})
}

#[test]
fn what_is_acknowledged_can_be_read_back_however_deep_it_is_nested() {
    let home = Home::new();
    let stub = home.stub(&["--words", "--itl-ms", "500"]);
    let launch = launch(&home, &stub);
    let queen = launch.start();
    // It has the only slot when the queen is killed.
    let first = queen.submit(&task(100));
    let mut kept = Vec::new();
    let mut refused = 0;
    for depth in 115..=130 {
        let reply = queen.try_submit(&nested(depth));
        match reply.status {
            202 => kept.push(reply.accepted()),
            400 => refused += 1,
            other => panic!("{depth}: {other} {}", reply.text),
        }
    }
    assert!(kept.len() >= 5 && refused >= 3, "{kept:?} {refused}");
    queen.kill();
    stub.control("itl_ms=0").expect("a known key");
    let queen = launch.start();
    for id in kept.iter().chain([&first]) {
        queen.assert_task_ends(id, "complete");
    }
}

#[test]
fn what_ended_long_enough_ago_is_purged_and_usage_stays() {
    let home = Home::new();
    let stub = home.stub(&["--itl-ms", "100"]);
    let queen = launch(&home, &stub)
        .config("retention.jobs = \"1s\"")
        .config("retention.interval = \"200ms\"")
        .start();
    let short = queen.submit(&task(1));
    queen.assert_task_ends(&short, "complete");
    let running = queen.submit(&task(100));
    eventually("it is gone", Duration::from_secs(10), || {
        queen.look(&format!("/v2/tasks/{short}")).status == 404
    });
    assert_eq!(queen.task(&running)["state"], "running");
    let usage = queen.look("/v2/usage").json();
    assert_eq!(usage["usage"][0]["jobs"], 1, "{usage}");
    let events = queen.follow(&short, None).expect("an answer");
    assert_eq!(events.status, 404);
}

#[test]
fn prompts_of_interactive_tasks_are_not_stored() {
    let home = Home::new();
    let stub = home.stub(&[]);
    let queen = launch(&home, &stub).start();
    let mut secret = task(2);
    secret["prompt"] = json!("a-prompt-that-nobody-keeps");
    let stream = queen.stream("/v2/tasks", &secret).expect("an answer");
    assert_task_completed(&stream.rest());
    secret["stream"] = json!(false);
    assert_eq!(queen.ask("/v2/tasks", &secret).status, 200);
    // Listed, they are in the database.
    assert_eq!(queen.tasks("state=complete").len(), 2);
    for file in ["queen.db", "queen.db-wal"] {
        let bytes = std::fs::read(home.path().join(file)).unwrap_or_default();
        let text = String::from_utf8_lossy(&bytes);
        assert!(!text.contains("that-nobody-keeps"), "{file} has the prompt");
    }
}
