//! What happens to machines, and to the queen, as a whole.

use super::{
    LONGEST, SECOND, add, becomes, hasty, hive, needs_a_network, run, running, task, with_model,
};
use rbee_tests::harness::events::assert_task_completed;
use rbee_tests::harness::{Home, until};
use rbee_tests::machines::Network;
use rustix::process::{Pid, Signal, kill_process};

#[test]
fn a_machine_that_was_switched_off_and_on_again_serves_again() {
    let network = Network::new();
    if !needs_a_network(&network) {
        return;
    }
    let home = Home::new();
    let mut machine = with_model(&network, "far", "itl_ms = 1");
    let queen = hasty(&network, &home).start();
    add(&queen, &machine);
    run(&queen, &task("file:m.stub", 4));
    let before = running(&machine, "rbee-hive");

    machine.power_off();
    let gone = until(LONGEST, || {
        (hive(&queen, "far")["status"] != "online").then_some(())
    });
    assert!(gone.is_some(), "{:#}", hive(&queen, "far"));
    let waits = queen.submit(&task("file:m.stub", 4));
    machine.power_on();
    queen.assert_task_ends(&waits, "complete");
    let after = running(&machine, "rbee-hive");
    assert_eq!(after.len(), 1, "{:#?}", machine.processes());
    assert_ne!(after, before);
    queen.assert_no_slot_leaked();
}

#[test]
fn a_queen_that_stood_still_finds_her_fleet_as_it_is_and_her_streams_go_on() {
    let network = Network::new();
    let home = Home::new();
    let machine = with_model(&network, "far", "itl_ms = 20");
    let queen = hasty(&network, &home).start();
    add(&queen, &machine);
    let mut stream = queen
        .stream("/v2/tasks", &task("file:m.stub", 800))
        .expect("an answer");
    let mut events = vec![stream.until_type("started"), stream.until_type("token")];
    let hives = running(&machine, "rbee-hive");
    let pid = i32::try_from(queen.pid()).ok().and_then(Pid::from_raw);
    let pid = pid.expect("a process id");
    kill_process(pid, Signal::STOP).expect("it is ours");
    // Ten checks long.
    until(10 * SECOND, || None::<()>);
    kill_process(pid, Signal::CONT).expect("it is ours");
    events.extend(stream.rest());
    assert_task_completed(&events);
    becomes(&queen, "far", "online");
    let log = queen.log();
    assert!(!log.contains("starting the hive") || log.matches("starting the hive").count() == 1);
    assert_eq!(running(&machine, "rbee-hive"), hives);
    queen.assert_no_slot_leaked();
}

#[test]
fn a_queen_who_is_killed_finds_what_runs_on_the_other_machine() {
    let network = Network::new();
    let home = Home::new();
    let machine = with_model(&network, "far", "itl_ms = 1");
    let queen = hasty(&network, &home).start();
    add(&queen, &machine);
    run(&queen, &task("file:m.stub", 4));
    let before = [
        running(&machine, "rbee-hive"),
        running(&machine, "stub-engine"),
    ];
    queen.kill();

    let queen = hasty(&network, &home).start();
    becomes(&queen, "far", "online");
    run(&queen, &task("file:m.stub", 4));
    let after = [
        running(&machine, "rbee-hive"),
        running(&machine, "stub-engine"),
    ];
    assert_eq!(after, before);
    queen.stop(Signal::TERM);
    let gone = until(LONGEST, || running(&machine, "").is_empty().then_some(()));
    assert!(
        gone.is_some(),
        "she stops what she started: {:#?}",
        machine.processes()
    );
}
