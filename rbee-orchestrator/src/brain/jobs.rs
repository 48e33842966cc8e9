//! Jobs: dispatch, time-outs, and their one ending.

use std::time::Duration;

use crate::domain::{Attempt, Ending, JobId, Mono, Now, Outcome, PlacedOn, Priority, WorkerId};
use crate::error::{Code, Error};

use super::Brain;
use super::action::Action;
use super::event::{Aftermath, Blame, Report};
use super::job::{Due, Job, Phase};
use super::queue::Waits;
use super::retry::Sequel;

/// A model that loads is worth asking for again after this long.
const LOADING_RETRY_AFTER: Duration = Duration::from_secs(10);

impl Brain {
    pub(super) fn dispatch(
        &mut self,
        now: Now,
        id: JobId,
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
        job.gives_back = false;
        job.dispatched_at = now.mono;
        job.ticket = notes.breaker.begin();
        worker.allowance = notes.allowance(&self.config.breaker);
        self.room.leave(job);
        notes.leases.insert((id, job.attempt));
        if job.class == Priority::Batch {
            notes.batch.insert((id, job.attempt));
        }
        let spec = worker.spec.clone();
        if let Some(hive) = spec.hive.as_ref().and_then(|id| self.hives.get_mut(id)) {
            hive.record.note_use(&spec.model, now.wall);
        }
        let placed = PlacedOn {
            model: job.key.model.clone(),
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
        job.run_until = match job.request.asynchronous {
            true => job.end_by.min(now.mono + job.request.total_timeout),
            false => job.end_by,
        };
        job.flows = false;
        let due = (job.run_until, Due::Total(id));
        job.expect(&mut self.due, due);
    }

    pub(super) fn attempt_ended(
        &mut self,
        now: Now,
        id: JobId,
        attempt: Attempt,
        worker: &WorkerId,
        mut report: Report,
        out: &mut Vec<Action>,
    ) {
        let lease = (id, attempt);
        let Some(job) = self.jobs.get_mut(&id).filter(|job| job.is_current(attempt)) else {
            self.counters.stale_reports += 1;
            let until = now.mono + self.config.timeouts.total;
            return self.take_lease_back(now, worker, lease, report.aftermath, until, out);
        };
        let held = now.mono.since(job.dispatched_at);
        job.slot_time += held;
        job.inference_time += report.inference;
        let (model, ticket, until) = (job.key.model.clone(), job.ticket, job.run_until);
        if !matches!(
            report.blame,
            Blame::Load(_) | Blame::Queen | Blame::Unreached | Blame::GivenBack
        ) {
            self.rates.note(&model, held);
        }
        self.judge(now, worker, lease, ticket, &report, out);
        let sequel = self.sequel(now, id, worker, &report);
        if let (Sequel::Suspected, Outcome::Failed(error)) = (sequel, &mut report.outcome) {
            *error = self.told_as_suspect(id, worker, error.clone());
        }
        if matches!(sequel, Sequel::AtOnce | Sequel::After(_)) {
            self.note_fault(id, worker, &report);
        }
        let aftermath = report.aftermath;
        match report.outcome {
            Outcome::Failed(error) if !sequel.is_end() => {
                let since = out.len();
                self.requeue(now, id, worker, (error, report.blame), sequel, out);
                if sequel == Sequel::AtOnce
                    && aftermath != Aftermath::Suspect
                    && self.has_lease(worker, lease)
                    && !self.has_another(now, id, worker)
                {
                    // It is to try again itself, once it has answered a check.
                    self.suspect(now, worker, out);
                }
                self.take_lease_back(now, worker, lease, aftermath, until, out);
                // Its worker may be gone, and nobody placed those who wait.
                self.pump_model(now, &model, out);
                self.tell_again(id, since, out);
            }
            outcome => {
                let ending = Ending {
                    usage: report.usage,
                    result: report.result,
                    thinking: report.thinking,
                    stop: report.stop,
                    ..Ending::new(outcome, now.wall)
                };
                self.conclude_with(now, id, ending, out);
                self.take_lease_back(now, worker, lease, aftermath, until, out);
            }
        }
    }

    fn take_lease_back(
        &mut self,
        now: Now,
        worker: &WorkerId,
        lease: (JobId, Attempt),
        left: Aftermath,
        until: Mono,
        out: &mut Vec<Action>,
    ) {
        match left {
            Aftermath::Computing => self.abandon_lease(worker, lease, until, out),
            left => self.return_lease(now, worker, lease, left == Aftermath::Suspect, out),
        }
    }

    /// Ends a job that was never taken in.
    pub(super) fn refuse(&self, now: Now, job: JobId, error: Error, out: &mut Vec<Action>) {
        self.refuse_attempt(now, job, 0, error, out);
    }

    pub(super) fn refuse_attempt(
        &self,
        now: Now,
        job: JobId,
        attempt: Attempt,
        error: Error,
        out: &mut Vec<Action>,
    ) {
        out.push(Action::Finish {
            job,
            attempt,
            ending: Box::new(Ending::new(Outcome::Failed(error), now.wall)),
        });
    }

    /// Ends a job that waits, or cuts off one that runs.
    pub(super) fn end(&mut self, now: Now, id: JobId, outcome: Outcome, out: &mut Vec<Action>) {
        let Some(job) = self.jobs.get_mut(&id) else {
            return;
        };
        match job.phase {
            Phase::Aborting => {}
            Phase::Running => {
                job.phase = Phase::Aborting;
                if let Some(due) = job.due.take() {
                    self.due.remove(&due);
                }
                out.push(Action::Abort { job: id, outcome });
            }
            Phase::Admitted => {
                job.cut_short.get_or_insert(outcome);
            }
            Phase::Held => {
                self.unhold(now, id);
                self.conclude(now, id, outcome, out);
            }
            Phase::Backoff => self.conclude(now, id, outcome, out),
            Phase::Waiting => {
                self.leave_line(now, id);
                self.conclude(now, id, outcome, out);
            }
        }
    }

    /// Ends a job that does not run, and has left the line where it waited.
    pub(super) fn conclude(
        &mut self,
        now: Now,
        id: JobId,
        outcome: Outcome,
        out: &mut Vec<Action>,
    ) {
        self.conclude_with(now, id, Ending::new(outcome, now.wall), out);
    }

    /// The one place where jobs end.
    fn conclude_with(&mut self, now: Now, id: JobId, mut ending: Ending, out: &mut Vec<Action>) {
        let Some(mut job) = self.jobs.remove(&id) else {
            return;
        };
        if let Some(due) = job.due.take() {
            self.due.remove(&due);
        }
        self.room.leave(&mut job);
        self.settle(now, &job, ending.usage);
        ending.times = job.times();
        out.push(Action::Finish {
            job: id,
            attempt: job.attempt,
            ending: Box::new(ending),
        });
    }

    pub(super) fn cancel(&mut self, now: Now, id: JobId, error: Error, out: &mut Vec<Action>) {
        self.end(now, id, Outcome::Cancelled(error), out);
    }

    pub(super) fn queue_timed_out(&mut self, now: Now, id: JobId, out: &mut Vec<Action>) {
        let Some(job) = self.jobs.get(&id) else {
            return;
        };
        if job.phase == Phase::Held {
            let error = self.held_too_long(now, job);
            return self.end(now, id, Outcome::Failed(error), out);
        }
        let waited = humantime(job.request.queue_timeout);
        let error = match self.queue.group(&job.key).map(|group| &group.waits) {
            Some(Waits::Place(why)) => Error::clone(why)
                .rephrased(|why| format!("there was no place within {waited}: {why}")),
            Some(Waits::Fetch(hive)) => Error::new(
                Code::ModelLoading,
                format!(
                    "model {} was not there after {waited}: {}; ask again, or wait longer with \
                     queue_timeout_ms",
                    job.request.model,
                    self.how_far(hive, &job.key.model)
                ),
            )
            .retry_after(LOADING_RETRY_AFTER),
            Some(Waits::Hive(hive)) => Error::new(
                Code::ModelLoading,
                format!(
                    "{} after {waited}, where model {} was to run; that goes on: ask again, or \
                     wait longer with queue_timeout_ms",
                    self.what_kept(hive),
                    job.request.model
                ),
            )
            .retry_after(LOADING_RETRY_AFTER),
            Some(Waits::Load(_)) => Error::new(
                Code::ModelLoading,
                format!(
                    "model {} was still loading after {waited}; it goes on loading: ask again, or \
                     wait longer with queue_timeout_ms",
                    job.request.model
                ),
            )
            .retry_after(LOADING_RETRY_AFTER),
            Some(Waits::Turn) => Error::new(
                Code::NoCapacity,
                format!(
                    "model {} could not be fetched within {waited}: the hives were busy with other \
                     downloads; ask again, or wait longer with queue_timeout_ms",
                    job.request.model
                ),
            )
            .retry_after(LOADING_RETRY_AFTER),
            Some(Waits::Steady(hive)) => Error::new(
                Code::HiveUnreachable,
                format!(
                    "hive {hive} came and went, and was not steady within {waited} for model {}; \
                     ask again, or wait longer with queue_timeout_ms",
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
            Some(Waits::Pause(worker)) => Error::new(
                Code::Timeout,
                format!(
                    "worker {worker}, which has model {}, was given no more work within {waited}: \
                     {}; ask again",
                    job.request.model,
                    self.why_paused(worker)
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
        self.end_in_vain(now, id, error, out);
    }

    /// Lets an attempt whose time is over go on while its answer flows, if its client set it no time.
    /// Whether it flows is not known here: it ends as soon as it is told that it does not.
    fn may_flow_on(&mut self, now: Now, id: JobId, out: &mut Vec<Action>) -> bool {
        let Some(job) = self.jobs.get_mut(&id) else {
            return false;
        };
        let until = match job.request.asynchronous {
            true => job
                .flow_by
                .min(job.dispatched_at + job.request.flowing_timeout),
            false => job.flow_by,
        };
        if job.phase != Phase::Running || job.flows || until <= now.mono {
            return false;
        }
        job.flows = true;
        job.run_until = until;
        job.end_by = job.end_by.max(job.flow_by);
        job.expect(&mut self.due, (until, Due::Total(id)));
        out.push(Action::EndUnlessFlowing {
            job: id,
            attempt: job.attempt,
        });
        true
    }

    /// An attempt that was let go on does not flow.
    pub(super) fn not_flowing(
        &mut self,
        now: Now,
        id: JobId,
        attempt: Attempt,
        out: &mut Vec<Action>,
    ) {
        let job = self.jobs.get_mut(&id);
        if let Some(job) = job.filter(|job| job.is_current(attempt) && job.flows) {
            job.flows = false;
            let error = out_of_time(now, job);
            self.end(now, id, Outcome::Failed(error), out);
        }
    }

    pub(super) fn total_timed_out(&mut self, now: Now, id: JobId, out: &mut Vec<Action>) {
        if self.may_flow_on(now, id, out) {
            return;
        }
        let Some(job) = self.jobs.get(&id) else {
            return;
        };
        let mut error = out_of_time(now, job);
        let group = self
            .queue
            .group(&job.key)
            .filter(|_| job.phase == Phase::Waiting);
        if let Some(Waits::Fetch(hive)) = group.map(|group| &group.waits) {
            error.message += "; ";
            error.message += &self.how_far(hive, &job.key.model);
        }
        match job.runs() {
            true => self.end(now, id, Outcome::Failed(error), out),
            false => self.end_in_vain(now, id, error, out),
        }
    }
}

/// Why a job ends that has had all its time.
pub(super) fn out_of_time(now: Now, job: &Job) -> Error {
    let message = match job.request.deadline {
        Some(deadline) if deadline <= now.wall => {
            format!("the request did not end before its deadline, {deadline}")
        }
        _ if job.flows => format!(
            "the answer did not end within {}, which is all that an answer may take that flows \
             (timeouts.total_max)",
            humantime(job.request.flowing_timeout)
        ),
        _ => format!(
            "the request did not end within its time of {}; allow more with timeout_ms",
            humantime(job.request.total_timeout)
        ),
    };
    Error::new(Code::Timeout, message)
}

/// A duration as people write it.
pub(super) fn humantime(duration: Duration) -> String {
    match duration.as_millis() {
        ms if ms < 1000 || ms % 1000 != 0 => format!("{ms} ms"),
        ms => format!("{} s", ms / 1000),
    }
}
