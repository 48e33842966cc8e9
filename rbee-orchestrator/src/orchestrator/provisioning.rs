//! Models that are brought to hives and taken from them, because an administrator or a request asks
//! for it.

use std::sync::Arc;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::Orchestrator;
use super::driver::Driver;
use super::hive_actor::Order;
use crate::brain::{Brain, Event};
use crate::domain::{HiveId, HiveStatus, ModelRef};
use crate::error::{Code, Error, Result};
use crate::hives::{HiveClient, Progress};
use crate::scheduler::Hive;

/// A model on its way to a hive. It comes whether or not somebody follows it.
#[derive(Debug)]
pub struct ModelDownload {
    /// Which model.
    pub model: ModelRef,
    /// Where it goes.
    pub node: HiveId,
    progress: watch::Receiver<Progress>,
    /// The queen's end.
    stop: CancellationToken,
}

impl ModelDownload {
    /// How far it is. That is no news any more.
    #[must_use]
    pub fn now(&mut self) -> Progress {
        self.progress.borrow_and_update().clone()
    }

    /// The next news of it; `None` after the last. Cancel-safe.
    pub async fn next(&mut self) -> Option<Progress> {
        if self.progress.borrow().is_last() && !self.progress.has_changed().unwrap_or(false) {
            return None;
        }
        match self.progress.changed().await {
            Ok(()) => Some(self.progress.borrow_and_update().clone()),
            Err(_) if self.progress.borrow().is_last() => None,
            Err(_) if self.stop.is_cancelled() => Some(Progress::Failed(Error::shutting_down())),
            Err(_) => Some(Progress::Failed(went_away(&self.node, &self.model))),
        }
    }
}

impl Orchestrator {
    /// Has a hive fetch a model, unless it has it or fetches it already. Without a node: a hive
    /// that has the model, else the one that answers and has the most room on its disk; none that is
    /// drained. A hive of ours that does not run is started for it.
    ///
    /// # Errors
    /// `HIVE_NOT_FOUND`; `HIVE_UNREACHABLE`; the last failure, if it is younger than
    /// `hives.retry_after`. What the hive refuses comes as [`Progress::Failed`].
    pub async fn download_model(&self, name: &str, node: Option<&HiveId>) -> Result<ModelDownload> {
        self.driver.reach.check_model(name)?;
        let (model, node) = self.driver.look(|brain, now| {
            let model = brain.resolve(name)?;
            let hives = &brain.view(now).hives;
            let node = match node {
                Some(node) if hives.contains_key(node) => node.clone(),
                Some(node) => return Err(no_hive(node)),
                None => {
                    let hives = hives.values().filter(|hive| !hive.draining);
                    roomiest(&model, hives).ok_or_else(|| {
                        Error::new(
                            Code::HiveNotFound,
                            "there is no hive that could fetch a model, or all are drained",
                        )
                    })?
                }
            };
            Ok((model, node))
        })?;
        let client = self.running_hive(&node).await?;
        let progress = self.driver.fetch(client, &model)?;
        Ok(ModelDownload {
            model,
            node,
            progress,
            stop: self.driver.stop.clone(),
        })
    }

    /// The model that a name means now.
    ///
    /// # Errors
    /// `INVALID_REQUEST` for a name that no model may have.
    pub fn model_named(&self, name: &str) -> Result<ModelRef> {
        self.driver.look(|brain, _| brain.resolve(name))
    }

    /// What is on its way now: where, what, how far.
    #[must_use]
    pub fn downloads(&self) -> Vec<(HiveId, ModelRef, Progress)> {
        self.driver.provisioner.running()
    }

