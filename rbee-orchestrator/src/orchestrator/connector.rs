//! Which hive is reached how.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

use async_trait::async_trait;
use tokio::sync::mpsc::UnboundedSender;

use super::hive_actor::Order;
use crate::domain::{HiveId, Reach, WorkerSpec, is_loopback};
use crate::hives::HiveHandle;
use crate::relay::pool::Connector;
use crate::transport::{HiveStream, connect_tcp};

/// A registered hive with the inbox of the task that serves it.
#[derive(Clone)]
pub(super) struct Entry {
    pub(super) handle: Arc<HiveHandle>,
    /// Unbounded, but the brain has at most a few orders under way for each worker there is.
    pub(super) orders: UnboundedSender<Order>,
}

/// All registered hives.
#[derive(Default)]
pub(super) struct HiveMap {
    entries: RwLock<HashMap<HiveId, Entry>>,
    /// Hives that were removed and are being stopped: one of the same name must wait for that.
    leaving: RwLock<HashMap<HiveId, Entry>>,
    /// Held while a hive is registered or forgotten, so that brain, map and store agree.
    pub(super) registration: tokio::sync::Mutex<()>,
}

impl HiveMap {
    pub(super) fn get(&self, id: &HiveId) -> Option<Entry> {
        self.entries
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(id)
            .cloned()
    }

    /// Gives the hive that had its name, if it has not ended yet.
    pub(super) fn insert(&self, entry: Entry) -> Option<Entry> {
        let id = entry.handle.id().clone();
        let leaving = self.leaving.read().unwrap_or_else(PoisonError::into_inner);
        let leaving = leaving.get(&id).cloned();
        self.entries
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(id, entry)
            .or(leaving)
    }

    /// Takes a hive out; one that is to be stopped is remembered until [`HiveMap::has_left`].
    pub(super) fn remove(&self, id: &HiveId, stop: bool) -> Option<Entry> {
        let mut entries = self.entries.write().unwrap_or_else(PoisonError::into_inner);
        let entry = entries.remove(id)?;
        if stop {
            let mut leaving = self.leaving.write().unwrap_or_else(PoisonError::into_inner);
            leaving.insert(id.clone(), entry.clone());
        }
        Some(entry)
    }

    pub(super) fn has_left(&self, entry: &Entry) {
        let mut leaving = self.leaving.write().unwrap_or_else(PoisonError::into_inner);
        let id = entry.handle.id();
        let is_it = |other: &Entry| Arc::ptr_eq(&other.handle, &entry.handle);
        if leaving.get(id).is_some_and(is_it) {
            leaving.remove(id);
        }
    }

    pub(super) fn all(&self) -> Vec<Entry> {
        self.entries
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .values()
            .cloned()
            .collect()
    }

    /// Hands an order to a hive's task; says whether there is one.
    pub(super) fn order(&self, id: &HiveId, order: Order) -> bool {
        self.get(id)
            .is_some_and(|entry| entry.orders.send(order).is_ok())
    }
}

/// Reaches workers through their hive's transport, and servers that no hive owns by TCP.
pub(super) struct WorkerConnector {
    pub(super) hives: Arc<HiveMap>,
    pub(super) reach: Reach,
}

#[async_trait]
impl Connector for WorkerConnector {
    async fn connect(&self, worker: &WorkerSpec) -> std::io::Result<Box<dyn HiveStream>> {
        let hive = worker.hive.as_ref().and_then(|id| self.hives.get(id));
        if let Some(hive) = hive {
            let transport = hive.handle.transport();
            // A loopback host in a worker's URL means the hive's own machine, and through a tunnel
            // nothing else is reached.
            let is_there = is_loopback(&worker.host) || worker.host == transport.host();
            if is_there || hive.handle.is_tunnelled() {
                return transport.connect(worker.port).await;
            }
        }
        connect_tcp(&worker.host, worker.port, &self.reach).await
    }
}
