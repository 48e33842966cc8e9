//! Workers and models, as administrators and clients see them.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;
use url::Url;

use super::Orchestrator;
use crate::brain::{Event, OrderAnswer, SpawnOrder, WorkerCallback};
use crate::config::StaticWorker;
use crate::domain::{HiveId, HiveStatus, ModelRef, Worker, WorkerId};
use crate::error::{Code, Error, Result};
use crate::hives::bearer;
use crate::scheduler::Hive;

/// How long a hive's answer to a shutdown is waited for, and how often it is looked for.
const HIVES_ANSWER: Duration = Duration::from_secs(3);
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// How long a new worker may take to show that it is this orchestrator.
const LOOK_FOR_ONESELF: Duration = Duration::from_secs(1);

/// A model on a hive, or served by a worker that no hive owns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelInfo {
    /// Its identity.
    pub model_ref: ModelRef,
    /// Other names it goes by.
    pub aliases: Vec<String>,
    /// Where it is.
    pub node: Option<HiveId>,
    /// Size on disk in bytes; 0 when unknown.
    pub size_bytes: u64,
    /// Whether its removal gives its room on the disk back.
    pub removable: bool,
    /// Whether a worker serves it now.
    pub loaded: bool,
}

impl Orchestrator {
    /// All workers, by id.
    #[must_use]
    pub fn workers(&self) -> Vec<Worker> {
        let mut workers: Vec<Worker> = self
            .driver
            .look(|brain, now| brain.view(now).workers.iter().cloned().collect());
        workers.sort_unstable_by(|a, b| a.spec.id.cmp(&b.spec.id));
        workers
    }

    /// Spawns one more worker with a model; returns its id and its hive while it loads. A hive
    /// that has to start first is waited for.
    ///
    /// # Errors
    /// Why there is no place for it.
    pub async fn spawn_worker(&self, order: &SpawnOrder) -> Result<(WorkerId, HiveId)> {
        self.driver.reach.check_model(&order.model)?;
        let id = WorkerId::mint();
        let mut changes = self.driver.fleet_changes.subscribe();
        let attempt = async {
            loop {
                let answer = self
                    .driver
                    .decide(|brain, now, out| brain.order_worker(now, id.clone(), order, out))?;
                match answer {
                    OrderAnswer::Spawning(hive) => return Ok((id.clone(), hive)),
                    OrderAnswer::Starting => self.fleet_change(&mut changes).await?,
                }
            }
        };
        self.while_hives_start(attempt).await
    }

    /// Takes a worker out of service: its work ends first, unless forced. Waits for its hive's answer,
    /// but not for the work, nor for long. Dropped, the order stands.
    ///
    /// # Errors
    /// `WORKER_NOT_FOUND`; the hive's, when it refuses: the worker is used again then, if it answers.
    pub async fn shutdown_worker(&self, id: &WorkerId, force: bool) -> Result<()> {
        self.driver
            .decide(|brain, now, out| brain.shutdown_worker(now, id, force, out))?;
        let deadline = Instant::now() + HIVES_ANSWER;
        while Instant::now() < deadline {
            let refusal = self.driver.look(|brain, _| {
                let refusal = brain.why_not_stopped(id).cloned();
                match refusal {
                    None if brain.is_being_stopped(id) => None,
                    other => Some(other),
                }
            });
            match refusal {
                Some(None) => return Ok(()),
                Some(Some(error)) => return Err(error),
                None => tokio::time::sleep(LOOK_EVERY).await,
            }
        }
        Ok(())
    }

