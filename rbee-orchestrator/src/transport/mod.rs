//! How a hive is reached, started, stopped and watched.

mod direct;
mod local;

use std::path::PathBuf;
use std::time::Duration;

use async_trait::async_trait;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::domain::HiveProcess;
use crate::error::Result;

pub use direct::DirectTransport;
pub use local::LocalTransport;

/// A byte stream to a port of a hive's machine.
pub trait HiveStream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> HiveStream for T {}

/// What is needed to start a hive's process.
#[derive(Debug, Clone)]
pub struct HiveCommand {
    /// Program and arguments; `{port}`, `{host}` and `{queen_url}` stand for their values.
    pub template: Vec<String>,
    /// Folder where the program is looked for first.
    pub install_path: Option<PathBuf>,
    /// The first port to try; the next free one is taken.
    pub port: u16,
    /// Where hives call the queen back.
    pub queen_url: Option<String>,
    /// Variables for the process, besides the inherited ones. Values may be secret.
    pub env: Vec<(String, String)>,
    /// File that the process writes its output to.
    pub log_file: PathBuf,
    /// How long it may take until its health check answers.
    pub start_timeout: Duration,
}

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
    /// Looks whether a start could work: program found, runs, tells its version.
    ///
    /// # Errors
    /// `HIVE_UNREACHABLE`, with what is missing and the cure.
    async fn preflight(&self, command: &HiveCommand) -> Result<Preflight>;

    /// Starts a hive and waits for its health check.
    ///
    /// # Errors
    /// `HIVE_UNREACHABLE`, with the last lines of its output when it exited or never got healthy.
    async fn start(&self, command: &HiveCommand) -> Result<HiveProcess>;

    /// Stops a hive's process: SIGTERM, `grace`, then SIGKILL. Nothing to do is no error.
    async fn stop(&self, process: &HiveProcess, grace: Duration) -> Result<()>;

    /// Whether that very process (not a later one with the same pid) runs.
    async fn is_running(&self, process: &HiveProcess) -> Result<bool>;

    /// The last `lines` lines of its output, oldest first.
    async fn logs(&self, command: &HiveCommand, lines: usize) -> Result<Vec<String>>;

    /// Connects to a port on the hive's machine. Hive client and relay reach hives and workers
    /// only through this.
    ///
    /// # Errors
    /// The I/O error of the connection attempt.
    async fn connect(&self, port: u16) -> std::io::Result<Box<dyn HiveStream>>;
}
