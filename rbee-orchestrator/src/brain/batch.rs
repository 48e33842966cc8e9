//! Batch work leaves room: a share of a model's slots stays free of it, and the last free slot while
//! interactive work came lately. Where it holds every slot, as an only one, a job that others can wait
//! for gives its slot back. What is promoted is batch work no more.

use std::collections::HashMap;

use crate::domain::{JobId, ModelRef, Mono, Now, Priority};
use crate::error::{Code, Error};

use super::Brain;
use super::action::Action;
use super::job::{Due, Job, Phase};
use super::queue::GroupKey;

/// Models of which it is remembered when interactive work came; those that are quiet go first.
const REMEMBERED: usize = 1024;

/// When interactive work came for each model.
#[derive(Debug, Default)]
pub(super) struct Lately {
    models: HashMap<ModelRef, Came>,
}

#[derive(Debug, Default)]
struct Came {
    last: Mono,
    /// When batch jobs that wait for quiet are looked at again.
    due: Option<Mono>,
}

impl Brain {
    /// Notes that somebody came for a model who waits for the answer.
    pub(super) fn note_interactive(&mut self, now: Now, model: &ModelRef) {
        let models = &mut self.lately.models;
        if let Some(came) = models.get_mut(model) {
            came.last = now.mono;
            return;
        }
        let quiet = self.config.queue.batch_quiet;
        if models.len() >= REMEMBERED {
            models.retain(|_, came| came.due.is_some() || came.last + quiet > now.mono);
        }
        let came = Came {
            last: now.mono,
            due: None,
        };
        models.insert(model.clone(), came);
    }

    /// Whether a job leaves as much room as one of its class must.
    pub(super) fn may_go(&self, now: Now, id: JobId) -> bool {
        let job = self.jobs.get(&id);
        job.is_some_and(|job| self.leaves_room(now, job.class, &job.key.model))
    }

    /// Whether a job of this class may take one more slot of the model's now.
    pub(super) fn leaves_room(&self, now: Now, class: Priority, model: &ModelRef) -> bool {
        if class != Priority::Batch {
            return true;
        }
        let (mut slots, mut free, mut held) = (0, 0, 0);
        let workers = self.workers.with_model(model);
        for worker in workers.filter(|worker| worker.is_in_service()) {
            let notes = self.worker_notes.get(&worker.spec.id);
            slots += worker.spec.slots_total;
            free += worker.slots_free();
            held += notes.map_or(0, |notes| notes.batch.len());
        }
        let share = self.config.queue.batch_share * f64::from(slots);
        let most = (share as usize).max(1);
        held < most && (free > 1 || self.quiet_at(model) <= now.mono)
    }

    /// When the model's last free slot may go to batch work.
    fn quiet_at(&self, model: &ModelRef) -> Mono {
        let came = self.lately.models.get(model);
        came.map_or(Mono::default(), |came| {
            came.last + self.config.queue.batch_quiet
        })
    }

    /// Batch work was held up: it is looked at again when the model has been quiet for long enough.
    pub(super) fn await_quiet(&mut self, now: Now, model: &ModelRef) {
        let at = self.quiet_at(model);
        if let Some(came) = self.lately.models.get_mut(model)
            && came.due.is_none()
            && at > now.mono
        {
            came.due = Some(at);
            self.schedule(at, Due::Quiet(model.clone()));
        }
    }

    /// It may be quiet now; if not, whoever is held up waits again.
    pub(super) fn look_for_quiet(&mut self, now: Now, model: &ModelRef, out: &mut Vec<Action>) {
        if let Some(came) = self.lately.models.get_mut(model) {
            came.due = None;
        }
        self.pump_model(now, model, out);
    }

    /// Somebody waits for a slot: if batch work holds all that would do, one job of it gives its slot back
    /// and waits again, which is no failure.
    pub(super) fn make_way(&mut self, now: Now, key: &GroupKey, out: &mut Vec<Action>) {
        let Some(id) = self.who_makes_way(now, key) else {
            return;
        };
        if let Some(job) = self.jobs.get_mut(&id) {
            job.gives_back = true;
            job.given_back += 1;
            self.counters.given_back += 1;
            out.push(Action::GiveBack {
                job: id,
                attempt: job.attempt,
                why: Error::new(
                    Code::NoCapacity,
                    "its slot was given to an interactive request, since batch work held every slot",
                ),
            });
        }
    }

    /// The batch job that began last, of those that may give a slot back to the group. None, if somebody
    /// else has a slot there, or one is about to be free.
    fn who_makes_way(&self, now: Now, key: &GroupKey) -> Option<JobId> {
        let view = self.view(now);
        let request = key.request();
        let mut last = None;
        for worker in view.candidates(&request).filter(|w| w.is_in_service()) {
            let batch = &self.worker_notes.get(&worker.spec.id)?.batch;
            let is_full = worker.leases >= worker.spec.slots_total;
            if !is_full || batch.len() < worker.leases as usize {
                return None;
            }
            for (id, attempt) in batch {
                let job = self.jobs.get(id)?;
                if job.phase != Phase::Running || job.attempt != *attempt || job.gives_back {
                    return None;
                }
                if self.may_give_back(now, job) {
                    last = last.max(Some((job.dispatched_at, *id)));
                }
            }
        }
        let (_, id) = last?;
        let waits = self.queue.group(key)?.jobs_of(Priority::Interactive);
        let mut waits = waits.filter_map(|id| self.jobs.get(&id));
        let is_waited_for = waits.any(|job| job.request.priority == Priority::Interactive);
        is_waited_for.then_some(id)
    }

    /// Whether a job that runs can begin anew later.
    fn may_give_back(&self, now: Now, job: &Job) -> bool {
        job.request.asynchronous
            && job.given_back < self.config.queue.batch_gives_back
            && job.end_by > now.mono
    }
}
