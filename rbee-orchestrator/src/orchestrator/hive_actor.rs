//! One hive's task: carries out orders for it one after the other, and checks it in between, so
//! that no report is older than the order before it.

mod ended;
mod orders;
mod starting;
mod workers;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc::UnboundedReceiver;
use tokio::sync::oneshot;

use super::driver::Driver;
use crate::brain::{Event, SeenState, SeenWorker};
use crate::domain::{HiveRecord, HiveStatus, WorkerId, WorkerSpec};
use crate::error::{Code, Error, Result};
use crate::hives::{HiveClient, HiveHandle, HiveWorker, HiveWorkerState, Stopped};
use crate::transport::is_own_trouble;

use orders::{leave_or_check, next_leave};

/// What is asked of a hive's task.
#[derive(Debug)]
pub(super) enum Order {
    /// Make sure that it runs.
    Start,
    /// Take it in if it runs already.
    Look,
    /// Check it now.
    Check,
    /// Stop it and go on serving it.
    Stop,
    /// Ask it for a worker.
    Spawn {
        worker: Arc<WorkerSpec>,
        devices: Vec<u32>,
        /// The model's file, for a hive that must be told.
        model_path: Option<String>,
        /// That of the request which it is spawned for.
        correlation_id: Option<String>,
    },
    /// Ask it to end a worker.
    StopWorker(WorkerId),
    /// Serve it no more; stop it first unless it is to be left running.
    Leave(Leave),
}

/// The last order of a hive's task. It does not wait for those before it.
#[derive(Debug)]
pub(super) struct Leave {
    pub(super) stop: bool,
    pub(super) done: oneshot::Sender<Result<Stopped>>,
}

/// A report is stored again after this long even when only its free memory has changed.
const STORE_AFTER: Duration = Duration::from_secs(300);

pub(super) struct HiveActor {
    driver: Arc<Driver>,
    handle: Arc<HiveHandle>,
    managed: bool,
    /// Whether it is worth checking: it was seen running, or someone else may start it.
    watched: bool,
    stored: Option<(HiveRecord, Instant)>,
    /// Workers that the hive was asked to end and did not.
    unstopped: Vec<WorkerId>,
}

impl HiveActor {
    pub(super) fn new(driver: Arc<Driver>, handle: Arc<HiveHandle>, managed: bool) -> Self {
        HiveActor {
            driver,
            handle,
            managed,
            watched: !managed,
            stored: None,
            unstopped: Vec::new(),
        }
    }

    pub(super) async fn run(mut self, mut orders: UnboundedReceiver<Order>) {
        let driver = self.driver.clone();
        let mut later = VecDeque::new();
        let leave = tokio::select! {
            biased;
            () = driver.stop.cancelled() => None,
            leave = self.serve(&mut orders, &mut later) => leave,
        };
        if let Some(Leave { stop, done }) = leave {
            // Nobody may wait for the answer any more; the hive is served no more either way.
            let _ = done.send(match stop {
                true => self.handle.stop().await,
                false => Ok(Stopped::NotOurs),
            });
        }
    }

    /// Until it is told to leave, which interrupts what is under way: a start may take minutes.
    async fn serve(
        &mut self,
        orders: &mut UnboundedReceiver<Order>,
        later: &mut VecDeque<Order>,
    ) -> Option<Leave> {
        loop {
            let order = match later.pop_front() {
                Some(order) => order,
                None => {
                    let id = self.handle.id();
                    let wait = self.driver.decide(|brain, _, _| brain.check_pause(id));
                    tokio::select! {
                        biased;
                        order = orders.recv() => order?,
                        () = tokio::time::sleep(wait), if self.watched => Order::Check,
                    }
                }
            };
            let order = match order {
                Order::Check => leave_or_check(orders, later),
                order => order,
            };
            if let Order::Leave(leave) = order {
                return Some(leave);
            }
            tokio::select! {
                biased;
                leave = next_leave(orders, later) => return Some(leave),
                () = self.carry_out(order) => {}
            }
        }
    }

    async fn carry_out(&mut self, order: Order) {
        match order {
            Order::Start => self.start().await,
            Order::Look => match self.handle.is_running().await {
                _ if !self.managed => self.start().await,
                Ok(true) => self.start().await,
                Ok(false) => {}
                // Its machine is away for now.
                Err(_) => self.watched = self.handle.process().is_some(),
            },
            Order::Check => self.check().await,
            Order::Stop => self.stop().await,
            Order::Spawn {
                worker,
                devices,
                model_path,
                correlation_id,
            } => {
                self.spawn(worker, devices, model_path, correlation_id)
                    .await;
            }
            Order::StopWorker(worker) => self.stop_worker(worker).await,
            Order::Leave(_) => {}
        }
    }

    async fn start(&mut self) {
        let hive = self.handle.id().clone();
        match self.ensure_running().await {
            Ok(process) => {
                tracing::info!(%hive, port = process.port, pid = process.pid, "the hive runs");
                self.watched = true;
                let record = self
                    .driver
                    .decide(|brain, _, _| brain.set_hive_process(&hive, Some(process)));
                self.store(record).await;
                self.driver.feed(Event::HiveStarted {
                    hive,
                    result: Ok(()),
                });
                self.check().await;
            }
            Err(error) => {
                match self.managed {
                    true => tracing::warn!(%hive, %error, "the hive could not be started"),
                    false => tracing::warn!(%hive, %error, "the hive does not answer"),
                }
                self.driver.feed(Event::HiveStarted {
                    hive,
                    result: Err(error),
                });
            }
        }
    }

