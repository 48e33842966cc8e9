//! Retry: what follows an attempt that failed.

use std::time::Duration;

use crate::domain::{JobId, Now, Outcome, WorkerId};
use crate::error::{Code, Error};

use super::Brain;
use super::action::Action;
use super::event::{Blame, Report};
use super::job::{Due, Past, Phase};
use super::places::within_reason;
use super::window::Window;

/// The least pause where the budget allows no retry, so that the brain does not turn in circles.
const SHORTEST_BACKOFF: Duration = Duration::from_millis(100);

/// The longest pause after trouble of the queen's own.
const OWN_PAUSE: Duration = Duration::from_secs(1);

/// Retries against requests in the window: a share of these, so that a fleet that fails is not
/// also flooded.
#[derive(Debug, Default)]
pub(super) struct Budget {
    /// Requests and retries.
    window: Window,
}

/// What follows an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sequel {
    /// Nothing: the job ends as the attempt did.
    End,
    /// Another one, at once.
    AtOnce,
    /// Another one, after a pause.
    After(Duration),
    /// Another one, at once or after a pause: this one was no failure of the job.
    Uncounted(Option<Duration>),
    /// Nothing, since the request itself may be the cause.
    Suspected,
}

impl Sequel {
    pub(super) fn is_end(self) -> bool {
        matches!(self, Sequel::End | Sequel::Suspected)
    }
}

impl Brain {
    /// Counts a request for the retry budget.
    pub(super) fn note_request(&mut self, now: Now) {
        let length = self.config.retry.budget_window;
        self.budget.window.add(now.mono, length, [1, 0]);
    }

    /// Takes a retry out of the budget, if there is one left.
    fn may_retry(&mut self, now: Now) -> bool {
        let config = &self.config.retry;
        let window = &mut self.budget.window;
        let [requests, retries] = window.sums(now.mono, config.budget_window);
        let share = (config.budget_ratio * requests as f64) as u64;
        let allowed = retries < share.max(u64::from(config.budget_min));
        match allowed {
            true => {
                window.add(now.mono, config.budget_window, [0, 1]);
                self.counters.retries += 1;
            }
            false => self.counters.retries_refused += 1,
        }
        allowed
    }

    /// What follows the current attempt of a job.
    pub(super) fn sequel(
        &mut self,
        now: Now,
        id: JobId,
        worker: &WorkerId,
        report: &Report,
    ) -> Sequel {
        let failed = matches!(report.outcome, Outcome::Failed(_));
        let Some(job) = self.jobs.get(&id).filter(|_| failed) else {
            return Sequel::End;
        };
        let asynchronous = job.request.asynchronous;
        if job.phase == Phase::Aborting || job.end_by <= now.mono {
            return Sequel::End;
        }
        // What an asynchronous job's reader has got is void; a client who waits can't unread it.
        // When the queen goes down nothing is dispatched any more.
        if !asynchronous && (report.relayed || self.draining) {
            return Sequel::End;
        }
        let failures = job.failures + 1;
        let suspect = self.is_suspect(job, worker, report);
        match report.blame {
            Blame::Request => Sequel::End,
            Blame::Load(_) | Blame::GivenBack => Sequel::Uncounted(None),
            Blame::Queen => {
                // A client who waits waits no longer for her than for a worker.
                let waited = now.wall.since(job.request.submitted_at);
                match asynchronous || waited < job.request.queue_timeout {
                    true => {
                        let pause = SHORTEST_BACKOFF + self.chance.up_to(OWN_PAUSE);
                        Sequel::Uncounted(Some(pause))
                    }
                    false => Sequel::End,
                }
            }
            _ if suspect => Sequel::Suspected,
            Blame::Unclear if !self.has_another(now, id, worker) => Sequel::End,
            Blame::Unreached if asynchronous => Sequel::Uncounted(None),
            Blame::Worker | Blame::Unclear if asynchronous => {
                match failures < self.config.retry.attempts_async {
                    true => Sequel::After(self.backoff(failures)),
                    false => Sequel::End,
                }
            }
            Blame::Worker | Blame::Unclear | Blame::Unreached => {
                let left = failures < self.config.retry.attempts_interactive;
                match left && self.may_retry(now) {
                    true => Sequel::AtOnce,
                    false => Sequel::End,
                }
            }
        }
    }

