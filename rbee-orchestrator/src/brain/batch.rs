//! Batch work leaves room: a share of a model's slots stays free of it, and the last free slot while
//! interactive work came lately. What is promoted is batch work no more.

use std::collections::HashMap;

use crate::domain::{JobId, ModelRef, Mono, Now, Priority};

use super::Brain;
use super::action::Action;
use super::job::Due;

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
}
