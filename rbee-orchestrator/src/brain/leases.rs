//! Leases: slots that come back, and slots of workers that may still compute for nobody.

use crate::domain::{Attempt, JobId, Mono, Now, WorkerId};

use super::Brain;
use super::action::Action;
use super::job::Due;

impl Brain {
    pub(super) fn has_lease(&self, id: &WorkerId, lease: (JobId, Attempt)) -> bool {
        let notes = self.worker_notes.get(id);
        notes.is_some_and(|notes| notes.leases.contains(&lease))
    }

    /// A lease came back: the slot is free, or the worker can go.
    pub(super) fn return_lease(
        &mut self,
        now: Now,
        id: &WorkerId,
        lease: (JobId, Attempt),
        suspect: bool,
        out: &mut Vec<Action>,
    ) {
        let (Some(worker), Some(notes)) = (self.workers.get_mut(id), self.worker_notes.get_mut(id))
        else {
            return;
        };
        if !notes.leases.remove(&lease) {
            return;
        }
        notes.batch.remove(&lease);
        worker.leases -= 1;
        let model = worker.spec.model.clone();
        let ends = worker.draining && worker.leases == 0 && !notes.stopping;
        let still_suspect = notes.suspect;
        let hive = worker.spec.hive.clone();
        if suspect {
            self.suspect(now, id, out);
        } else if still_suspect {
            self.expect_answer(now, id);
        }
        if ends {
            self.stop_worker(now, id, out);
        }
        if let Some(hive) = hive {
            self.stop_if_drained(&hive, out);
        }
        self.pump_model(now, &model, out);
    }

    /// A client has gone and the worker can't cancel: the slot stays taken until it answers.
    pub(super) fn abandon_lease(
        &mut self,
        id: &WorkerId,
        lease: (JobId, Attempt),
        until: Mono,
        out: &mut Vec<Action>,
    ) {
        let (Some(worker), Some(notes)) = (self.workers.get(id), self.worker_notes.get_mut(id))
        else {
            return;
        };
        if !notes.leases.contains(&lease) {
            return;
        }
        notes.abandoned.push(lease);
        if notes.abandoned_due.is_none() {
            notes.abandoned_due = Some(until);
            self.due.insert((until, Due::Abandoned(id.clone())));
        }
        out.push(Action::CancelOnWorker {
            worker: worker.spec.clone(),
            job: lease.0,
        });
    }

    /// The worker answers, so it computes no more for those who have gone.
    pub(super) fn return_abandoned(&mut self, now: Now, id: &WorkerId, out: &mut Vec<Action>) {
        let Some(notes) = self.worker_notes.get_mut(id) else {
            return;
        };
        let abandoned = std::mem::take(&mut notes.abandoned);
        if let Some(due) = notes.abandoned_due.take() {
            self.due.remove(&(due, Due::Abandoned(id.clone())));
        }
        for lease in abandoned {
            self.return_lease(now, id, lease, false, out);
        }
    }

    /// It did not come to an end by the time at which its last client would have given up.
    pub(super) fn stop_what_nobody_waits_for(
        &mut self,
        now: Now,
        id: &WorkerId,
        out: &mut Vec<Action>,
    ) {
        if let Some(notes) = self.worker_notes.get_mut(id) {
            notes.abandoned_due = None;
        }
        if let Some(worker) = self.workers.get_mut(id) {
            worker.draining = true;
            self.stop_worker(now, id, out);
        }
    }
}
