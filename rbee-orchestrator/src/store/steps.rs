//! The steps of a job's life as a store takes them in, and what it answers.

use uuid::Uuid;

use crate::domain::{Attempt, Ending, JobId, JobRecord, Outcome, PlacedOn, UnixMillis};
use crate::error::{Code, Error};

/// One step in a job's life that need not be on disk before the job goes on.
#[derive(Debug, Clone)]
pub enum JobChange {
    /// It was submitted. Its id is new: a second submission of one id is a defect of the caller
    /// and is dropped. An idempotency key only counts if it came through
    /// [`Store::submit`](super::Store::submit).
    Submitted {
        /// The job.
        record: Box<JobRecord>,
        /// What it asks for, where that is kept.
        request: Option<Vec<u8>>,
    },
    /// It was dispatched.
    Claimed {
        /// The job.
        job: JobId,
        /// The new attempt.
        attempt: Attempt,
        /// Where, and why there.
        placed: PlacedOn,
        /// When.
        at: UnixMillis,
    },
    /// An attempt was given up, and the job waits again.
    Requeued {
        /// The job.
        job: JobId,
        /// The attempt that is void.
        attempt: Attempt,
        /// Whether that counts as a failure: an attempt may be given up for other reasons.
        failed: bool,
        /// When it may be dispatched again; `None` means at once.
        not_before: Option<UnixMillis>,
    },
    /// It ended.
    Finished {
        /// The job.
        job: JobId,
        /// The attempt that reports.
        attempt: Attempt,
        /// How.
        ending: Box<Ending>,
    },
}

impl JobChange {
    /// The job that it is about.
    #[must_use]
    pub fn job(&self) -> JobId {
        match self {
            JobChange::Submitted { record, .. } => record.id,
            JobChange::Claimed { job, .. }
            | JobChange::Requeued { job, .. }
            | JobChange::Finished { job, .. } => *job,
        }
    }
}

/// A job that is acknowledged only when it is durable.
#[derive(Debug, Clone)]
pub struct Submission {
    /// The job. Its `idempotency_key` and `request_hash` tell whether it was submitted before.
    pub record: JobRecord,
    /// What it asks for. An asynchronous job needs it to be run after a restart.
    pub request: Option<Vec<u8>>,
    /// Until when its key finds it; of no meaning without a key.
    pub key_expires_at: UnixMillis,
}

/// What became of a [`Submission`].
#[derive(Debug, Clone, PartialEq)]
pub enum Submitted {
    /// It is a new job.
    New,
    /// It is the same as this earlier one; nothing was written.
    Repeated(Box<JobRecord>),
    /// Its key belongs to this job, which asks for something else; nothing was written.
    OtherRequest(JobId),
}

/// What an earlier owner left, taken over.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Recovered {
    /// Jobs that ended as failed with `INTERRUPTED`.
    pub interrupted: u64,
    /// Jobs that wait again, with what they ask for, in the order of their submission.
    pub waiting: Vec<(JobRecord, Vec<u8>)>,
}

/// How an open job ends whose queen is gone.
pub(super) fn interrupted(at: UnixMillis) -> Ending {
    let error = Error::new(
        Code::Interrupted,
        "the queen went down while this job was open: submit it again",
    );
    Ending::new(Outcome::Failed(error), at)
}

/// Gives an open job to a new owner, with whom it waits.
pub(super) fn take_over(job: &mut JobRecord, owner: Uuid) {
    job.requeue(job.attempt, false, None);
    job.owner = owner;
}

/// What a repeated submission meets: the job that has its key or its id.
pub(super) fn compare(submitted: &JobRecord, first: JobRecord) -> Submitted {
    match first.request_hash == submitted.request_hash {
        true => Submitted::Repeated(Box::new(first)),
        false => Submitted::OtherRequest(first.id),
    }
}