    /// A worker's call that it is ready, with the key that its engine asks for. Only the word of
    /// the hives that `call.speaks_for` is taken; of others it is a hint upon which the hive is asked.
    ///
    /// # Errors
    /// `WORKER_NOT_FOUND` for a stranger, `INVALID_REQUEST` for an URL that is not on its hive.
    pub fn worker_ready(&self, mut call: WorkerCallback, api_key: Option<&str>) -> Result<()> {
        if let Some(hive) = call
            .speaks_for
            .first()
            .and_then(|id| self.driver.hives.get(id))
        {
            let key = api_key.filter(|key| !key.is_empty());
            let key = key.unwrap_or_else(|| hive.handle.token().expose());
            call.authorization = bearer(key);
        }
        self.driver
            .decide(|brain, now, out| brain.worker_ready(now, call, out))
    }

    /// Whether a caller who showed the token of these hives may speak for a worker.
    #[must_use]
    pub fn may_speak_for(&self, hives: &[HiveId], worker: &WorkerId) -> bool {
        let hive = self.driver.look(|brain, _| brain.hive_of(worker));
        hive.is_some_and(|hive| hives.contains(&hive))
    }

    /// A call that a worker died, by a caller who may not say so: the worker and its hive are asked.
    pub fn doubt_worker(&self, worker: &WorkerId) {
        self.driver
            .decide(|brain, _, out| brain.doubt_worker(worker, out));
    }

    /// A hive's call that a worker died.
    pub fn worker_failed(&self, worker: WorkerId, error: Error) {
        self.driver.feed(Event::WorkerFailed { worker, error });
    }

    /// What tells this orchestrator from others.
    #[cfg(feature = "http")]
    pub(crate) fn instance(&self) -> &str {
        self.driver.pool.instance()
    }

    /// Takes in a server that no hive owns, unless it is this orchestrator itself.
    ///
    /// # Errors
    /// `INVALID_REQUEST` when it is; those of [`Orchestrator::register_worker`].
    pub async fn register_other(&self, call: &WorkerCallback) -> Result<()> {
        if self
            .driver
            .pool
            .is_own(&call.spec(), LOOK_FOR_ONESELF)
            .await
        {
            let message = format!(
                "http://{}:{} leads to this queen herself, who is no worker of her own; give an \
                 engine's address",
                call.host, call.port
            );
            return Err(Error::invalid(message).param("url"));
        }
        self.register_worker(call)
    }

    /// Takes in a server that no hive owns. It is used once it answers its health check.
    ///
    /// # Errors
    /// `CONFLICT` when another worker of that id is at work, `HIVE_NOT_FOUND`.
    pub fn register_worker(&self, call: &WorkerCallback) -> Result<()> {
        self.driver
            .decide(|brain, now, out| brain.register_worker(now, call, out))
    }

    /// Every model that hives have or had reported, on one hive or on all, and those of workers
    /// that no hive owns. A local hive that never reported is started for it.
    ///
    /// # Errors
    /// `HIVE_NOT_FOUND`; `HIVE_UNREACHABLE` when the only hive there is can't be started.
    pub async fn models(&self, node: Option<&HiveId>) -> Result<Vec<ModelInfo>> {
        self.wait_for_local_report().await?;
        self.driver.look(|brain, now| {
            let view = brain.view(now);
            if let Some(node) = node.filter(|node| !view.hives.contains_key(*node)) {
                return Err(Error::new(
                    Code::HiveNotFound,
                    format!("there is no hive {node}"),
                ));
            }
            let wanted = |id: &HiveId| node.is_none_or(|node| node == id);
            let is_loaded = |model: &ModelRef, on: Option<&HiveId>| {
                view.workers
                    .with_model(model)
                    .any(|w| w.ready && w.spec.hive.as_ref() == on)
            };
            let mut models = BTreeMap::new();
            for hive in view.hives.values().filter(|hive| wanted(hive.id())) {
                for model in hive
                    .capabilities()
                    .into_iter()
                    .flat_map(|report| &report.models)
                {
                    let info = ModelInfo {
                        model_ref: model.model_ref.clone(),
                        aliases: brain.aliases(&model.model_ref),
                        node: Some(hive.id().clone()),
                        size_bytes: model.size_bytes,
                        removable: model.removable,
                        loaded: is_loaded(&model.model_ref, Some(hive.id())),
                    };
                    models.insert((info.model_ref.clone(), info.node.clone()), info);
                }
            }
            for worker in view.workers.iter() {
                let spec = &worker.spec;
                if node.is_some() && spec.hive.as_ref() != node {
                    continue;
                }
                models
                    .entry((spec.model.clone(), spec.hive.clone()))
                    .or_insert_with(|| ModelInfo {
                        model_ref: spec.model.clone(),
                        aliases: brain.aliases(&spec.model),
                        node: spec.hive.clone(),
                        size_bytes: 0,
                        removable: false,
                        loaded: worker.ready,
                    });
            }
            Ok(models.into_values().collect())
        })
    }

