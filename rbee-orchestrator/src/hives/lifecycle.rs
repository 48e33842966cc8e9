//! The life of one hive's process: found and adopted, started, stopped.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex as StdMutex};
use std::time::Duration;

use tokio::sync::{Mutex, watch};
use tokio::time::Instant;

use super::claims::{Claimant, PortClaims};
use super::client::{CallTimeouts, HiveClient};
use super::launch::Launch;
use super::token::HiveToken;
use crate::domain::{HiveId, HiveProcess, HiveSpec};
use crate::error::{Code, Error, Result};
use crate::transport::{HiveCommand, HiveTransport, Preflight};

pub(super) const POLL: Duration = Duration::from_millis(100);

/// How hives are started and spoken to.
#[derive(Debug, Clone)]
pub struct HiveOptions {
    /// Program and arguments; `{port}`, `{host}` and `{queen_url}` stand for their values.
    pub template: Vec<String>,
    /// The port that is looked at for a hive to adopt, and the first to start one on.
    pub port: u16,
    /// Where hives call the queen back; `None` where they can't reach her.
    pub queen_url: Option<String>,
    /// Folder of the programs that may be uploaded; `None` is that of the queen's own executable.
    pub upload_dir: Option<PathBuf>,
    /// The token between the queen and this hive.
    pub token: HiveToken,
    /// File for the hive's output.
    pub log_file: PathBuf,
    /// From a start to the first healthy answer.
    pub start_timeout: Duration,
    /// From the request to stop to SIGTERM, and from SIGTERM to SIGKILL.
    pub stop_grace: Duration,
    /// How long calls may take.
    pub timeouts: CallTimeouts,
    /// Shared by all hives of a queen.
    pub claims: PortClaims,
}

/// What a request to stop a hive came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stopped {
    /// It ran and has ended.
    Ended,
    /// It did not run.
    WasNotRunning,
    /// No queen started it, so it was left alone.
    NotOurs,
}

/// One registered hive: its way, its last known process, its client.
///
/// `ensure_running` and `stop` exclude each other; concurrent calls wait for the first and then
/// find its result.
pub struct HiveHandle {
    id: HiveId,
    managed: bool,
    tunnelled: bool,
    launch: StdMutex<Launch>,
    options: HiveOptions,
    claimant: Claimant,
    transport: Arc<dyn HiveTransport>,
    changing: Mutex<()>,
    /// A start is under way, or was dropped midway.
    pub(super) starting: AtomicBool,
    process: StdMutex<Option<HiveProcess>>,
    pub(super) installing: watch::Sender<Option<u8>>,
}

impl HiveHandle {
    /// A hive as registered, with its process as stored by an earlier life of the queen.
    #[must_use]
    pub fn new(
        spec: &HiveSpec,
        stored: Option<HiveProcess>,
        transport: Arc<dyn HiveTransport>,
        mut options: HiveOptions,
    ) -> Self {
        options.port = spec.port.unwrap_or(options.port);
        let managed = spec.is_managed();
        let process = match managed {
            true => stored,
            false => Some(found(options.port)),
        };
        let handle = HiveHandle {
            id: spec.id.clone(),
            managed,
            tunnelled: spec.ssh.is_some() && spec.tunnel,
            launch: StdMutex::new(Launch::of(spec, options.template.clone())),
            claimant: options.claims.claimant(),
            options,
            transport,
            changing: Mutex::new(()),
            starting: AtomicBool::new(false),
            process: StdMutex::new(None),
            installing: watch::Sender::new(None),
        };
        handle.remember(process);
        handle
    }

    /// Takes over a registration of the same place: its next start is by this template.
    pub fn start_by(&self, spec: &HiveSpec, template: Vec<String>) {
        *self.launch() = Launch::of(spec, template);
    }

    /// The hive's name.
    #[must_use]
    pub fn id(&self) -> &HiveId {
        &self.id
    }

    /// Whether it is reached through an SSH session.
    #[must_use]
    pub fn is_tunnelled(&self) -> bool {
        self.tunnelled
    }

    /// How its machine is reached.
    #[must_use]
    pub fn transport(&self) -> &Arc<dyn HiveTransport> {
        &self.transport
    }

    /// Its last known process, for the store. It may have ended since.
    #[must_use]
    pub fn process(&self) -> Option<HiveProcess> {
        self.known().clone()
    }

    /// How many percent of its program have arrived on its machine, while it is brought there.
    #[must_use]
    pub fn installing(&self) -> watch::Receiver<Option<u8>> {
        self.installing.subscribe()
    }

    /// The client of its API; `None` while no port is known.
    #[must_use]
    pub fn client(&self) -> Option<HiveClient> {
        self.process().map(|process| self.client_at(process.port))
    }

