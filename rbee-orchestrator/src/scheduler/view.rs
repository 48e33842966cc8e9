//! What a scheduler sees: the workers and the hives as they are known now.

use std::collections::BTreeMap;

use crate::domain::{
    Capabilities, Device, HiveId, HiveModel, HiveRecord, HiveStatus, ModelRef, Mono, Prospect,
    Worker, WorkerId,
};
use crate::error::Error;
use crate::hashing::IdMap;

use super::PlacementRequest;

/// More models at once are not fetched to one hive for requests: they would share its line, and
/// whoever asks for a thousand repositories fills its disk no faster.
const FETCHES_AT_ONCE: usize = 4;

/// The workers, found by id and by model.
#[derive(Debug, Default)]
pub struct Workers {
    by_id: IdMap<WorkerId, Worker>,
    by_model: IdMap<ModelRef, Vec<WorkerId>>,
}

impl Workers {
    /// Adds a worker, in place of an older one of that id.
    pub fn insert(&mut self, worker: Worker) {
        let id = worker.spec.id.clone();
        self.remove(&id);
        let peers = self.by_model.entry(worker.spec.model.clone()).or_default();
        // Sorted, so that a policy sees workers in an order that does not depend on hashing.
        let at = peers.partition_point(|peer| *peer < id);
        peers.insert(at, id.clone());
        self.by_id.insert(id, worker);
    }

    /// Takes a worker out.
    pub fn remove(&mut self, id: &WorkerId) -> Option<Worker> {
        let worker = self.by_id.remove(id)?;
        if let Some(peers) = self.by_model.get_mut(&worker.spec.model) {
            peers.retain(|peer| peer != id);
            if peers.is_empty() {
                self.by_model.remove(&worker.spec.model);
            }
        }
        Some(worker)
    }

    /// One worker.
    #[must_use]
    pub fn get(&self, id: &WorkerId) -> Option<&Worker> {
        self.by_id.get(id)
    }

    /// Whether there is one of that id.
    #[must_use]
    pub fn contains(&self, id: &WorkerId) -> bool {
        self.by_id.contains_key(id)
    }

    /// One worker, to change anything but its id and model.
    pub fn get_mut(&mut self, id: &WorkerId) -> Option<&mut Worker> {
        self.by_id.get_mut(id)
    }

    /// All workers, in no particular order.
    pub fn iter(&self) -> impl Iterator<Item = &Worker> {
        self.by_id.values()
    }

    /// The workers with a model, by id.
    pub fn with_model(&self, model: &ModelRef) -> impl Iterator<Item = &Worker> {
        let ids = self.by_model.get(model).map_or(&[][..], Vec::as_slice);
        ids.iter().filter_map(|id| self.by_id.get(id))
    }
}

/// A hive as the brain knows it.
#[derive(Debug, Clone)]
pub struct Hive {
    /// What is stored about it.
    pub record: HiveRecord,
    /// Whether it can be asked for something.
    pub status: HiveStatus,
    /// Why it is not online.
    pub last_error: Option<Error>,
    /// Checks missed in a row.
    pub misses: u32,
    /// Until when it is not started again after a failure.
    pub retry_at: Mono,
    /// Until when another order that does not reach it counts as a failure.
    pub unreached_until: Mono,
    /// Devices left out, and until when: the hive said they have no room.
    pub full_devices: Vec<(u32, Mono)>,
    /// Loads that failed not long ago, and are not to be tried again yet.
    pub failed_loads: Vec<FailedLoad>,
    /// Whether it is to get no new work until it is resumed.
    pub draining: bool,
    /// Whether it ended so often that it is not started again until a person says so.
    pub gave_up: bool,
    /// Until when it gets no new workers, since it was lost again and again.
    pub unsteady_until: Mono,
    /// Models on their way to it.
    pub fetches: Vec<Fetch>,
    /// Fetches that failed not long ago, and are not to be tried again yet.
    pub failed_fetches: Vec<FailedFetch>,
    /// Whether its reports name its models; older hives have none.
    pub tells_models: bool,
}