    /// Has a hive delete a model; gives its reference and the hive. The node may be left out where
    /// only one hive has the model.
    ///
    /// # Errors
    /// `MODEL_NOT_FOUND`, `HIVE_NOT_FOUND`, `HIVE_UNREACHABLE`; `CONFLICT` while a worker serves
    /// it; `INVALID_REQUEST` when several hives have it.
    pub async fn remove_model(
        &self,
        name: &str,
        node: Option<&HiveId>,
    ) -> Result<(ModelRef, HiveId)> {
        let (model, node) = self.driver.look(|brain, now| {
            let model = brain.resolve(name)?;
            let hives = &brain.view(now).hives;
            if let Some(node) = node {
                let known = hives.contains_key(node);
                return known
                    .then(|| (model, node.clone()))
                    .ok_or_else(|| no_hive(node));
            }
            let owners = hives.values().filter(|hive| has_model(hive, &model));
            let owners: Vec<&HiveId> = owners.map(Hive::id).collect();
            match owners.as_slice() {
                [] => {
                    let message = format!("no hive has {model}; GET /v2/models/list shows all");
                    Err(Error::new(Code::ModelNotFound, message).param("model"))
                }
                [one] => Ok((model, (*one).clone())),
                several => {
                    let names: Vec<&str> = several.iter().map(|id| id.as_str()).collect();
                    let names = names.join(", ");
                    let message = format!("{model} is on {names}: name one of them in node");
                    Err(Error::invalid(message).param("node"))
                }
            }
        })?;
        let client = self.running_hive(&node).await?;
        client.remove_model(&model).await?;
        self.driver.wait_for_report(&node, &model, false).await;
        Ok((model, node))
    }

    /// The client of a hive that answers; one of ours is started for it.
    pub(super) async fn running_hive(&self, id: &HiveId) -> Result<HiveClient> {
        let driver = &self.driver;
        let mut changes = driver.fleet_changes.subscribe();
        let attempt = async {
            loop {
                let failed = driver.decide(|brain, now, out| {
                    let status = |hive: &Hive| hive.status;
                    let known = brain.view(now).hives.get(id).map(status);
                    if known.ok_or_else(|| no_hive(id))? == HiveStatus::Online {
                        return Ok::<_, Error>(None);
                    }
                    brain.request_hive_start(now, id, out);
                    let view = brain.view(now);
                    let hive = view.hives.get(id).ok_or_else(|| no_hive(id))?;
                    let failed = hive.status == HiveStatus::Error && !view.can_start(hive);
                    Ok(Some(hive.last_error.clone().filter(|_| failed)))
                })?;
                match failed {
                    None => break,
                    Some(Some(error)) => return Err(error),
                    Some(None) => self.fleet_change(&mut changes).await?,
                }
            }
            let client = driver.hives.get(id).and_then(|entry| entry.handle.client());
            client.ok_or_else(|| does_not_run(id))
        };
        self.while_hives_start(attempt).await
    }
}

impl Driver {
    /// Has a hive fetch a model that somebody waits for.
    pub(super) fn provision(self: &Arc<Self>, hive: HiveId, model: ModelRef) {
        let driver = self.clone();
        self.spawn(async move {
            let client = driver.hives.get(&hive);
            let client = client.and_then(|entry| entry.handle.client());
            let fetch = client
                .ok_or_else(|| does_not_run(&hive))
                .and_then(|client| driver.fetch(client, &model));
            if let Err(error) = fetch {
                let result = Err(error);
                driver.feed(Event::Fetched {
                    hive,
                    model,
                    result,
                });
            }
        });
    }

    /// Has a hive fetch a model, or joins the fetch that runs. The brain is told of it.
    fn fetch(
        self: &Arc<Self>,
        client: HiveClient,
        model: &ModelRef,
    ) -> Result<watch::Receiver<Progress>> {
        let (driver, hive, wanted) = (self.clone(), client.hive().clone(), model.clone());
        let report = async move { driver.wait_for_report(&hive, &wanted, true).await };
        let (driver, asked, wanted) = (self.clone(), client.clone(), model.clone());
        let make_room = |missing| async move { driver.make_room(&asked, &wanted, missing).await };
        let (hive, provisioner) = (client.hive().clone(), &self.provisioner);
        let (progress, work) =
            provisioner.ensure_model_available(client, model, make_room, report)?;
        if let Some(work) = work {
            self.decide(|brain, _, _| brain.expect_fetch(&hive, model));
            let (driver, place) = (self.clone(), hive.clone());
            self.spawn(async move {
                tokio::select! {
                    () = driver.stop.cancelled() => {}
                    () = driver.hive_left(&place) => {}
                    () = work => {}
                }
            });
            let told = self
                .clone()
                .tell_of_fetch(hive, model.clone(), progress.clone());
            self.spawn(told);
        }
        Ok(progress)
    }

