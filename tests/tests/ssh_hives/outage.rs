//! A machine or a hive that does not answer.

use crate::far::{Far, added, becomes, but, hive_pids, serves, task, worker_ids};
use rbee_tests::harness::{assert_error, eventually, until};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use std::time::Duration;

#[test]
fn a_lost_session_is_told_by_its_reason_and_made_again() {
    let mut far = Far::new();
    let queen = far.queen().start();
    added(&queen, &far.hive("gpu-0"));
    serves(&queen);
    let (hives, workers) = (hive_pids(&far.home), worker_ids(&queen));
    far.sshd.kill();
    let whole = but(task(), &json!({"stream": false}));
    let reply = queen.ask("/v2/tasks", &whole);
    assert_error(
        &reply,
        503,
        "HIVE_UNREACHABLE",
        &["be reached", "127.0.0.1"],
    );
    far.sshd.start_again();
    let again = until(Duration::from_secs(30), || {
        (queen.ask("/v2/tasks", &whole).status == 200).then_some(())
    });
    assert!(again.is_some(), "{}", queen.log());
    becomes(&queen, "gpu-0", "online");
    assert_eq!(hive_pids(&far.home), hives);
    assert_eq!(worker_ids(&queen), workers);
    serves(&queen);
}

#[test]
fn a_hive_that_is_stopped_is_read_about_in_its_log_file() {
    let far = Far::new();
    let queen = far.queen().config("timeouts.hive_call = \"1s\"").start();
    added(&queen, &far.hive("gpu-0"));
    serves(&queen);
    let pid = hive_pids(&far.home)[0].cast_signed();
    let pid = Pid::from_raw(pid).expect("not zero");
    kill_process(pid, Signal::STOP).expect("it is ours");
    let mut lines = String::new();
    eventually("its log file is read", Duration::from_secs(40), || {
        lines = queen.look("/v2/logs?node=gpu-0&tail=50").text;
        lines.contains("data:")
    });
    kill_process(pid, Signal::CONT).expect("it is ours");
    assert!(lines.contains("hive listens"), "{lines}");
}
