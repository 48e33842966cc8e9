//! Which requests may be to blame for what failed with them: one that failed the same way on two
//! workers, or after which a worker died, is given to no other.

use crate::domain::{JobId, Now, Outcome, WorkerId};
use crate::error::{Code, Error};

use super::Brain;
use super::action::Action;
use super::event::{Aftermath, Blame, Report};
use super::job::Job;

/// An attempt that failed, by its worker's fault or by one that is unclear.
#[derive(Debug)]
pub(super) struct Fault {
    worker: WorkerId,
    how: How,
}

/// How it failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum How {
    /// The worker answered with an error.
    Answered,
    /// The worker broke off or fell silent.
    Failed(Code),
    /// The request never reached the worker, or the worker was stopped: that says nothing.
    Innocent,
}

impl Job {
    /// Whether an attempt on this worker has failed already.
    pub(super) fn has_failed_on(&self, worker: &WorkerId) -> bool {
        self.faults.iter().any(|fault| fault.worker == *worker)
    }

    /// Whether this worker answered with an error: it would say the same again.
    pub(super) fn was_answered_by(&self, worker: &WorkerId) -> bool {
        let answered = |fault: &Fault| fault.how == How::Answered && fault.worker == *worker;
        self.faults.iter().any(answered)
    }
}

impl Brain {
    /// How an attempt failed that is the job's newest.
    fn how(&self, worker: &WorkerId, report: &Report) -> How {
        let known = self.workers.get(worker);
        let stopped = match known {
            Some(worker) => worker.draining,
            None => self.was_stopped(worker),
        };
        match (report.blame, report.outcome.error()) {
            (Blame::Unclear, _) => How::Answered,
            (Blame::Worker, Some(error)) if !stopped => How::Failed(error.code),
            _ => How::Innocent,
        }
    }

    /// Whether a job whose attempt on this worker failed is to be given to no other.
    pub(super) fn is_suspect(&self, job: &Job, worker: &WorkerId, report: &Report) -> bool {
        let how = self.how(worker, report);
        let same_elsewhere = |fault: &Fault| fault.how == how && fault.worker != *worker;
        match how {
            How::Innocent => false,
            How::Answered => job.faults.iter().any(same_elsewhere),
            How::Failed(_) => job.deaths > 0 || job.faults.iter().any(same_elsewhere),
        }
    }

    /// Remembers a failure of a job that gets another attempt.
    pub(super) fn note_fault(&mut self, id: JobId, worker: &WorkerId, report: &Report) {
        let how = self.how(worker, report);
        let Some(job) = self.jobs.get_mut(&id) else {
            return;
        };
        job.faults.push(Fault {
            worker: worker.clone(),
            how,
        });
        if !matches!(how, How::Failed(_)) || report.aftermath != Aftermath::Suspect {
            return;
        }
        match self.worker_notes.get_mut(worker) {
            // Whether it died of that is not known yet.
            Some(notes) => notes.broke_off.push(id),
            None => job.deaths += 1,
        }
    }

    /// A worker died, or does not answer any more: those with which it broke off may be why.
    pub(super) fn note_death(&mut self, worker: &WorkerId) {
        let notes = self.worker_notes.get_mut(worker);
        for id in notes.map_or_else(Vec::new, |notes| std::mem::take(&mut notes.broke_off)) {
            if let Some(job) = self.jobs.get_mut(&id) {
                job.deaths += 1;
            }
        }
    }

    /// Whether a worker that is to get a job has answered it with an error before.
    pub(super) fn has_answered(&self, id: JobId, worker: &WorkerId) -> bool {
        let job = self.jobs.get(&id);
        job.is_some_and(|job| job.was_answered_by(worker))
    }

    /// Ends a job, out of its line, for which there is none left but a worker that answered it with
    /// an error: with that answer.
    pub(super) fn end_answered(&mut self, now: Now, id: JobId, out: &mut Vec<Action>) {
        let past = self.jobs.get(&id).and_then(|job| job.past.as_deref());
        let error = past.map_or_else(
            || Error::new(Code::WorkerFailed, "every worker answered with an error"),
            |past| past.error.clone(),
        );
        self.conclude(now, id, Outcome::Failed(error), out);
    }

    /// What the client of a suspect is told.
    pub(super) fn told_as_suspect(&self, id: JobId, worker: &WorkerId, error: Error) -> Error {
        let before = self.jobs.get(&id).into_iter().flat_map(|job| &job.faults);
        let guilty = before.filter(|fault| fault.how != How::Innocent);
        let mut workers: Vec<&str> = guilty.map(|fault| fault.worker.as_str()).collect();
        workers.push(worker.as_str());
        workers.dedup();
        let workers = workers.join(" and ");
        let told = |why: &str| {
            format!(
                "{why}; the request failed on {workers} and is given to no other worker, since it may \
                 be the cause"
            )
        };
        error.rephrased(told).detail("suspect", true)
    }
}
