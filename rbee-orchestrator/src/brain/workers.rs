//! Workers: what the brain notes beside the registry, and how they leave.

use std::sync::Arc;
use std::time::Duration;

use crate::config::BreakerConfig;
use crate::domain::{
    Attempt, HiveId, HiveModel, JobId, ModelRef, Mono, Now, Prospect, Worker, WorkerId, WorkerSpec,
};
use crate::error::{Code, Error, Result};
use crate::hashing::IdSet;
use crate::scheduler::FailedLoad;

use super::Brain;
use super::action::Action;
use super::breaker::Breaker;
use super::doubt::Doubt;
use super::job::Due;
use super::queue::Waits;

/// How long a report may be under way in which a stopped worker still stands.
pub(super) const GONE_FOR: Duration = Duration::from_secs(60);

/// What the brain keeps beside the registry.
#[derive(Debug, Default)]
pub(super) struct Notes {
    /// Its load's deadline, while it loads.
    pub(super) load_due: Option<Mono>,
    /// Whether its hive has answered the spawn.
    pub(super) answered: bool,
    /// The id that its hive gave it in place of the minted one.
    pub(super) known_as: Option<WorkerId>,
    /// Lists of its hive in a row that did not name it.
    pub(super) missing: u32,
    /// Whether its hive does not vouch for it any more.
    pub(super) doubted: bool,
    /// Whether it broke off an attempt and has not answered since: its hive's word is not enough.
    pub(super) suspect: bool,
    /// When it is stopped if it has not answered.
    pub(super) suspect_due: Option<Mono>,
    /// Jobs with which it broke off since it answered last.
    pub(super) broke_off: Vec<JobId>,
    /// Leaves it alone when it fails again and again.
    pub(super) breaker: Breaker,
    /// Makes it the last resort when it answers with errors again and again.
    pub(super) doubt: Doubt,
    /// When it is tried again.
    pub(super) reopens: Option<Mono>,
    /// Until when it gets nothing, since it has too much to do.
    pub(super) paused_until: Option<Mono>,
    /// Attempts that hold a slot. A worker that comes back under its old id starts without any.
    pub(super) leases: IdSet<(JobId, Attempt)>,
    /// Those of them that are batch work.
    pub(super) batch: IdSet<(JobId, Attempt)>,
    /// Those of them that nobody waits for while the worker may still compute.
    pub(super) abandoned: Vec<(JobId, Attempt)>,
    /// When it is stopped if it still computes them.
    pub(super) abandoned_due: Option<Mono>,
    /// Whether its hive was told to stop it.
    pub(super) stopping: bool,
    /// Why it was not stopped when it was to be.
    pub(super) not_stopped: Option<Error>,
}

impl Notes {
    /// How many more attempts it may be given, however many slots are free.
    pub(super) fn allowance(&self, config: &BreakerConfig) -> Option<u32> {
        match self.paused_until {
            Some(_) => Some(0),
            None => self.breaker.admits(config),
        }
    }

    /// Whether its hive was asked to spawn it and has not answered.
    pub(super) fn is_in_flight(&self) -> bool {
        self.load_due.is_some() && !self.answered
    }
}

/// What is left of a worker that was stopped or died.
#[derive(Debug)]
pub(super) struct Tombstone {
    pub(super) until: Mono,
    pub(super) hive: Option<HiveId>,
    /// Whether it was stopped, and did not die.
    pub(super) stopped: bool,
}

impl Brain {
    /// The minted id of a worker, whichever of its ids is given.
    pub(super) fn minted<'a>(&'a self, id: &'a WorkerId) -> &'a WorkerId {
        self.other_ids.get(id).unwrap_or(id)
    }

    /// The hive that a worker is on, whichever of its ids is given.
    #[must_use]
    pub fn hive_of(&self, id: &WorkerId) -> Option<HiveId> {
        self.workers.get(self.minted(id))?.spec.hive.clone()
    }

