//! Hives that die, hang and are drained, and a queen who stands still herself.

use rbee_tests::harness::events::assert_task_completed;
use rbee_tests::harness::{Home, Launch, Queen, assert_error, eventually, ports, until};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

const SECOND: Duration = Duration::from_secs(1);

/// A queen who looks after her hive often. Its port is its own, so that a hive which is started again
/// finds the engines of its last life.
fn watchful(home: &Home) -> Launch<'_> {
    let port = ports::free().expect("the system has a port left");
    home.queen()
        .config(&format!("hives.port = {port}"))
        .config("hives.check_interval = \"200ms\"")
        .config("timeouts.health = \"400ms\"")
}

fn task(tokens: u64) -> Value {
    json!({"model": "m", "prompt": "x", "max_tokens": tokens})
}

#[track_caller]
fn serves(queen: &Queen) {
    let mut whole = task(3);
    whole["stream"] = json!(false);
    let reply = queen.ask("/v2/tasks", &whole);
    assert_eq!(reply.status, 200, "{}", reply.text);
}

fn signal(pid: u32, signal: Signal) {
    let pid = i32::try_from(pid).expect("a process id");
    let pid = Pid::from_raw(pid).expect("not zero");
    kill_process(pid, signal).expect("it is ours");
}

fn hive_pids(home: &Home) -> Vec<u32> {
    let hives = home.processes().into_iter();
    let hives = hives.filter(|p| p.command.contains("rbee-hive"));
    hives.map(|p| p.pid).collect()
}

/// The process of the only hive.
#[track_caller]
fn hive_pid(home: &Home) -> u32 {
    let pids = hive_pids(home);
    assert_eq!(pids.len(), 1, "{pids:?}");
    pids[0]
}

/// The local hive as the queen lists it.
#[track_caller]
fn hive(queen: &Queen) -> Value {
    queen.look("/v2/registry/beehives/list").json()["nodes"][0].clone()
}

#[track_caller]
fn becomes(queen: &Queen, status: &str, within: Duration) {
    eventually(&format!("the hive is {status}"), within, || {
        hive(queen)["status"] == status
    });
}

/// Kills the hive, and waits until another process is in its place.
#[track_caller]
fn kill_and_await_the_next(home: &Home, queen: &Queen) {
    let killed = hive_pid(home);
    signal(killed, Signal::KILL);
    eventually("the hive is started again", 15 * SECOND, || {
        let pids = hive_pids(home);
        pids.len() == 1 && pids[0] != killed && hive(queen)["status"] == "online"
    });
}

#[test]
fn a_hive_that_dies_is_started_again_although_nobody_asks_for_it() {
    let home = Home::new();
    home.add_model("m.stub", "");
    let queen = watchful(&home).start();
    serves(&queen);
    kill_and_await_the_next(&home, &queen);
    serves(&queen);
    drop(queen);
    home.assert_nothing_runs();
}

#[test]
fn a_hive_that_dies_again_and_again_is_given_up_until_a_person_wants_it() {
    let home = Home::new();
    home.add_model("m.stub", "");
    let queen = watchful(&home)
        .config("hives.restart_limit = 1")
        .config("hives.restart_first = \"10ms\"")
        .start();
    serves(&queen);
    kill_and_await_the_next(&home, &queen);
    signal(hive_pid(&home), Signal::KILL);
    becomes(&queen, "error", 10 * SECOND);
    let shown = hive(&queen);
    assert_eq!(shown["gave_up"], true, "{shown}");
    let why = shown["last_error"]["message"].as_str().expect("a reason");
    for told in ["gave up after 1 start within", "last output", "resume"] {
        assert!(why.contains(told), "no {told:?} in: {why}");
    }
    // What it had is known; whoever needs it gets the reason at once.
    let asked = Instant::now();
    let whole = json!({"model": "m", "prompt": "x", "max_tokens": 2, "stream": false});
    let refused = queen.ask("/v2/tasks", &whole);
    assert_error(&refused, 503, "HIVE_UNREACHABLE", &["gave up after 1"]);
    assert!(asked.elapsed() < 5 * SECOND);

    let name = json!({"node_name": "localhost"});
    let resumed = queen.ask("/v2/registry/beehives/resume", &name);
    assert_eq!(resumed.status, 200, "{}", resumed.text);
    becomes(&queen, "online", 15 * SECOND);
    serves(&queen);
}