    /// How long to wait after so many failures: full jitter.
    fn backoff(&mut self, failures: u32) -> Duration {
        let config = &self.config.retry;
        let doublings = failures.saturating_sub(1).min(31);
        let longest = config.backoff_first.saturating_mul(1 << doublings);
        self.chance.up_to(longest.min(config.backoff_max))
    }

    /// Lets a job wait again whose attempt failed.
    pub(super) fn requeue(
        &mut self,
        now: Now,
        id: JobId,
        worker: &WorkerId,
        (error, blame): (Error, Blame),
        sequel: Sequel,
        out: &mut Vec<Action>,
    ) {
        let Some(job) = self.jobs.get_mut(&id) else {
            return;
        };
        let counts = !matches!(sequel, Sequel::Uncounted(_));
        if counts {
            job.failures += 1;
            job.key.avoid = Some(worker.clone());
        }
        job.returned = true;
        let delay = match sequel {
            Sequel::After(delay) => Some(delay),
            Sequel::Uncounted(delay) => delay,
            _ => None,
        };
        out.push(Action::Requeue {
            job: id,
            attempt: job.attempt,
            failed: counts,
            not_before: delay.map(|delay| now.wall + delay),
            error: error.clone(),
        });
        // What was taken from it says nothing of why it may end.
        if blame != Blame::GivenBack {
            job.past = Some(Box::new(Past { error, blame }));
        }
        match delay {
            Some(delay) => self.back_off(now, id, delay),
            None => self.enqueue(now, id, false),
        }
    }

    /// Whether a worker other than this one serves what the job asks for.
    pub(super) fn has_another(&self, now: Now, id: JobId, worker: &WorkerId) -> bool {
        let view = self.view(now);
        self.jobs.get(&id).is_some_and(|job| {
            let request = job.key.request();
            let mut others = view.candidates(&request);
            others.any(|other| other.spec.id != *worker && other.is_in_service())
        })
    }

    /// Lets a job wait for a while before it is placed again.
    pub(super) fn back_off(&mut self, now: Now, id: JobId, delay: Duration) {
        let Some(job) = self.jobs.get_mut(&id) else {
            return;
        };
        job.phase = Phase::Backoff;
        let over = now.mono + delay;
        let due = match over < job.end_by {
            true => (over, Due::Backoff(id)),
            false => (job.end_by, Due::Total(id)),
        };
        job.expect(&mut self.due, due);
        self.take_room(id);
    }

    /// A job has waited for long enough after a failure. Where the budget does not allow it now,
    /// it waits once more for as long as such a failure may make it wait.
    pub(super) fn backoff_over(&mut self, now: Now, id: JobId, out: &mut Vec<Action>) {
        let Some(job) = self.jobs.get(&id) else {
            return;
        };
        let failures = job.failures;
        // What has not been tried is not tried again.
        let past = job.past.as_ref();
        let is_first_try = past.is_some_and(|past| past.blame == Blame::Queen);
        match is_first_try || self.may_retry(now) {
            true => self.start(now, id, out),
            false => {
                let delay = self.backoff(failures.max(1));
                self.back_off(now, id, delay.max(SHORTEST_BACKOFF));
            }
        }
    }

    /// Ends a job that waits and gets no worker. If it had one before, what happened there says
    /// more to its client.
    pub(super) fn end_in_vain(&mut self, now: Now, id: JobId, error: Error, out: &mut Vec<Action>) {
        let past = self.jobs.get(&id).and_then(|job| job.past.as_deref());
        let error = match past {
            Some(past) if matches!(past.blame, Blame::Load(_)) => {
                let told =
                    |why: &str| format!("every worker with the model had too much to do: {why}");
                let error = Error {
                    code: Code::NoCapacity,
                    details: None,
                    ..past.error.clone().rephrased(told)
                };
                error.retry_after(within_reason(past.error.retry_after))
            }
            Some(past) => past.error.clone(),
            None => error,
        };
        self.end(now, id, Outcome::Failed(error), out);
    }
}
