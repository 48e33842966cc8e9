//! How workers come into service: by a callback, or because an administrator registers them.

use std::sync::Arc;

use crate::domain::{Now, Prospect, Worker, WorkerId, WorkerSpec, is_loopback};
use crate::error::{Code, Error, Result};

use super::Brain;
use super::action::Action;
use super::calls::WorkerCallback;
use super::job::Due;
use super::workers::Notes;

/// Ready calls for unknown ids that are held at once, at most.
const EARLY_CALLS_HELD: usize = 1024;

impl Brain {
    /// A worker says that it is ready.
    ///
    /// # Errors
    /// `WORKER_NOT_FOUND` for a worker that was stopped, or was never spawned, unless the caller
    /// showed the callback token and the worker is on its hive's host; `HIVE_NOT_FOUND`;
    /// `INVALID_REQUEST` for an address that the worker may not have.
    pub fn worker_ready(
        &mut self,
        now: Now,
        call: WorkerCallback,
        out: &mut Vec<Action>,
    ) -> Result<()> {
        let id = self.minted(&call.id).clone();
        if self.workers.contains(&id) {
            return self.called_ready(now, &id, &call, out);
        }
        if self.is_gone(now, &id) {
            return Err(Error::new(
                Code::WorkerNotFound,
                format!("worker {id} was stopped or has failed"),
            ));
        }
        if self.is_spawn_in_flight() {
            if self.early_ready.len() < EARLY_CALLS_HELD {
                self.early_ready.push(call);
            }
            return Ok(());
        }
        let spec = self.vouched_for(&call)?;
        self.add(spec);
        self.make_ready(now, &id, &call, out);
        Ok(())
    }

    /// Takes the word of a hive for a worker that the queen did not ask for.
    fn vouched_for(&self, call: &WorkerCallback) -> Result<WorkerSpec> {
        let Some(hive) = call.hive.as_ref().filter(|_| call.is_vouched_for()) else {
            return Err(Error::new(
                Code::WorkerNotFound,
                format!(
                    "worker {} was never spawned by this queen; a hive that adopts one must show \
                     its token and name itself in hive_id, and a server that no hive owns is \
                     registered with POST /v2/workers/register",
                    call.id
                ),
            ));
        };
        let known = self.hives.get(hive);
        let known = known.ok_or_else(|| self.hive_not_found(hive))?;
        let hostname = &known.record.spec.hostname;
        if !is_loopback(&call.host) && call.host != *hostname {
            return Err(not_its_address(
                call,
                &format!("its hive's host is {hostname}"),
            ));
        }
        Ok(call.spec())
    }

    /// A worker that is known says that it is ready. Without its hive's token that is only a hint:
    /// who knows better is asked, and nothing of what was said is taken.
    ///
    /// # Errors
    /// `INVALID_REQUEST` for an address that it may not have.
    pub(super) fn called_ready(
        &mut self,
        now: Now,
        id: &WorkerId,
        call: &WorkerCallback,
        out: &mut Vec<Action>,
    ) -> Result<()> {
        let Some(worker) = self.workers.get(id) else {
            return Ok(());
        };
        let hive = worker.spec.hive.clone();
        if call.speaks_for(hive.as_ref()) {
            self.check_address(worker, call)?;
            self.make_ready(now, id, call, out);
            return Ok(());
        }
        let spec = &worker.spec;
        let is_fixed = worker.ready || hive.is_none();
        if is_fixed && (&call.host, call.port) != (&spec.host, spec.port) {
            let at = format!("it is at {}:{}", spec.host, spec.port);
            return Err(not_its_address(call, &at));
        }
        match hive {
            Some(hive) => out.push(Action::CheckHive { hive }),
            None => self.check_again(id, out),
        }
        Ok(())
    }

    /// The word of a hive may not lead requests to another machine.
    fn check_address(&self, worker: &Worker, call: &WorkerCallback) -> Result<()> {
        let spec = &worker.spec;
        if call.host == spec.host && (call.port == spec.port || !worker.ready) {
            return Ok(());
        }
        let hive = spec.hive.as_ref().and_then(|hive| self.hives.get(hive));
        let Some(hive) = hive else {
            let why = "a server that no hive owns is registered again to move it";
            return Err(not_its_address(call, why));
        };
        let hostname = &hive.record.spec.hostname;
        if is_loopback(&call.host) || call.host == *hostname {
            return Ok(());
        }
        Err(not_its_address(
            call,
            &format!("its hive's host is {hostname}"),
        ))
    }

