//! Jobs: dispatch, time-outs, and their one ending.

use std::time::Duration;

use crate::domain::{Attempt, Ending, JobId, ModelRef, Now, Outcome, PlacedOn, WorkerId};
use crate::error::{Code, Error};

use super::Brain;
use super::event::{Action, Aftermath, Due, Phase, Report};
use super::queue::{GroupKey, Waits};

/// A model that loads is worth asking for again after this long.
const LOADING_RETRY_AFTER: Duration = Duration::from_secs(10);

impl Brain {
    pub(super) fn dispatch(
        &mut self,
        now: Now,
        id: JobId,
        model: &ModelRef,
        worker: &WorkerId,
        why: String,
        out: &mut Vec<Action>,
    ) {
        let (Some(job), Some(notes), Some(worker)) = (
            self.jobs.get_mut(&id),
            self.worker_notes.get_mut(worker),
            self.workers.get_mut(worker),
        ) else {
            debug_assert!(false, "a job that waits and a worker that was chosen exist");
            return;
        };
        debug_assert!(worker.slots_free() > 0 && job.phase == Phase::Waiting);
        worker.leases += 1;
        worker.last_used = now.mono;
        worker.last_used_at = Some(now.wall);
        job.attempt += 1;
        job.phase = Phase::Running;
        notes.leases.insert((id, job.attempt));
        if let Due::Queue(_) = job.due.1 {
            self.due.remove(&job.due);
            job.due = (job.total_deadline, Due::Total(id));
            self.due.insert(job.due.clone());
        }
        let spec = worker.spec.clone();
        let placed = PlacedOn {
            model: model.clone(),
            worker: spec.id.clone(),
            hive: spec.hive.clone(),
            why,
        };
        out.push(Action::Dispatch {
            job: id,
            attempt: job.attempt,
            worker: spec,
            placed,
            at: now.wall,
        });
    }

    pub(super) fn attempt_ended(
        &mut self,
        now: Now,
        id: JobId,
        attempt: Attempt,
        worker: &WorkerId,
        report: Report,
        out: &mut Vec<Action>,
    ) {
        let is_current = self
            .jobs
            .get(&id)
            .is_some_and(|job| job.attempt == attempt && job.phase != Phase::Waiting);
        let mut until = now.mono + self.config.timeouts.total;
        if is_current && let Some(job) = self.jobs.remove(&id) {
            self.due.remove(&job.due);
            until = job.total_deadline;
            let ending = Ending {
                usage: report.usage,
                result: report.result,
                stop: report.stop,
                ..Ending::new(report.outcome, now.wall)
            };
            out.push(Action::Finish {
                job: id,
                attempt,
                ending: Box::new(ending),
            });
        }
        match report.aftermath {
            Aftermath::Computing => self.abandon_lease(worker, (id, attempt), until, out),
            left => self.return_lease(now, worker, (id, attempt), left == Aftermath::Suspect, out),
        }
    }

    /// Ends a job that was never taken in.
    pub(super) fn refuse(&self, now: Now, job: JobId, error: Error, out: &mut Vec<Action>) {
        finish_unused(now, job, 0, Outcome::Failed(error), out);
    }

    /// Ends a job that waits, or cuts off one that runs.
    fn end(&mut self, now: Now, id: JobId, outcome: Outcome, out: &mut Vec<Action>) {
        let Some(job) = self.jobs.get_mut(&id) else {
            return;
        };
        self.due.remove(&job.due);
        match job.phase {
            Phase::Aborting => {}
            Phase::Running => {
                job.phase = Phase::Aborting;
                out.push(Action::Abort { job: id, outcome });
            }
            Phase::Waiting => {
                self.queue.remove(&job.key, id);
                self.end_waiting(now, id, outcome, out);
            }
        }
    }

    /// Ends a job that is in no group any more.
    fn end_waiting(&mut self, now: Now, id: JobId, outcome: Outcome, out: &mut Vec<Action>) {
        if let Some(job) = self.jobs.remove(&id) {
            self.due.remove(&job.due);
            finish_unused(now, id, job.attempt, outcome, out);
        }
    }

    pub(super) fn end_group(
        &mut self,
        now: Now,
        key: &GroupKey,
        error: &Error,
        out: &mut Vec<Action>,
    ) {
        let group = self.queue.take(key).unwrap_or_default();
        for id in group.jobs() {
            self.end_waiting(now, id, Outcome::Failed(error.clone()), out);
        }
    }

    pub(super) fn cancel(&mut self, now: Now, id: JobId, error: Error, out: &mut Vec<Action>) {
        self.end(now, id, Outcome::Cancelled(error), out);
    }

    pub(super) fn queue_timed_out(&mut self, now: Now, id: JobId, out: &mut Vec<Action>) {
        let Some(job) = self.jobs.get(&id) else {
            return;
        };
        let waited = humantime(job.request.queue_timeout);
        let error = match self.queue.get(&job.key).map(|group| &group.waits) {
            Some(Waits::Load(_) | Waits::Hive(_)) => Error::new(
                Code::ModelLoading,
                format!(
                    "model {} was still loading after {waited}; it goes on loading: ask again, or \
                     wait longer with queue_timeout_ms",
                    job.request.model
                ),
            )
            .retry_after(LOADING_RETRY_AFTER),
            Some(Waits::Check(worker)) => Error::new(
                Code::Timeout,
                format!(
                    "worker {worker}, which has model {}, did not answer its health check within \
                     {waited}; ask again",
                    job.request.model
                ),
            ),
            _ => Error::new(
                Code::Timeout,
                format!(
                    "no worker had a free slot for model {} within {waited}; ask again, or wait \
                     longer with queue_timeout_ms",
                    job.request.model
                ),
            ),
        };
        self.end(now, id, Outcome::Failed(error), out);
    }

    pub(super) fn total_timed_out(&mut self, now: Now, id: JobId, out: &mut Vec<Action>) {
        let Some(job) = self.jobs.get(&id) else {
            return;
        };
        let message = match job.request.deadline {
            Some(deadline) if deadline <= now.wall => {
                format!("the request did not end before its deadline, {deadline}")
            }
            _ => format!(
                "the request did not end within its time of {}; allow more with timeout_ms",
                humantime(job.request.total_timeout)
            ),
        };
        let error = Error::new(Code::Timeout, message);
        self.end(now, id, Outcome::Failed(error), out);
    }
}

fn finish_unused(now: Now, job: JobId, attempt: Attempt, outcome: Outcome, out: &mut Vec<Action>) {
    out.push(Action::Finish {
        job,
        attempt,
        ending: Box::new(Ending::new(outcome, now.wall)),
    });
}

/// A duration as people write it.
pub(super) fn humantime(duration: Duration) -> String {
    match duration.as_millis() {
        ms if ms < 1000 || ms % 1000 != 0 => format!("{ms} ms"),
        ms => format!("{} s", ms / 1000),
    }
}
