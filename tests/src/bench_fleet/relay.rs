//! Streams through the tunnel, beside the same streams over plain HTTP.

use crate::bench::compared::{Aim, Found};
use crate::harness::{Home, Queen, programs, until};
use crate::machines::{Machine, Network};
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::fs;
use std::process::{Command, Stdio};
use std::time::Duration;

const STREAMS: &str = "64";
const SLOTS: u32 = 256;

/// One pace of the engines.
struct Pace {
    name: &'static str,
    flags: &'static [&'static str],
    tokens: &'static str,
    port: u16,
}

const FAST: Pace = Pace {
    name: "fast",
    flags: &["--flush-each"],
    tokens: "256",
    port: 9101,
};
const PACED: Pace = Pace {
    name: "paced",
    flags: &["--itl-ms", "20"],
    tokens: "128",
    port: 9102,
};

pub(super) fn measure(quick: bool) -> Result<Vec<Found>> {
    let network = Network::new();
    let home = Home::new();
    let mut tunnelled = network.machine("tunnelled");
    let plain = network.machine("plain");
    write_engines(&tunnelled)?;
    if network.is_real() {
        tunnelled.let_in_ssh_only();
    }
    let launch = network.queen(home.queen()).config("hives.local = false");
    let queen = launch.start();
    let added = queen.ask("/v2/registry/beehives/add", &tunnelled.registration());
    ensure!(added.status == 200, "{}", added.text);
    for pace in [&FAST, &PACED] {
        serve_plainly(&queen, &plain, pace)?;
    }
    let run = |pace: &Pace, way: &str| -> Result<Value> {
        let model = match way {
            "tunnel" => format!("file:model.{}", pace.name),
            _ => format!("file:plain-{}", pace.name),
        };
        // The hive and the worker are there then, and the connections.
        let chat = json!({"model": &model, "max_tokens": 1,
                          "messages": [{"role": "user", "content": "Hello"}]});
        let first = queen.ask("/v1/chat/completions", &chat);
        ensure!(first.status == 200, "{}\n{}", first.text, queen.log());
        load(&queen, &model, pace, &["--requests", STREAMS])?;
        // A paced stream takes 2.6 s, and some have to begin within the window.
        let window = if quick { "3" } else { "5" };
        load(
            &queen,
            &model,
            pace,
            &["--duration", window, "--warmup", "1"],
        )
    };
    let fast = (run(&FAST, "plain")?, run(&FAST, "tunnel")?);
    let paced = (run(&PACED, "plain")?, run(&PACED, "tunnel")?);
    let number = |report: &Value, pointer: &str| {
        let found = report.pointer(pointer).and_then(Value::as_f64);
        found.with_context(|| format!("{pointer} is not in {report}"))
    };
    let gap = |report: &Value| Ok::<_, anyhow::Error>(number(report, "/gap_us/p99")? / 1e3);
    Ok(vec![
        Found {
            what: "64 streams at full speed, through the tunnel beside plain HTTP",
            unit: "tokens/s",
            reference: Some(number(&fast.0, "/tokens_per_s")?),
            queen: number(&fast.1, "/tokens_per_s")?,
            aim: Aim::Share(0.5),
        },
        Found {
            what: "64 streams at 20 ms a token, gap p99, through the tunnel beside plain HTTP",
            unit: "ms",
            reference: Some(gap(&paced.0)?),
            queen: gap(&paced.1)?,
            aim: Aim::Added(3.0),
        },
    ])
}

/// Has the machine's hive serve a model for each pace.
fn write_engines(machine: &Machine<'_>) -> Result<()> {
    let stub = programs::stub().display().to_string();
    let mut config = format!("slots = {SLOTS}\n");
    for pace in [&FAST, &PACED] {
        let mut command = vec![
            stub.as_str(),
            "--port",
            "{port}",
            "--host",
            "{host}",
            "--model",
            "{model_ref}",
        ];
        command.extend(pace.flags);
        let (name, command) = (pace.name, json!(command));
        config += &format!(
            "[engines.{name}]\ncommand = {command}\nextensions = [\"{name}\"]\n\
             protocol = \"openai\"\nhealth = \"/health\"\n"
        );
        machine.home().add_model(&format!("model.{name}"), "");
    }
    fs::write(machine.home().hive_config(), config)?;
    Ok(())
}

/// Starts the same engine without a hive, reached by its address.
fn serve_plainly(queen: &Queen, machine: &Machine<'_>, pace: &Pace) -> Result<()> {
    let (address, port) = (machine.address(), pace.port.to_string());
    let mut args = vec!["--host", address, "--port", &port];
    args.extend(pace.flags);
    machine.start(&programs::stub(), &args);
    let worker = json!({
        "url": format!("http://{address}:{port}"),
        "model_ref": format!("file:plain-{}", pace.name),
        "slots_total": SLOTS,
    });
    let reply = queen.ask("/v2/workers/register", &worker);
    ensure!(reply.status == 200, "{}", reply.text);
    let id = &reply.json()["worker_id"];
    let is_idle = || {
        let workers = queen.workers();
        let mut ours = workers.iter().filter(|w| w["worker_id"] == *id);
        ours.any(|w| w["state"] == "idle").then_some(())
    };
    until(Duration::from_secs(15), is_idle).context("the queen never found the stub idle")
}

fn load(queen: &Queen, model: &str, pace: &Pace, more: &[&str]) -> Result<Value> {
    let program = programs::stub().with_file_name("load");
    let mut load = Command::new(program);
    load.args(["--url", &format!("http://127.0.0.1:{}", queen.port())])
        .args(["--model", model, "--stream", "--tokens", pace.tokens])
        .args(["--concurrency", STREAMS])
        .args(more);
    let out = load.stderr(Stdio::inherit()).output()?;
    ensure!(out.status.success(), "{load:?}: {}", out.status);
    let report: Value = serde_json::from_slice(&out.stdout)?;
    let problems = crate::bench::wrong_in(&report);
    ensure!(problems.is_empty(), "{model}: {problems:?}");
    Ok(report)
}
