//! A fleet: a queen on her machine and hives on others, reached over SSH, and what happens to such
//! machines.

mod example;
mod lines;
mod power;
mod work;

use rbee_tests::harness::events::assert_task_completed;
use rbee_tests::harness::{Home, Launch, Queen, until};
use rbee_tests::machines::{Machine, Network};
use serde_json::{Value, json};
use std::time::Duration;

const SECOND: Duration = Duration::from_secs(1);

/// Longer than anything takes here that is to happen by itself.
const LONGEST: Duration = Duration::from_secs(60);

/// A machine whose hive has the model `file:m.stub`, served as the TOML text says.
fn with_model<'n>(network: &'n Network, name: &str, behaviour: &str) -> Machine<'n> {
    let machine = network.machine(name);
    machine.home().add_model("m.stub", behaviour);
    machine
}

/// A queen with no hive on her own machine.
fn queen<'h>(network: &Network, home: &'h Home) -> Launch<'h> {
    network.queen(home.queen()).config("hives.local = false")
}

/// A queen whose timers are a fifteenth of the usual ones, so that 20 s are as 5 min to her.
fn hasty<'h>(network: &Network, home: &'h Home) -> Launch<'h> {
    queen(network, home)
        .config("hives.check_interval = \"1s\"")
        .config("hives.retry_after = \"1s\"")
        .config("timeouts.health = \"500ms\"")
        .config("ssh.connect_timeout = \"1s\"")
        .config("ssh.keep_alive = \"1s\"")
        .config("ssh.backoff_max = \"2s\"")
}

/// Registers a machine, which must work.
#[track_caller]
fn add(queen: &Queen, machine: &Machine<'_>) -> Value {
    let reply = queen.ask("/v2/registry/beehives/add", &machine.registration());
    assert_eq!(reply.status, 200, "{}", reply.text);
    assert_eq!(reply.json()["success"], true, "{}", reply.text);
    reply.json()
}

/// A hive as she lists it.
#[track_caller]
fn hive(queen: &Queen, name: &str) -> Value {
    let list = queen.look("/v2/registry/beehives/list").json();
    let mut nodes = list["nodes"].as_array().into_iter().flatten();
    let hive = nodes.find(|node| node["node_name"] == name).cloned();
    hive.unwrap_or_else(|| panic!("no hive {name} in {list}"))
}

/// Waits until a hive has a status.
#[track_caller]
fn becomes(queen: &Queen, name: &str, status: &str) {
    let came = until(LONGEST, || {
        (hive(queen, name)["status"] == status).then_some(())
    });
    assert!(came.is_some(), "not {status}: {:#}", hive(queen, name));
}

fn task(model: &str, tokens: u64) -> Value {
    json!({"model": model, "prompt": "x", "max_tokens": tokens})
}

/// Has a task run to its end, and gives its events.
#[track_caller]
fn run(queen: &Queen, task: &Value) -> Vec<Value> {
    let stream = queen.stream("/v2/tasks", task).expect("an answer");
    assert_eq!(stream.status, 200, "{task}");
    let events = stream.rest();
    assert_task_completed(&events);
    events
}

/// The processes on a machine whose command line has that word.
fn running(machine: &Machine<'_>, word: &str) -> Vec<u32> {
    let all = machine.processes();
    let found = all.iter().filter(|process| process.command.contains(word));
    let mut pids: Vec<u32> = found.map(|process| process.pid).collect();
    pids.sort_unstable();
    pids
}

fn needs_a_network(network: &Network) -> bool {
    if !network.is_real() {
        eprintln!("SKIPPED: needs network namespaces");
    }
    network.is_real()
}
