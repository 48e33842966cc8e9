//! A worker: one engine process that serves one model.

mod address;
mod adopt;
mod environment;
mod key;
mod launch;
mod probe;
mod spawn;
mod supervise;

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::time::Instant;

pub(crate) use address::WorkerHost;
pub(crate) use adopt::{adopt_own, end_abandoned};
pub(crate) use key::ApiKey;
pub(crate) use probe::activity;
pub(crate) use spawn::{SpawnRequest, spawn};
pub(crate) use supervise::forget;

use crate::engine::Protocol;
use crate::process::ProcessId;

/// What a worker runs; this never changes.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Plan {
    pub(crate) model_ref: String,
    pub(crate) model_path: PathBuf,
    pub(crate) model_bytes: u64,
    pub(crate) backend: String,
    pub(crate) device: u32,
    pub(crate) engine: String,
    pub(crate) protocol: Protocol,
    /// Path of the engine's health check.
    pub(crate) health: String,
    /// Whether the engine has llama-server's `/props` and `/slots`.
    pub(crate) llama_api: bool,
    /// Whether the engine answers to the model's reference.
    pub(crate) serves_model_ref: bool,
    pub(crate) vram_bytes: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    Loading,
    Ready,
    Stopping,
    /// Dead without having been told to; listed for a while so that the queen learns why.
    Failed,
}

/// What is known about a worker at the moment.
#[derive(Debug, Clone)]
pub(crate) struct Now {
    pub(crate) state: State,
    pub(crate) port: u16,
    /// What its engine asks for; none where it was started without one.
    pub(crate) api_key: Option<ApiKey>,
    pub(crate) process: Option<ProcessId>,
    pub(crate) slots_total: u32,
    pub(crate) error: Option<String>,
}

#[derive(Debug)]
pub(crate) struct Worker {
    pub(crate) id: String,
    pub(crate) plan: Plan,
    now: Mutex<Now>,
    /// When it must be gone, once someone wants it to end.
    stop: watch::Sender<Option<Instant>>,
}

impl Worker {
    pub(crate) fn new(id: String, plan: Plan, port: u16, slots: u32) -> Arc<Self> {
        Arc::new(Worker {
            id,
            plan,
            now: Mutex::new(Now {
                state: State::Loading,
                port,
                api_key: None,
                process: None,
                slots_total: slots,
                error: None,
            }),
            stop: watch::Sender::new(None),
        })
    }

    pub(crate) fn now(&self) -> Now {
        self.lock().clone()
    }

    pub(crate) fn state(&self) -> State {
        self.lock().state
    }

    pub(crate) fn set_ready(&self, slots_total: u32) {
        let mut now = self.lock();
        now.slots_total = slots_total;
        if now.state == State::Loading {
            now.state = State::Ready;
        }
    }

    pub(crate) fn set_failed(&self, error: String) {
        let mut now = self.lock();
        now.state = State::Failed;
        now.process = None;
        now.error = Some(error);
    }

    fn set_process(&self, process: ProcessId, port: u16, api_key: Option<ApiKey>) {
        let mut now = self.lock();
        now.process = Some(process);
        now.port = port;
        now.api_key = api_key;
    }

    /// Asks it to end: SIGTERM now, SIGKILL after the grace. Asked again, the shorter time counts.
    pub(crate) fn stop(&self, grace: Duration) {
        let mut now = self.lock();
        if now.state != State::Failed {
            now.state = State::Stopping;
        }
        drop(now);
        let new = Instant::now() + grace;
        self.stop.send_modify(|until| {
            *until = Some(until.map_or(new, |old| old.min(new)));
        });
    }

    fn lock(&self) -> MutexGuard<'_, Now> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[cfg(test)]
    pub(crate) fn for_tests(id: &str, vram_bytes: u64) -> Arc<Self> {
        let plan = Plan {
            model_ref: "file:m.stub".into(),
            model_path: "/m.stub".into(),
            model_bytes: 1,
            backend: "cuda".into(),
            device: 0,
            engine: "stub".into(),
            protocol: Protocol::Openai,
            health: "/health".into(),
            llama_api: false,
            serves_model_ref: true,
            vram_bytes,
        };
        Worker::new(id.into(), plan, 1, 1)
    }
}