/// A model on its way to a hive.
#[derive(Debug, Clone)]
pub struct Fetch {
    /// The model, as it was asked for.
    pub model: ModelRef,
    /// Bytes that are there.
    pub bytes_downloaded: u64,
    /// Bytes of the whole model; 0 when unknown.
    pub bytes_total: u64,
    /// Models that are being removed to make room for it: nothing is to use them any more.
    pub removing: Vec<ModelRef>,
    /// When those who wait were told last how far it is.
    pub told: Option<Mono>,
}

impl Fetch {
    /// One that begins.
    #[must_use]
    pub fn new(model: ModelRef) -> Self {
        Fetch {
            model,
            bytes_downloaded: 0,
            bytes_total: 0,
            removing: Vec::new(),
            told: None,
        }
    }

    /// How far it is, for people; `None` before its first byte.
    #[must_use]
    pub fn progress(&self) -> Option<String> {
        match (self.bytes_downloaded, self.bytes_total) {
            (0, 0) => None,
            (bytes, 0) => Some(format!("{} MiB", bytes >> 20)),
            (bytes, total) => {
                let percent = u128::from(bytes) * 100 / u128::from(total);
                Some(format!("{} %", percent.min(100)))
            }
        }
    }
}

/// A fetch that failed.
#[derive(Debug, Clone)]
pub struct FailedFetch {
    /// Of this model, as it was asked for.
    pub model: ModelRef,
    /// Until when it is not tried again, unless an administrator orders it.
    pub until: Mono,
    /// Why it failed.
    pub error: Error,
}

/// A load that failed.
#[derive(Debug, Clone)]
pub struct FailedLoad {
    /// Of this model.
    pub model: ModelRef,
    /// On this device.
    pub device: u32,
    /// Until when it is not tried again, unless an administrator orders it.
    pub until: Mono,
    /// Why it failed.
    pub error: Error,
}

impl Hive {
    /// A hive that was just registered or read from the store.
    #[must_use]
    pub fn new(record: HiveRecord) -> Self {
        Hive {
            record,
            status: HiveStatus::Offline,
            last_error: None,
            misses: 0,
            retry_at: Mono::default(),
            unreached_until: Mono::default(),
            full_devices: Vec::new(),
            failed_loads: Vec::new(),
            draining: false,
            gave_up: false,
            unsteady_until: Mono::default(),
            fetches: Vec::new(),
            failed_fetches: Vec::new(),
            tells_models: true,
        }
    }

    /// Whether the hive said that a device has no room, not long ago.
    #[must_use]
    pub fn is_full(&self, device: u32, now: Mono) -> bool {
        let full = |(index, until): &(u32, Mono)| *index == device && *until > now;
        self.full_devices.iter().any(full)
    }

    /// The load of a model on a device that failed, not long ago.
    #[must_use]
    pub fn failed_load(&self, model: &ModelRef, device: u32, now: Mono) -> Option<&FailedLoad> {
        let mut loads = self.failed_loads.iter();
        loads.find(|load| load.model == *model && load.device == device && load.until > now)
    }

    /// Lets a load that failed be tried again.
    pub fn forget_failed_load(&mut self, model: &ModelRef, device: u32) {
        let other = |load: &FailedLoad| load.model != *model || load.device != device;
        self.failed_loads.retain(other);
    }

    /// A model on its way.
    #[must_use]
    pub fn fetch(&self, model: &ModelRef) -> Option<&Fetch> {
        self.fetches.iter().find(|fetch| fetch.model == *model)
    }

    /// Whether a model is being removed to make room for another.
    #[must_use]
    pub fn is_removing(&self, model: &ModelRef) -> bool {
        let mut fetches = self.fetches.iter();
        fetches.any(|fetch| fetch.removing.contains(model))
    }

    /// The fetch of a model that failed, not long ago.
    #[must_use]
    pub fn failed_fetch(&self, model: &ModelRef, now: Mono) -> Option<&FailedFetch> {
        let mut fetches = self.failed_fetches.iter();
        fetches.find(|fetch| fetch.model == *model && fetch.until > now)
    }

    /// Leaves a device out until then.
    pub fn leave_out(&mut self, device: u32, until: Mono) {
        self.full_devices.retain(|(index, _)| *index != device);
        self.full_devices.push((device, until));
    }

    /// Its name.
    #[must_use]
    pub fn id(&self) -> &HiveId {
        &self.record.spec.id
    }

