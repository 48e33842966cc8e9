//! What the brain wants done.

use std::sync::Arc;
use std::time::Duration;

use crate::domain::{
    Attempt, BreakerNote, Ending, HiveId, JobId, ModelRef, Narration, Outcome, PlacedOn,
    UnixMillis, WorkerId, WorkerSpec,
};
use crate::error::Error;

/// What is to be done. The order of actions is the order of the decisions.
#[derive(Debug)]
pub enum Action {
    /// Tell a waiting client its place in the queue.
    Queued {
        /// The job.
        job: JobId,
        /// Jobs before it.
        position: usize,
        /// How long it will wait, by the rate at which such jobs ended lately; `None` while
        /// nothing is known.
        wait: Option<Duration>,
    },
    /// An attempt came to nothing and its output is void; the job waits again.
    Requeue {
        /// The job.
        job: JobId,
        /// The attempt.
        attempt: Attempt,
        /// Whether it counts as a failure of the job.
        failed: bool,
        /// Not to be dispatched before.
        not_before: Option<UnixMillis>,
        /// Why.
        error: Error,
    },
    /// Tell a waiting client what happens.
    Narrate {
        /// The job.
        job: JobId,
        /// What happens.
        narration: Narration,
    },
    /// Run a job on a worker.
    Dispatch {
        /// The job.
        job: JobId,
        /// Which dispatch this is.
        attempt: Attempt,
        /// The worker, whose slot is now taken.
        worker: Arc<WorkerSpec>,
        /// The same for the record, with the reason.
        placed: PlacedOn,
        /// When.
        at: UnixMillis,
    },
    /// An attempt's time is over, unless its answer flows: [`Event::NotFlowing`](super::Event::NotFlowing)
    /// is to tell if it does not.
    EndUnlessFlowing {
        /// The job.
        job: JobId,
        /// The attempt.
        attempt: Attempt,
    },
    /// Cut a running attempt off, for no fault of its own: another waits for its slot, and it outlives its
    /// connection, or its worker is about to be stopped. The lease comes back with
    /// [`Blame::GivenBack`](super::Blame::GivenBack), unless the attempt has ended just now.
    GiveBack {
        /// The job.
        job: JobId,
        /// Which dispatch.
        attempt: Attempt,
        /// Why.
        why: Error,
    },
    /// Cut a running job off. Its lease comes back with this error.
    Abort {
        /// The job.
        job: JobId,
        /// What its client is told, and how it ends.
        outcome: Outcome,
    },
    /// A job has ended: keep its ending, and tell its client if he does not know yet.
    Finish {
        /// The job.
        job: JobId,
        /// The attempt that ended; 0 if it never ran.
        attempt: Attempt,
        /// How.
        ending: Box<Ending>,
    },
    /// Start a hive; answered by [`super::Event::HiveStarted`].
    StartHive {
        /// The hive.
        hive: HiveId,
    },
    /// Stop a hive whose last job has ended; answered by [`super::Event::HiveStopped`].
    StopHive {
        /// The hive.
        hive: HiveId,
    },
    /// Have a hive fetch a model; answered by [`super::Event::FetchProgress`] and [`super::Event::Fetched`].
    Provision {
        /// The hive.
        hive: HiveId,
        /// The model.
        model: ModelRef,
    },
    /// Ask a hive for a worker; answered by [`super::Event::SpawnAnswered`].
    Spawn {
        /// The hive.
        hive: HiveId,
        /// What is wanted; host and port are not known yet.
        worker: Arc<WorkerSpec>,
        /// Devices for it.
        devices: Vec<u32>,
        /// The model's file on the hive's machine, for a hive that must be told.
        model_path: Option<String>,
        /// The request that it is spawned for, where there is one: the first of those who wait.
        for_job: Option<JobId>,
    },
    /// Stop a worker through its hive; answered by [`super::Event::WorkerStopped`].
    StopWorker {
        /// Its hive.
        hive: HiveId,
        /// The worker.
        worker: WorkerId,
    },
    /// Tell a worker that nobody waits for a job any more, then ask whether it answers; answered by
    /// [`super::Event::WorkerChecked`].
    CancelOnWorker {
        /// The worker.
        worker: Arc<WorkerSpec>,
        /// The job.
        job: JobId,
    },
    /// Say that a worker gets less work than others now, and why.
    Distrust {
        /// The worker.
        worker: Arc<WorkerSpec>,
        /// What it gets, and why.
        note: BreakerNote,
    },
    /// Check a hive now; answered by [`super::Event::HiveReport`] or [`super::Event::HiveMissed`].
    CheckHive {
        /// The hive.
        hive: HiveId,
    },
    /// Ask a worker what it serves; answered by [`super::Event::WorkerServes`].
    AskWhatIsServed {
        /// The worker.
        worker: Arc<WorkerSpec>,
    },
    /// Ask a worker whether it answers; answered by [`super::Event::WorkerChecked`].
    CheckWorker {
        /// The worker.
        worker: Arc<WorkerSpec>,
    },
}
