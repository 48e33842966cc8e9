//! What processes are there and what they use, read from `/proc` (Linux).

use rustix::process::{Pid, Signal, kill_process};
use std::fs;
use std::io;

/// What a process and its descendants have used so far.
#[derive(Default, Clone, Copy, Debug)]
pub struct Usage {
    /// CPU seconds in user and system mode
    pub cpu_s: f64,
    /// Resident memory in KiB
    pub rss_kb: u64,
    /// Threads of all the processes
    pub threads: u64,
    /// How many of the processes are alive
    pub procs: u64,
}

/// A line of `/proc/PID/stat`, as far as it is needed here.
struct Stat {
    state: char,
    parent: u32,
    cpu_s: f64,
}

fn field(status: &str, name: &str) -> u64 {
    let line = status.lines().find(|l| l.starts_with(name)).unwrap_or("");
    let value = line.split_ascii_whitespace().nth(1);
    value.and_then(|v| v.parse().ok()).unwrap_or(0)
}

/// A tick is 10 ms on every Linux this runs on.
fn stat(pid: u32) -> Option<Stat> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may hold anything, blanks and parentheses too.
    let rest: Vec<&str> = text[text.rfind(')')? + 1..]
        .split_ascii_whitespace()
        .collect();
    let ticks: f64 = rest.get(11)?.parse::<f64>().ok()? + rest.get(12)?.parse::<f64>().ok()?;
    Some(Stat {
        state: rest.first()?.chars().next()?,
        parent: rest.get(1)?.parse().ok()?,
        cpu_s: ticks / 100.0,
    })
}

/// Whether the process exists and is not a zombie.
#[must_use]
pub fn is_alive(pid: u32) -> bool {
    stat(pid).is_some_and(|s| s.state != 'Z' && s.state != 'X')
}

/// Seconds that the machine's cores have been busy in sum (user, nice, system, irq, softirq).
#[must_use]
pub fn machine_busy_s() -> f64 {
    let text = fs::read_to_string("/proc/stat").unwrap_or_default();
    let line = text.lines().next().unwrap_or("");
    let ticks: Vec<f64> = line
        .split_ascii_whitespace()
        .skip(1)
        .map(|t| t.parse().unwrap_or(0.0))
        .collect();
    let busy = [0, 1, 2, 5, 6].iter().filter_map(|&i| ticks.get(i));
    busy.sum::<f64>() / 100.0
}

fn pids() -> impl Iterator<Item = u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// `roots` and all their descendants.
#[must_use]
pub fn tree(roots: &[u32]) -> Vec<u32> {
    let parents: Vec<(u32, u32)> = pids()
        .filter_map(|pid| Some((pid, stat(pid)?.parent)))
        .collect();
    let mut all = roots.to_vec();
    let mut at = 0;
    while at < all.len() {
        let children = parents.iter().filter(|(_, p)| *p == all[at]);
        let new: Vec<u32> = children
            .map(|(child, _)| *child)
            .filter(|child| !all.contains(child))
            .collect();
        all.extend(new);
        at += 1;
    }
    all
}

/// Ends a process at once; nothing happens if it is gone.
pub fn kill(pid: u32) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        let _ = kill_process(pid, Signal::KILL);
    }
}

/// The processes that one has started, while it is there.
#[must_use]
pub fn children(parent: u32) -> Vec<u32> {
    let is_child = |pid: &u32| stat(*pid).is_some_and(|s| s.parent == parent);
    pids().filter(is_child).collect()
}

/// What `pids` used together.
#[must_use]
pub fn usage(pids: &[u32]) -> Usage {
    let mut sum = Usage::default();
    for &pid in pids {
        let Ok(status) = fs::read_to_string(format!("/proc/{pid}/status")) else {
            continue;
        };
        sum.cpu_s += stat(pid).map_or(0.0, |s| s.cpu_s);
        sum.rss_kb += field(&status, "VmRSS:");
        sum.threads += field(&status, "Threads:");
        sum.procs += 1;
    }
    sum
}

