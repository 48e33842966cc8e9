//! What happens to the lines between machines.

use super::{
    LONGEST, SECOND, add, becomes, hasty, hive, needs_a_network, queen, run, running, task,
    with_model,
};
use rbee_tests::harness::events::{assert_task_completed, assert_task_failed};
use rbee_tests::harness::{Home, assert_error, until};
use rbee_tests::machines::{Network, SlowLink};
use serde_json::json;
use std::time::{Duration, Instant};

#[test]
fn a_link_that_is_down_for_5_s_interrupts_no_stream() {
    let network = Network::new();
    if !needs_a_network(&network) {
        return;
    }
    let home = Home::new();
    let machine = with_model(&network, "far", "itl_ms = 10");
    let queen = queen(&network, &home).start();
    add(&queen, &machine);
    let mut stream = queen
        .stream("/v2/tasks", &task("file:m.stub", 600))
        .expect("an answer");
    let mut events = vec![stream.until_type("started"), stream.until_type("token")];
    machine.unplug();
    let down = Instant::now();
    until(5 * SECOND, || None::<()>);
    machine.plug_in();
    events.extend(stream.rest());
    assert_task_completed(&events);
    assert!(down.elapsed() >= 5 * SECOND);
    assert_eq!(hive(&queen, "far")["status"], "online");
    queen.assert_no_slot_leaked();
}

/// The queen's timers are a fifteenth of the usual ones, and so is the outage.
#[test]
fn a_machine_that_is_cut_off_for_long_is_done_without_and_comes_back_as_it_was() {
    let network = Network::new();
    if !needs_a_network(&network) {
        return;
    }
    let home = Home::new();
    let [far, near] = ["far", "near"].map(|name| network.machine(name));
    for machine in [&far, &near] {
        machine.home().add_model("m.stub", "itl_ms = 1");
    }
    let queen = hasty(&network, &home).start();
    add(&queen, &far);
    run(&queen, &task("file:m.stub", 4));
    let before = [running(&far, "rbee-hive"), running(&far, "stub-engine")];
    assert!(before.iter().all(|pids| pids.len() == 1), "{before:?}");

    far.unplug();
    let down = Instant::now();
    becomes(&queen, "far", "offline");
    let shown = hive(&queen, "far");
    assert!(
        shown["last_error"].is_object() || shown["last_error"].is_string(),
        "{shown:#}"
    );
    // What comes meanwhile runs elsewhere.
    add(&queen, &near);
    let events = run(&queen, &task("file:m.stub", 4));
    assert!(!events.is_empty());
    until(
        Duration::from_secs(20).saturating_sub(down.elapsed()),
        || None::<()>,
    );
    far.plug_in();
    becomes(&queen, "far", "online");
    let mut there = task("file:m.stub", 4);
    there["node"] = json!("far");
    run(&queen, &there);
    let after = [running(&far, "rbee-hive"), running(&far, "stub-engine")];
    assert_eq!(after, before, "they are the same processes");
    queen.assert_no_slot_leaked();
}

#[test]
fn when_sshd_dies_streams_break_with_an_error_and_the_next_goes_through_again() {
    let network = Network::new();
    let home = Home::new();
    let mut machine = with_model(&network, "far", "itl_ms = 10");
    let queen = hasty(&network, &home).start();
    add(&queen, &machine);
    let mut stream = queen
        .stream("/v2/tasks", &task("file:m.stub", 100_000))
        .expect("an answer");
    let mut events = vec![stream.until_type("started"), stream.until_type("token")];
    let hives = running(&machine, "rbee-hive");
    machine.kill_sshd();
    events.extend(stream.rest());
    assert_task_failed(&events, "WORKER_FAILED", &[]);
    machine.start_sshd();
    let answered = until(LONGEST, || {
        let mut task = task("file:m.stub", 4);
        task["stream"] = json!(false);
        (queen.ask("/v2/tasks", &task).status == 200).then_some(())
    });
    assert!(answered.is_some(), "{:#}", hive(&queen, "far"));
    assert_eq!(
        running(&machine, "rbee-hive"),
        hives,
        "the hive was adopted"
    );
    queen.assert_no_slot_leaked();
}

#[test]
fn a_line_that_is_slow_and_loses_packets_carries_everything() {
    let network = Network::new();
    if !needs_a_network(&network) {
        return;
    }
    let home = Home::new();
    let mut machine = with_model(&network, "abroad", "itl_ms = 5");
    machine.lose(5);
    let address = format!("{}:22", machine.address());
    let link = SlowLink::to(
        address.parse().expect("an address"),
        Duration::from_millis(100),
    );
    let queen = queen(&network, &home)
        .config("ssh.host_keys = \"accept-new\"")
        .start();
    let mut registration = machine.registration();
    registration["ssh_host"] = json!("127.0.0.1");
    registration["ssh_port"] = json!(link.port());
    let added = queen.ask("/v2/registry/beehives/add", &registration);
    assert_eq!(added.status, 200, "{}", added.text);
    let events = run(&queen, &task("file:m.stub", 200));
    let tokens = events.iter().filter(|event| event["type"] == "token");
    assert_eq!(tokens.count(), 200);
}

#[test]
fn a_machine_with_another_key_than_before_is_not_spoken_to() {
    let network = Network::new();
    let home = Home::new();
    let mut machine = with_model(&network, "far", "itl_ms = 1");
    let queen = hasty(&network, &home).start();
    add(&queen, &machine);
    run(&queen, &task("file:m.stub", 4));
    machine.change_host_key();
    let told = until(LONGEST, || {
        let error = hive(&queen, "far")["last_error"].to_string();
        error.contains("host key").then_some(error)
    });
    assert!(told.is_some(), "{:#}", hive(&queen, "far"));
    let again = queen.ask("/v2/registry/beehives/add", &machine.registration());
    assert_error(
        &again,
        400,
        "PREFLIGHT_FAILED",
        &["host key", "known_hosts"],
    );
    assert_eq!(again.json()["success"], false);

    machine.make_known();
    add(&queen, &machine);
    run(&queen, &task("file:m.stub", 4));
}
