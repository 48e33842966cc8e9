//! A process that runs beside the test or the benchmark, and ends with it.

use super::wait::until;
use crate::proc;
use anyhow::{Context, Result};
use rustix::process::{Pid, Resource, Signal, getrlimit, kill_process, setrlimit};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

/// A child whose output goes to a file. Dropped, it is asked to end, then made to, with all that
/// it started.
#[derive(Debug)]
pub struct Daemon {
    name: String,
    child: Child,
    log: PathBuf,
    grace: Duration,
}

/// How long a process may take to end on SIGTERM, unless it is given another time.
const GRACE: Duration = Duration::from_secs(15);

impl Daemon {
    /// Starts `command`; what it prints goes to `log`.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn spawn(name: &str, command: &mut Command, log: &Path) -> Result<Self> {
        let out = File::create(log).with_context(|| log.display().to_string())?;
        let child = command
            .stdin(Stdio::null())
            .stdout(out.try_clone()?)
            .stderr(out)
            .spawn()
            .with_context(|| format!("{name}: {command:?}"))?;
        Ok(Daemon {
            name: name.to_owned(),
            child,
            log: log.to_owned(),
            grace: GRACE,
        })
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it printed so far.
    #[must_use]
    pub fn log(&self) -> String {
        let log = std::fs::read(&self.log).unwrap_or_default();
        String::from_utf8_lossy(&log).into_owned()
    }

    /// How it ended, if it has.
    pub fn exited(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// Sends it a signal; nothing happens if it is gone.
    pub fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.pid()).ok().and_then(Pid::from_raw);
        if let Some(pid) = pid {
            let _ = kill_process(pid, signal);
        }
    }

    /// Waits until it has ended of itself.
    ///
    /// # Errors
    /// When it is still there after `within`.
    pub fn wait(&mut self, within: Duration) -> Result<ExitStatus> {
        let ended = until(within, || self.exited());
        ended.with_context(|| format!("{} did not end within {within:?}", self.name))
    }

    /// Asks it to end with SIGTERM, and waits for that.
    ///
    /// # Errors
    /// When it does not; it is killed then.
    pub fn stop(&mut self) -> Result<ExitStatus> {
        if let Some(status) = self.exited() {
            return Ok(status);
        }
        let family = proc::tree(&[self.pid()]);
        self.signal(Signal::TERM);
        let ended = self.wait(self.grace);
        if ended.is_err() {
            self.kill_all(&family);
        }
        ended
    }

    /// Kills it with SIGKILL, without its descendants.
    pub fn kill(&mut self) {
        // An error means that it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    fn kill_all(&mut self, family: &[u32]) {
        family.iter().rev().copied().for_each(proc::kill);
        let _ = self.child.wait();
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Err(e) = self.stop() {
            eprintln!("{e:#}; killed");
        }
        if std::thread::panicking() {
            eprintln!("---- {} printed ----\n{}", self.name, self.log());
        }
    }
}

/// Raises this process's limit of open files as far as it may go; children inherit it.
pub fn raise_open_files() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    // Refused, the old limit stays; whoever needs more will say so.
    let _ = setrlimit(Resource::Nofile, limit);
}
