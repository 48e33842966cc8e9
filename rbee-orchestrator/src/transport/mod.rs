//! How a hive is reached, started, stopped and watched.

mod connecting;
mod direct;
mod environment;
mod local;
mod log_file;
mod ports;
mod probe;
mod process;
mod program;
pub mod report;
#[cfg(feature = "ssh")]
pub mod ssh;
mod version;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use crate::domain::HiveProcess;
use crate::error::{Code, Error, Result};
use report::{Item, Report};

pub(crate) use program::version as version_of;
pub(crate) use version::is_older;

pub use crate::http1::HiveStream;
pub(crate) use connecting::{connect_tcp, is_own_trouble, own_trouble, unreached};
pub use direct::DirectTransport;
pub use local::LocalTransport;
#[cfg(feature = "ssh")]
pub use ssh::{SshOptions, SshSessions, SshTransport};

/// The `reason` in an error's details for a machine that is reached and lacks the hive's program.
pub(crate) const NO_PROGRAM: &str = "no_program";

/// What is needed to start a hive's process.
#[derive(Clone)]
pub struct HiveCommand {
    /// Program and arguments; `{port}`, `{host}` and `{queen_url}` stand for their values.
    pub template: Vec<String>,
    /// Folder on another machine where the program is looked for before `PATH`. Without meaning
    /// for local hives, whose program is beside the queen's own or on `PATH`.
    pub install_path: Option<PathBuf>,
    /// The first port to try; the next free one is taken.
    pub port: u16,
    /// Where hives call the queen back.
    pub queen_url: Option<String>,
    /// Variables for the process, besides those that it gets anyway. Values may be secret.
    pub env: Vec<(String, String)>,
    /// File that the process writes its output to.
    pub log_file: PathBuf,
    /// How long it may take until its health check answers.
    pub start_timeout: Duration,
}

impl fmt::Debug for HiveCommand {
    /// Leaves the variables' values out: they may be secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> = self.env.iter().map(|(name, _)| name.as_str()).collect();
        f.debug_struct("HiveCommand")
            .field("template", &self.template)
            .field("install_path", &self.install_path)
            .field("port", &self.port)
            .field("queen_url", &self.queen_url)
            .field("env", &names)
            .field("log_file", &self.log_file)
            .field("start_timeout", &self.start_timeout)
            .finish()
    }
}

/// Is told, from any thread, how many percent of something have arrived.
pub type Arrived = Arc<dyn Fn(u8) + Send + Sync>;

/// What a look before the start found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Preflight {
    /// The program that would be started.
    pub program: PathBuf,
    /// What it answered to `--version`.
    pub version: String,
}

/// How a hive's machine is reached and its process started, stopped and watched.
///
/// An implementation may wrap another. Every method may be dropped at any point; a start that is
/// dropped leaves no process behind that nobody knows of.
#[async_trait]
pub trait HiveTransport: Send + Sync + 'static {
    /// The hive's machine as hive and workers know it: in the `Host` header and in messages.
    /// A name or an address without a port; the loopback address for a tunnel.
    fn host(&self) -> &str;

    /// Which machine it is, so that hives on the same one are known to share its ports.
    fn machine(&self) -> &str {
        self.host()
    }

    /// Looks whether a start could work: program found, runs, tells its version.
    ///
    /// # Errors
    /// `HIVE_UNREACHABLE`, with what is missing and the cure.
    async fn preflight(&self, command: &HiveCommand) -> Result<Preflight>;

    /// Looks at everything that a hive needs there, for a person to read. A failure is an item of
    /// the report.
    async fn inspect(&self, command: &HiveCommand) -> Report {
        let item = match self.preflight(command).await {
            Ok(Preflight { program, version }) => {
                Item::ok("hive", format!("{}: {version}", program.display()))
            }
            Err(error) => Item::warning("hive", error.message, "see that the program is there"),
        };
        Report { items: vec![item] }
    }

    /// Puts a hive's program, a file on this machine, where [`HiveTransport::start`] finds it, in
    /// place of an older one; tells meanwhile how much has arrived, and says where it is now.
    /// Dropped midway or failed, nothing has changed.
    ///
    /// # Errors
    /// `CONFLICT` where programs are not the queen's to install; `INVALID_REQUEST` for a file that
    /// does not run there; `INSUFFICIENT_DISK`; `HIVE_UNREACHABLE`.
    async fn install(
        &self,
        file: &Path,
        command: &HiveCommand,
        arrived: Arrived,
    ) -> Result<PathBuf> {
        let _ = (command, arrived);
        let (file, host) = (file.display(), self.host());
        Err(Error::new(
            Code::Conflict,
            format!("{file} can't be installed on {host} by the queen; put it there yourself"),
        ))
    }

    /// The hive that was started with this command's log file and still runs there, as the machine
    /// remembers it: the queen may have been killed before she could. It may be another queen's.
    ///
    /// # Errors
    /// When that can't be found out.
    async fn left_running(&self, command: &HiveCommand) -> Result<Option<HiveProcess>> {
        let _ = command;
        Ok(None)
    }

    /// Starts a hive on the first free port from `command.port` on and waits for its health check.
    /// A port where something listens is skipped, whatever it is.
    ///
    /// # Errors
    /// `HIVE_UNREACHABLE`, with the last lines of its output when it exited or never got healthy.
    async fn start(&self, command: &HiveCommand) -> Result<HiveProcess>;

    /// Stops a hive's process: SIGTERM, `grace`, then SIGKILL to it and its process group.
    /// Nothing to do is no error. Dropped midway, the process may go on.
    ///
    /// # Errors
    /// `CONFLICT` when the process is not known well enough to be signalled, or the system
    /// forbids it; `TIMEOUT` when not even SIGKILL ended it.
    async fn stop(&self, process: &HiveProcess, grace: Duration) -> Result<()>;

    /// Whether that very process (not a later one with the same pid) runs. Where no pid is known:
    /// whether something listens on its port.
    ///
    /// # Errors
    /// When that can't be found out.
    async fn is_running(&self, process: &HiveProcess) -> Result<bool>;

    /// The last `lines` lines of a hive's output, oldest first; none if the file is not there.
    ///
    /// # Errors
    /// `HIVE_UNREACHABLE` when the file can't be read.
    async fn logs(&self, log_file: &Path, lines: usize) -> Result<Vec<String>>;

    /// Whether what listens on a port may be the queen's own hive, so that her token may be shown
    /// to it. A listener of another user may not.
    ///
    /// # Errors
    /// When that can't be found out.
    async fn may_be_ours(&self, port: u16) -> Result<bool> {
        let _ = port;
        Ok(true)
    }

    /// Connects to a port on the hive's machine. Hive client and relay reach hives and workers
    /// only through this. It has no time-out of its own.
    ///
    /// # Errors
    /// The I/O error of the connection attempt.
    async fn connect(&self, port: u16) -> std::io::Result<Box<dyn HiveStream>>;
}