    async fn wait_for_local_report(&self) -> Result<()> {
        let local = HiveId::localhost();
        let mut changes = self.driver.fleet_changes.subscribe();
        let attempt = async {
            loop {
                let state = self.driver.decide(|brain, now, out| {
                    let unknown = |hive: &&Hive| hive.capabilities().is_none() && !hive.draining;
                    let unreported = brain.view(now).hives.get(&local).filter(unknown).is_some();
                    if unreported {
                        brain.request_hive_start(now, &local, out);
                    }
                    let view = brain.view(now);
                    let hive = view.hives.get(&local).filter(unknown)?;
                    // The error of an earlier start says nothing of one that is under way.
                    let failed = hive.status == HiveStatus::Error && !view.can_start(hive);
                    let error = hive.last_error.clone().filter(|_| failed);
                    Some((error, view.hives.len()))
                });
                match state {
                    None => return Ok(()),
                    Some((Some(error), hives)) => {
                        // With other hives there is something to list all the same.
                        return if hives > 1 { Ok(()) } else { Err(error) };
                    }
                    Some((None, _)) => self.fleet_change(&mut changes).await?,
                }
            }
        };
        self.while_hives_start(attempt).await
    }

    pub(super) async fn fleet_change(
        &self,
        changes: &mut tokio::sync::watch::Receiver<u64>,
    ) -> Result<()> {
        let gone = || Error::new(Code::ShuttingDown, "the queen is shutting down");
        tokio::select! {
            changed = changes.changed() => changed.map_err(|_| gone()),
            () = self.driver.stop.cancelled() => Err(gone()),
        }
    }

    pub(super) async fn while_hives_start<T>(
        &self,
        attempt: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        // A start, and the first report after it.
        let patience = self.driver.config.timeouts.hive_start + Duration::from_secs(10);
        tokio::time::timeout(patience, attempt)
            .await
            .unwrap_or_else(|_| {
                Err(Error::new(
                    Code::HiveUnreachable,
                    "the hive did not start in time; ask again",
                ))
            })
    }

    pub(super) fn register_static(&self, worker: &StaticWorker) -> Result<()> {
        let url = Url::parse(&worker.url).map_err(|error| {
            Error::invalid(format!("worker URL {:?}: {error}", worker.url)).param("url")
        })?;
        let (host, port) = crate::domain::host_and_port(&worker.url).ok_or_else(|| {
            Error::invalid(format!("worker URL {url} names no host and port")).param("url")
        })?;
        let id = match &worker.worker_id {
            Some(id) => WorkerId::new(id)?,
            None => WorkerId::new(format!("{}-{port}", host.replace(':', "_")))?,
        };
        let model = ModelRef::from_name(&worker.model_ref)?;
        let served_model = worker.served_model.clone();
        self.register_worker(&WorkerCallback {
            id,
            hive: None,
            served_model: served_model.or_else(|| Some(model.served_name().to_owned())),
            model,
            backend: String::new(),
            device: None,
            host,
            port,
            protocol: Some(worker.protocol),
            slots_total: Some(worker.slots_total),
            vram_bytes: None,
            speaks_for: Vec::new(),
            authorization: None,
        })
    }
}
