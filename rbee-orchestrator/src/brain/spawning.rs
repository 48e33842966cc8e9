//! Spawns: one for however many wait, with a deadline that grows with the model.

use std::sync::Arc;

use crate::domain::{
    Constraints, HiveId, JobId, ModelRef, Now, Worker, WorkerId, WorkerProtocol, WorkerSpec,
};
use crate::error::{Code, Error, Result};
use crate::scheduler::{Placement, PlacementRequest, place_another_worker};

use super::Brain;
use super::action::Action;
use super::calls::{SpawnOrder, WorkerCallback};
use super::event::Spawned;
use super::jobs::humantime;
use super::workers::Notes;

/// Where a worker is to be spawned.
pub(super) struct Place {
    pub(super) hive: HiveId,
    pub(super) backend: String,
    pub(super) devices: Vec<u32>,
}

impl Place {
    fn device(&self) -> u32 {
        self.devices.first().copied().unwrap_or(0)
    }

    /// Whether a worker there could serve a request with these constraints. One that could not
    /// would be spawned for it again and again.
    pub(super) fn suits(&self, wanted: &Constraints) -> bool {
        wanted.hive.as_ref().is_none_or(|hive| *hive == self.hive)
            && wanted.backend.as_ref().is_none_or(|b| *b == self.backend)
            && wanted.device.is_none_or(|device| device == self.device())
    }
}

/// What an order for a worker came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OrderAnswer {
    /// It is being spawned on this hive.
    Spawning(HiveId),
    /// A hive has to start first; ask again when it has.
    Starting,
}

impl Brain {
    /// Spawns a worker unless one with the same model is on its way to the same device. `None`
    /// for a place where none can be spawned now.
    pub(super) fn spawn(
        &mut self,
        now: Now,
        model: &ModelRef,
        place: Place,
        for_job: Option<JobId>,
        out: &mut Vec<Action>,
    ) -> Option<WorkerId> {
        let hive = self.hives.get(&place.hive)?;
        let device = place.device();
        if !self.view(now).can_spawn(hive)
            || hive.is_full(device, now.mono)
            || hive.failed_load(model, device, now.mono).is_some()
            || hive.is_removing(model)
        {
            return None;
        }
        let same = self.workers.with_model(model).find(|worker| {
            !worker.ready
                && worker.is_worth_waiting_for()
                && worker.spec.hive.as_ref() == Some(&place.hive)
                && worker.spec.device == device
        });
        if let Some(worker) = same {
            return Some(worker.spec.id.clone());
        }
        let id = (self.mint)();
        self.spawn_as(now, id.clone(), model, place, for_job, out);
        Some(id)
    }

    fn spawn_as(
        &mut self,
        now: Now,
        id: WorkerId,
        model: &ModelRef,
        place: Place,
        for_job: Option<JobId>,
        out: &mut Vec<Action>,
    ) {
        let hive = self.hives.get(&place.hive);
        let on_disk = hive.and_then(|hive| hive.model(model));
        let worker = Worker::loading(WorkerSpec {
            id,
            hive: Some(place.hive.clone()),
            model: model.clone(),
            served_model: None,
            device: place.device(),
            backend: place.backend,
            host: String::new(),
            port: 0,
            protocol: WorkerProtocol::OpenAi,
            slots_total: self.config.hives.worker_slots.unwrap_or(1).max(1),
            vram_bytes: on_disk.and_then(|model| model.vram_bytes).unwrap_or(0),
            authorization: None,
        });
        out.push(Action::Spawn {
            model_path: on_disk.and_then(|model| model.local_path.clone()),
            hive: place.hive,
            worker: worker.spec.clone(),
            devices: place.devices,
            for_job,
        });
        let id = worker.spec.id.clone();
        self.workers.insert(worker);
        self.worker_notes.insert(id.clone(), Notes::default());
        self.expect_load(now, &id);
    }

    /// Spawns a worker because somebody asked for it, with an id that the caller minted.
    ///
    /// # Errors
    /// `HIVE_NOT_FOUND`, `SHUTTING_DOWN`, or why there is no place for it.
    pub fn order_worker(
        &mut self,
        now: Now,
        id: WorkerId,
        order: &SpawnOrder,
        out: &mut Vec<Action>,
    ) -> Result<OrderAnswer> {
        if self.draining {
            return Err(Error::shutting_down());
        }
        if let Some(hive) = &order.constraints.hive
            && !self.hives.contains_key(hive)
        {
            return Err(self.hive_not_found(hive).param("node"));
        }
        let model = self.resolve(&order.model)?;
        let request = PlacementRequest {
            model: &model,
            constraints: &order.constraints,
            openai_only: false,
            avoid: None,
        };
        match place_another_worker(&request, &self.view(now)) {
            Placement::Spawn {
                hive,
                backend,
                devices,
                evict: _,
            } => {
                let place = Place {
                    hive: hive.clone(),
                    backend,
                    devices,
                };
                self.spawn_as(now, id, &model, place, None, out);
                Ok(OrderAnswer::Spawning(hive))
            }
            Placement::StartHive(hive) => {
                self.request_hive_start(now, &hive, out);
                Ok(OrderAnswer::Starting)
            }
            Placement::Reject(error) => Err(error),
            _ => Ok(OrderAnswer::Starting),
        }
    }