    /// Takes in the workers whose calls were held for spawns that turned out to be of others.
    pub(super) fn adopt_early_callers(&mut self, now: Now, out: &mut Vec<Action>) {
        for call in std::mem::take(&mut self.early_adoptable) {
            let id = self.minted(&call.id).clone();
            if self.workers.contains(&id) {
                // It has come into service another way; it was told that its call was taken.
                let _ = self.called_ready(now, &id, &call, out);
            } else if !self.is_gone(now, &id)
                && let Ok(spec) = self.vouched_for(&call)
            {
                self.add(spec);
                self.make_ready(now, &id, &call, out);
            }
        }
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
        if call.authorization.is_some() {
            spec.authorization.clone_from(&call.authorization);
        }
        if call.served_model.is_some() {
            spec.served_model.clone_from(&call.served_model);
        }
        if !worker.ready {
            // Its memory is no longer reserved; the hive's next report must show it as taken.
            let hive = worker.spec.hive.clone();
            out.extend(hive.map(|hive| Action::CheckHive { hive }));
        }
        self.mark_ready(now, id, out);
    }

    pub(super) fn mark_ready(&mut self, now: Now, id: &WorkerId, out: &mut Vec<Action>) {
        if !self.has_its_address(now, id, out) {
            return;
        }
        let Some(worker) = self.workers.get_mut(id) else {
            return;
        };
        worker.ready = true;
        let model = worker.spec.model.clone();
        if let Some(notes) = self.worker_notes.get_mut(id) {
            notes.answered = true;
            notes.doubted = false;
            notes.suspect = false;
            notes.broke_off.clear();
            notes.missing = 0;
            if let Some(due) = notes.suspect_due.take() {
                self.due.remove(&(due, Due::Suspect(id.clone())));
            }
            if let Some(due) = notes.load_due.take() {
                self.due.remove(&(due, Due::Load(id.clone())));
                let hive = worker.spec.hive.as_ref();
                if let Some(hive) = hive.and_then(|hive| self.hives.get_mut(hive)) {
                    hive.forget_failed_load(&worker.spec.model, worker.spec.device);
                }
            }
        }
        self.pump_model(now, &model, out);
    }

    /// Takes in a server that no hive owns; it is used once it answers its health check.
    ///
    /// # Errors
    /// `CONFLICT` when another worker of that id is at work, or a hive runs one.
    pub fn register_worker(
        &mut self,
        now: Now,
        call: &WorkerCallback,
        out: &mut Vec<Action>,
    ) -> Result<()> {
        if let Some(hive) = &call.hive
            && !self.hives.contains_key(hive)
        {
            return Err(self.hive_not_found(hive).param("node_name"));
        }
        let spec = call.spec();
        let old = self.workers.get(&call.id);
        if old.is_some_and(|old| *old.spec == spec && !old.draining) {
            return Ok(());
        }
        let is_loading = |notes: &Notes| notes.load_due.is_some();
        let loads = self.worker_notes.get(&call.id).is_some_and(is_loading);
        if loads || old.is_some_and(|old| old.leases > 0) {
            return Err(Error::new(
                Code::Conflict,
                format!(
                    "worker {} is at work; shut it down first or take another worker_id",
                    call.id
                ),
            ));
        }
        let replaced = self.forget(&call.id);
        let worker = self.add(spec);
        if let Some(added) = self.workers.get_mut(&call.id) {
            // Until its first check is answered it counts as on its way.
            added.prospect = Prospect::Checked;
        }
        out.push(Action::CheckWorker { worker });
        if let Some(model) = replaced {
            self.pump_model(now, &model, out);
        }
        Ok(())
    }

    /// Puts a worker into the registry that runs already.
    pub(super) fn add(&mut self, spec: WorkerSpec) -> Arc<WorkerSpec> {
        self.names.learn_ref(&spec.model);
        let id = spec.id.clone();
        let mut worker = Worker::loading(spec);
        let spec = worker.spec.clone();
        let hive = spec.hive.as_ref().and_then(|hive| self.hives.get(hive));
        worker.withheld = hive.is_some_and(|hive| hive.draining);
        self.gone.remove(&id);
        let notes = Notes {
            answered: true,
            ..Notes::default()
        };
        self.worker_notes.insert(id, notes);
        self.workers.insert(worker);
        spec
    }
}

fn not_its_address(call: &WorkerCallback, why: &str) -> Error {
    let WorkerCallback { id, host, port, .. } = call;
    Error::invalid(format!("worker {id} can't be at {host}:{port}: {why}")).param("url")
}

impl WorkerCallback {
    /// The worker that it tells of.
    pub(crate) fn spec(&self) -> WorkerSpec {
        WorkerSpec {
            id: self.id.clone(),
            hive: self.hive.clone(),
            model: self.model.clone(),
            served_model: self.served_model.clone(),
            backend: self.backend.clone(),
            device: self.device.unwrap_or(0),
            host: self.host.clone(),
            port: self.port,
            protocol: self.protocol.unwrap_or_default(),
            slots_total: self.slots_total.unwrap_or(1).max(1),
            vram_bytes: self.vram_bytes.unwrap_or(0),
            authorization: self.authorization.clone(),
        }
    }
}
