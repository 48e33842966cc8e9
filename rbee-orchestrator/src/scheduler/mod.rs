//! Where a request runs. A policy is a file; what is feasible is apart from what is best.

mod fetching;
mod least_loaded;
mod placement;
mod round_robin;
mod view;

use crate::domain::{Constraints, HiveId, ModelRef, Worker, WorkerId, WorkerProtocol};
use crate::error::Error;

pub use least_loaded::LeastLoaded;
pub use placement::{place_another_worker, place_new_worker};
pub use round_robin::RoundRobin;
pub use view::{ClusterView, FailedFetch, FailedLoad, Fetch, Hive, Workers};

/// A group of waiting requests that may run in the same places.
#[derive(Debug, Clone, Copy)]
pub struct PlacementRequest<'a> {
    /// The model they ask for.
    pub model: &'a ModelRef,
    /// Where they may run.
    pub constraints: &'a Constraints,
    /// Whether only a worker that speaks OpenAI's protocol will do.
    pub openai_only: bool,
    /// A worker that just failed them: [`ClusterView::candidates`] leaves it out while another can
    /// serve them.
    pub avoid: Option<&'a WorkerId>,
}

impl PlacementRequest<'_> {
    /// Whether a worker with the model may take the requests: it is where they may run, and
    /// speaks what they need.
    #[must_use]
    pub fn is_served_by(&self, worker: &Worker) -> bool {
        self.is_allowed_on(worker)
            && (!self.openai_only || worker.spec.protocol == WorkerProtocol::OpenAi)
    }

    fn is_allowed_on(&self, worker: &Worker) -> bool {
        let (wanted, spec) = (self.constraints, &worker.spec);
        (wanted.hive.is_none() || wanted.hive == spec.hive)
            && wanted.backend.as_ref().is_none_or(|b| *b == spec.backend)
            && wanted.device.is_none_or(|device| device == spec.device)
    }
}

/// A scheduler's answer.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Placement {
    /// To this worker, which has a free slot.
    Route {
        /// The worker.
        worker: WorkerId,
        /// Why this one, for people.
        why: String,
    },
    /// First start this hive, then ask again.
    StartHive(HiveId),
    /// First have this hive fetch the model, then ask again.
    Provision {
        /// The hive.
        hive: HiveId,
    },
    /// First start a worker, then ask again.
    Spawn {
        /// On this hive.
        hive: HiveId,
        /// Kind of device.
        backend: String,
        /// On these devices.
        devices: Vec<u32>,
        /// After these are gone.
        evict: Vec<WorkerId>,
    },
    /// Ask again when something has changed.
    Wait,
    /// There is no place, and waiting does not help.
    Reject(Error),
}

/// Memory that is needed and not there.
#[derive(Debug, Clone)]
pub struct Pressure {
    /// On this hive.
    pub hive: HiveId,
    /// On this device.
    pub device: u32,
    /// This many bytes.
    pub bytes: u64,
}

/// Decides where a request runs and what is given up for it.
///
/// A function of its own state, the view and the request: no clock, no I/O, no unseeded
/// randomness. The same state and view give the same answer.
pub trait Scheduler: Send + Sync {
    /// Its name, for logs.
    fn name(&self) -> &str;

    /// Asked once per group of waiting requests (same model, same constraints) when something
    /// changed, and again after each request it routes.
    fn place(&mut self, request: &PlacementRequest<'_>, view: &ClusterView<'_>) -> Placement;

    /// What to give up under pressure; nothing by default.
    fn evict(&mut self, _pressure: &Pressure, _view: &ClusterView<'_>) -> Vec<WorkerId> {
        Vec::new()
    }
}

impl<S: Scheduler + ?Sized> Scheduler for Box<S> {
    fn name(&self) -> &str {
        (**self).name()
    }

    fn place(&mut self, request: &PlacementRequest<'_>, view: &ClusterView<'_>) -> Placement {
        (**self).place(request, view)
    }

    fn evict(&mut self, pressure: &Pressure, view: &ClusterView<'_>) -> Vec<WorkerId> {
        (**self).evict(pressure, view)
    }
}
