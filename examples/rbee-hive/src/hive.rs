//! The hive as a whole: what its parts share, and its way from start to end.

use std::ops::Deref;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio::net::TcpListener;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::callback::Callbacks;
use crate::config::Settings;
use crate::door;
use crate::error::ApiError;
use crate::http;
use crate::logs::LogBook;
use crate::models::{Catalog, Downloads};
use crate::registry::Registry;
use crate::rules::Rules;
use crate::signals::{Signals, Wanted};
use crate::state_dir::StateDir;
use crate::worker::{self, State};

/// What open requests get to end, once the workers are gone.
const LAST_ANSWERS: Duration = Duration::from_secs(2);
/// What is left to do after the workers' grace.
const LAST_TASKS: Duration = Duration::from_secs(12);
const PORT_CHOICES: u32 = 20;

/// A cheap handle; clones are the same hive.
#[derive(Debug, Clone)]
pub(crate) struct Hive(Arc<Shared>);

#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) settings: Settings,
    rules: RwLock<Arc<Rules>>,
    pub(crate) catalog: Catalog,
    pub(crate) registry: Registry,
    pub(crate) downloads: Downloads,
    pub(crate) callbacks: Callbacks,
    pub(crate) client: reqwest::Client,
    pub(crate) book: LogBook,
    pub(crate) state_dir: StateDir,
    /// Cancelled when the hive begins to shut down.
    pub(crate) stopping: CancellationToken,
    /// Everything that runs in the background.
    pub(crate) tasks: TaskTracker,
}

impl Deref for Hive {
    type Target = Shared;

    fn deref(&self) -> &Shared {
        &self.0
    }
}

impl Hive {
    fn new(settings: Settings, book: LogBook, state_dir: StateDir) -> Result<Self> {
        // Engines and the queen are near: a proxy of the environment is not meant for them.
        let client = reqwest::Client::builder().no_proxy().build()?;
        let (url, token) = (settings.callback_url.clone(), settings.token.clone());
        Ok(Hive(Arc::new(Shared {
            catalog: Catalog::new(
                settings.models.clone(),
                settings.rules.aliases.clone(),
                settings.rules.engines.extensions(),
            )?,
            registry: Registry::default(),
            downloads: Downloads::default(),
            callbacks: Callbacks::new(url, token, client.clone()),
            client,
            book,
            state_dir,
            stopping: CancellationToken::new(),
            tasks: TaskTracker::new(),
            rules: RwLock::new(settings.rules.clone()),
            settings,
        })))
    }

    /// A port that neither another program nor another worker of this hive has.
    pub(crate) fn free_port(&self) -> Result<u16, ApiError> {
        let workers = self.registry.all();
        let is_ours = |port: u16| workers.iter().any(|worker| worker.now().port == port);
        for _ in 0..PORT_CHOICES {
            match self.settings.worker_host.free_port() {
                Ok(port) if is_ours(port) => {}
                Ok(port) => return Ok(port),
                Err(error) => {
                    return Err(ApiError::internal(format!("no free port: {error}")));
                }
            }
        }
        Err(ApiError::internal("no free port for a worker"))
    }

    /// The rules as they are now, for whatever begins now.
    pub(crate) fn rules(&self) -> Arc<Rules> {
        let rules = self.rules.read();
        rules.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Takes in the rules as the configuration file has them now; one that is wrong changes nothing.
    fn reload(&self) {
        let read = self.settings.rules_again();
        match read.and_then(|rules| rules.map(|rules| self.take_in(rules)).transpose()) {
            Ok(Some(())) => {}
            Ok(None) => tracing::info!("SIGHUP: there is no configuration file to read again"),
            Err(error) => tracing::error!("SIGHUP: nothing is changed: {error:#}"),
        }
    }

    fn take_in(&self, rules: Rules) -> Result<()> {
        let extensions = rules.engines.extensions();
        self.catalog.set(rules.aliases.clone(), extensions)?;
        let new = Arc::new(rules);
        let mut rules = self.rules.write().unwrap_or_else(PoisonError::into_inner);
        let old = std::mem::replace(&mut *rules, new.clone());
        drop(rules);
        match new.news(&old).join(", ") {
            none if none.is_empty() => tracing::info!("SIGHUP: nothing new is taken in"),
            news => tracing::info!("SIGHUP: new for what begins from now on: {news}"),
        }
        let later = new.for_a_restart(&self.settings.rules).join(", ");
        if !later.is_empty() {
            tracing::warn!("SIGHUP: changed, but taken in only by a restart of the hive: {later}");
        }
        Ok(())
    }

    async fn stop_workers(&self, signals: &mut Signals) {
        let workers = self.registry.close();
        tracing::info!(workers = workers.len(), "shutting down");
        let stop_all = |grace| workers.iter().for_each(|worker| worker.stop(grace));
        let grace = self.rules().stop_grace;
        stop_all(grace);
        self.tasks.close();
        let limit = grace + LAST_TASKS;
        tokio::select! {
            ended = timeout(limit, self.tasks.wait()) => {
                if ended.is_err() {
                    tracing::error!("some tasks did not end in time");
                }
                return;
            }
            () = signals.end() => tracing::warn!("asked again: killing workers"),
        }
        stop_all(Duration::ZERO);
        let _ = timeout(LAST_TASKS, self.tasks.wait()).await;
    }
}

/// Serves until told to stop.
pub(crate) async fn run(settings: Settings, book: LogBook) -> Result<()> {
    let mut signals = Signals::new()?;
    let listener = bind(&settings.host, settings.port).await?;
    let address = listener.local_addr()?;
    let state_dir = StateDir::open(&settings.state_root, address.port()).await?;
    let hive = Hive::new(settings, book, state_dir)?;
    worker::adopt_own(&hive).await;
    hive.tasks.spawn(worker::end_abandoned(hive.clone()));

    let close = CancellationToken::new();
    let router = http::router(hive.clone());
    let head_timeout = hive.settings.head_timeout;
    let server = door::serve(listener, router, head_timeout, close.clone());
    let server = tokio::spawn(server);
    tracing::info!(%address, models = %hive.catalog.folder().display(), "hive listens");

    loop {
        let wanted = tokio::select! {
            wanted = signals.next() => wanted,
            () = hive.stopping.cancelled() => Wanted::End,
        };
        match wanted {
            Wanted::End => break,
            Wanted::Reload => hive.reload(),
        }
    }
    hive.stopping.cancel();
    hive.stop_workers(&mut signals).await;
    close.cancel();
    let _ = timeout(LAST_ANSWERS, server).await;
    let left = hive.registry.all();
    if left.iter().any(|worker| worker.state() != State::Failed) {
        bail!("some workers could not be ended");
    }
    tracing::info!("hive ended");
    Ok(())
}

async fn bind(host: &str, port: u16) -> Result<TcpListener> {
    match TcpListener::bind((host, port)).await {
        Ok(listener) => Ok(listener),
        Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => bail!(
            "PORT_IN_USE: another program listens on {host}:{port}; stop it, or choose another \
             port with --port"
        ),
        Err(error) => Err(error).with_context(|| format!("can't listen on {host}:{port}")),
    }
}
