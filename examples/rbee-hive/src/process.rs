//! Processes: telling one from a later one with the same pid, and ending it with its children.

use std::path::Path;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep};

/// Set in the environment of every engine to `STATE_DIR:WORKER_ID`. It finds engines that the
/// state folder does not know, because the hive died before it could write them down, and
/// children that outlived their engine.
pub(crate) const MARK: &str = "RBEE_HIVE_WORKER";

const POLL: Duration = Duration::from_millis(50);

/// A process for good: a pid alone may come to mean another one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ProcessId {
    pub(crate) pid: u32,
    /// In the platform's own unit.
    start_time: u64,
    /// Start times begin anew with each boot.
    boot: String,
}

impl ProcessId {
    /// The process that has this pid now; `None` when there is none or only its zombie.
    pub(crate) fn of(pid: u32) -> Option<Self> {
        Some(ProcessId {
            pid,
            start_time: platform::start_time(pid)?,
            boot: platform::boot(),
        })
    }

    /// A child that may have ended, but that nobody has waited for.
    pub(crate) fn of_child(pid: u32) -> Self {
        Self::of(pid).unwrap_or(ProcessId {
            pid,
            start_time: 0,
            boot: String::new(),
        })
    }

    pub(crate) fn is_alive(&self) -> bool {
        Self::of(self.pid).as_ref() == Some(self)
    }

    /// Signals it and its children. The group outlives its first process.
    pub(crate) fn signal_group(&self, signal: Signal) {
        let is_another = Self::of(self.pid).is_some_and(|now| now != *self);
        if let (false, Some(pid)) = (is_another, self.raw()) {
            // An error means that nobody is left.
            let _ = kill_process_group(pid, signal);
        }
    }

    /// Signals it, and its children if it leads a group, as long as it lives.
    fn signal(&self, signal: Signal) {
        if let (true, Some(pid)) = (self.is_alive(), self.raw()) {
            let _ = kill_process(pid, signal);
            let _ = kill_process_group(pid, signal);
        }
    }

    fn raw(&self) -> Option<Pid> {
        Pid::from_raw(self.pid.try_into().ok()?)
    }
}

/// Processes that an engine of the hive with this state folder left, with their worker's id.
pub(crate) fn marked(state_dir: &Path) -> Vec<(ProcessId, String)> {
    let mark = format!("{MARK}={}:", state_dir.display());
    platform::with_variable(&mark)
}

/// SIGTERM, then SIGKILL for those that still live after the grace.
pub(crate) async fn end(processes: &[ProcessId], grace: Duration) {
    for process in processes {
        process.signal(Signal::TERM);
    }
    let deadline = Instant::now() + grace;
    while processes.iter().any(ProcessId::is_alive) && Instant::now() < deadline {
        sleep(POLL).await;
    }
    for process in processes {
        process.signal(Signal::KILL);
    }
}

#[cfg(target_os = "linux")]
mod platform {
    use std::fs;

    use super::ProcessId;

    /// Clock ticks since boot.
    pub(super) fn start_time(pid: u32) -> Option<u64> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name in parentheses may hold anything, blanks and parentheses too.
        let fields: Vec<&str> = stat[stat.rfind(')')? + 1..].split_whitespace().collect();
        let is_dead = matches!(*fields.first()?, "Z" | "X");
        (!is_dead).then(|| fields.get(19)?.parse().ok()).flatten()
    }

    pub(super) fn boot() -> String {
        let id = fs::read_to_string("/proc/sys/kernel/random/boot_id");
        id.unwrap_or_default().trim().to_owned()
    }

    pub(super) fn with_variable(prefix: &str) -> Vec<(ProcessId, String)> {
        let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
        let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        pids.filter_map(|pid| {
            let process = ProcessId::of(pid)?;
            let environment = fs::read(format!("/proc/{pid}/environ")).ok()?;
            let mut variables = environment.split(|&byte| byte == 0);
            let id = variables.find_map(|variable| variable.strip_prefix(prefix.as_bytes()))?;
            Some((process, String::from_utf8_lossy(id).into_owned()))
        })
        .collect()
    }
}

#[cfg(not(target_os = "linux"))]
mod platform {
    use sysinfo::{Pid, ProcessStatus, ProcessesToUpdate, System};

    use super::ProcessId;

    /// Seconds since the epoch.
    pub(super) fn start_time(pid: u32) -> Option<u64> {
        let pid = Pid::from_u32(pid);
        let mut system = System::new();
        system.refresh_processes(ProcessesToUpdate::Some(&[pid]), true);
        let process = system.process(pid)?;
        (process.status() != ProcessStatus::Zombie).then(|| process.start_time())
    }

    pub(super) fn boot() -> String {
        String::new()
    }

    /// Other processes' environments can't be read everywhere; the state folder must do.
    pub(super) fn with_variable(_prefix: &str) -> Vec<(ProcessId, String)> {
        Vec::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_pid_that_now_means_another_process_is_left_alone() {
        let mut child = tokio::process::Command::new("sleep")
            .arg("60")
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let real = ProcessId::of(child.id().unwrap()).unwrap();
        let earlier = ProcessId {
            start_time: real.start_time - 1,
            ..real.clone()
        };
        earlier.signal_group(Signal::KILL);
        end(std::slice::from_ref(&earlier), Duration::ZERO).await;
        assert!(real.is_alive() && !earlier.is_alive());
        end(std::slice::from_ref(&real), Duration::from_secs(5)).await;
        child.wait().await.unwrap();
        assert!(!real.is_alive());
    }
}
