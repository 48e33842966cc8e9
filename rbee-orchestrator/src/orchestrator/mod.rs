//! The face that embedders hold: an [`Orchestrator`] carries out what the brain decides and tells
//! it what came of it.

mod clock;
mod connector;
mod driver;
mod fleet;
mod following;
mod hive_actor;
mod jobs;
mod logs;
mod provisioning;
mod registry;
mod reply;
mod retention;
mod submission;
mod tenants;

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use uuid::Uuid;

use crate::brain::Brain;
#[cfg(feature = "http")]
use crate::budget::Budget;
use crate::config::Config;
use crate::domain::{Ending, HiveId, HiveRecord, HiveSpec, JobRecord, Outcome, UnixMillis};
use crate::error::{Error, Result};
use crate::hives::{HiveToken, PortClaims};
use crate::killpoint;
use crate::relay::pool::Pool;
use crate::scheduler::{LeastLoaded, Scheduler};
use crate::store::{Condition, IntoStore, MemoryStore, Store};

use clock::Clock;
use connector::{HiveMap, WorkerConnector};
use driver::Driver;
use registry::HiveParts;

pub use fleet::ModelInfo;
pub use following::TaskEvents;
pub use jobs::OpenAiRequest;
pub use logs::{LogLines, LogQuery};
pub use provisioning::ModelDownload;
#[cfg(feature = "http")]
pub(crate) use provisioning::has_model;
pub use registry::TransportFactory;
pub use reply::{RawHead, RawReply, TaskStream};

/// One inference endpoint over a fleet of machines. Cheap to clone; all clones are the same.
#[derive(Clone)]
pub struct Orchestrator {
    driver: Arc<Driver>,
    hive_parts: Arc<HiveParts>,
}

impl fmt::Debug for Orchestrator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Orchestrator")
            .field("owner", &self.driver.owner)
            .finish_non_exhaustive()
    }
}

/// Puts an orchestrator together.
#[must_use]
pub struct Builder {
    config: Config,
    store: Option<Arc<dyn Store>>,
    scheduler: Box<dyn Scheduler>,
    transports: Option<TransportFactory>,
    hive_token: Option<HiveToken>,
}

impl fmt::Debug for Builder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Builder")
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}

impl Builder {
    /// Sets bounds and time-outs; defaults otherwise.
    pub fn config(mut self, config: Config) -> Self {
        self.config = config;
        self
    }

    /// Sets what survives a restart; by default nothing does ([`MemoryStore`]).
    pub fn store(mut self, store: impl IntoStore) -> Self {
        self.store = Some(store.into_store());
        self
    }

    /// Sets who decides where requests run; [`LeastLoaded`] by default.
    pub fn scheduler(mut self, scheduler: impl Scheduler + 'static) -> Self {
        self.scheduler = Box::new(scheduler);
        self
    }

    /// Sets how hives are reached. By default local hives are child processes, unmanaged ones are
    /// reached by TCP, and those that were registered with `ssh` over SSH.
    pub fn transports(mut self, transports: TransportFactory) -> Self {
        self.transports = Some(transports);
        self
    }

    /// Sets the secret that the tokens between queen and hives follow from
    /// ([`HiveToken::for_hive`]); a random one by default, which no later life of the queen knows.
    pub fn hive_token(mut self, token: HiveToken) -> Self {
        self.hive_token = Some(token);
        self
    }

