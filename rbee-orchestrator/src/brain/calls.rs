//! What callers ask of the brain beside telling it events.

use http::HeaderValue;

use crate::domain::{Constraints, HiveId, ModelRef, WorkerId, WorkerProtocol};

/// A worker that calls back, or that an administrator registers.
#[derive(Debug, Clone)]
pub struct WorkerCallback {
    /// Its id.
    pub id: WorkerId,
    /// Its hive, if it says so.
    pub hive: Option<HiveId>,
    /// Its model.
    pub model: ModelRef,
    /// The name by which it knows the model, where that differs.
    pub served_model: Option<String>,
    /// Kind of device.
    pub backend: String,
    /// Device number.
    pub device: Option<u32>,
    /// Host as the hive's machine sees it.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// What it speaks.
    pub protocol: Option<WorkerProtocol>,
    /// Requests it serves at once.
    pub slots_total: Option<u32>,
    /// Memory it takes, in bytes.
    pub vram_bytes: Option<u64>,
    /// The hives whose token the caller showed.
    pub speaks_for: Vec<HiveId>,
    /// What the worker is shown as `Authorization`, if such a hive's word brought it.
    pub authorization: Option<HeaderValue>,
}

impl WorkerCallback {
    /// Whether the caller may speak for a worker of this hive.
    pub(super) fn speaks_for(&self, hive: Option<&HiveId>) -> bool {
        hive.is_some_and(|hive| self.speaks_for.contains(hive))
    }

    /// Whether the hive that it names stands behind it.
    pub(super) fn is_vouched_for(&self) -> bool {
        self.speaks_for(self.hive.as_ref())
    }
}

/// An administrator's wish for a worker.
#[derive(Debug, Clone)]
pub struct SpawnOrder {
    /// The model as named.
    pub model: String,
    /// Where it may run.
    pub constraints: Constraints,
}
