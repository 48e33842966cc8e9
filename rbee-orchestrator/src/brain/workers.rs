//! Workers: spawned once, ready, lost, stopped; their slots are leases.

use std::sync::Arc;
use std::time::Duration;

use crate::domain::{
    Constraints, HiveId, ModelRef, Mono, Now, Worker, WorkerId, WorkerProtocol, WorkerSpec,
};
use crate::error::{Code, Error, Result};
use crate::scheduler::{Placement, PlacementRequest};

use super::Brain;
use super::event::{Action, Due, SeenState, SeenWorker, SpawnOrder, Spawned, WorkerCallback};
use super::jobs::{humantime, shutting_down};
use super::names::Meaning;
use super::queue::Waits;

/// How long a report may be under way in which a stopped worker still stands.
const GONE_FOR: Duration = Duration::from_secs(60);

/// A worker that is missing from this many lists in a row and does not answer is gone.
const MISSING_LISTS: u32 = 2;

/// What the brain keeps beside the registry.
#[derive(Debug, Default)]
pub(super) struct Notes {
    /// Its load's deadline, while it loads.
    load_due: Option<Mono>,
    /// Whether its hive has answered the spawn.
    answered: bool,
    /// Lists of its hive in a row that did not name it.
    missing: u32,
    /// Whether its hive does not vouch for it any more.
    doubted: bool,
}

/// Where a worker is to be spawned.
pub(super) struct Place {
    pub(super) hive: HiveId,
    pub(super) backend: String,
    pub(super) devices: Vec<u32>,
}

impl Brain {
    /// Spawns a worker unless one with the same model is on its way to the same device.
    pub(super) fn spawn(
        &mut self,
        now: Now,
        model: &ModelRef,
        place: Place,
        out: &mut Vec<Action>,
    ) -> Option<WorkerId> {
        let device = place.devices.first().copied().unwrap_or(0);
        let same = self.workers.with_model(model).find(|worker| {
            !worker.ready
                && worker.spec.hive.as_ref() == Some(&place.hive)
                && worker.spec.device == device
        });
        if let Some(worker) = same {
            return Some(worker.spec.id.clone());
        }
        let id = WorkerId::mint();
        self.spawn_as(now, id.clone(), model, place, out)
            .then_some(id)
    }

    fn spawn_as(
        &mut self,
        now: Now,
        id: WorkerId,
        model: &ModelRef,
        place: Place,
        out: &mut Vec<Action>,
    ) -> bool {
        let Some(hive) = self.hives.get(&place.hive) else {
            return false;
        };
        let on_disk = hive.model(model);
        let size_bytes = on_disk.map_or(0, |model| model.size_bytes);
        let spec = WorkerSpec {
            id: id.clone(),
            hive: Some(place.hive.clone()),
            model: model.clone(),
            served_model: None,
            backend: place.backend,
            device: place.devices.first().copied().unwrap_or(0),
            host: String::new(),
            port: 0,
            protocol: WorkerProtocol::OpenAi,
            slots_total: self.config.hives.worker_slots.unwrap_or(1).max(1),
            vram_bytes: on_disk.and_then(|model| model.vram_bytes).unwrap_or(0),
        };
        let due = now.mono + self.config.timeouts.load_deadline(size_bytes);
        self.due.insert((due, Due::Load(id.clone())));
        let worker = Worker::loading(spec);
        out.push(Action::Spawn {
            hive: place.hive,
            worker: worker.spec.clone(),
            devices: place.devices,
        });
        self.worker_notes.insert(
            id,
            Notes {
                load_due: Some(due),
                ..Notes::default()
            },
        );
        self.workers.insert(worker);
        true
    }

