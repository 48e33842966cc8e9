//! A worker: one running engine with one model and a number of slots.

use std::sync::Arc;

use http::HeaderValue;
use serde::{Deserialize, Serialize};

use super::{HiveId, ModelRef, Mono, UnixMillis, WorkerId};

/// What a worker speaks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WorkerProtocol {
    /// OpenAI's endpoints: llama-server, vLLM, SGLang, ….
    #[default]
    OpenAi,
    /// `POST /v1/execute` with the task event stream.
    Rbee,
}

/// What is known about a worker when it shows itself: by a callback, in a hive's list, or
/// registered by an administrator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkerSpec {
    /// Its id.
    pub id: WorkerId,
    /// The hive that runs it; `None` for a server that no hive owns.
    pub hive: Option<HiveId>,
    /// The model it serves.
    pub model: ModelRef,
    /// The name by which it knows the model, where that differs.
    pub served_model: Option<String>,
    /// Kind of device.
    pub backend: String,
    /// Device number.
    pub device: u32,
    /// Host as the hive's machine sees it (loopback means that machine itself).
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// What it speaks.
    pub protocol: WorkerProtocol,
    /// Requests it serves at once; at least 1.
    pub slots_total: u32,
    /// Memory it takes, in bytes; 0 when unknown.
    pub vram_bytes: u64,
    /// What it is shown as `Authorization`: its own key, or else its hive's token. Only a hive's
    /// word brings it; a registered worker has none.
    pub authorization: Option<HeaderValue>,
}

/// Whether a worker can take work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WorkerState {
    /// It starts, loads its model, or does not answer (yet).
    Loading,
    /// Ready, and no slot is taken.
    Idle,
    /// Ready, and at least one slot is taken.
    Busy,
    /// Finishes its work and takes no more.
    Draining,
}

/// What may be hoped for from a worker that is not ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Prospect {
    /// It loads its model.
    Loads,
    /// It is in question, and a check of it is under way or follows.
    Checked,
    /// It did not answer its check, and nobody says that it will.
    Silent,
}

/// What a worker gets whose jobs fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum BreakerState {
    /// Nothing for a while.
    Open,
    /// A few attempts, which try whether it works again.
    HalfOpen,
    /// What no other worker with the model can take at once.
    LastResort,
}

/// Why a worker gets less work than others.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct BreakerNote {
    /// What it gets.
    pub state: BreakerState,
    /// Until when, unless something shows before that it works.
    pub until: Option<UnixMillis>,
    /// Jobs in a row that failed.
    pub failures: u32,
    /// What failed, for people. Nothing of a request stands in it.
    pub reason: String,
    /// How the worker's address answered, if that failed: for administrators.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cause: Option<String>,
}

/// A worker in the registry.
#[derive(Debug, Clone)]
pub struct Worker {
    /// What it is. While a hive has not answered the spawn, host and port are empty.
    pub spec: Arc<WorkerSpec>,
    /// Whether it answers and may be given work.
    pub ready: bool,
    /// What may be hoped for while it is not ready; says nothing while it is.
    pub prospect: Prospect,
    /// Whether it ends once its leases are back.
    pub draining: bool,
    /// Whether it gets no new work although it goes on: its hive is out of reach, or drained.
    pub withheld: bool,
    /// Whether a hive showed it that was not asked for it, in this life of the queen.
    pub adopted: bool,
    /// Slots taken: leases that were given out and have not come back.
    pub leases: u32,
    /// How many more jobs it may be given, where free slots do not decide alone: none while it is
    /// left alone because it failed or has too much to do, a few while it is tried again.
    pub allowance: Option<u32>,
    /// Until when it is given only what no other worker with the model can take, since it answered
    /// one job after the other with an error.
    pub last_resort_until: Mono,
    /// Why it gets less work than others, for people.
    pub breaker: Option<Box<BreakerNote>>,
    /// When it last took a job; orders ties.
    pub last_used: Mono,
    /// The same for people.
    pub last_used_at: Option<UnixMillis>,
}

impl Worker {
    /// A worker that is not ready yet.
    #[must_use]
    pub fn loading(spec: WorkerSpec) -> Self {
        Worker {
            spec: Arc::new(spec),
            ready: false,
            prospect: Prospect::Loads,
            draining: false,
            withheld: false,
            adopted: false,
            leases: 0,
            allowance: None,
            last_resort_until: Mono::default(),
            breaker: None,
            last_used: Mono::default(),
            last_used_at: None,
        }
    }

    /// Whether a job may wait for it: it is ready, loads, or is being checked.
    #[must_use]
    pub fn is_worth_waiting_for(&self) -> bool {
        !self.draining && !self.withheld && (self.ready || self.prospect != Prospect::Silent)
    }

    /// Whether it is not ready, and this may be hoped for.
    #[must_use]
    pub fn hopes_for(&self, prospect: Prospect) -> bool {
        !self.ready && self.prospect == prospect
    }

    /// Whether it serves jobs now, if only when a slot comes free.
    #[must_use]
    pub fn is_in_service(&self) -> bool {
        self.ready && !self.draining && !self.withheld && self.allowance != Some(0)
    }

    /// Whether others with the model are to be preferred now.
    #[must_use]
    pub fn is_last_resort(&self, now: Mono) -> bool {
        self.last_resort_until > now
    }

    /// Slots that a job could take now.
    #[must_use]
    pub fn slots_free(&self) -> u32 {
        if !self.ready || self.draining || self.withheld {
            return 0;
        }
        let free = self.spec.slots_total.saturating_sub(self.leases);
        self.allowance.map_or(free, |most| free.min(most))
    }

    /// Its state as shown to people.
    #[must_use]
    pub fn state(&self) -> WorkerState {
        match (self.draining, self.ready, self.leases) {
            (true, _, _) => WorkerState::Draining,
            (_, false, _) => WorkerState::Loading,
            (_, _, 0) => WorkerState::Idle,
            _ => WorkerState::Busy,
        }
    }
}