    /// Makes sure that it runs: takes what runs already, else starts it.
    ///
    /// A process that an earlier life of the queen started is taken if it accepts the token. One
    /// that refuses it, or stays silent, is stopped: nobody else can. Any other hive on the stored
    /// or the configured port is taken if it accepts the token, and left alone if it does not; the
    /// next free port is used then. One that ended comes back to its port if that is still free: there it
    /// finds its workers. An unmanaged hive is only asked for its health.
    ///
    /// Dropped midway, a process that is not healthy yet is killed, or found by
    /// [`HiveHandle::stop`]; a healthy one is known to [`HiveHandle::process`].
    ///
    /// # Errors
    /// `HIVE_UNREACHABLE` with the reason: what [`HiveHandle::preflight`] found missing, or the
    /// last lines of output of a failed start.
    pub async fn ensure_running(&self) -> Result<HiveProcess> {
        let _alone = self.changing.lock().await;
        if !self.managed {
            self.client_at(self.options.port).health().await?;
            let process = found(self.options.port);
            self.remember(Some(process.clone()));
            return Ok(process);
        }
        let last_port = self.process().map(|process| process.port);
        if let Some(process) = self.adopt().await? {
            self.remember(Some(process.clone()));
            return Ok(process);
        }
        let mut command = self.command();
        command.port = command.port.max(last_port.unwrap_or_default());
        let Preflight { program, version } = self.program(&command).await?;
        tracing::info!(hive = %self.id, program = %program.display(), version, "starting the hive");
        self.starting.store(true, Ordering::Relaxed);
        let started = self.transport.start(&command).await;
        // At once, without a pause: a process that runs must be known.
        self.starting.store(false, Ordering::Relaxed);
        let process = started?;
        self.remember(Some(process.clone()));
        self.confirm(&process).await?;
        Ok(process)
    }

    /// Stops it if a queen started it: asks it to (`POST /v1/shutdown`), then SIGTERM, then
    /// SIGKILL, with `stop_grace` between.
    ///
    /// Dropped midway, it may go on running and stays known.
    ///
    /// # Errors
    /// Those of [`HiveTransport::stop`].
    pub async fn stop(&self) -> Result<Stopped> {
        let _alone = self.changing.lock().await;
        let known = match self.process() {
            None => self.half_started().await?,
            known => known,
        };
        let Some(process) = known else {
            return Ok(Stopped::WasNotRunning);
        };
        if !process.started_by_queen {
            return Ok(Stopped::NotOurs);
        }
        // A session that died unnoticed is known to be dead when it has failed once.
        let runs = match self.transport.is_running(&process).await {
            Err(_) => self.transport.is_running(&process).await?,
            Ok(runs) => runs,
        };
        if !runs {
            self.remember(None);
            return Ok(Stopped::WasNotRunning);
        }
        match self.client_at(process.port).shutdown().await {
            Ok(()) => self.wait_for_end(&process).await?,
            Err(error) => tracing::debug!(hive = %self.id, %error, "asking it to stop failed"),
        }
        self.transport
            .stop(&process, self.options.stop_grace)
            .await?;
        self.remember(None);
        Ok(Stopped::Ended)
    }

    /// Whether its last known process runs; for an unmanaged hive, whether its port is open.
    ///
    /// # Errors
    /// Those of [`HiveTransport::is_running`].
    pub async fn is_running(&self) -> Result<bool> {
        if let Some(process) = self.process() {
            return self.transport.is_running(&process).await;
        }
        let left = self.transport.left_running(&self.command()).await?;
        Ok(left.is_some())
    }

    /// Looks whether a start could work.
    ///
    /// # Errors
    /// Those of [`HiveTransport::preflight`].
    pub async fn preflight(&self) -> Result<Preflight> {
        self.transport.preflight(&self.command()).await
    }

    /// The last lines of its output, oldest first, also when it does not run.
    ///
    /// # Errors
    /// Those of [`HiveTransport::logs`].
    pub async fn logs(&self, lines: usize) -> Result<Vec<String>> {
        self.transport.logs(&self.options.log_file, lines).await
    }

    /// Makes sure that what was started is a hive that takes the token.
    async fn confirm(&self, process: &HiveProcess) -> Result<()> {
        let Err(error) = self.client_at(process.port).workers().await else {
            return Ok(());
        };
        self.transport
            .stop(process, self.options.stop_grace)
            .await?;
        self.remember(None);
        let told = |why: &str| format!("{why} (it was just started, and is stopped again)");
        Err(Error {
            code: Code::HiveUnreachable,
            ..error.rephrased(told)
        })
    }

    async fn wait_for_end(&self, process: &HiveProcess) -> Result<()> {
        let deadline = Instant::now() + self.options.stop_grace;
        while self.transport.is_running(process).await? && Instant::now() < deadline {
            tokio::time::sleep(POLL).await;
        }
        Ok(())
    }

    pub(super) fn command(&self) -> HiveCommand {
        let launch = self.launch().clone();
        launch.command(&self.options, self.transport.host())
    }

    /// The token between the queen and this hive.
    pub(crate) fn token(&self) -> &HiveToken {
        &self.options.token
    }

    pub(super) fn options(&self) -> &HiveOptions {
        &self.options
    }

    pub(super) fn is_claimed_by_another(&self, port: u16) -> bool {
        let machine = self.transport.machine();
        self.options
            .claims
            .is_anothers(machine, port, self.claimant)
    }

    pub(super) fn client_at(&self, port: u16) -> HiveClient {
        let options = &self.options;
        let transport = Arc::clone(&self.transport);
        HiveClient::new(
            self.id.clone(),
            transport,
            port,
            options.token.clone(),
            options.timeouts,
        )
    }

    pub(super) fn remember(&self, process: Option<HiveProcess>) {
        let port = process.as_ref().map(|process| process.port);
        self.options
            .claims
            .set(self.transport.machine(), port, self.claimant);
        *self.known() = process;
    }

    pub(super) fn launch(&self) -> std::sync::MutexGuard<'_, Launch> {
        self.launch
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn known(&self) -> std::sync::MutexGuard<'_, Option<HiveProcess>> {
        self.process
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl Drop for HiveHandle {
    fn drop(&mut self) {
        self.options
            .claims
            .set(self.transport.machine(), None, self.claimant);
    }
}

/// A hive that answers at a port and that no queen started.
pub(super) fn found(port: u16) -> HiveProcess {
    HiveProcess {
        port,
        pid: None,
        pid_start_time: None,
        started_by_queen: false,
    }
}
