//! Queens, hives and engines that start, stop, die and find each other again.

use rbee_tests::harness::events::assert_task_completed;
use rbee_tests::harness::{Home, Queen, eventually};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use std::thread;
use std::time::Duration;

fn task(model: &str) -> Value {
    json!({"model": model, "prompt": "x", "max_tokens": 3})
}

#[track_caller]
fn serves(queen: &Queen, model: &str) {
    let stream = queen.stream("/v2/tasks", &task(model));
    let stream = stream.expect("an answer");
    assert_eq!(stream.status, 200);
    assert_task_completed(&stream.rest());
}

fn kill(pid: u32) {
    let pid = i32::try_from(pid).expect("a process id");
    let pid = Pid::from_raw(pid).expect("not zero");
    kill_process(pid, Signal::KILL).expect("it is ours");
}

#[test]
fn a_cold_model_is_loaded_once_for_a_hundred_requests() {
    let home = Home::new();
    home.add_model("cold.stub", "load_ms = 700\nitl_ms = 1");
    let queen = home.queen().start();
    thread::scope(|scope| {
        for i in 0..100 {
            let queen = &queen;
            scope.spawn(move || {
                let (path, body) = match i % 3 {
                    0 => ("/v2/tasks", task("cold")),
                    1 => (
                        "/v2/tasks",
                        json!({"model": "cold", "prompt": "x", "max_tokens": 3, "stream": false}),
                    ),
                    _ => (
                        "/v1/completions",
                        json!({"model": "cold", "prompt": "x", "max_tokens": 3}),
                    ),
                };
                let reply = queen.ask(path, &body);
                assert_eq!(reply.status, 200, "{}", reply.text);
                assert!(!reply.text.contains("\"error\":{"), "{}", reply.text);
            });
        }
    });
    assert_eq!(home.engines().len(), 1);
    assert_eq!(queen.workers().len(), 1);
    let stub = queen.stub_behind("file:cold.stub");
    assert_eq!(stub.count("finished"), 100);
    assert!(stub.count("max_in_flight") <= 2, "the hive gave it 2 slots");
    queen.assert_no_slot_leaked();
    drop(queen);
    home.assert_nothing_runs();
}

#[test]
fn either_signal_stops_the_queen_the_hive_and_the_engine() {
    for signal in [Signal::TERM, Signal::INT] {
        let home = Home::new();
        home.add_model("m.stub", "");
        let queen = home.queen().start();
        serves(&queen, "m");
        assert_eq!(home.processes().len(), 3, "{:#?}", home.processes());
        queen.stop(signal);
        home.assert_nothing_runs();
    }
}

#[test]
fn a_stream_that_runs_when_the_queen_stops_ends_well() {
    let home = Home::new();
    home.add_model("m.stub", "itl_ms = 20");
    let queen = home.queen().start();
    let long = json!({"model": "m", "prompt": "x", "max_tokens": 50});
    let mut stream = queen.stream("/v2/tasks", &long).expect("an answer");
    let mut events = vec![stream.until_type("started"), stream.until_type("token")];
    let stopping = thread::spawn(move || queen.stop(Signal::TERM));
    events.extend(stream.rest());
    assert_task_completed(&events);
    stopping.join().expect("she stops");
    home.assert_nothing_runs();
}

#[test]
fn a_draining_queen_says_so_and_takes_no_more() {
    let home = Home::new();
    let stub = home.stub(&["--itl-ms", "50"]);
    let queen = home.queen().start();
    queen.register(&stub, "file:m", &json!({"slots_total": 2}));
    let long = json!({"model": "file:m", "prompt": "x", "max_tokens": 40});
    let mut stream = queen.stream("/v2/tasks", &long).expect("an answer");
    stream.until_type("token");
    let client = queen.header("x-test", "1");
    let stopping = thread::spawn(move || queen.stop(Signal::TERM));
    // A kept connection would do as well; a new one may be refused by then.
    eventually("she drains", Duration::from_secs(1), || {
        client
            .get("/health")
            .is_ok_and(|reply| reply.status == 503 && reply.json()["status"] == "draining")
    });
    let refused = client.post("/v2/tasks", &task("file:m"));
    let refused = refused.expect("an answer");
    rbee_tests::harness::assert_error(&refused, 503, "SHUTTING_DOWN", &[]);
    drop(stream);
    stopping.join().expect("she stops");
}

#[test]
fn a_queen_killed_and_started_again_adopts_what_still_runs() {
    let home = Home::new();
    home.add_model("m.stub", "");
    let queen = home.queen().start();
    serves(&queen, "m");
    let before = queen.workers();
    let engines = home.engines();
    assert_eq!(engines.len(), 1);
    queen.kill();
    assert_eq!(home.processes().len(), 2, "hive and engine live on");

    let queen = home.queen().start();
    serves(&queen, "m");
    let after = queen.workers();
    assert_eq!(home.engines(), engines, "no second engine");
    assert_eq!(after[0]["worker_id"], before[0]["worker_id"]);
    assert_eq!(after[0]["url"], before[0]["url"]);
    // This life did not start the hive, but the one before it did.
    queen.stop(Signal::TERM);
    home.assert_nothing_runs();
}

