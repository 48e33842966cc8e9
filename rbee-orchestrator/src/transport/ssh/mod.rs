//! Hives on machines that are reached over SSH.
//!
//! One session for each machine and login, on one thread (`driver.rs`), carries everything:
//! commands, and with `tunnel` every connection to the hives and their workers. Nothing on the machine needs an open
//! port but sshd's, and nothing listens on the queen's side.

mod auth;
mod backoff;
mod client_config;
mod command;
mod connect;
mod driver;
mod elf;
mod host;
mod inspect;
mod install;
mod keep_alive;
mod known_hosts;
mod life;
mod line;
mod opening;
mod options;
mod order;
mod process;
mod program;
mod quote;
mod script;
mod sessions;
mod stream;
mod target;
mod tunnel;
mod wake;
mod wildcard;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use self::host::Host;
use self::program::Program;
use self::target::Target;
use super::report::Report;
use super::{Arrived, HiveCommand, HiveStream, HiveTransport, Preflight, connect_tcp};
use crate::domain::{HiveProcess, Reach, SshTarget};
use crate::error::Result;

pub use crate::config::{HostKeyPolicy, SshOptions};
pub use command::CommandOutput;
pub use sessions::SshSessions;

/// The name or address that an SSH target stands for in the user's SSH configuration. Reads files.
///
/// # Errors
/// `HIVE_UNREACHABLE` when the configuration can't be read, or leads there by a proxy.
pub fn host_of(target: &SshTarget, options: &SshOptions) -> Result<String> {
    Target::resolve(target, options).map(|target| target.host)
}

const LOOPBACK: &str = "127.0.0.1";
const ANY_ADDRESS: &str = "0.0.0.0";

/// Starts and watches a hive on another machine, and reaches it through the session or by TCP.
///
/// Nothing is connected before it is needed. It has a session of its own, unless it was made by
/// [`SshSessions`]. Dropping it stops no hive; connections through it go on to their end.
#[derive(Debug)]
pub struct SshTransport {
    host: Arc<Host>,
    hostname: String,
    tunnel: bool,
    machine: String,
    reach: Reach,
}

impl SshTransport {
    /// A machine by its SSH target; reads the user's SSH configuration. With `tunnel`, hive and
    /// workers listen on their machine's loopback address only and are reached through the session;
    /// without, at `hostname`.
    #[must_use]
    pub fn new(
        target: SshTarget,
        hostname: impl Into<String>,
        tunnel: bool,
        options: Arc<SshOptions>,
    ) -> Self {
        let resolved = Target::resolve(&target, &options);
        SshTransport {
            machine: machine(&target, resolved.as_ref().ok()),
            host: Arc::new(Host::new(target, options)),
            hostname: hostname.into(),
            tunnel,
            reach: Reach::default(),
        }
    }

    /// The same, with a `hostname` that may be at one of these addresses.
    #[must_use]
    pub fn within(mut self, reach: Reach) -> Self {
        self.reach = reach;
        self
    }

    /// Runs a program there, with these arguments as they are.
    ///
    /// # Errors
    /// `HIVE_UNREACHABLE`; `TIMEOUT` after the options' `command_timeout`; `INVALID_REQUEST` for an
    /// argument with a NUL byte. A program that fails is no error: its status tells.
    pub async fn exec(&self, program_and_arguments: &[&str]) -> Result<CommandOutput> {
        let words = quote::words(program_and_arguments.iter().copied())?;
        let limit = self.host.options().command_timeout;
        let said = script::run(&self.host, &words, limit).await?;
        Ok(CommandOutput {
            status: said.status,
            stdout: said.stdout.into_bytes(),
            stderr: said.stderr.into_bytes(),
        })
    }

    /// The address that a hive there shall listen on.
    fn listens_on(&self) -> &'static str {
        match self.tunnel {
            true => LOOPBACK,
            false => ANY_ADDRESS,
        }
    }
}

/// What tells machines apart. What is wrong with a target that leads nowhere is told when it is
/// connected to.
fn machine(registered: &SshTarget, resolved: Option<&Target>) -> String {
    match resolved {
        Some(Target { host, port, .. }) => format!("{host}:{port} over SSH"),
        None => format!("{} over SSH", registered.host),
    }
}

#[async_trait]
impl HiveTransport for SshTransport {
    fn host(&self) -> &str {
        match self.tunnel {
            true => LOOPBACK,
            false => &self.hostname,
        }
    }

    fn machine(&self) -> &str {
        &self.machine
    }

    async fn preflight(&self, command: &HiveCommand) -> Result<Preflight> {
        Program::of(command)?.check(&self.host).await
    }

    async fn inspect(&self, command: &HiveCommand) -> Report {
        inspect::inspect(self, command).await
    }

    async fn install(
        &self,
        file: &Path,
        command: &HiveCommand,
        arrived: Arrived,
    ) -> Result<PathBuf> {
        install::install(&self.host, file, &Program::of(command)?, arrived).await
    }

    async fn left_running(&self, command: &HiveCommand) -> Result<Option<HiveProcess>> {
        life::left_running(&self.host, &command.log_file).await
    }

    async fn start(&self, command: &HiveCommand) -> Result<HiveProcess> {
        life::start(self, command).await
    }

    async fn stop(&self, process: &HiveProcess, grace: Duration) -> Result<()> {
        process::stop_known(&self.host, process, grace).await
    }

    async fn is_running(&self, process: &HiveProcess) -> Result<bool> {
        process::is_running(&self.host, process).await
    }

    async fn logs(&self, log_file: &Path, lines: usize) -> Result<Vec<String>> {
        life::logs(&self.host, log_file, lines).await
    }

    async fn may_be_ours(&self, port: u16) -> Result<bool> {
        process::is_served_by_own_user(&self.host, port).await
    }

    async fn connect(&self, port: u16) -> std::io::Result<Box<dyn HiveStream>> {
        match self.tunnel {
            true => Ok(Box::new(self.host.connect(port).await?)),
            false => connect_tcp(&self.hostname, port, &self.reach).await,
        }
    }
}
