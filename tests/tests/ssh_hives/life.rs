//! Hives over the lives of queens.

use crate::far::{Far, REMOVE, added, becomes, but, hive_pids, node, serves, worker_ids};
use rbee_tests::harness::{Queen, eventually, until};
use rustix::process::Signal;
use serde_json::json;
use std::time::{Duration, Instant};

const SOON: Duration = Duration::from_secs(20);

#[track_caller]
fn finds_all_as_it_was(far: &Far, queen: &Queen, hives: &[u32], workers: &[serde_json::Value]) {
    becomes(queen, "gpu-0", "online");
    eventually("its workers are known", SOON, || {
        worker_ids(queen) == workers
    });
    serves(queen);
    assert_eq!(hive_pids(&far.home), hives);
    assert_eq!(far.home.engines().len(), 1);
}

#[test]
fn a_queen_after_a_kill_finds_hive_and_worker_as_they_were() {
    let far = Far::new();
    let queen = far.queen().start();
    added(&queen, &far.hive("gpu-0"));
    serves(&queen);
    let (hives, workers) = (hive_pids(&far.home), worker_ids(&queen));
    assert_eq!((hives.len(), workers.len()), (1, 1));
    queen.kill();

    let queen = far.queen().start();
    finds_all_as_it_was(&far, &queen, &hives, &workers);
    queen.stop(Signal::TERM);
    far.home.assert_nothing_runs();
}

#[test]
fn a_shutdown_leaves_hives_running_where_that_is_asked_for() {
    let far = Far::new();
    let queen = far.queen().config("hives.on_shutdown = \"leave\"").start();
    added(&queen, &far.hive("gpu-0"));
    serves(&queen);
    let (hives, workers) = (hive_pids(&far.home), worker_ids(&queen));
    queen.stop(Signal::TERM);
    assert_eq!(hive_pids(&far.home), hives);

    let queen = far.queen().start();
    finds_all_as_it_was(&far, &queen, &hives, &workers);
    queen.stop(Signal::TERM);
    far.home.assert_nothing_runs();
}

#[test]
fn a_queen_whose_machine_is_off_starts_and_stops_without_it() {
    let mut far = Far::new();
    let queen = far.queen().start();
    added(&queen, &far.hive("gpu-0"));
    serves(&queen);
    let (hives, workers) = (hive_pids(&far.home), worker_ids(&queen));
    queen.kill();
    far.sshd.kill();
    let begun = Instant::now();
    let queen = far.queen().start();
    assert!(begun.elapsed() < SOON / 2, "{:?}", begun.elapsed());
    queen.stop(Signal::TERM);
    assert!(begun.elapsed() < SOON, "{:?}", begun.elapsed());
    assert_eq!(hive_pids(&far.home), hives);

    far.sshd.start_again();
    let queen = far.queen().start();
    finds_all_as_it_was(&far, &queen, &hives, &workers);
    queen.stop(Signal::TERM);
    far.home.assert_nothing_runs();
}

#[test]
fn a_removed_hive_is_stopped_unless_it_is_to_be_left() {
    let far = Far::new();
    let queen = far.queen().start();
    added(&queen, &far.hive("gpu-0"));
    serves(&queen);
    let hives = hive_pids(&far.home);
    let leave = json!({"node_name": "gpu-0", "leave_running": true});
    assert_eq!(queen.ask(REMOVE, &leave).status, 200);
    assert_eq!(hive_pids(&far.home), hives);

    added(&queen, &far.hive("gpu-0"));
    becomes(&queen, "gpu-0", "online");
    assert_eq!(hive_pids(&far.home), hives, "it is taken in again");
    let reply = queen.ask(REMOVE, &json!({"node_name": "gpu-0"}));
    assert_eq!(reply.status, 200, "{}", reply.text);
    let gone = until(SOON, || far.home.engines().is_empty().then_some(()));
    assert!(gone.is_some() && hive_pids(&far.home).is_empty());
}

#[test]
fn two_hives_on_one_machine_have_a_port_each() {
    let far = Far::new();
    let queen = far.queen().start();
    let spawn = |name: &str| {
        added(&queen, &far.hive(name));
        let wish = json!({"model": "file:m.stub", "node": name});
        let reply = queen.ask("/v2/workers/spawn", &wish);
        assert_eq!(reply.status, 202, "{}", reply.text);
        becomes(&queen, name, "online")["port"].clone()
    };
    let ports = [spawn("gpu-0"), spawn("gpu-1")];
    assert_ne!(ports[0], ports[1]);
    assert_eq!(hive_pids(&far.home).len(), 2);
    let sessions = queen.log().matches("SSH session made").count();
    assert_eq!(sessions, 1, "one for both: {}", queen.log());
    let reply = queen.ask(REMOVE, &json!({"node_name": "gpu-0"}));
    assert_eq!(reply.status, 200, "{}", reply.text);
    assert_eq!(hive_pids(&far.home).len(), 1);
    assert_eq!(node(&queen, "gpu-1")["status"], "online");
    serves(&queen);
}

#[test]
fn another_queens_hive_of_the_same_name_is_left_alone() {
    let far = Far::new();
    let first = far.queen().start();
    added(&first, &far.hive("gpu-0"));
    serves(&first);
    let hives = hive_pids(&far.home);
    let database = far.home.path().join("other.db");
    let second = far.queen().database(&database).start();
    added(&second, &but(far.hive("gpu-0"), &json!({})));
    serves(&second);
    let both = hive_pids(&far.home);
    assert!(both.len() == 2 && both.contains(&hives[0]), "{both:?}");
    serves(&first);
}
