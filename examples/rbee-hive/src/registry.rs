//! The workers of this hive, and what they take of each device.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::http::StatusCode;
use serde_json::json;

use crate::devices::Device;
use crate::error::{ApiError, Result};
use crate::worker::{State, Worker};

#[derive(Debug, Default)]
struct Inner {
    workers: BTreeMap<String, Arc<Worker>>,
    closed: bool,
}

#[derive(Debug, Default)]
pub(crate) struct Registry {
    inner: Mutex<Inner>,
    /// Engines started, since the hive started.
    pub(crate) spawns: AtomicU64,
    /// Workers that ended although nobody asked them to.
    pub(crate) failures: AtomicU64,
    /// Callbacks that the queen did not take.
    pub(crate) lost_callbacks: AtomicU64,
}

impl Registry {
    /// Takes a new worker in, if its id is free and its device has room for it.
    pub(crate) fn admit(&self, worker: &Arc<Worker>, device: &Device) -> Result<()> {
        let mut inner = self.lock();
        if inner.closed {
            return Err(ApiError::shutting_down());
        }
        let same_id = inner.workers.get(&worker.id);
        if same_id.is_some_and(|other| other.state() != State::Failed) {
            let message = format!("worker {:?} exists already", worker.id);
            return Err(ApiError::new(StatusCode::CONFLICT, "CONFLICT", message));
        }
        let needed = worker.plan.vram_bytes;
        let free = free_bytes(device, inner.workers.values());
        if needed > free {
            let message = format!(
                "{} needs {needed} bytes on device {} ({}), which has {free} to give",
                worker.plan.model_ref, device.index, device.name
            );
            return Err(ApiError::new(
                StatusCode::INSUFFICIENT_STORAGE,
                "INSUFFICIENT_VRAM",
                message,
            )
            .details(json!({"needed": needed, "free": free})));
        }
        inner.workers.insert(worker.id.clone(), worker.clone());
        self.spawns.fetch_add(1, Relaxed);
        Ok(())
    }

    /// Takes in a worker of the hive's last life.
    pub(crate) fn adopt(&self, worker: &Arc<Worker>) {
        self.lock()
            .workers
            .insert(worker.id.clone(), worker.clone());
    }

    pub(crate) fn get(&self, id: &str) -> Option<Arc<Worker>> {
        self.lock().workers.get(id).cloned()
    }

    pub(crate) fn all(&self) -> Vec<Arc<Worker>> {
        self.lock().workers.values().cloned().collect()
    }

    /// Removes this very worker; a later one with its id stays. Says whether it was there.
    pub(crate) fn remove(&self, worker: &Arc<Worker>) -> bool {
        let mut inner = self.lock();
        let is_it = inner
            .workers
            .get(&worker.id)
            .is_some_and(|known| Arc::ptr_eq(known, worker));
        if is_it {
            inner.workers.remove(&worker.id);
        }
        is_it
    }

    /// Takes no more workers in; gives those there are.
    pub(crate) fn close(&self) -> Vec<Arc<Worker>> {
        self.lock().closed = true;
        self.all()
    }

    /// What the device has to give a new worker.
    pub(crate) fn free_bytes(&self, device: &Device) -> u64 {
        free_bytes(device, self.lock().workers.values())
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is free, less what loading workers will still take. On the processor also no more than
/// what its workers leave of all the RAM: their weights are mapped files, which count as free.
fn free_bytes<'w>(device: &Device, workers: impl Iterator<Item = &'w Arc<Worker>>) -> u64 {
    let (mut loading, mut all) = (0u64, 0u64);
    for worker in workers.filter(|worker| worker.plan.device == device.index) {
        let state = worker.state();
        let need = worker.plan.vram_bytes;
        if state != State::Failed {
            all = all.saturating_add(need);
        }
        if state == State::Loading {
            loading = loading.saturating_add(need);
        }
    }
    let free = device.vram_free_bytes.saturating_sub(loading);
    match device.backend.as_str() {
        "cpu" => free.min(device.vram_total_bytes.saturating_sub(all)),
        _ => free,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device() -> Device {
        Device {
            index: 0,
            backend: "cuda".into(),
            name: "test".into(),
            vram_total_bytes: 100,
            vram_free_bytes: 100,
        }
    }

    #[test]
    fn loading_workers_have_what_they_will_take() {
        let registry = Registry::default();
        let (first, second) = (Worker::for_tests("a", 60), Worker::for_tests("b", 60));
        registry.admit(&first, &device()).unwrap();
        let error = registry.admit(&second, &device()).unwrap_err();
        assert_eq!(error.code, "INSUFFICIENT_VRAM");
        assert_eq!(error.details, Some(json!({"needed": 60, "free": 40})));
        first.set_ready(1);
        registry.admit(&second, &device()).unwrap();
    }

    #[test]
    fn an_id_is_given_once_and_a_closed_registry_takes_nobody() {
        let registry = Registry::default();
        let worker = Worker::for_tests("a", 1);
        registry.admit(&worker, &device()).unwrap();
        let twin = Worker::for_tests("a", 1);
        assert_eq!(
            registry.admit(&twin, &device()).unwrap_err().code,
            "CONFLICT"
        );
        worker.set_failed("gone".into());
        registry.admit(&twin, &device()).unwrap();
        assert!(
            !registry.remove(&worker),
            "its id belongs to another by now"
        );
        registry.close();
        let late = Worker::for_tests("b", 1);
        assert_eq!(
            registry.admit(&late, &device()).unwrap_err().code,
            "SHUTTING_DOWN"
        );
    }
}