    /// Starts it: what an earlier life left is recovered, hives that still run are taken in.
    ///
    /// # Errors
    /// `STORE_FAILED`, `INVALID_REQUEST` for a configuration that makes no sense.
    pub async fn start(self) -> Result<Orchestrator> {
        self.config.check()?;
        let token = self.hive_token.map_or_else(HiveToken::random, Ok)?;
        let log_dir = self.config.hives.log_dir.clone();
        let transports = self.transports;
        let hive_parts = HiveParts {
            token,
            transports: transports.unwrap_or_else(|| registry::default_transports(&self.config)),
            claims: PortClaims::default(),
            log_dir: log_dir.unwrap_or_else(default_log_dir),
        };
        let store = self
            .store
            .unwrap_or_else(|| Arc::new(MemoryStore::default()));
        let owner = Uuid::new_v4();
        let recovered = store.recover(owner, UnixMillis::now()).await?;
        if recovered.interrupted > 0 {
            tracing::warn!(
                jobs = recovered.interrupted,
                "jobs that an earlier life left were ended"
            );
        }
        killpoint::pass("recovering");
        let records = known_hives(&self.config, store.as_ref()).await?;
        let tenants = tenants::known(store.as_ref()).await?;
        let hives = Arc::new(HiveMap::default());
        let connector = Box::new(WorkerConnector {
            hives: hives.clone(),
            reach: self.config.reach(),
        });
        let pool = Arc::new(Pool::new(connector, &self.config));
        let brain = Brain::new(self.config.clone(), self.scheduler, records.clone());
        let brain = brain.seeded(owner.as_u64_pair().0);
        let clock = Clock::start();
        let driver = Driver::new(self.config, owner, store, pool, hives, clock, brain);
        let driver = Arc::new(driver);
        driver.spawn(driver.clone().run_inbox());
        driver.spawn(driver.clone().run_timer());
        driver.spawn(driver.clone().run_patience());
        driver.spawn(driver.clone().run_worker_checks());
        driver.spawn(driver.clone().run_pulse());
        driver.spawn(driver.clone().run_purge());
        driver.decide(|brain, now, out| {
            brain.set_tenants(now, tenants.stored, &tenants.used_today, out);
        });
        let hive_parts = Arc::new(hive_parts);
        let orchestrator = Orchestrator { driver, hive_parts };
        match orchestrator.take_over(&records, recovered.waiting).await {
            Ok(()) => Ok(orchestrator),
            Err(error) => {
                orchestrator.driver.end_tasks().await;
                Err(error)
            }
        }
    }
}

async fn known_hives(config: &Config, store: &dyn Store) -> Result<Vec<HiveRecord>> {
    let mut records = store.hives().await?;
    let local = HiveId::localhost();
    let is_local = |record: &HiveRecord| record.spec.id == local;
    if cfg!(feature = "hives") && config.hives.local && !records.iter().any(is_local) {
        let record = HiveRecord::new(HiveSpec::local(local));
        store.put_hive(record.clone()).await?;
        records.push(record);
    }
    Ok(records)
}

/// Where the XDG Base Directory Specification puts logs.
fn default_log_dir() -> PathBuf {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty());
    let state = set("XDG_STATE_HOME").map(PathBuf::from).or_else(|| {
        let home = PathBuf::from(set("HOME")?);
        Some(home.join(".local/state"))
    });
    state.unwrap_or_else(std::env::temp_dir).join("rbee/logs")
}

impl Orchestrator {
    /// Takes over what was configured, and what an earlier life left.
    async fn take_over(
        &self,
        hives: &[HiveRecord],
        waiting: Vec<(JobRecord, Vec<u8>)>,
    ) -> Result<()> {
        for worker in &self.driver.config.workers {
            self.register_static(worker)?;
        }
        self.start_known_hives(hives);
        // Last: what runs them is known now.
        for (record, stored) in waiting {
            self.take_up(record, &stored).await?;
        }
        Ok(())
    }

    /// Takes up a job that an earlier life left waiting.
    async fn take_up(&self, record: JobRecord, stored: &[u8]) -> Result<()> {
        let driver = &self.driver;
        match self.draft_again(&record, stored) {
            Ok(draft) => {
                let flow = driver.new_flow(draft.call);
                driver.recover(flow.clone(), draft.request);
                driver.run_unattended(flow);
            }
            Err(error) => {
                tracing::error!(job = %record.id, %error, "a stored job can't be taken up");
                let ending = Ending::new(Outcome::Failed(error), UnixMillis::now());
                driver
                    .store
                    .finish(record.id, record.attempt, ending)
                    .await?;
            }
        }
        Ok(())
    }

