//! Processes and ports on another machine.

use std::time::Duration;

use tokio::time::Instant;

use super::host::Host;
use super::script::{self, unreachable};
use crate::domain::HiveProcess;
use crate::error::{Code, Error, Result};

/// How many ports are looked at before giving up.
const PORTS_TRIED: u16 = 200;
/// Between two looks whether a process runs: each is a command there. It begins with the first.
const POLL: Duration = Duration::from_millis(500);
const FIRST_POLL: Duration = Duration::from_millis(50);
/// How long a process may take to vanish after SIGKILL.
const KILL_TIMEOUT: Duration = Duration::from_secs(10);

/// One process on the machine; the beginning tells it from a later one with the same id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ProcessId {
    pub(super) pid: u32,
    pub(super) started: u64,
}

/// Stops a process: SIGTERM, the grace, then SIGKILL; and what it leaves of the group that it led.
pub(super) async fn stop_known(host: &Host, process: &HiveProcess, grace: Duration) -> Result<()> {
    match (process.pid, process.pid_start_time) {
        (None, _) => Ok(()),
        (Some(pid), Some(started)) => {
            let process = ProcessId { pid, started };
            stop(host, process, grace).await?;
            end_group(host, process).await
        }
        (Some(pid), None) => Err(Error::new(
            Code::Conflict,
            format!("process {pid} may be another one by now: when it started is not known"),
        )),
    }
}

pub(super) async fn stop(host: &Host, process: ProcessId, grace: Duration) -> Result<()> {
    signal(host, process, "kill -s TERM \"$1\"").await?;
    if ends_within(host, process, grace).await? {
        return Ok(());
    }
    tracing::warn!(
        host = host.name(),
        pid = process.pid,
        ?grace,
        "a hive ignored SIGTERM and is killed"
    );
    let kill = "if leads \"$1\"; then kill_group \"$1\"; else kill -s KILL \"$1\"; fi";
    signal(host, process, kill).await?;
    match ends_within(host, process, KILL_TIMEOUT).await? {
        true => Ok(()),
        false => Err(Error::new(
            Code::Timeout,
            format!(
                "process {} on {} lives on after SIGKILL; is its disk stuck?",
                process.pid,
                host.name()
            ),
        )),
    }
}

/// Kills what a process has left of the group that it led. Its id can't be another's while it
/// names a group; that it has no process any more makes sure that the group is no newer one.
pub(super) async fn end_group(host: &Host, process: ProcessId) -> Result<()> {
    let ProcessId { pid, .. } = process;
    if pid <= 1 {
        return Ok(());
    }
    let body = format!("started {pid} >/dev/null || kill_group {pid} 2>/dev/null || :");
    let said = script::run(host, &body, host.options().command_timeout).await?;
    said.ok(host, "ending what the hive started").map(|_| ())
}

/// Sends a signal to that very process; nothing if it has ended.
async fn signal(host: &Host, process: ProcessId, kill: &str) -> Result<()> {
    let ProcessId { pid, started } = process;
    // Ids 0 and 1 mean "my group" and "everyone".
    if pid <= 1 {
        return Ok(());
    }
    let body = format!(
        "set -- {pid} {started}\nruns \"$@\" || return 0\n{kill} || ! runs \"$@\" || return 1"
    );
    let said = script::run(host, &body, host.options().command_timeout).await?;
    match said.status {
        Some(0) => Ok(()),
        _ => {
            let error = said.error(host, &format!("stopping process {pid}"));
            let cure = "stop it as the user who runs it";
            Err(Error::new(
                Code::Conflict,
                format!("{}; {cure}", error.message),
            ))
        }
    }
}

async fn ends_within(host: &Host, process: ProcessId, limit: Duration) -> Result<bool> {
    let deadline = Instant::now() + limit;
    let mut pause = FIRST_POLL;
    while runs(host, process).await? {
        if Instant::now() >= deadline {
            return Ok(false);
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(POLL);
    }
    Ok(true)
}

/// Whether that very process runs; where none is known, whether something listens on its port.
pub(super) async fn is_running(host: &Host, process: &HiveProcess) -> Result<bool> {
    match (process.pid, process.pid_start_time) {
        (Some(pid), Some(started)) => runs(host, ProcessId { pid, started }).await,
        _ => listens(host, process.port).await,
    }
}

pub(super) async fn runs(host: &Host, process: ProcessId) -> Result<bool> {
    let ProcessId { pid, started } = process;
    says_yes(host, &format!("runs {pid} {started}")).await
}

pub(super) async fn listens(host: &Host, port: u16) -> Result<bool> {
    says_yes(host, &format!("listens {port}")).await
}

/// Whether only the queen's user there, or root, listens on a port; also where the system does not
/// tell.
pub(super) async fn is_served_by_own_user(host: &Host, port: u16) -> Result<bool> {
    let own = "own=$(id -u); for uid in $(listeners PORT); do\n\
               [ \"$uid\" = \"$own\" ] || [ \"$uid\" = 0 ] || return 1\ndone";
    says_yes(host, &own.replace("PORT", &port.to_string())).await
}

async fn says_yes(host: &Host, condition: &str) -> Result<bool> {
    let body = format!("if {{ {condition}; }}; then echo yes; fi");
    // A condition of several lines may return.
    let body = match condition.contains('\n') {
        true => format!("{condition}\necho yes"),
        false => body,
    };
    let said = script::run(host, &body, host.options().command_timeout).await?;
    Ok(said.stdout.trim() == "yes")
}

/// The first port from `from` on where nothing listens. Another process may take it meanwhile.
pub(super) async fn first_free(host: &Host, from: u16) -> Result<u16> {
    let first = from.max(1);
    let last = first.saturating_add(PORTS_TRIED);
    let body = format!(
        "port={first}\nwhile [ \"$port\" -le {last} ]; do\n\
         listens \"$port\" || {{ echo \"$port\"; return; }}\nport=$((port + 1))\ndone"
    );
    let said = script::run(host, &body, host.options().command_timeout).await?;
    let said = said.ok(host, "looking for a free port")?;
    number(Some(said.trim())).ok_or_else(|| {
        let name = host.name();
        unreachable(format!(
            "no port from {first} to {last} is free on {name}; register the hive with another"
        ))
    })
}

/// A number that a script has printed.
pub(super) fn number<T: std::str::FromStr>(word: Option<&str>) -> Option<T> {
    word?.parse().ok()
}
