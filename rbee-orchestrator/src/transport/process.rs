//! Processes by pid and start time: whether one still runs, and signals to it.

use rustix::io::Errno;
use rustix::process::{Pid, Signal, getpgid, kill_process, kill_process_group};

use crate::error::{Code, Error, Result};

/// One process. The start time tells it from a later one with the same pid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ProcessId {
    pub(super) pid: u32,
    /// In the platform's own unit: clock ticks since boot on Linux, seconds since 1970 elsewhere.
    pub(super) start_time: u64,
}

impl ProcessId {
    /// The process that has a pid now; `None` if none has or it has ended (a zombie).
    /// Blocks for microseconds on Linux, for a run of `ps` elsewhere.
    pub(super) fn of(pid: u32) -> Option<Self> {
        let start_time = start_time(pid)?;
        Some(ProcessId { pid, start_time })
    }

    /// Whether it still runs. Blocks as [`ProcessId::of`] does.
    pub(super) fn is_running(self) -> bool {
        Self::of(self.pid) == Some(self)
    }

    /// Sends SIGTERM to it; nothing if it has ended.
    pub(super) fn terminate(self) -> Result<()> {
        self.signal("SIGTERM", |pid| kill_process(pid, Signal::TERM))
    }

    /// Sends SIGKILL to it, and to its group where it leads one; nothing if it has ended.
    pub(super) fn kill(self) -> Result<()> {
        self.signal("SIGKILL", |pid| {
            // A process that someone else started may share its group with his shell.
            match getpgid(Some(pid)) == Ok(pid) {
                true => kill_process_group(pid, Signal::KILL),
                false => kill_process(pid, Signal::KILL),
            }
        })
    }

    fn signal(self, name: &str, send: impl FnOnce(Pid) -> rustix::io::Result<()>) -> Result<()> {
        let ProcessId { pid, .. } = self;
        let Some(target) = raw_pid(pid).filter(|_| self.is_running()) else {
            return Ok(());
        };
        match send(target) {
            Ok(()) | Err(Errno::SRCH) => Ok(()),
            Err(error) => Err(Error::new(
                Code::Conflict,
                format!(
                    "process {pid} could not be sent {name}: {error}; stop it as the user who \
                     runs it"
                ),
            )),
        }
    }
}

/// Kills the group that a child of ours leads. Only for a child that was not waited for yet, or
/// just now: until then its pid can't belong to anyone else.
pub(super) fn kill_group_of_child(pid: u32) {
    if let Some(leader) = raw_pid(pid)
        && let Err(error) = kill_process_group(leader, Signal::KILL)
        && error != Errno::SRCH
    {
        tracing::warn!(pid, %error, "a hive's process group could not be killed");
    }
}

/// Pids 0 and 1 mean "my group" and "everyone" to the kill functions.
fn raw_pid(pid: u32) -> Option<Pid> {
    let raw = i32::try_from(pid).ok().filter(|raw| *raw > 1)?;
    Pid::from_raw(raw)
}

#[cfg(target_os = "linux")]
fn start_time(pid: u32) -> Option<u64> {
    parse_proc_stat(&std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

#[cfg(not(target_os = "linux"))]
fn start_time(pid: u32) -> Option<u64> {
    ps_start_time(pid)
}

/// Field 22 of `/proc/<pid>/stat` (proc_pid_stat(5)); `None` for a zombie. The name in field 2 may
/// hold blanks and brackets, so counting starts behind its last bracket.
#[cfg(any(target_os = "linux", test))]
fn parse_proc_stat(stat: &str) -> Option<u64> {
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_ascii_whitespace();
    let state = fields.next()?;
    if matches!(state, "Z" | "X" | "x") {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

/// The start time as POSIX systems without `/proc` tell it, in seconds since 1970.
#[cfg(any(not(target_os = "linux"), test))]
fn ps_start_time(pid: u32) -> Option<u64> {
    let output = std::process::Command::new("ps")
        .args(["-o", "stat=,lstart=", "-p", &pid.to_string()])
        .env("LC_ALL", "C")
        .env("TZ", "UTC")
        .output()
        .ok()?;
    parse_ps(std::str::from_utf8(&output.stdout).ok()?)
}

/// Reads `Ss Mon Sep  1 12:00:00 2025`; `None` for a zombie.
#[cfg(any(not(target_os = "linux"), test))]
fn parse_ps(line: &str) -> Option<u64> {
    use time::PrimitiveDateTime;
    use time::macros::format_description;

    let (state, started) = line.trim().split_once(' ')?;
    if state.starts_with('Z') {
        return None;
    }
    let started: Vec<&str> = started.split_ascii_whitespace().skip(1).collect();
    let format = format_description!(
        "[month repr:short] [day padding:none] [hour]:[minute]:[second] [year]"
    );
    let at = PrimitiveDateTime::parse(&started.join(" "), &format).ok()?;
    u64::try_from(at.assume_utc().unix_timestamp()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_known_by_pid_and_start_time() {
        let me = ProcessId::of(std::process::id()).expect("this process runs");
        assert!(me.is_running());
        let another = ProcessId {
            start_time: me.start_time + 1,
            ..me
        };
        assert!(!another.is_running());
        another.terminate().expect("nothing to do is no error");
        assert_eq!(ProcessId::of(u32::MAX), None);
    }

    #[test]
    fn a_zombie_does_not_run() {
        let mut child = std::process::Command::new("true")
            .spawn()
            .expect("true runs");
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while ProcessId::of(child.id()).is_some() {
            assert!(std::time::Instant::now() < deadline, "`true` ends");
            #[expect(clippy::disallowed_methods, reason = "a plain test of a process")]
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        assert!(
            child
                .wait()
                .expect("the child was not reaped before")
                .success()
        );
    }

    #[test]
    fn names_with_blanks_and_brackets_do_not_shift_the_fields() {
        let stat = "7 (a) Z (b) S 1 7 7 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 4711 9 9";
        assert_eq!(parse_proc_stat(stat), Some(4711));
        assert_eq!(parse_proc_stat(&stat.replace(") S", ") Z")), None);
        assert_eq!(parse_proc_stat(""), None);
    }

    #[test]
    fn ps_tells_when_this_process_started() {
        // Slim systems have no `ps`; where it is needed, it is there.
        if std::process::Command::new("ps").output().is_ok() {
            let me = std::process::id();
            assert!(ps_start_time(me).is_some_and(|at| at > 1_700_000_000));
            assert_eq!(ps_start_time(me), ps_start_time(me));
        }
    }

    #[test]
    fn ps_is_read_where_there_is_no_proc() {
        assert_eq!(
            parse_ps("Ss   Mon Sep  1 12:00:00 2025\n"),
            Some(1_756_728_000)
        );
        assert_eq!(parse_ps("Z    Mon Sep  1 12:00:00 2025\n"), None);
        assert_eq!(parse_ps(""), None);
    }
}