#[test]
fn a_task_that_ran_when_the_queen_was_killed_is_told_as_interrupted() {
    let home = Home::new();
    let stub = home.stub(&["--itl-ms", "100"]);
    let queen = home.queen().start();
    queen.register(&stub, "file:m", &json!({}));
    let long = json!({"model": "file:m", "prompt": "x", "max_tokens": 100});
    let mut stream = queen.stream("/v2/tasks", &long).expect("an answer");
    let started = stream.until_type("started");
    stream.until_type("token");
    let path = format!("/v2/tasks/{}", started["job_id"].as_str().expect("an id"));
    eventually("it is recorded", Duration::from_secs(2), || {
        queen.look(&path).json()["state"] == "running"
    });
    queen.kill();
    drop(stream);
    let queen = home.queen().start();
    let task = queen.look(&path).json();
    assert_eq!(task["state"], "failed", "{task}");
    assert_eq!(task["error"]["code"], "INTERRUPTED", "{task}");
}

#[test]
fn a_queen_killed_in_the_middle_of_her_recovery_leaves_all_of_it_to_the_next_life() {
    let home = Home::new();
    let stub = home.stub(&["--itl-ms", "30"]);
    let launch = || home.queen().worker(&stub, "file:m", 2);
    let queen = launch().start();
    let long = json!({"model": "file:m", "prompt": "x", "max_tokens": 30});
    let mut own = queen.stream("/v2/tasks", &long).expect("an answer");
    let started = own.until_type("started");
    let own_id = started["job_id"].as_str().expect("an id");
    let jobs: Vec<String> = (0..3).map(|_| queen.submit(&long)).collect();
    eventually("one of them runs too", Duration::from_secs(2), || {
        let running = jobs
            .iter()
            .filter(|id| queen.task(id)["state"] == "running");
        running.count() == 1 && queen.task(own_id)["state"] == "running"
    });
    queen.kill();
    drop(own);

    let dies = launch().env("QUEEN_TEST_KILL_AT", "recovery-uncommitted");
    let fallen = dies.try_start().expect_err("she kills herself");
    assert!(!fallen.status.success(), "{}", fallen.log);

    let queen = launch().start();
    let task = queen.assert_task_ends(own_id, "failed");
    assert_eq!(task["error"]["code"], "INTERRUPTED", "{task}");
    let attempts = jobs.iter().map(|job_id| {
        let task = queen.assert_task_ends(job_id, "complete");
        task["attempts"].as_u64().expect("a number")
    });
    // The life that died in between has not dispatched any.
    assert_eq!(attempts.sum::<u64>(), 4);
    queen.assert_no_slot_leaked();
}

#[test]
fn two_queens_each_with_a_hive_of_her_own_share_a_machine() {
    let homes = [Home::new(), Home::new()];
    for home in &homes {
        home.add_model("m.stub", "");
    }
    let queens = [homes[0].queen().start(), homes[1].queen().start()];
    thread::scope(|scope| {
        for queen in &queens {
            scope.spawn(|| serves(queen, "m"));
        }
    });
    for (queen, home) in queens.iter().zip(&homes) {
        assert_eq!(home.engines().len(), 1);
        assert_eq!(queen.workers().len(), 1);
    }
    let [first, second] = queens;
    first.stop(Signal::TERM);
    homes[0].assert_nothing_runs();
    serves(&second, "m");
    second.stop(Signal::TERM);
    homes[1].assert_nothing_runs();
}

#[test]
fn an_engine_that_is_killed_is_replaced() {
    let home = Home::new();
    home.add_model("m.stub", "");
    let queen = home.queen().start();
    serves(&queen, "m");
    let first = home.engines();
    kill(first[0].pid);
    eventually("another serves", Duration::from_secs(30), || {
        let mut whole = task("m");
        whole["stream"] = json!(false);
        queen.ask("/v2/tasks", &whole).status == 200
    });
    let second = home.engines();
    assert_eq!(second.len(), 1);
    assert_ne!(second[0].pid, first[0].pid);
    drop(queen);
    home.assert_nothing_runs();
}

#[test]
fn a_hive_that_was_killed_comes_back_when_it_is_needed_and_takes_over_its_engine() {
    let home = Home::new();
    home.add_model("m.stub", "");
    home.add_model("n.stub", "");
    let launch = home.queen().config("hives.check_interval = \"500ms\"");
    let queen = launch.start();
    serves(&queen, "m");
    let engine = home.engines();
    let hive = home.processes();
    let hive = hive.iter().find(|p| p.command.contains("rbee-hive"));
    kill(hive.expect("a hive runs").pid);
    // The engine answers, so it still serves.
    serves(&queen, "m");
    assert_eq!(home.engines(), engine);
    eventually("the hive is back", Duration::from_secs(30), || {
        let mut other = task("n");
        other["stream"] = json!(false);
        queen.ask("/v2/tasks", &other).status == 200
    });
    serves(&queen, "m");
    assert_eq!(home.engines().len(), 2, "{:#?}", home.engines());
    assert!(home.engines().contains(&engine[0]));
    queen.stop(Signal::TERM);
    home.assert_nothing_runs();
}