#[test]
fn a_wedged_hive_is_noticed_and_when_it_is_released_its_workers_serve_on() {
    let home = Home::new();
    home.add_model("m.stub", "itl_ms = 20");
    let queen = watchful(&home).start();
    let mut stream = queen.stream("/v2/tasks", &task(150)).expect("an answer");
    let mut events = vec![stream.until_type("started"), stream.until_type("token")];
    let engines: Vec<u32> = home.engines().iter().map(|p| p.pid).collect();
    let wedged = hive_pid(&home);

    signal(wedged, Signal::STOP);
    let stopped = Instant::now();
    becomes(&queen, "offline", 10 * SECOND);
    let took = stopped.elapsed();
    assert!(
        took < 3 * SECOND,
        "three checks of at most 0.62 s: {took:?}"
    );
    let shown = hive(&queen);
    assert!(!shown["last_error"].is_null(), "{shown}");
    assert!(shown["missed_checks"].as_u64() >= Some(3), "{shown}");
    assert_eq!(queen.workers()[0]["withheld"], true);
    // Who comes now waits, and is told for what.
    let mut late = queen.stream("/v2/tasks", &task(3)).expect("an answer");
    let told = late.until_type("narration");
    assert_eq!(told["action"], "start_hive", "{told}");

    signal(wedged, Signal::CONT);
    becomes(&queen, "online", 10 * SECOND);
    assert_eq!(late.until_type("started")["attempt"], 1);
    assert!(late.rest().iter().any(|event| event["type"] == "end"));
    events.extend(stream.rest());
    assert_task_completed(&events);
    assert_eq!(hive_pid(&home), wedged, "nobody replaced it");
    let after: Vec<u32> = home.engines().iter().map(|p| p.pid).collect();
    assert_eq!(after, engines, "nobody restarted its worker");
    queen.assert_no_slot_leaked();
    let shown = hive(&queen);
    assert_eq!(
        (&shown["missed_checks"], &shown["unsteady"]),
        (&json!(0), &json!(false))
    );

    // Lost a second time, it must be steady before it gets new workers.
    signal(wedged, Signal::STOP);
    becomes(&queen, "offline", 10 * SECOND);
    signal(wedged, Signal::CONT);
    becomes(&queen, "online", 10 * SECOND);
    let shown = hive(&queen);
    assert_eq!(shown["unsteady"], true, "{shown}");
    serves(&queen);
}

#[test]
fn a_drained_hive_ends_its_work_gets_no_more_and_is_stopped_if_that_is_wanted() {
    let home = Home::new();
    home.add_model("m.stub", "itl_ms = 20");
    let queen = watchful(&home).start();
    let mut stream = queen.stream("/v2/tasks", &task(50)).expect("an answer");
    let mut events = vec![stream.until_type("started"), stream.until_type("token")];
    let order = json!({"node_name": "localhost", "stop": true});
    let drained = queen.ask("/v2/registry/beehives/drain", &order);
    assert_eq!(drained.status, 200, "{}", drained.text);
    assert_eq!(hive(&queen)["draining"], true);
    let whole = json!({"model": "m", "prompt": "x", "max_tokens": 2, "stream": false});
    let refused = queen.ask("/v2/tasks", &whole);
    assert_error(&refused, 503, "NO_CAPACITY", &["localhost is drained"]);
    events.extend(stream.rest());
    assert_task_completed(&events);
    eventually("the hive and its engine have ended", 15 * SECOND, || {
        home.processes().len() == 1
    });
    becomes(&queen, "offline", 5 * SECOND);

    let name = json!({"node_name": "localhost"});
    let resumed = queen.ask("/v2/registry/beehives/resume", &name);
    assert_eq!(resumed.status, 200, "{}", resumed.text);
    assert_eq!(hive(&queen)["draining"], false);
    serves(&queen);
    let unknown = queen.ask("/v2/registry/beehives/drain", &json!({"node_name": "x"}));
    assert_error(&unknown, 404, "HIVE_NOT_FOUND", &["x"]);
}

#[test]
fn a_queen_who_stood_still_declares_nobody_dead_and_cuts_nothing_off() {
    let home = Home::new();
    home.add_model("m.stub", "itl_ms = 20");
    let queen = watchful(&home)
        .config("timeouts.between_tokens = \"1s\"")
        .config("timeouts.first_token = \"1s\"")
        .start();
    serves(&queen);
    let engines: Vec<u32> = home.engines().iter().map(|p| p.pid).collect();
    let mut stream = queen.stream("/v2/tasks", &task(300)).expect("an answer");
    let mut events = vec![stream.until_type("started"), stream.until_type("token")];

    signal(queen.pid(), Signal::STOP);
    // Longer than three checks and than any silence that she bears.
    let nothing: Option<()> = until(4 * SECOND, || None);
    assert_eq!(nothing, None);
    signal(queen.pid(), Signal::CONT);

    let ever_lost = until(SECOND, || {
        let shown = hive(&queen);
        (shown["status"] != "online").then_some(shown)
    });
    assert_eq!(ever_lost, None);
    events.extend(stream.rest());
    assert_task_completed(&events);
    let after: Vec<u32> = home.engines().iter().map(|p| p.pid).collect();
    assert_eq!(after, engines);
    serves(&queen);
    queen.assert_no_slot_leaked();
}
