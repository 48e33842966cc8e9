//! What hives say about their workers, and what the workers say themselves.

use std::sync::Arc;
use std::time::Duration;

use crate::domain::{HiveId, HiveStatus, Now, WorkerId, WorkerSpec};
use crate::error::{Code, Error};

use super::Brain;
use super::action::Action;
use super::event::{SeenState, SeenWorker};

/// A worker that is missing from this many lists in a row and does not answer is gone.
const MISSING_LISTS: u32 = 2;

/// Between two checks of a hive that missed one after an attempt on one of its workers broke off:
/// whether it is lost is known within a second then.
const IN_DOUBT: Duration = Duration::from_millis(250);

impl Brain {
    /// How long until the next check of a hive: jittered, so that many are not checked at once.
    pub fn check_pause(&mut self, id: &HiveId) -> Duration {
        let config = &self.config.hives;
        let interval = config.check_interval;
        let missed = self.hives.get(id).is_some_and(|hive| hive.misses > 0);
        let in_doubt = self.hive_notes.get(id).is_some_and(|notes| notes.in_doubt);
        if missed && in_doubt {
            return interval.min(IN_DOUBT);
        }
        if self.is_loading(Some(id)) {
            return config.loading_interval;
        }
        interval.mul_f64(0.9) + self.chance.up_to(interval.mul_f64(0.2))
    }

    /// Compares a hive's list with the registry: what it lists is adopted or brought up to date,
    /// what it does not list any more is doubted.
    pub(super) fn reconcile(
        &mut self,
        now: Now,
        hive: &HiveId,
        seen: Vec<SeenWorker>,
        out: &mut Vec<Action>,
    ) {
        let mut listed = Vec::with_capacity(seen.len());
        for worker in seen {
            let id = self.minted(&worker.spec.id).clone();
            self.see(now, hive, &id, worker, out);
            listed.push(id);
        }
        for id in self.workers_of(hive) {
            let notes = self.worker_notes.get_mut(&id);
            let Some(notes) = notes.filter(|n| n.answered && !listed.contains(&id)) else {
                continue;
            };
            notes.missing = notes.missing.saturating_add(1);
            if notes.missing >= MISSING_LISTS {
                self.doubt(&id, out);
            }
        }
    }

    fn see(
        &mut self,
        now: Now,
        hive: &HiveId,
        id: &WorkerId,
        seen: SeenWorker,
        out: &mut Vec<Action>,
    ) {
        let SeenWorker { spec, state } = seen;
        match self.workers.get(id) {
            // Two hives may use the same ids; the one that came first keeps it.
            Some(known) if known.spec.hive.as_ref() != Some(hive) => return,
            Some(_) => self.update(id, spec),
            None => {
                let ends = matches!(state, SeenState::Stopping | SeenState::Failed(_));
                if ends || self.is_gone(now, id) {
                    return;
                }
                self.add(WorkerSpec {
                    hive: Some(hive.clone()),
                    ..spec
                });
                if let Some(worker) = self.workers.get_mut(id) {
                    worker.adopted = true;
                }
                self.expect_load(now, id);
            }
        }
        let (Some(worker), Some(notes)) = (self.workers.get_mut(id), self.worker_notes.get_mut(id))
        else {
            return;
        };
        notes.missing = 0;
        notes.doubted = false;
        match state {
            SeenState::Ready if !worker.ready && !notes.suspect => self.mark_ready(now, id, out),
            SeenState::Stopping if !worker.draining => {
                worker.draining = true;
                let model = worker.spec.model.clone();
                self.pump_model(now, &model, out);
            }
            SeenState::Failed(error) => {
                self.free_address(id);
                self.worker_failed(now, id, &error, out);
            }
            SeenState::Ready | SeenState::Loading | SeenState::Stopping => {}
        }
    }

    /// Brings a worker up to date. What decides where requests go stays as it was asked for: a
    /// hive that words it differently must not make a worker useless to those who wait for it.
    fn update(&mut self, id: &WorkerId, seen: WorkerSpec) {
        let Some(worker) = self.workers.get_mut(id) else {
            return;
        };
        let known = &*worker.spec;
        let spec = WorkerSpec {
            id: id.clone(),
            hive: known.hive.clone(),
            model: known.model.clone(),
            backend: known.backend.clone(),
            device: known.device,
            served_model: seen.served_model.or_else(|| known.served_model.clone()),
            slots_total: seen.slots_total.max(1),
            vram_bytes: match seen.vram_bytes {
                0 => known.vram_bytes,
                bytes => bytes,
            },
            ..seen
        };
        if *known != spec {
            let moved = (&known.host, known.port) != (&spec.host, spec.port);
            // Where it is now somebody else may be.
            worker.ready &= !moved;
            worker.spec = Arc::new(spec);
        }
    }

    /// Asks a worker that its hive does not vouch for whether it answers.
    pub(super) fn doubt(&mut self, id: &WorkerId, out: &mut Vec<Action>) {
        let Some(worker) = self.workers.get(id) else {
            return;
        };
        if let Some(notes) = self.worker_notes.get_mut(id) {
            notes.doubted = true;
        }
        out.push(Action::CheckWorker {
            worker: worker.spec.clone(),
        });
    }

    /// Asks a worker once more whether it answers.
    pub(super) fn check_again(&mut self, id: &WorkerId, out: &mut Vec<Action>) {
        let worker = self.workers.get(id).map(|worker| worker.spec.clone());
        out.extend(worker.map(|worker| Action::CheckWorker { worker }));
    }

    /// A worker answered. Where its hive is only forgetful, that holds until the next list; where
    /// the hive is out of reach, the worker alone can say when it is gone.
    fn trust_for_now(&mut self, id: &WorkerId, doubted: bool) {
        let hive = self.workers.get(id).and_then(|w| w.spec.hive.as_ref());
        let hive = hive.and_then(|hive| self.hives.get(hive));
        let is_lost = hive.is_some_and(|hive| hive.status != HiveStatus::Online);
        if let Some(notes) = self.worker_notes.get_mut(id) {
            notes.doubted = doubted && is_lost;
        }
    }

    pub(super) fn worker_checked(
        &mut self,
        now: Now,
        id: &WorkerId,
        answers: bool,
        out: &mut Vec<Action>,
    ) {
        if answers {
            self.return_abandoned(now, id, out);
        }
        let Some(worker) = self.workers.get(id) else {
            return;
        };
        let doubted = self.worker_notes.get(id).is_some_and(|notes| notes.doubted);
        match answers {
            true if !worker.ready => {
                self.mark_ready(now, id, out);
                self.trust_for_now(id, doubted);
            }
            true => self.trust_for_now(id, doubted),
            // Busy, not dead: older workers answer no health check while they compute.
            false if worker.leases > 0 => {}
            false if doubted => {
                let error = Error::new(Code::WorkerFailed, format!("worker {id} does not answer"));
                self.lose_worker(now, id, &error, out);
            }
            false => self.missed_check(now, id, out),
        }
    }
}
