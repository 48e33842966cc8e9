//! How soon the queen notices that a machine or a hive is dead.

use crate::bench::compared::{Aim, Found};
use crate::harness::{Event, Home, Queen, until};
use crate::machines::Network;
use anyhow::{Context, Result, ensure};
use serde_json::json;
use std::time::{Duration, Instant};

const CHECKS: f64 = 3.0;
const CHECK_INTERVAL: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(60);

pub(super) fn measure() -> Result<Vec<Found>> {
    Ok(vec![
        Found {
            what: "from the death of hive and worker to the queen's knowing it, while a stream flows",
            unit: "s",
            reference: None,
            queen: mid_stream()?.as_secs_f64(),
            aim: Aim::Below(1.0),
        },
        Found {
            what: "from a hive's death to the queen's knowing it, while nothing runs",
            unit: "checks",
            reference: None,
            queen: idle()?.as_secs_f64() / CHECK_INTERVAL.as_secs_f64(),
            aim: Aim::Below(CHECKS),
        },
    ])
}

/// A queen with a hive on another machine, and a worker there that served a request.
fn with_fleet(
    check_interval: Duration,
    behaviour: &str,
    then: impl FnOnce(&Queen, &crate::machines::Machine<'_>) -> Result<Duration>,
) -> Result<Duration> {
    let network = Network::new();
    let home = Home::new();
    let machine = network.machine("far");
    machine.home().add_model("model.stub", behaviour);
    let launch = network
        .queen(home.queen())
        .config("hives.local = false")
        .config(&format!("hives.check_interval = \"{check_interval:?}\""));
    let queen = launch.start();
    let added = queen.ask("/v2/registry/beehives/add", &machine.registration());
    ensure!(added.status == 200, "{}", added.text);
    let task = json!({"model": "file:model.stub", "prompt": "Hello", "max_tokens": 1,
                      "stream": false});
    let reply = queen.ask("/v2/tasks", &task);
    ensure!(reply.status == 200, "{}", reply.text);
    ensure!(status(&queen) == "online", "the hive is not online");
    then(&queen, &machine)
}

fn status(queen: &Queen) -> String {
    let list = queen.look("/v2/registry/beehives/list").json();
    list["nodes"][0]["status"]
        .as_str()
        .unwrap_or_default()
        .to_owned()
}

fn noticed(queen: &Queen, since: Instant) -> Result<Duration> {
    until(LONGEST, || {
        (status(queen) != "online").then(|| since.elapsed())
    })
    .context("the queen never noticed")
}

/// Checks are rare: it is the stream that tells.
fn mid_stream() -> Result<Duration> {
    with_fleet(Duration::from_secs(15), "itl_ms = 5", |queen, machine| {
        let task = json!({"model": "file:model.stub", "prompt": "Hello", "max_tokens": 100_000});
        let mut stream = queen.stream("/v2/tasks", &task)?;
        while !matches!(stream.next(), Some(Event::Json(event)) if event["type"] == "token") {}
        let began = Instant::now();
        kill(machine, "")?;
        noticed(queen, began)
    })
}

fn idle() -> Result<Duration> {
    with_fleet(CHECK_INTERVAL, "", |queen, machine| {
        let began = Instant::now();
        kill(machine, "rbee-hive")?;
        noticed(queen, began)
    })
}

/// Ends the processes there whose command line has that word.
fn kill(machine: &crate::machines::Machine<'_>, word: &str) -> Result<()> {
    let all = machine.processes();
    let doomed = all.iter().filter(|process| process.command.contains(word));
    let doomed: Vec<u32> = doomed.map(|process| process.pid).collect();
    ensure!(!doomed.is_empty(), "nothing runs on the machine");
    doomed.into_iter().for_each(crate::proc::kill);
    Ok(())
}