    /// Its last report.
    #[must_use]
    pub fn capabilities(&self) -> Option<&Capabilities> {
        self.record.capabilities.as_ref()
    }

    /// The models on its disk, by its last report.
    #[must_use]
    pub fn models(&self) -> &[HiveModel] {
        self.capabilities().map_or(&[], |report| &report.models)
    }

    /// A model on its disk that goes by this name.
    #[must_use]
    pub fn model_named(&self, name: &ModelRef) -> Option<&HiveModel> {
        let mut models = self.models().iter();
        models.find(|model| {
            model.model_ref == *name || model.aliases.iter().any(|alias| alias == name.as_str())
        })
    }

    /// A model on its disk.
    #[must_use]
    pub fn model(&self, model: &ModelRef) -> Option<&HiveModel> {
        self.models().iter().find(|m| m.model_ref == *model)
    }
}

/// Everything that a placement may depend on.
#[derive(Debug, Clone, Copy)]
pub struct ClusterView<'a> {
    /// The workers.
    pub workers: &'a Workers,
    /// The hives, by name.
    pub hives: &'a BTreeMap<HiveId, Hive>,
    /// Whether a request may have a hive fetch a model.
    pub auto_download: bool,
    /// The time that hives' exclusions are held against.
    pub now: Mono,
}

impl<'a> ClusterView<'a> {
    /// Workers that could serve the request, whether or not they have a free slot now. One that
    /// does not answer its check is none, nor is one that the request avoids while another can
    /// serve it.
    pub fn candidates(&self, request: &PlacementRequest<'a>) -> impl Iterator<Item = &'a Worker> {
        let request = *request;
        let avoided = request.avoid.filter(|avoid| {
            let mut others = self.workers.with_model(request.model);
            others.any(|worker| {
                worker.spec.id != **avoid && worker.is_in_service() && request.is_served_by(worker)
            })
        });
        self.workers
            .with_model(request.model)
            .filter(move |worker| {
                avoided.is_none_or(|avoid| worker.spec.id != *avoid)
                    && worker.is_worth_waiting_for()
                    && request.is_served_by(worker)
            })
    }

    /// Free memory of a device in bytes, less what its loading workers will still take.
    #[must_use]
    pub fn free_bytes(&self, hive: &HiveId, device: &Device) -> u64 {
        let loading = self.workers.iter().filter(|worker| {
            !worker.ready
                && worker.prospect != Prospect::Silent
                && worker.spec.hive.as_ref() == Some(hive)
                && worker.spec.device == device.index
        });
        let reserved: u64 = loading.map(|worker| worker.spec.vram_bytes).sum();
        device.vram_free_bytes.saturating_sub(reserved)
    }

    /// Whether a new worker that needs `bytes` may go to a device: so much is free, and the hive has
    /// not just refused one there for want of room. A policy that spawns elsewhere is refused at
    /// once, and asked again at once.
    #[must_use]
    pub fn has_room(&self, hive: &Hive, device: &Device, bytes: u64) -> bool {
        !hive.is_full(device.index, self.now) && self.free_bytes(hive.id(), device) >= bytes
    }

    /// Whether the hive may be started: ours to start, not online, not just failed, not given up.
    #[must_use]
    pub fn can_start(&self, hive: &Hive) -> bool {
        let stopped = matches!(hive.status, HiveStatus::Offline | HiveStatus::Error);
        stopped && hive.retry_at <= self.now && !hive.draining && !hive.gave_up
    }

    /// Whether the hive may be asked for a new worker: it answers, is not drained, and was not lost
    /// again and again just now.
    #[must_use]
    pub fn can_spawn(&self, hive: &Hive) -> bool {
        hive.status == HiveStatus::Online && !hive.draining && !self.is_unsteady(hive)
    }

    /// Whether the hive may be asked to fetch a model for a request: as for a new worker, and it has
    /// not too many to fetch already.
    #[must_use]
    pub fn can_fetch(&self, hive: &Hive) -> bool {
        self.can_spawn(hive) && hive.fetches.len() < FETCHES_AT_ONCE
    }

    /// Whether the hive answers, but must do so for some time before it gets new workers.
    #[must_use]
    pub fn is_unsteady(&self, hive: &Hive) -> bool {
        hive.status == HiveStatus::Online && hive.unsteady_until > self.now
    }
}
