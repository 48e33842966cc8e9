//! Machines that work together.

use super::{add, hive, needs_a_network, queen, run, running, task, with_model};
use rbee_tests::harness::events::assert_task_completed;
use rbee_tests::harness::{Home, Queen};
use rbee_tests::machines::Network;
use serde_json::{Value, json};
use std::env;
use std::path::PathBuf;

fn part(name: &str) -> PathBuf {
    let value = env::var_os(name).unwrap_or_else(|| {
        panic!("{name} is not set: run `make test`, or `tests/parts.sh --tests` and source .cache/parts.env")
    });
    value.into()
}

fn where_it_ran(queen: &Queen, events: &[Value]) -> String {
    let started = events.iter().find(|event| event["type"] == "started");
    let started = started.expect("it started");
    let worker = &started["worker_id"];
    let workers = queen.workers();
    let found = workers.iter().find(|w| w["worker_id"] == *worker);
    let found = found.unwrap_or_else(|| panic!("no {worker} in {workers:#?}"));
    found["node"].as_str().expect("a name").to_owned()
}

#[test]
fn three_machines_are_one_endpoint_and_one_of_them_has_only_port_22_open() {
    let network = Network::new();
    let home = Home::new();
    let mut far = network.bare_machine("far");
    let [left, right] = ["left", "right"].map(|name| network.machine(name));
    far.home().without_hive_config();
    let model = far.home().models().join("smollm2.gguf");
    std::os::unix::fs::symlink(part("RBEE_TEST_MODEL"), model).expect("the folder is ours");
    part("RBEE_LLAMA_SERVER");
    for machine in [&left, &right] {
        machine.home().add_model("m.stub", "itl_ms = 1");
    }
    if network.is_real() {
        far.let_in_ssh_only();
    }
    let queen = queen(&network, &home).start();
    for machine in [&far, &left, &right] {
        let added = add(&queen, machine);
        let report = added["preflight"]["items"].as_array().cloned();
        let report = report.unwrap_or_else(|| panic!("a report: {added}"));
        let reachable = report.iter().find(|item| item["name"] == "reachable");
        assert_eq!(reachable.expect("it is told")["status"], "ok", "{added}");
    }
    // The real engine and the real model, on the machine that nobody can call.
    let chat = json!({
        "model": "file:smollm2.gguf", "temperature": 0, "max_tokens": 32,
        "messages": [{"role": "system", "content": "You are a helpful assistant."},
                     {"role": "user", "content": "What is the capital of France?"}],
    });
    let answer = queen.ask("/v1/chat/completions", &chat);
    assert_eq!(answer.status, 200, "{}", answer.text);
    assert!(answer.text.contains("Paris"), "{}", answer.text);
    for node in ["left", "right"] {
        let mut task = task("file:m.stub", 20);
        task["node"] = json!(node);
        let events = run(&queen, &task);
        assert_eq!(where_it_ran(&queen, &events), node);
    }
    for node in ["far", "left", "right"] {
        let shown = hive(&queen, node);
        assert_eq!(shown["status"], "online", "{shown:#}");
        assert_eq!(shown["tunnel"], true, "{shown:#}");
    }
    queen.assert_no_slot_leaked();
}

#[test]
fn nobody_listens_for_the_tunnel_on_the_queens_machine_or_beyond_loopback_on_the_hives() {
    let network = Network::new();
    if !needs_a_network(&network) {
        return;
    }
    let home = Home::new();
    let machine = with_model(&network, "far", "itl_ms = 1");
    let queen = queen(&network, &home).start();
    add(&queen, &machine);
    run(&queen, &task("file:m.stub", 4));

    let own = listening(&std::fs::read_to_string("/proc/thread-self/net/tcp").expect("Linux"));
    assert_eq!(
        own,
        [("0100007F".to_owned(), queen.port())],
        "only the queen's own port"
    );
    let there = listening(&machine.sh("cat /proc/net/tcp"));
    let beyond = there.iter().filter(|(host, _)| host != "0100007F");
    let beyond: Vec<u16> = beyond.map(|(_, port)| *port).collect();
    assert_eq!(beyond, [22], "only sshd is reached from outside: {there:?}");
    assert!(
        there.len() >= 3,
        "hive and worker listen on loopback: {there:?}"
    );
    for process in ["rbee-hive", "stub-engine"] {
        assert_eq!(
            running(&machine, process).len(),
            1,
            "{:#?}",
            machine.processes()
        );
    }
}

/// Addresses in the kernel's own form, and ports, that are listened on.
fn listening(table: &str) -> Vec<(String, u16)> {
    const LISTEN: &str = "0A";
    let lines = table
        .lines()
        .skip(1)
        .map(|line| line.split_ascii_whitespace());
    let sockets = lines.filter_map(|mut words| {
        let (local, state) = (words.nth(1)?, words.nth(1)?);
        let (host, port) = local.split_once(':')?;
        let port = u16::from_str_radix(port, 16).ok()?;
        (state == LISTEN).then(|| (host.to_owned(), port))
    });
    sockets.collect()
}

#[test]
fn without_a_tunnel_hive_and_workers_are_reached_by_their_address() {
    let network = Network::new();
    if !needs_a_network(&network) {
        return;
    }
    let home = Home::new();
    let machine = with_model(&network, "near", "itl_ms = 1");
    let queen = queen(&network, &home).start();
    let mut registration = machine.registration();
    registration["tunnel"] = json!(false);
    registration["hostname"] = json!(machine.address());
    let added = queen.ask("/v2/registry/beehives/add", &registration);
    assert_eq!(added.status, 200, "{}", added.text);
    run(&queen, &task("file:m.stub", 20));
    let workers = queen.workers();
    let url = workers[0]["url"].as_str().expect("a URL");
    assert!(url.contains(machine.address()), "{url}");
}

#[test]
fn a_clock_that_is_an_hour_off_is_told_and_hinders_nothing() {
    let network = Network::new();
    if !needs_a_network(&network) {
        return;
    }
    let home = Home::new();
    let machine = with_model(&network, "skewed", "itl_ms = 1");
    machine.replace("date", "exec $REAL -d '1 hour' \"$@\"");
    let queen = queen(&network, &home).start();
    let added = add(&queen, &machine);
    let items = added["preflight"]["items"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    let clock = items.iter().find(|item| item["name"] == "clock");
    let clock = clock.unwrap_or_else(|| panic!("the clock is looked at: {added}"));
    assert_eq!(clock["status"], "warning", "{clock}");
    run(&queen, &task("file:m.stub", 4));
}

#[test]
fn many_streams_at_once_come_whole_through_one_session() {
    let network = Network::new();
    let home = Home::new();
    let machine = with_model(&network, "far", "itl_ms = 2");
    let queen = queen(&network, &home)
        .config("hives.worker_slots = 40")
        .start();
    add(&queen, &machine);
    run(&queen, &task("file:m.stub", 1));
    let streams: Vec<_> = (0..40)
        .map(|_| queen.stream("/v2/tasks", &task("file:m.stub", 100)))
        .collect();
    for stream in streams {
        let events = stream.expect("an answer").rest();
        assert_task_completed(&events);
        let tokens = events.iter().filter(|event| event["type"] == "token");
        assert_eq!(tokens.count(), 100);
    }
    queen.assert_no_slot_leaked();
}
