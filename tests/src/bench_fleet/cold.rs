//! From the registration of a machine to its first token.

use crate::bench::compared::{Aim, Found};
use crate::harness::{Client, EventStream, Home, until};
use crate::machines::{Machine, Network};
use anyhow::{Context, Result, ensure};
use serde_json::json;
use std::path::PathBuf;
use std::time::{Duration, Instant};

const MODEL: &str = "smollm2.gguf";
const LONGEST: Duration = Duration::from_secs(60);

/// The machine has the engine and the model, and nothing of ours: the hive is uploaded. The
/// reference is the engine alone, started by hand and asked directly.
pub(super) fn measure() -> Result<Vec<Found>> {
    let network = Network::new();
    let home = Home::new();
    let by_hand = network.machine("by-hand");
    let cold = network.bare_machine("cold");
    for machine in [&by_hand, &cold] {
        put_model(machine)?;
    }
    let reference = engine_alone(&by_hand)?;
    drop(by_hand);
    let launch = network.queen(home.queen()).config("hives.local = false");
    let queen = launch.start();
    let began = Instant::now();
    let added = queen.ask("/v2/registry/beehives/add", &cold.registration());
    ensure!(added.status == 200, "{}", added.text);
    let task = json!({"model": format!("file:{MODEL}"), "prompt": "Hello", "max_tokens": 4});
    let mut stream = queen.stream("/v2/tasks", &task)?;
    let first = first(&mut stream, |event| event["type"] == "token");
    first.with_context(|| queen.log())?;
    Ok(vec![Found {
        what: "from beehives/add on a machine without a hive to the first token, beside the start \
               of the engine alone",
        unit: "s",
        reference: Some(reference.as_secs_f64()),
        queen: began.elapsed().as_secs_f64(),
        aim: Aim::None,
    }])
}

fn put_model(machine: &Machine<'_>) -> Result<()> {
    let model = std::env::var_os("RBEE_TEST_MODEL").map(PathBuf::from);
    let model = model.context("RBEE_TEST_MODEL is not set; `make bench-fleet` sets it")?;
    machine.home().without_hive_config();
    std::os::unix::fs::symlink(model, machine.home().models().join(MODEL))?;
    Ok(())
}

fn engine_alone(machine: &Machine<'_>) -> Result<Duration> {
    let engine = std::env::var_os("RBEE_LLAMA_SERVER").map(PathBuf::from);
    let engine = engine.context("RBEE_LLAMA_SERVER is not set; `make bench-fleet` sets it")?;
    let model = machine.home().models().join(MODEL).display().to_string();
    let (address, port) = (machine.address(), "9103");
    let began = Instant::now();
    machine.start(
        &engine,
        &["-m", &model, "--host", address, "--port", port, "-np", "4"],
    );
    let client = Client::new(&format!("http://{address}:{port}"));
    let is_up = || {
        let health = client.get("/health").ok()?;
        (health.status == 200).then_some(())
    };
    until(LONGEST, is_up).context("the engine does not come up")?;
    let chat = json!({"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4,
                      "stream": true});
    let mut stream = client.stream("/v1/chat/completions", &chat)?;
    first(&mut stream, |event| {
        event["choices"][0]["delta"]["content"].is_string()
    })?;
    Ok(began.elapsed())
}

/// Reads up to the first event of a kind.
fn first(stream: &mut EventStream, is_it: impl Fn(&serde_json::Value) -> bool) -> Result<()> {
    use crate::harness::Event;
    while let Some(block) = stream.read()? {
        if let Event::Json(event) = block.event {
            ensure!(event["type"] != "error", "{event}");
            if is_it(&event) {
                return Ok(());
            }
        }
    }
    anyhow::bail!("the stream ended without a token")
}