/// The most that a process had resident at once since [`forget_peak`] or its start, in KiB.
#[must_use]
pub fn peak_rss_kb(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status"));
    status.map_or(0, |status| field(&status, "VmHWM:"))
}

/// Lets [`peak_rss_kb`] begin anew.
///
/// # Errors
/// When the process is gone or another user's.
pub fn forget_peak(pid: u32) -> io::Result<()> {
    fs::write(format!("/proc/{pid}/clear_refs"), "5")
}

/// A process, as a failing test shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    /// Its id
    pub pid: u32,
    /// Its command line, blanks between the arguments
    pub command: String,
}

impl Process {
    fn of(pid: u32) -> Self {
        let command = command(pid);
        Process { pid, command }
    }
}

/// How many files the process has open in all, and how many of them are sockets.
#[must_use]
pub fn open_files(pid: u32) -> (usize, usize) {
    let open = fs::read_dir(format!("/proc/{pid}/fd"));
    let names = open.into_iter().flatten().flatten();
    names.fold((0, 0), |(files, sockets), file| {
        let target = fs::read_link(file.path()).unwrap_or_default();
        let is_socket = target.to_string_lossy().starts_with("socket:");
        (files + 1, sockets + usize::from(is_socket))
    })
}

/// Every live process whose environment holds `name=value`. A child inherits it, whoever its
/// parent has become since, so this finds what a test left behind.
#[must_use]
pub fn with_env(name: &str, value: &str) -> Vec<Process> {
    let wanted = format!("{name}={value}");
    let holds = |pid: &u32| {
        let environ = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        environ
            .split(|b| *b == 0)
            .any(|var| var == wanted.as_bytes())
    };
    let alive = pids().filter(|pid| is_alive(*pid)).filter(holds);
    alive.map(Process::of).collect()
}

/// Every process whose command line has that word in it.
#[must_use]
pub fn with_word(word: &str) -> Vec<Process> {
    let all = pids().map(Process::of);
    all.filter(|process| process.command.contains(word))
        .collect()
}

fn command(pid: u32) -> String {
    let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let line = String::from_utf8_lossy(&line).replace('\0', " ");
    line.trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn finds_a_child_by_its_mark_until_it_is_gone() {
        let mark = std::process::id().to_string();
        let mut child = Command::new("sleep")
            .arg("60")
            .env("RBEE_PROC_TEST", &mark)
            .spawn()
            .expect("sleep is installed");
        // The child's environment is replaced when it has executed sleep.
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(5);
        while with_env("RBEE_PROC_TEST", &mark).is_empty() {
            assert!(
                std::time::Instant::now() < deadline,
                "the child never showed up"
            );
            std::thread::yield_now();
        }
        let found = with_env("RBEE_PROC_TEST", &mark);
        assert_eq!(found[0].pid, child.id());
        assert!(tree(&[std::process::id()]).contains(&child.id()));
        child.kill().expect("the child is ours");
        child.wait().expect("the child is ours");
        assert_eq!(with_env("RBEE_PROC_TEST", &mark), []);
        assert!(!is_alive(child.id()));
    }

    #[test]
    fn reads_its_own_usage() {
        let usage = usage(&[std::process::id()]);
        assert_eq!(usage.procs, 1);
        assert!(usage.rss_kb > 100);
        forget_peak(std::process::id()).expect("it is our own");
        let peak = peak_rss_kb(std::process::id());
        let large = std::hint::black_box(vec![1_u8; 32 << 20]);
        assert!(peak_rss_kb(std::process::id()) > peak + 20_000);
        drop(large);
        let sockets = || open_files(std::process::id()).1;
        let before = sockets();
        let listener = std::net::TcpListener::bind(("127.0.0.1", 0));
        assert!(sockets() > before, "{listener:?}");
        assert!(machine_busy_s() > 0.0);
    }
}