    /// Has a hive remove models so that another finds room. What it does not remove, since a worker
    /// has just taken it, will be missing: then the fetch fails again.
    async fn make_room(
        self: &Arc<Self>,
        client: &HiveClient,
        model: &ModelRef,
        missing_bytes: u64,
    ) -> Result<(), String> {
        let hive = client.hive();
        let choose = |brain: &mut Brain| brain.make_disk_room(hive, model, missing_bytes);
        let victims = self.decide(|brain, _, _| choose(brain))?;
        for victim in &victims {
            match client.remove_model(victim).await {
                Ok(()) => {
                    tracing::info!(%hive, model = %victim, for_model = %model, "removed a model");
                }
                Err(error) => tracing::warn!(%hive, model = %victim, %error, "the model stays"),
            }
        }
        if let Some(last) = victims.last() {
            self.wait_for_report(hive, last, false).await;
        }
        self.decide(|brain, now, out| brain.disk_room_made(now, hive, model, out));
        Ok(())
    }

    /// Tells the brain how a fetch goes, until its end or the queen's.
    async fn tell_of_fetch(
        self: Arc<Self>,
        hive: HiveId,
        model: ModelRef,
        mut progress: watch::Receiver<Progress>,
    ) {
        loop {
            let now = progress.borrow_and_update().clone();
            let result = match now {
                Progress::Asked => None,
                Progress::Downloading {
                    bytes_downloaded,
                    bytes_total,
                    ..
                } => {
                    self.feed(Event::FetchProgress {
                        hive: hive.clone(),
                        model: model.clone(),
                        bytes_downloaded,
                        bytes_total,
                    });
                    None
                }
                Progress::Complete { local_path } => Some(Ok(local_path)),
                Progress::Failed(error) => Some(Err(error)),
            };
            if let Some(result) = result {
                return self.feed(Event::Fetched {
                    hive,
                    model,
                    result,
                });
            }
            if progress.changed().await.is_err() && !progress.borrow().is_last() {
                if self.stop.is_cancelled() {
                    return;
                }
                // Who waits for it at the place that the name means now is not to wait for ever.
                let result = Err(went_away(&hive, &model));
                return self.feed(Event::Fetched {
                    hive,
                    model,
                    result,
                });
            }
        }
    }

    /// Until a hive is removed, or registered at another place.
    async fn hive_left(&self, id: &HiveId) {
        if let Some(entry) = self.hives.get(id) {
            entry.orders.closed().await;
        }
        // When the queen goes down she lets all hives go, and the work ends with her.
        if self.look(|brain, _| brain.is_draining()) {
            self.stop.cancelled().await;
        }
    }

    /// Has a hive report until it has the model, or has it no more, for as long as a call may take.
    async fn wait_for_report(&self, id: &HiveId, model: &ModelRef, there: bool) {
        let mut changes = self.fleet_changes.subscribe();
        self.hives.order(id, Order::Check);
        let is_so = || {
            self.look(|brain, now| {
                let hive = brain.view(now).hives.get(id);
                // Older hives report no models.
                hive.is_some_and(|hive| !hive.tells_models || has_model(hive, model) == there)
            })
        };
        let reported = async { while !is_so() && changes.changed().await.is_ok() {} };
        let reported = self.stop.run_until_cancelled(reported);
        let patience = self.config.timeouts.hive_call;
        if tokio::time::timeout(patience, reported).await.is_err() {
            tracing::warn!(hive = %id, %model, "the hive's report is not what was expected");
        }
    }
}

fn does_not_run(id: &HiveId) -> Error {
    Error::new(Code::HiveUnreachable, format!("hive {id} does not run"))
}

fn went_away(hive: &HiveId, model: &ModelRef) -> Error {
    let message = format!(
        "hive {hive} was removed, or registered at another place, while it fetched {model}"
    );
    Error::new(Code::HiveUnreachable, message)
}

pub(super) fn no_hive(id: &HiveId) -> Error {
    Error::new(Code::HiveNotFound, format!("there is no hive {id}")).param("node")
}

/// Whether a hive has a model, under its reference or as an alias.
pub(crate) fn has_model(hive: &Hive, model: &ModelRef) -> bool {
    hive.model_named(model).is_some()
}

/// The hive that has the model, else the one that answers and has the most room.
fn roomiest<'h>(model: &ModelRef, hives: impl Iterator<Item = &'h Hive>) -> Option<HiveId> {
    let rank = |hive: &&Hive| {
        let room = hive
            .capabilities()
            .and_then(|report| report.disk_free_bytes);
        (
            hive.status == HiveStatus::Online,
            has_model(hive, model),
            room,
        )
    };
    hives.max_by_key(rank).map(|hive| hive.id().clone())
}