    async fn check(&mut self) {
        let hive = self.handle.id().clone();
        let begun = self.driver.clock.now().mono;
        let event = match self.ask_in_time().await {
            Ok(event) => event,
            // It says nothing about the hive; the next check comes soon enough.
            Err(error) if is_own_trouble(&error) => return,
            Err(error) => {
                tracing::debug!(%hive, %error, "a check was missed");
                let gone = self.managed && !self.handle.is_running().await.unwrap_or(true);
                let error = match gone {
                    true => self.last_words(error).await,
                    false => error,
                };
                Event::HiveMissed {
                    hive: hive.clone(),
                    error,
                    gone,
                    begun,
                }
            }
        };
        let missed = matches!(event, Event::HiveMissed { .. });
        self.driver.feed(event);
        if missed {
            // It may count as failed now, and someone may wait for its first report.
            self.driver.fleet_changes.send_modify(|count| *count += 1);
            return;
        }
        for worker in self.unstopped.clone() {
            self.stop_worker(worker).await;
        }
        let record = self.driver.look(|brain, now| {
            brain
                .view(now)
                .hives
                .get(&hive)
                .map(|hive| (hive.record.clone(), hive.status))
        });
        if let Some((record, HiveStatus::Online)) = record {
            self.store_if_news(record).await;
        }
    }

    /// A check is not as patient as other calls.
    async fn ask_in_time(&mut self) -> Result<Event> {
        let limit = self.driver.config.timeouts.health;
        let hive = self.handle.id().clone();
        tokio::time::timeout(limit, self.ask())
            .await
            .unwrap_or_else(|_| {
                let message = format!("hive {hive} can't be reached");
                let cause = format!("no answer to its check within {limit:?}");
                Err(Error::new(Code::HiveUnreachable, message).because(cause))
            })
    }

    async fn ask(&mut self) -> Result<Event> {
        let client = self.client()?;
        let capabilities = client.capabilities().await?;
        let listed = client.workers().await?;
        let hive = self.handle.id().clone();
        // What its hive does not know any more has ended, as far as it can be known.
        let is_listed = |id: &WorkerId| listed.iter().any(|worker| worker.id == *id);
        let ended = self.unstopped.extract_if(.., |id| !is_listed(id));
        for worker in ended {
            self.driver.feed(Event::WorkerStopped { worker });
        }
        let workers = listed
            .iter()
            .filter_map(|worker| self.seen(worker))
            .collect();
        Ok(Event::HiveReport {
            hive,
            capabilities,
            workers,
        })
    }

    fn client(&self) -> Result<HiveClient> {
        let hive = self.handle.id();
        self.handle
            .client()
            .ok_or_else(|| Error::new(Code::HiveUnreachable, format!("hive {hive} does not run")))
    }

    fn seen(&self, worker: &HiveWorker) -> Option<SeenWorker> {
        let spec = match worker.spec(self.handle.id()) {
            Ok(spec) => WorkerSpec {
                authorization: self.authorization(worker.api_key.as_deref()),
                ..spec
            },
            Err(error) => {
                tracing::debug!(hive = %self.handle.id(), %error, "left a worker out");
                return None;
            }
        };
        let state = match worker.state {
            HiveWorkerState::Loading | HiveWorkerState::Unknown => SeenState::Loading,
            HiveWorkerState::Ready => SeenState::Ready,
            HiveWorkerState::Stopping => SeenState::Stopping,
            HiveWorkerState::Failed => {
                let why = worker
                    .error
                    .as_deref()
                    .unwrap_or("its hive does not say why");
                SeenState::Failed(Error::new(Code::WorkerFailed, why))
            }
        };
        Some(SeenWorker { spec, state })
    }

    async fn store_if_news(&mut self, record: HiveRecord) {
        let is_old = self.stored.as_ref().is_some_and(|(stored, at)| {
            at.elapsed() < STORE_AFTER && same_but_for_memory(stored, &record)
        });
        if !is_old {
            self.store(Some(record)).await;
        }
    }

    async fn store(&mut self, record: Option<HiveRecord>) {
        let Some(record) = record else { return };
        match self.driver.store.put_hive(record.clone()).await {
            Ok(()) => self.stored = Some((record, Instant::now())),
            Err(error) => tracing::warn!(%error, "the hive's record was not stored"),
        }
    }
}

fn same_but_for_memory(old: &HiveRecord, new: &HiveRecord) -> bool {
    let what = |record: &HiveRecord| {
        let report = record.capabilities.clone().unwrap_or_default();
        let devices: Vec<_> = report
            .devices
            .into_iter()
            .map(|device| (device.index, device.backend))
            .collect();
        (
            record.spec.clone(),
            record.process.clone(),
            devices,
            report.models,
            record.model_use.clone(),
        )
    };
    what(old) == what(new)
}