    /// Spawns a worker because somebody asked for it, with an id that the caller minted.
    ///
    /// # Errors
    /// `HIVE_NOT_FOUND`, `SHUTTING_DOWN`, or why there is no place for it; `CONFLICT` while the
    /// hive must be started first: that start has then begun, and the order may be repeated.
    pub fn order_worker(
        &mut self,
        now: Now,
        id: WorkerId,
        order: &SpawnOrder,
        out: &mut Vec<Action>,
    ) -> Result<OrderAnswer> {
        if self.draining {
            return Err(shutting_down());
        }
        if let Some(hive) = &order.constraints.hive
            && !self.hives.contains_key(hive)
        {
            return Err(self.hive_not_found(hive).param("node"));
        }
        let (Meaning::Certain(model) | Meaning::Fallback(model)) =
            self.names.resolve(&order.model)?;
        match self.place_another(now, &model, &order.constraints) {
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
                self.spawn_as(now, id, &model, place, out);
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

    /// A place for one more worker with the model, whether or not there are others.
    fn place_another(&self, now: Now, model: &ModelRef, constraints: &Constraints) -> Placement {
        let none = crate::scheduler::Workers::default();
        let mut view = self.view(now);
        let others = self.workers.with_model(model).next().is_some();
        let request = PlacementRequest {
            model,
            constraints,
            openai_only: false,
        };
        if others {
            // With no workers in sight the answer is never "wait for one of them".
            view.workers = &none;
        }
        crate::scheduler::place_new_worker(&request, &view)
    }

    pub(super) fn spawn_answered(
        &mut self,
        now: Now,
        id: &WorkerId,
        result: Result<Spawned>,
        out: &mut Vec<Action>,
    ) {
        let Some(worker) = self.workers.get_mut(id) else {
            return;
        };
        match result {
            Ok(spawned) => {
                if let Some(notes) = self.worker_notes.get_mut(id) {
                    notes.answered = true;
                }
                if !worker.ready {
                    let spec = Arc::make_mut(&mut worker.spec);
                    spec.host = spawned.host;
                    spec.port = spawned.port;
                }
                if spawned.id != *id {
                    self.other_ids.insert(spawned.id.clone(), id.clone());
                }
                let early = self
                    .early_ready
                    .iter()
                    .position(|call| call.id == spawned.id);
                if let Some(call) = early.map(|at| self.early_ready.swap_remove(at)) {
                    self.make_ready(now, id, &call, out);
                }
            }
            Err(error) if error.code == Code::InsufficientVram => {
                let until = now.mono + self.config.hives.retry_after;
                let spec = worker.spec.clone();
                if let Some(hive) = spec.hive.as_ref().and_then(|hive| self.hives.get_mut(hive)) {
                    hive.full_devices.push((spec.device, until));
                }
                self.forget(id);
                self.pump_model(now, &spec.model, out);
            }
            Err(error) => self.worker_failed(now, id, &error, out),
        }
        if !self
            .worker_notes
            .values()
            .any(|notes| notes.load_due.is_some() && !notes.answered)
        {
            self.early_ready.clear();
        }
    }

    /// The minted id of a worker, whichever of its ids is given.
    fn minted<'a>(&'a self, id: &'a WorkerId) -> &'a WorkerId {
        self.other_ids.get(id).unwrap_or(id)
    }

    /// A worker says that it is ready.
    ///
    /// # Errors
    /// `WORKER_NOT_FOUND` for a worker that was never spawned, unless the caller showed the
    /// callback token and the worker is on its hive's host; `HIVE_NOT_FOUND`.
    pub fn worker_ready(
        &mut self,
        now: Now,
        call: WorkerCallback,
        out: &mut Vec<Action>,
    ) -> Result<()> {
        let id = self.minted(&call.id).clone();
        if self.workers.get(&id).is_some() {
            self.make_ready(now, &id, &call, out);
            return Ok(());
        }
        let in_flight = self
            .worker_notes
            .values()
            .any(|n| n.load_due.is_some() && !n.answered);
        if in_flight {
            const HELD: usize = 1024;
            if self.early_ready.len() < HELD {
                self.early_ready.push(call);
            }
            return Ok(());
        }
        let unknown = || {
            Error::new(
                Code::WorkerNotFound,
                format!(
                    "worker {} was never spawned by this queen; a hive that adopts one must show \
                     its token and name itself in hive_id, and a server that no hive owns is \
                     registered with POST /v2/workers/register",
                    call.id
                ),
            )
        };
        let hive = call
            .hive
            .clone()
            .filter(|_| call.trusted)
            .ok_or_else(unknown)?;
        let known = self
            .hives
            .get(&hive)
            .ok_or_else(|| self.hive_not_found(&hive))?;
        if !is_loopback(&call.host) && call.host != known.record.spec.hostname {
            return Err(Error::invalid(format!(
                "worker {} is at {}, which is not its hive's host {}",
                call.id, call.host, known.record.spec.hostname
            ))
            .param("url"));
        }
        self.add(WorkerSpec {
            hive: Some(hive),
            ..spec_of(&call)
        });
        self.make_ready(now, &id, &call, out);
        Ok(())
    }

    fn make_ready(
        &mut self,
        now: Now,
        id: &WorkerId,
        call: &WorkerCallback,
        out: &mut Vec<Action>,
    ) {
        let Some(worker) = self.workers.get_mut(id) else {
            return;
        };
        let spec = Arc::make_mut(&mut worker.spec);
        spec.host.clone_from(&call.host);
        spec.port = call.port;
        spec.slots_total = call.slots_total.unwrap_or(spec.slots_total).max(1);
        spec.protocol = call.protocol.unwrap_or(spec.protocol);
        spec.vram_bytes = call.vram_bytes.unwrap_or(spec.vram_bytes);
        if call.served_model.is_some() {
            spec.served_model.clone_from(&call.served_model);
        }
        self.mark_ready(now, id, out);
    }

    fn mark_ready(&mut self, now: Now, id: &WorkerId, out: &mut Vec<Action>) {
        let Some(worker) = self.workers.get_mut(id) else {
            return;
        };
        worker.ready = true;
        let model = worker.spec.model.clone();
        if let Some(notes) = self.worker_notes.get_mut(id) {
            notes.answered = true;
            notes.doubted = false;
            notes.missing = 0;
            if let Some(due) = notes.load_due.take() {
                self.due.remove(&(due, Due::Load(id.clone())));
            }
        }
        self.pump_model(now, &model, out);
    }

    /// Takes in a server that no hive owns; it is used once it answers its health check.
    ///
    /// # Errors
    /// `CONFLICT` when another worker of that id is at work.
    pub fn register_worker(&mut self, call: &WorkerCallback, out: &mut Vec<Action>) -> Result<()> {
        let spec = WorkerSpec {
            hive: call.hive.clone(),
            ..spec_of(call)
        };
        if let Some(old) = self.workers.get(&call.id) {
            if *old.spec == spec {
                return Ok(());
            }
            if old.leases > 0 {
                return Err(Error::new(
                    Code::Conflict,
                    format!(
                        "worker {} is at work; shut it down first or take another worker_id",
                        call.id
                    ),
                ));
            }
        }
        if let Some(hive) = &call.hive
            && !self.hives.contains_key(hive)
        {
            return Err(self.hive_not_found(hive).param("node_name"));
        }
        let spec = self.add(spec);
        out.push(Action::CheckWorker { worker: spec });
        Ok(())
    }

    fn add(&mut self, spec: WorkerSpec) -> Arc<WorkerSpec> {
        self.names.learn_ref(&spec.model);
        let id = spec.id.clone();
        let worker = Worker::loading(spec);
        let spec = worker.spec.clone();
        self.gone.remove(&id);
        self.worker_notes.insert(
            id,
            Notes {
                answered: true,
                ..Notes::default()
            },
        );
        self.workers.insert(worker);
        spec
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
        self.gone.retain(|_, until| *until > now.mono);
        let mut listed = Vec::with_capacity(seen.len());
        for worker in seen {
            let id = self.minted(&worker.spec.id).clone();
            listed.push(id.clone());
            self.see(now, id, worker, out);
        }
        let missing = self.workers.iter().filter(|worker| {
            worker.spec.hive.as_ref() == Some(hive) && !listed.contains(&worker.spec.id)
        });
        for id in missing
            .map(|worker| worker.spec.id.clone())
            .collect::<Vec<_>>()
        {
            let Some(notes) = self
                .worker_notes
                .get_mut(&id)
                .filter(|notes| notes.answered)
            else {
                continue;
            };
            notes.missing += 1;
            if notes.missing >= MISSING_LISTS {
                self.doubt(&id, out);
            }
        }
    }

    fn see(&mut self, now: Now, id: WorkerId, seen: SeenWorker, out: &mut Vec<Action>) {
        if let SeenState::Failed(error) = &seen.state {
            return self.worker_failed(now, &id, error, out);
        }
        if self.workers.get(&id).is_none() {
            let stopping = matches!(seen.state, SeenState::Stopping);
            if stopping || self.gone.contains_key(&id) {
                return;
            }
            self.add(WorkerSpec {
                id: id.clone(),
                ..seen.spec.clone()
            });
        }
        let Some(worker) = self.workers.get_mut(&id) else {
            return;
        };
        let spec = WorkerSpec {
            id: id.clone(),
            model: worker.spec.model.clone(),
            ..seen.spec
        };
        if *worker.spec != spec {
            worker.spec = Arc::new(spec);
        }
        let was_ready = worker.ready;
        if let Some(notes) = self.worker_notes.get_mut(&id) {
            notes.missing = 0;
            notes.doubted = false;
        }
        match seen.state {
            SeenState::Ready if !was_ready => self.mark_ready(now, &id, out),
            SeenState::Stopping => {
                if let Some(worker) = self.workers.get_mut(&id) {
                    worker.draining = true;
                }
            }
            _ => {}
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

    pub(super) fn worker_checked(
        &mut self,
        now: Now,
        id: &WorkerId,
        answers: bool,
        out: &mut Vec<Action>,
    ) {
        let Some(worker) = self.workers.get_mut(id) else {
            return;
        };
        let doubted = self.worker_notes.get(id).is_some_and(|notes| notes.doubted);
        match answers {
            true if !worker.ready => self.mark_ready(now, id, out),
            true => {}
            // Busy, not dead: older workers answer no health check while they compute.
            false if worker.leases > 0 => {}
            false if doubted => {
                let error = Error::new(Code::WorkerFailed, format!("worker {id} does not answer"));
                self.worker_failed(now, id, &error, out);
            }
            false => worker.ready = false,
        }
    }

    /// A lease came back: the slot is free, or the worker can go.
    pub(super) fn return_lease(
        &mut self,
        now: Now,
        id: &WorkerId,
        suspect: bool,
        out: &mut Vec<Action>,
    ) {
        let Some(worker) = self.workers.get_mut(id) else {
            return;
        };
        debug_assert!(worker.leases > 0, "a lease comes back once");
        worker.leases = worker.leases.saturating_sub(1);
        if suspect {
            worker.ready = false;
            let hive = worker.spec.hive.clone();
            out.extend(hive.map(|hive| Action::CheckHive { hive }));
            out.push(Action::CheckWorker {
                worker: worker.spec.clone(),
            });
        }
        let model = worker.spec.model.clone();
        if worker.draining && worker.leases == 0 {
            self.stop_worker(now, id, out);
        }
        self.pump_model(now, &model, out);
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
        if worker.leases == 0 || force {
            self.stop_worker(now, &id, out);
        }
        if loading {
            let error = Error::new(Code::WorkerFailed, format!("worker {id} was shut down"));
            self.end_those_who_wait_for(now, &id, &error, out);
        }
        Ok(())
    }

    fn stop_worker(&mut self, now: Now, id: &WorkerId, out: &mut Vec<Action>) {
        let Some(worker) = self.workers.get(id) else {
            return;
        };
        match worker.spec.hive.clone() {
            Some(hive) => out.push(Action::StopWorker {
                hive,
                worker: id.clone(),
            }),
            None => self.worker_stopped(now, id, out),
        }
    }

    pub(super) fn worker_stopped(&mut self, now: Now, id: &WorkerId, out: &mut Vec<Action>) {
        let Some(worker) = self.workers.get(id) else {
            return;
        };
        let model = worker.spec.model.clone();
        self.gone.insert(id.clone(), now.mono + GONE_FOR);
        self.forget(id);
        self.pump_model(now, &model, out);
    }

    pub(super) fn worker_failed(
        &mut self,
        now: Now,
        id: &WorkerId,
        error: &Error,
        out: &mut Vec<Action>,
    ) {
        let id = self.minted(id).clone();
        let Some(worker) = self.workers.get(&id) else {
            return;
        };
        let model = worker.spec.model.clone();
        self.gone.insert(id.clone(), now.mono + GONE_FOR);
        self.forget(&id);
        self.end_those_who_wait_for(now, &id, error, out);
        self.pump_model(now, &model, out);
    }

    pub(super) fn load_timed_out(&mut self, now: Now, id: &WorkerId, out: &mut Vec<Action>) {
        let Some(worker) = self.workers.get(id) else {
            return;
        };
        let spec = worker.spec.clone();
        let size = spec
            .hive
            .as_ref()
            .and_then(|hive| self.hives.get(hive)?.model(&spec.model));
        let allowed = self
            .config
            .timeouts
            .load_deadline(size.map_or(0, |model| model.size_bytes));
        let error = Error::new(
            Code::WorkerFailed,
            format!(
                "worker {id} did not become ready within {}; its log tells why",
                humantime(allowed)
            ),
        );
        if let Some(hive) = spec.hive.clone() {
            out.push(Action::StopWorker {
                hive,
                worker: id.clone(),
            });
        }
        self.worker_failed(now, id, &error, out);
    }

    /// Ends the jobs that waited for just this load. A later request starts a new one.
    fn end_those_who_wait_for(
        &mut self,
        now: Now,
        id: &WorkerId,
        error: &Error,
        out: &mut Vec<Action>,
    ) {
        let waits = Waits::Load(id.clone());
        for key in self.queue.keys(|_, group| group.waits == waits) {
            let message = format!("model {} could not be loaded: {}", key.model, error.message);
            let error = Error {
                message,
                ..error.clone()
            };
            self.end_group(now, &key, &error, out);
        }
    }

    fn forget(&mut self, id: &WorkerId) {
        self.workers.remove(id);
        self.other_ids.retain(|_, minted| minted != id);
        if let Some(due) = self
            .worker_notes
            .remove(id)
            .and_then(|notes| notes.load_due)
        {
            self.due.remove(&(due, Due::Load(id.clone())));
        }
    }

    /// Workers that the queen checks herself: those that no hive vouches for.
    pub fn workers_to_check(&self) -> impl Iterator<Item = &Arc<WorkerSpec>> {
        let own = |worker: &&Worker| {
            let doubted = || {
                self.worker_notes
                    .get(&worker.spec.id)
                    .is_some_and(|n| n.doubted)
            };
            worker.spec.hive.is_none() || doubted()
        };
        self.workers.iter().filter(own).map(|worker| &worker.spec)
    }

    /// The model that a name means now.
    ///
    /// # Errors
    /// `INVALID_REQUEST` for a name that no model may have.
    pub fn resolve(&self, name: &str) -> Result<ModelRef> {
        let (Meaning::Certain(model) | Meaning::Fallback(model)) = self.names.resolve(name)?;
        Ok(model)
    }

    /// Aliases of a model, sorted.
    #[must_use]
    pub fn aliases(&self, model: &ModelRef) -> Vec<String> {
        self.names.aliases(model)
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

fn spec_of(call: &WorkerCallback) -> WorkerSpec {
    WorkerSpec {
        id: call.id.clone(),
        hive: None,
        model: call.model.clone(),
        served_model: call.served_model.clone(),
        backend: call.backend.clone(),
        device: call.device.unwrap_or(0),
        host: call.host.clone(),
        port: call.port,
        protocol: call.protocol.unwrap_or_default(),
        slots_total: call.slots_total.unwrap_or(1).max(1),
        vram_bytes: call.vram_bytes.unwrap_or(0),
    }
}

/// Host and port of a base URL, `http://host:port`; `None` if it is not one.
#[must_use]
pub fn host_and_port(url: &str) -> Option<(String, u16)> {
    let url = url::Url::parse(url)
        .ok()
        .filter(|url| url.scheme() == "http")?;
    let host = url.host_str()?.trim_matches(['[', ']']).to_owned();
    Some((host, url.port_or_known_default()?))
}

/// Whether a host means the machine that says it.
#[must_use]
pub fn is_loopback(host: &str) -> bool {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let is_address = bare
        .parse::<std::net::IpAddr>()
        .is_ok_and(|ip| ip.is_loopback());
    is_address || host.eq_ignore_ascii_case("localhost")
}
