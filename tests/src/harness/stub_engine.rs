//! A stub engine in a process of its own.

use super::client::Client;
use super::daemon::Daemon;
use super::wait::until;
use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use serde::Deserialize;
use serde_json::Value;
use std::net::TcpStream;
use std::ops::Deref;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

/// A stub engine that someone else runs, seen through its port.
#[derive(Debug)]
pub struct StubClient(Client);

/// Runs until it is dropped.
#[derive(Debug)]
pub struct StubEngine {
    daemon: Daemon,
    client: StubClient,
    port: u16,
}

/// An entry of a stub's journal.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Noted {
    /// When, on the clock of [`crate::clock`]
    pub at_ns: u64,
    /// `arrived`, `finished` or `closed`
    pub what: String,
    /// Of which request; empty, if it had none
    pub correlation_id: String,
}

impl Deref for StubEngine {
    type Target = StubClient;

    fn deref(&self) -> &StubClient {
        &self.client
    }
}

/// What the stub says when it listens, before its address.
const LISTENING: &str = "stub-engine: listening on 127.0.0.1:";

impl StubEngine {
    /// Starts `program` with `args` on a port that the system chooses, unless `--port` is one of them; its
    /// output goes to a file in `dir`.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn start(program: &Path, args: &[&str], dir: &Path) -> Result<Self> {
        let mut command = Command::new(program);
        if !args.contains(&"--port") {
            command.args(["--port", "0"]);
        }
        command.args(args);
        let log = tempfile::Builder::new()
            .prefix("stub-engine-")
            .suffix(".log")
            .tempfile_in(dir)?;
        let (_, log) = log.keep()?;
        let mut daemon = Daemon::spawn("stub-engine", &mut command, &log)?;
        let port = until(Duration::from_secs(10), || {
            let log = daemon.log();
            let (_, rest) = log.split_once(LISTENING)?;
            rest.split_once('\n')?.0.parse::<u16>().ok()
        });
        let port = port.with_context(|| {
            let ended = daemon.exited();
            format!("stub-engine did not come up ({ended:?}): {}", daemon.log())
        })?;
        let client = StubClient::new(&format!("http://127.0.0.1:{port}"));
        Ok(StubEngine {
            daemon,
            client,
            port,
        })
    }

    /// Where it listens.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Has it go away, as if its machine went down; returns when it has.
    ///
    /// # Errors
    /// When it stays.
    pub fn leave(&self) -> Result<()> {
        self.daemon.signal(Signal::USR1);
        self.becomes(false).context("the stub did not leave")
    }

    /// Has it come back from where [`StubEngine::leave`] sent it; returns when it has.
    ///
    /// # Errors
    /// When it does not.
    pub fn come_back(&self) -> Result<()> {
        self.daemon.signal(Signal::USR2);
        self.becomes(true).context("the stub did not come back")
    }

    fn becomes(&self, there: bool) -> Option<()> {
        let connects = || TcpStream::connect(("127.0.0.1", self.port)).is_ok();
        until(Duration::from_secs(10), || {
            (connects() == there).then_some(())
        })
    }

    /// Its process.
    #[must_use]
    pub fn daemon(&mut self) -> &mut Daemon {
        &mut self.daemon
    }
}

impl StubClient {
    /// The stub engine at `url`.
    #[must_use]
    pub fn new(url: &str) -> Self {
        StubClient(Client::new(url))
    }

    /// `http://127.0.0.1:PORT`
    #[must_use]
    pub fn url(&self) -> &str {
        self.0.base()
    }

    /// Changes its behaviour while it runs: a query, as `fault=status_500&fault_times=1`.
    ///
    /// # Errors
    /// When it refuses.
    pub fn control(&self, query: &str) -> Result<()> {
        let reply = self.0.send("POST", &format!("/control?{query}"), &[])?;
        ensure!(reply.status == 200, "{}", reply.text);
        Ok(())
    }

    /// Its counters.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn stats(&self) -> Result<Value> {
        Ok(self.0.get("/stats")?.json())
    }

    /// One of its counters.
    ///
    /// # Panics
    /// When it does not answer or has no such counter.
    #[must_use]
    #[track_caller]
    pub fn count(&self, counter: &str) -> u64 {
        let stats = self.stats().expect("the stub answers");
        let count = stats[counter].as_u64();
        count.unwrap_or_else(|| panic!("no counter {counter} in {stats}"))
    }

    /// What its journal says from entry number `from` on, and the number of the next entry.
    ///
    /// # Errors
    /// When it does not answer, or keeps no journal.
    pub fn journal(&self, from: usize) -> Result<(Vec<Noted>, usize)> {
        #[derive(Deserialize)]
        struct Pages {
            entries: Vec<Noted>,
            next: usize,
        }
        let reply = self.0.get(&format!("/journal?from={from}"))?;
        ensure!(reply.status == 200, "{}", reply.text);
        let pages: Pages = serde_json::from_str(&reply.text)?;
        Ok((pages.entries, pages.next))
    }

    /// The last request for tokens, as it arrived: `method`, `path`, `headers`, `body`.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn last_request(&self) -> Result<Value> {
        Ok(self.0.get("/last-request")?.json())
    }
}