    /// The workers of a hive, by id: the order of what is done must not depend on hashing.
    pub(super) fn workers_of(&self, hive: &HiveId) -> Vec<WorkerId> {
        let of_hive = |worker: &&Worker| worker.spec.hive.as_ref() == Some(hive);
        let ids = self.workers.iter().filter(of_hive);
        let mut ids: Vec<WorkerId> = ids.map(|worker| worker.spec.id.clone()).collect();
        ids.sort_unstable();
        ids
    }

    /// Takes a worker out of service; it is stopped when its last lease is back, or at once.
    ///
    /// # Errors
    /// `WORKER_NOT_FOUND`.
    pub fn shutdown_worker(
        &mut self,
        now: Now,
        id: &WorkerId,
        force: bool,
        out: &mut Vec<Action>,
    ) -> Result<()> {
        let id = self.minted(id).clone();
        let Some(worker) = self.workers.get_mut(&id) else {
            return Err(Error::new(
                Code::WorkerNotFound,
                format!("there is no worker {id}"),
            ));
        };
        let loading = !worker.ready;
        worker.draining = true;
        if let Some(notes) = self.worker_notes.get_mut(&id) {
            notes.not_stopped = None;
            notes.stopping = false;
        }
        let model = worker.spec.model.clone();
        if worker.leases == 0 || force {
            self.stop_worker(now, &id, out);
        }
        if loading {
            let error = Error::new(Code::WorkerFailed, format!("worker {id} was shut down"));
            self.end_those_who_wait_for(now, &id, &error, out);
        }
        self.pump_model(now, &model, out);
        Ok(())
    }

    pub(super) fn stop_worker(&mut self, now: Now, id: &WorkerId, out: &mut Vec<Action>) {
        let Some(worker) = self.workers.get(id) else {
            return;
        };
        let Some(hive) = worker.spec.hive.clone() else {
            return self.worker_stopped(now, id, out);
        };
        let Some(notes) = self.worker_notes.get_mut(id) else {
            return;
        };
        notes.stopping = true;
        // An engine that is asked to end may be silent to those it serves, and stay for as long as they do
        // (llama-server): they go first.
        let mut leases: Vec<_> = notes.leases.iter().copied().collect();
        leases.sort_unstable();
        out.extend(leases.into_iter().map(|(job, attempt)| Action::GiveBack {
            job,
            attempt,
            why: Error::new(Code::WorkerFailed, format!("worker {id} is being stopped")),
        }));
        out.push(Action::StopWorker {
            hive,
            worker: notes.known_as.as_ref().unwrap_or(id).clone(),
        });
    }

    pub(super) fn worker_stopped(&mut self, now: Now, id: &WorkerId, out: &mut Vec<Action>) {
        let id = self.minted(id).clone();
        let Some(worker) = self.workers.get(&id) else {
            return;
        };
        let spec = worker.spec.clone();
        self.free_address_soon(now, &id);
        self.bury(now, &id, true);
        self.forget(&id);
        // What it gave back is to be placed again: do not wait for the next check.
        if let Some(hive) = spec.hive.clone() {
            self.stop_if_drained(&hive, out);
            out.push(Action::CheckHive { hive });
        }
        self.pump_model(now, &spec.model, out);
    }

    /// A worker was not stopped, and will not be: it is used again if it answers, and leaves if it does not.
    pub(super) fn not_stopped(
        &mut self,
        now: Now,
        id: &WorkerId,
        error: Error,
        out: &mut Vec<Action>,
    ) {
        let id = self.minted(id).clone();
        let Some(worker) = self.workers.get_mut(&id) else {
            return;
        };
        worker.draining = false;
        let model = worker.spec.model.clone();
        if let Some(notes) = self.worker_notes.get_mut(&id) {
            notes.not_stopped = Some(error);
            notes.stopping = false;
        }
        self.doubt(&id, out);
        self.pump_model(now, &model, out);
    }

