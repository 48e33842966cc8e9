//! Starting an engine, and the process it becomes.

use std::fs::File;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use rustix::process::Signal;
use tokio::process::{Child, Command};
use tokio::time::sleep;

use super::{ApiKey, Worker, environment};
use crate::engine::{CommandLine, Engine, Values};
use crate::error::{ApiError, Result};
use crate::hive::Hive;
use crate::process::{MARK, ProcessId};
use crate::state_dir::WorkerRecord;

/// How often a process that is not a child is looked at.
const ADOPTED_POLL: Duration = Duration::from_millis(250);

/// How a worker's engine is started, again if need be.
#[derive(Debug)]
pub(super) struct Launch {
    pub(super) engine: Arc<Engine>,
    /// All but the port and the key.
    pub(super) values: Values,
    /// What the queen adds to the command.
    pub(super) extra_args: Vec<String>,
}

/// A running engine.
#[derive(Debug)]
pub(super) enum EngineProcess {
    Child(Child, ProcessId),
    /// Started by an earlier life of the hive, so that its exit code is not to be had.
    Adopted(ProcessId),
}

impl Launch {
    /// Starts the engine on that port, with a new key, and writes it down. A key is never used again: a
    /// stranger who took the engine's port may have been shown it.
    pub(super) fn start(&self, hive: &Hive, worker: &Worker, port: u16) -> Result<EngineProcess> {
        let api_key = match self.engine.takes_key() {
            true => Some(ApiKey::mint()?),
            false => None,
        };
        let values = Values {
            port,
            api_key: api_key.clone(),
            ..self.values.clone()
        };
        let line = self.engine.command(&values)?;
        let name = &self.engine.name;
        let process = self.run(hive, worker, &line).map_err(|error| {
            ApiError::engine(format!(
                "can't start engine {name:?} ({}): {error}; install it, or correct \
                 [engines.{name}] in the hive's configuration",
                line.program
            ))
        })?;
        worker.set_process(process.id().clone(), port, api_key);
        save(hive, worker);
        tracing::info!(
            engine = name,
            pid = process.id().pid,
            port,
            "engine started"
        );
        Ok(process)
    }

    fn run(&self, hive: &Hive, worker: &Worker, line: &CommandLine) -> io::Result<EngineProcess> {
        let mut options = File::options();
        let path = hive.state_dir.log_path(&worker.id);
        let log = options.append(true).create(true).mode(0o600).open(path)?;
        log.set_len(0)?;
        let mark = format!("{}:{}", hive.state_dir.path().display(), worker.id);
        let child = Command::new(&line.program)
            .args(&line.args)
            .args(&self.extra_args)
            .env_clear()
            .envs(environment::for_engine(&line.pass_env))
            .envs(line.env.iter().map(|(name, value)| (name, value)))
            .env(MARK, mark)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .process_group(0)
            .spawn()?;
        // The child is not waited for yet, so that the pid is still its own.
        let id = ProcessId::of_child(child.id().unwrap_or_default());
        Ok(EngineProcess::Child(child, id))
    }
}

/// Writes down what a later life of the hive needs to find the worker.
pub(super) fn save(hive: &Hive, worker: &Worker) {
    let now = worker.now();
    let Some(process) = now.process else {
        return;
    };
    let record = WorkerRecord {
        worker_id: worker.id.clone(),
        process,
        url: hive.settings.worker_host.url(now.port),
        port: now.port,
        api_key: now.api_key,
        slots_total: now.slots_total,
        plan: worker.plan.clone(),
    };
    if let Err(error) = hive.state_dir.save(&record) {
        tracing::warn!(%error, "can't write the worker down; a restarted hive will end it");
    }
}

impl EngineProcess {
    pub(super) fn id(&self) -> &ProcessId {
        match self {
            EngineProcess::Child(_, id) | EngineProcess::Adopted(id) => id,
        }
    }

    /// Waits until it is gone; its exit status, if that can be known. Cancel safe.
    pub(super) async fn exited(&mut self) -> Option<ExitStatus> {
        match self {
            EngineProcess::Child(child, _) => child.wait().await.ok(),
            EngineProcess::Adopted(id) => {
                while id.is_alive() {
                    sleep(ADOPTED_POLL).await;
                }
                None
            }
        }
    }

    pub(super) fn signal(&self, signal: Signal) {
        self.id().signal_group(signal);
    }
}
