//! What a measurement goes through: nothing, nginx, or the queen, each started anew with a stub
//! engine behind it.

use super::nginx;
use crate::harness::{Client, Daemon, StubEngine, ports, until};
use anyhow::{Context, Result, bail, ensure};
use clap::ValueEnum;
use serde_json::json;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use tempfile::TempDir;

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Target {
    Direct,
    Nginx,
    Queen,
}

impl Target {
    pub(super) fn name(self) -> &'static str {
        match self {
            Target::Direct => "direct",
            Target::Nginx => "nginx",
            Target::Queen => "queen",
        }
    }
}

/// Where the programs are.
pub(super) struct Programs {
    pub(super) stub: PathBuf,
    pub(super) load: PathBuf,
    pub(super) queen: PathBuf,
    pub(super) nginx: PathBuf,
}

const MODEL: &str = "file:stub-model";

/// A model whose only worker, the same engine, has one slot.
pub(super) const ONE_SLOT: &str = "file:one-slot";

/// A target that is up, with the engine behind it.
pub(super) struct Stage {
    pub(super) url: String,
    /// The name that requests give for the model
    pub(super) model: &'static str,
    proxy: Option<Daemon>,
    engine: StubEngine,
    processes: usize,
    // Last, so that the processes have ended before their files go.
    _dir: TempDir,
}

impl Stage {
    pub(super) fn start(programs: &Programs, target: Target, engine: &[&str]) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("rbee-bench-").tempdir()?;
        let engine = StubEngine::start(&programs.stub, engine, dir.path())?;
        let (proxy, url) = match target {
            Target::Direct => (None, engine.url().to_owned()),
            Target::Nginx => {
                let (nginx, port) = nginx::start(&programs.nginx, dir.path(), engine.port())?;
                (Some(nginx), format!("http://127.0.0.1:{port}"))
            }
            Target::Queen => {
                let (queen, url) = start_queen(&programs.queen, dir.path(), &engine)?;
                (Some(queen), url)
            }
        };
        let mut stage = Stage {
            url,
            model: MODEL,
            proxy,
            engine,
            processes: 0,
            _dir: dir,
        };
        stage.processes = stage.count_processes();
        Ok(stage)
    }

    pub(super) fn engine(&mut self) -> &mut StubEngine {
        &mut self.engine
    }

    /// Has the queen know [`ONE_SLOT`] too.
    pub(super) fn add_one_slot(&self) -> Result<()> {
        let queen = Client::new(&self.url);
        register(&queen, &self.engine, "one", ONE_SLOT, 1)
    }

    pub(super) fn proxy_pid(&self) -> Option<u32> {
        self.proxy.as_ref().map(Daemon::pid)
    }

    fn count_processes(&self) -> usize {
        let pid = self.proxy_pid();
        pid.map_or(0, |pid| crate::proc::tree(&[pid]).len())
    }

    /// What died while it was watched, with its last words.
    pub(super) fn casualties(&mut self) -> Vec<String> {
        let mut dead = Vec::new();
        let log = |daemon: &Daemon| {
            let log = daemon.log();
            let tail: Vec<&str> = log.lines().rev().take(5).collect();
            tail.into_iter().rev().collect::<Vec<_>>().join("\n    ")
        };
        if let Some(proxy) = &mut self.proxy
            && let Some(status) = proxy.exited()
        {
            dead.push(format!("the proxy ended ({status}):\n    {}", log(proxy)));
        }
        let now = self.count_processes();
        if now < self.processes {
            let before = self.processes;
            dead.push(format!("the proxy had {before} processes, now {now}"));
        }
        let engine = self.engine.daemon();
        if let Some(status) = engine.exited() {
            dead.push(format!("the stub ended ({status}):\n    {}", log(engine)));
        }
        dead
    }
}

fn start_queen(program: &Path, dir: &Path, engine: &StubEngine) -> Result<(Daemon, String)> {
    for _ in 0..3 {
        let port = ports::free()?;
        let mut command = Command::new(program);
        command
            .args(["--port", &port.to_string(), "--bind", "127.0.0.1"])
            .arg("--database")
            .arg(dir.join("queen.db"));
        for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("QUEEN_")) {
            command.env_remove(name);
        }
        let mut queen = Daemon::spawn("queen-rbee", &mut command, &dir.join("queen.log"))?;
        let url = format!("http://127.0.0.1:{port}");
        let client = Client::new(&url);
        let up = until(Duration::from_secs(20), || match queen.exited() {
            Some(_) => Some(false),
            None => client.get("/health").ok().map(|reply| reply.status == 200),
        });
        match up {
            Some(true) => {
                register(&client, engine, "stub", MODEL, 4096)?;
                return Ok((queen, url));
            }
            _ if queen.log().to_lowercase().contains("in use") => {}
            _ => bail!("the queen did not come up: {}", queen.log()),
        }
    }
    bail!("the queen found no free port in three tries")
}

/// Tells the queen of the engine as a worker with so many slots, and waits until she finds it
/// healthy.
fn register(
    client: &Client,
    engine: &StubEngine,
    id: &str,
    model: &str,
    slots: usize,
) -> Result<()> {
    let worker = json!({"worker_id": id, "url": engine.url(), "model_ref": model,
                        "slots_total": slots});
    let reply = client.post("/v2/workers/register", &worker)?;
    ensure!(
        reply.status == 200,
        "register: {} {}",
        reply.status,
        reply.text
    );
    let is_idle = || {
        let list = client.get("/v2/workers/list").ok()?.json();
        let workers = list["workers"].as_array()?;
        let mut ours = workers.iter().filter(|w| w["worker_id"] == id);
        ours.any(|w| w["state"] == "idle").then_some(())
    };
    until(Duration::from_secs(15), is_idle).context("the queen never found the stub idle")
}