    /// Why a worker was not stopped that was to be; `None` if it was, or is about to be.
    #[must_use]
    pub fn why_not_stopped(&self, id: &WorkerId) -> Option<&Error> {
        let notes = self.worker_notes.get(self.minted(id))?;
        notes.not_stopped.as_ref()
    }

    /// Whether a worker still stands in the registry, and is to be stopped without any work.
    #[must_use]
    pub fn is_being_stopped(&self, id: &WorkerId) -> bool {
        let worker = self.workers.get(self.minted(id));
        worker.is_some_and(|worker| worker.draining && worker.leases == 0)
    }

    /// Somebody says that a worker died who may not say so: it and its hive are to be asked.
    pub fn doubt_worker(&self, id: &WorkerId, out: &mut Vec<Action>) {
        let Some(worker) = self.workers.get(self.minted(id)) else {
            return;
        };
        let hive = worker.spec.hive.clone();
        out.extend(hive.map(|hive| Action::CheckHive { hive }));
        if worker.ready {
            let worker = worker.spec.clone();
            out.push(Action::CheckWorker { worker });
        }
    }

    /// A worker died.
    pub(super) fn worker_failed(
        &mut self,
        now: Now,
        id: &WorkerId,
        error: &Error,
        out: &mut Vec<Action>,
    ) {
        let id = self.minted(id).clone();
        let error = self.remember_failed_load(now, &id, error);
        self.bury(now, &id, false);
        self.lose_worker(now, &id, &error, out);
    }

    /// Remembers why a load failed, so that a crowd does not try the same again at once. Returns
    /// the error with when that may be.
    fn remember_failed_load(&mut self, now: Now, id: &WorkerId, error: &Error) -> Error {
        let loads = |notes: &Notes| notes.load_due.is_some();
        let worker = self.workers.get(id);
        let worker = worker.filter(|_| self.worker_notes.get(id).is_some_and(loads));
        let hive = worker.and_then(|worker| worker.spec.hive.as_ref());
        let (Some(worker), Some(hive)) = (worker, hive.and_then(|id| self.hives.get_mut(id)))
        else {
            return error.clone();
        };
        let retry_after = self.config.hives.retry_after;
        let error = error.clone().retry_after(retry_after);
        let spec = &worker.spec;
        // The file may not be where the hive once said.
        if let Some(report) = &mut hive.record.capabilities {
            let is_it = |model: &HiveModel| model.model_ref == spec.model;
            let models = &mut report.models;
            let lost = models.extract_if(.., |model| is_it(model) && model.local_path.is_some());
            let lost: Vec<HiveModel> = lost.collect();
            self.names.forget(hive.id(), &lost);
        }
        hive.failed_loads.push(FailedLoad {
            model: spec.model.clone(),
            device: spec.device,
            until: now.mono + retry_after,
            error: could_not_load(&spec.model, &error),
        });
        error
    }

    /// A worker is out of reach. If it shows itself again, it is taken in again.
    pub(super) fn lose_worker(
        &mut self,
        now: Now,
        id: &WorkerId,
        error: &Error,
        out: &mut Vec<Action>,
    ) {
        let hive = self.workers.get(id).and_then(|w| w.spec.hive.clone());
        self.note_death(id);
        let Some(model) = self.forget(id) else {
            return;
        };
        if let Some(hive) = hive {
            self.stop_if_drained(&hive, out);
        }
        self.end_those_who_wait_for(now, id, error, out);
        self.pump_model(now, &model, out);
    }

    /// Ends the jobs that waited for just this load.
    pub(super) fn end_those_who_wait_for(
        &mut self,
        now: Now,
        id: &WorkerId,
        error: &Error,
        out: &mut Vec<Action>,
    ) {
        let waits = Waits::Load(id.clone());
        for key in self.queue.keys(|group| group.waits == waits) {
            self.no_place(now, &key, &could_not_load(&key.model, error), out);
        }
    }