    /// Begins with the defaults.
    pub fn builder() -> Builder {
        Builder {
            config: Config::default(),
            store: None,
            scheduler: Box::new(LeastLoaded),
            transports: None,
            hive_token: None,
        }
    }

    /// The configuration it runs with.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.driver.config
    }

    /// The memory that bodies of requests share.
    #[cfg(feature = "http")]
    pub(crate) fn bodies(&self) -> &Budget {
        &self.driver.bodies
    }

    /// The hives whose token this is. Several, where hives share one.
    #[must_use]
    pub fn hives_of_token(&self, token: &[u8]) -> Vec<HiveId> {
        let hives = self.driver.hives.all().into_iter();
        let theirs = hives.filter(|hive| hive.handle.token().is(token));
        theirs.map(|hive| hive.handle.id().clone()).collect()
    }

    /// Whether it has begun to shut down.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.driver.look(|brain, _| brain.is_draining())
    }

    /// How the store does.
    #[must_use]
    pub fn store_condition(&self) -> Condition {
        self.driver.store.condition()
    }

    /// Takes no more work. What waits ends with `SHUTTING_DOWN`, but for asynchronous tasks, which
    /// wait for the next life of the store; what runs goes on.
    pub fn drain(&self) {
        self.driver.decide(|brain, now, out| brain.drain(now, out));
    }

    /// Drains, waits for what runs until `timeouts.drain` has passed, cuts off the rest (an
    /// asynchronous task begins anew in the next life of the store), stops the hives that it
    /// started unless they are to be left running, and ends every task of its own. Dropped midway, what was started
    /// may be left running.
    pub async fn shutdown(&self) {
        self.drain();
        let grace = self.driver.config.timeouts.drain;
        let cut_off = tokio::time::timeout(grace, self.all_attempts_end()).await;
        self.driver.shelve_all();
        if cut_off.is_err() {
            let error = Error::new(
                crate::error::Code::ShuttingDown,
                "the queen shut down before the request was done",
            );
            self.driver.abort_all(&error);
            // The leases come back by the event loop; a moment is enough, and no more is given.
            let _ = tokio::time::timeout(Duration::from_secs(1), self.all_attempts_end()).await;
        }
        self.store_model_use().await;
        self.stop_hives().await;
        self.driver.end_tasks().await;
        if let Err(error) = self.driver.store.flush().await {
            tracing::error!(%error, "the last records were not stored");
        }
    }

    /// Hives are stored when they are checked; what ran since then is to be known too.
    async fn store_model_use(&self) {
        let records: Vec<HiveRecord> = self.driver.look(|brain, now| {
            let hives = brain.view(now).hives.values().map(|hive| &hive.record);
            let used = hives.filter(|record| !record.model_use.is_empty());
            used.cloned().collect()
        });
        for record in records {
            if let Err(error) = self.driver.store.put_hive(record).await {
                tracing::warn!(%error, "the hive's record was not stored");
            }
        }
    }

    async fn all_attempts_end(&self) {
        while self.driver.look(|brain, _| brain.tally().running) > 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_store_and_a_scheduler_may_be_chosen_while_it_runs() {
        let store: Arc<dyn Store> = Arc::new(MemoryStore::default());
        let scheduler: Box<dyn Scheduler> = Box::new(LeastLoaded);
        let builder = Orchestrator::builder().store(store.clone());
        let orchestrator = builder.scheduler(scheduler).start().await.expect("a start");
        let tenant = crate::domain::Tenant {
            id: crate::domain::TenantId::new("ours").expect("a name"),
            limits: crate::domain::TenantLimits::default(),
        };
        orchestrator.put_tenant(tenant).await.expect("it is kept");
        assert_eq!(store.tenants().await.expect("it is read").len(), 1);
        orchestrator.shutdown().await;
    }
}