    pub(super) fn spawn_answered(
        &mut self,
        now: Now,
        id: &WorkerId,
        result: Result<Spawned>,
        out: &mut Vec<Action>,
    ) {
        let Some(worker) = self.workers.get(id) else {
            return self.spawned_in_vain(id, result, out);
        };
        match result {
            Ok(spawned) => self.spawned(now, id, spawned, out),
            // It called back while the answer was lost.
            Err(_) if worker.ready => {}
            Err(error) if error.code == Code::InsufficientVram => {
                let until = now.mono + self.config.hives.retry_after;
                let spec = worker.spec.clone();
                if let Some(hive) = spec.hive.as_ref().and_then(|hive| self.hives.get_mut(hive)) {
                    hive.leave_out(spec.device, until);
                }
                self.forget(id);
                self.pump_model(now, &spec.model, out);
            }
            Err(error) if error.code == Code::HiveUnreachable => {
                let hive = worker.spec.hive.clone();
                self.forget(id);
                if let Some(hive) = hive {
                    self.hive_refused_connection(now, &hive, error, out);
                }
            }
            Err(error) => self.worker_failed(now, id, &error, out),
        }
        self.let_early_calls_go();
    }

    fn spawned(&mut self, now: Now, id: &WorkerId, spawned: Spawned, out: &mut Vec<Action>) {
        let (Some(worker), Some(notes)) = (self.workers.get_mut(id), self.worker_notes.get_mut(id))
        else {
            return;
        };
        notes.answered = true;
        if !worker.ready {
            let spec = Arc::make_mut(&mut worker.spec);
            spec.host = spawned.host;
            spec.port = spawned.port;
            spec.authorization = spawned.authorization;
        }
        let draining = worker.draining;
        if spawned.id != *id && !self.workers.contains(&spawned.id) {
            notes.known_as = Some(spawned.id.clone());
            self.other_ids.insert(spawned.id.clone(), id.clone());
            if draining {
                // The stop that was asked for went to an id that the hive does not know.
                self.stop_worker(now, id, out);
            }
        }
        let mut early = self.early_ready.iter();
        if let Some(at) = early.position(|call| call.id == spawned.id) {
            let call = self.early_ready.swap_remove(at);
            // With a wrong address it only waits for its hive's word.
            let _ = self.called_ready(now, id, &call, out);
        }
    }

    /// The worker was given up while its hive spawned it: nobody wants it.
    fn spawned_in_vain(&mut self, id: &WorkerId, result: Result<Spawned>, out: &mut Vec<Action>) {
        let hive = self.gone.get(id).and_then(|grave| grave.hive.clone());
        if let (Ok(spawned), Some(hive)) = (result, hive) {
            out.push(Action::StopWorker {
                hive,
                worker: spawned.id,
            });
        }
    }

    /// Whether a hive has not answered to a spawn.
    pub(super) fn is_spawn_in_flight(&self) -> bool {
        self.worker_notes.values().any(Notes::is_in_flight)
    }

    /// Ready calls are held only while an answer may name their worker. The callers that a hive
    /// vouches for are taken in once what happens now is settled.
    pub(super) fn let_early_calls_go(&mut self) {
        if !self.early_ready.is_empty() && !self.is_spawn_in_flight() {
            let calls = std::mem::take(&mut self.early_ready);
            let vouched = |call: &WorkerCallback| call.is_vouched_for();
            self.early_adoptable
                .extend(calls.into_iter().filter(vouched));
        }
    }

    pub(super) fn load_timed_out(&mut self, now: Now, id: &WorkerId, out: &mut Vec<Action>) {
        let Some(worker) = self.workers.get(id) else {
            return;
        };
        let allowed = humantime(self.load_deadline(&worker.spec));
        let error = Error::new(
            Code::WorkerFailed,
            format!("worker {id} did not become ready within {allowed}; its log tells why"),
        );
        self.stop_worker(now, id, out);
        self.worker_failed(now, id, &error, out);
    }
}