    /// Remembers a worker's ids, so that a report that was under way does not bring it back.
    fn bury(&mut self, now: Now, id: &WorkerId, stopped: bool) {
        let Some(worker) = self.workers.get(id) else {
            return;
        };
        self.gone.retain(|_, tombstone| tombstone.until > now.mono);
        let known_as = self.worker_notes.get(id).and_then(|n| n.known_as.clone());
        for id in [Some(id.clone()), known_as].into_iter().flatten() {
            let tombstone = Tombstone {
                until: now.mono + GONE_FOR,
                hive: worker.spec.hive.clone(),
                stopped,
            };
            self.gone.insert(id, tombstone);
        }
    }

    pub(super) fn was_stopped(&self, id: &WorkerId) -> bool {
        self.gone.get(id).is_some_and(|tombstone| tombstone.stopped)
    }

    pub(super) fn is_gone(&self, now: Now, id: &WorkerId) -> bool {
        let tombstone = self.gone.get(id);
        tombstone.is_some_and(|tombstone| tombstone.until > now.mono)
    }

    /// Takes a worker out of the registry; returns its model if it was there.
    pub(super) fn forget(&mut self, id: &WorkerId) -> Option<ModelRef> {
        let worker = self.workers.remove(id)?;
        let notes = self.worker_notes.remove(id).unwrap_or_default();
        if let Some(due) = notes.load_due {
            self.due.remove(&(due, Due::Load(id.clone())));
        }
        if let Some(due) = notes.abandoned_due {
            self.due.remove(&(due, Due::Abandoned(id.clone())));
        }
        if let Some(due) = notes.suspect_due {
            self.due.remove(&(due, Due::Suspect(id.clone())));
        }
        if let Some(due) = notes.reopens {
            self.due.remove(&(due, Due::Reopen(id.clone())));
        }
        if let Some(due) = notes.paused_until {
            self.due.remove(&(due, Due::Unpause(id.clone())));
        }
        if let Some(other) = notes.known_as {
            self.other_ids.remove(&other);
        }
        self.let_early_calls_go();
        Some(worker.spec.model.clone())
    }

    /// Gives a worker that loads until then to become ready.
    pub(super) fn expect_load(&mut self, now: Now, id: &WorkerId) {
        let Some(worker) = self.workers.get(id) else {
            return;
        };
        let due = now.mono + self.load_deadline(&worker.spec);
        if let Some(notes) = self.worker_notes.get_mut(id) {
            let old = notes.load_due.replace(due);
            old.map(|old| self.due.remove(&(old, Due::Load(id.clone()))));
            self.due.insert((due, Due::Load(id.clone())));
        }
    }

    /// How long a load may take; a model of unknown size counts as small.
    pub(super) fn load_deadline(&self, spec: &WorkerSpec) -> Duration {
        let hive = spec.hive.as_ref().and_then(|hive| self.hives.get(hive));
        let size_bytes = hive
            .and_then(|hive| hive.model(&spec.model))
            .map_or(0, |model| model.size_bytes);
        self.config.timeouts.load_deadline(size_bytes)
    }

    /// Workers that the queen checks herself: at every turn those that are in question or not ready
    /// yet without a hive to say so, in a `routine` check all that no hive vouches for.
    pub fn workers_to_check(&self, routine: bool) -> impl Iterator<Item = &Arc<WorkerSpec>> {
        let is_due = move |worker: &&Worker| {
            let in_question =
                |notes: &Notes| notes.doubted || notes.suspect || !notes.abandoned.is_empty();
            let own = worker.spec.hive.is_none();
            (own && (routine || !worker.ready))
                || (!worker.ready && worker.prospect != Prospect::Loads)
                || self
                    .worker_notes
                    .get(&worker.spec.id)
                    .is_some_and(in_question)
        };
        self.workers
            .iter()
            .filter(is_due)
            .map(|worker| &worker.spec)
    }
}

fn could_not_load(model: &ModelRef, error: &Error) -> Error {
    let told = |why: &str| format!("model {model} could not be loaded: {why}");
    error.clone().rephrased(told)
}
