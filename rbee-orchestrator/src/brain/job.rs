//! What the brain keeps of a job that has not ended, and of what is due.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::domain::{
    Attempt, HiveId, JobId, ModelRef, Mono, Now, Outcome, Priority, TenantId, Times, WorkerId,
};
use crate::error::Error;

use super::Brain;
use super::breaker::Ticket;
use super::event::{Blame, JobRequest};
use super::queue::{Entry, GroupKey};
use super::suspicion::Fault;

/// A time that does not come.
pub(super) const NEVER: Mono = Mono(Duration::MAX);

/// When something is due.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Due {
    /// A waiting job gives up.
    Queue(JobId),
    /// A job has taken too long in all.
    Total(JobId),
    /// A job has waited for long enough after a failure.
    Backoff(JobId),
    /// A batch job has waited for so long that it is treated as interactive.
    Promote(JobId),
    /// A model has had no interactive work for long enough that batch work may take its last slot.
    Quiet(ModelRef),
    /// Jobs of a tenant that are held back may go.
    Held(TenantId),
    /// A new day begins, UTC.
    Midnight,
    /// Those who wait for a model are told their places, where these have changed.
    Places(ModelRef),
    /// A load has taken too long.
    Load(WorkerId),
    /// A worker has computed for nobody for too long.
    Abandoned(WorkerId),
    /// A worker in question has not answered for too long.
    Suspect(WorkerId),
    /// A worker that failed again and again is tried again.
    Reopen(WorkerId),
    /// A worker that had too much to do has had time to get on.
    Unpause(WorkerId),
    /// Those who wait for a place for a model are placed anew: a failure was remembered for as long.
    Look(ModelRef),
    /// A hive that ended is started again.
    Restart(HiveId),
    /// A hive that was lost again and again has been steady for long enough.
    Steady(HiveId),
}

/// A job that has not ended.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) request: Box<JobRequest>,
    /// The group that it waits or waited in.
    pub(super) key: GroupKey,
    /// The class that it waits in: a batch job may have been promoted.
    pub(super) class: Priority,
    /// Whether it had its turn and came back.
    pub(super) returned: bool,
    pub(super) attempt: Attempt,
    /// Attempts that failed by a worker's fault, in earlier lives too.
    pub(super) failures: u32,
    /// What came of the last attempt, if it waits for another.
    pub(super) past: Option<Box<Past>>,
    /// Attempts that failed and may have been its own fault.
    pub(super) faults: Vec<Fault>,
    /// How often a worker died that had broken off an attempt of it.
    pub(super) deaths: u32,
    /// How often it gave up its slot for an interactive one.
    pub(super) given_back: u32,
    /// Whether its running attempt is doing so.
    pub(super) gives_back: bool,
    /// What its running attempt tells its worker's breaker by.
    pub(super) ticket: Ticket,
    pub(super) phase: Phase,
    /// How it ends as soon as it is confirmed.
    pub(super) cut_short: Option<Outcome>,
    /// When it must have ended, wherever it is.
    pub(super) end_by: Mono,
    /// The same where its answer flows.
    pub(super) flow_by: Mono,
    /// How long it may wait for a worker, less what it has waited before.
    pub(super) patience: Duration,
    pub(super) waits_since: Mono,
    /// When it is promoted if it still waits.
    pub(super) promote_at: Mono,
    /// What is due next, so that it can be taken back.
    pub(super) due: Option<(Mono, Due)>,
    /// Whether it counts for the bounds of the queue.
    pub(super) takes_room: bool,
    /// Whether its tenant's quota does not allow it yet.
    pub(super) held: bool,
    /// Whether it counts for its tenant's quota.
    pub(super) charged: bool,
    /// Whether it took of its tenant's limits of the minute.
    pub(super) limited: bool,
    pub(super) dispatched_at: Mono,
    /// When its running attempt must have ended.
    pub(super) run_until: Mono,
    /// Whether its running attempt has had its time, and goes on since its answer flows.
    pub(super) flows: bool,
    /// Of all attempts that ended.
    pub(super) slot_time: Duration,
    pub(super) inference_time: Duration,
    /// The place that its client was told last, with the seconds it will wait.
    pub(super) told: Option<(usize, Option<u64>)>,
}

/// What came of an attempt that was not the last.
#[derive(Debug)]
pub(super) struct Past {
    pub(super) error: Error,
    /// Who was to blame.
    pub(super) blame: Blame,
}

/// Where a job is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// Let in, and not confirmed yet.
    Admitted,
    /// Held back by its tenant's quota.
    Held,
    /// Not to be dispatched yet, after a failure.
    Backoff,
    /// In the line of its model.
    Waiting,
    Running,
    /// Cut off; its lease has not come back yet.
    Aborting,
}

impl Job {
    /// Whether a report of this attempt is news: one of an older attempt is not.
    pub(super) fn is_current(&self, attempt: Attempt) -> bool {
        self.runs() && self.attempt == attempt
    }

    /// How long it has kept what it ran on.
    pub(super) fn times(&self) -> Times {
        let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        Times {
            inference_ms: millis(self.inference_time),
            slot_ms: millis(self.slot_time),
        }
    }

    /// Whether a worker has it.
    pub(super) fn runs(&self) -> bool {
        matches!(self.phase, Phase::Running | Phase::Aborting)
    }

    /// When it gives up waiting, or must have ended.
    fn gives_up(&self) -> (Mono, Due) {
        let id = self.request.id;
        let impatient = self.waits_since + self.patience;
        match impatient < self.end_by {
            true => (impatient, Due::Queue(id)),
            false => (self.end_by, Due::Total(id)),
        }
    }

    /// Puts what is due next of the job in place of what was.
    pub(super) fn expect(&mut self, all: &mut BTreeSet<(Mono, Due)>, next: (Mono, Due)) {
        if let Some(old) = self.due.take() {
            all.remove(&old);
        }
        if next.0 < NEVER {
            self.due = Some(next.clone());
            all.insert(next);
        }
    }

    /// Notes how long it has waited.
    pub(super) fn stop_waiting(&mut self, now: Now) {
        let waited = now.mono.since(self.waits_since);
        self.patience = self.patience.saturating_sub(waited);
    }

    /// The job as the queue sees it.
    pub(super) fn entry(&self) -> Entry<'_> {
        Entry {
            job: self.request.id,
            key: &self.key,
            class: self.class,
            returned: self.returned,
            asynchronous: self.request.asynchronous,
            tenant: &self.request.tenant,
            session: &self.request.session,
            cost: self.request.tokens,
        }
    }
}

impl Brain {
    pub(super) fn schedule(&mut self, at: Mono, due: Due) {
        if at < NEVER {
            self.due.insert((at, due));
        }
    }

    /// Lets a job wait from now on: for as long as it will, and in the room that the queue has.
    pub(super) fn await_turn(&mut self, now: Now, id: JobId) {
        if let Some(job) = self.jobs.get_mut(&id) {
            job.waits_since = now.mono;
            let due = job.gives_up();
            job.expect(&mut self.due, due);
            self.take_room(id);
        }
    }
}
