//! Machines that are reached by TCP and whose hive someone else runs.

use std::path::Path;
use std::time::Duration;

use async_trait::async_trait;

use super::{HiveCommand, HiveStream, HiveTransport, Preflight, connect_tcp};
use crate::domain::{HiveProcess, Reach};
use crate::error::{Code, Error, Result};

/// How long a connection attempt tells about a hive that has no process here.
const LISTENS_TIMEOUT: Duration = Duration::from_secs(3);

/// Reaches a machine by TCP; starts and stops nothing.
#[derive(Debug, Clone)]
pub struct DirectTransport {
    host: String,
    reach: Reach,
}

impl DirectTransport {
    /// A machine by name or address.
    #[must_use]
    pub fn new(host: impl Into<String>) -> Self {
        DirectTransport {
            host: host.into(),
            reach: Reach::default(),
        }
    }

    /// The same machine, which may be at one of these addresses.
    #[must_use]
    pub fn within(mut self, reach: Reach) -> Self {
        self.reach = reach;
        self
    }

    fn unmanaged(&self, code: Code, wish: &str) -> Error {
        let host = &self.host;
        Error::new(
            code,
            format!(
                "the queen can't {wish} the hive on {host}: it is unmanaged, someone else runs \
                 it; do that on {host}, or register the hive with ssh_host"
            ),
        )
    }
}

#[async_trait]
impl HiveTransport for DirectTransport {
    fn host(&self) -> &str {
        &self.host
    }

    async fn preflight(&self, _command: &HiveCommand) -> Result<Preflight> {
        Err(self.unmanaged(Code::HiveUnreachable, "check the program of"))
    }

    async fn start(&self, _command: &HiveCommand) -> Result<HiveProcess> {
        Err(self.unmanaged(Code::HiveUnreachable, "start"))
    }

    async fn stop(&self, _process: &HiveProcess, _grace: Duration) -> Result<()> {
        Err(self.unmanaged(Code::Conflict, "stop"))
    }

    async fn is_running(&self, process: &HiveProcess) -> Result<bool> {
        let attempt = connect_tcp(&self.host, process.port, &self.reach);
        let connected = tokio::time::timeout(LISTENS_TIMEOUT, attempt).await;
        Ok(matches!(connected, Ok(Ok(_))))
    }

    async fn logs(&self, _log_file: &Path, _lines: usize) -> Result<Vec<String>> {
        Err(self.unmanaged(Code::HiveUnreachable, "read the log file of"))
    }

    async fn connect(&self, port: u16) -> std::io::Result<Box<dyn HiveStream>> {
        connect_tcp(&self.host, port, &self.reach).await
    }
}
