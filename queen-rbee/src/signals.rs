//! Signals, and what they mean.

use std::fs::File;
use std::future::pending;

use anyhow::Result;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// SIGTERM and SIGINT.
pub(crate) struct Ends {
    terminate: Signal,
    interrupt: Signal,
}

impl Ends {
    pub(crate) fn watch() -> Result<Self> {
        Ok(Ends {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    /// The name of the next one.
    pub(crate) async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

/// What a SIGHUP means.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Hangup {
    /// The terminal that the queen was started from is closed.
    TerminalGone,
    /// She was started without a terminal: somebody wants her to read her configuration again.
    Reload,
}

/// SIGHUP.
pub(crate) struct Hangups {
    /// None where it was ignored when she was started, as `nohup` does.
    signal: Option<Signal>,
    meaning: Hangup,
}

impl Hangups {
    /// To be called at the start: later the terminal may be gone.
    pub(crate) fn watch() -> Result<Self> {
        let hangup = SignalKind::hangup();
        let signal = match is_ignored(hangup) {
            true => None,
            false => Some(signal(hangup)?),
        };
        // It can be opened by whoever has a controlling terminal.
        let meaning = match File::open("/dev/tty") {
            Ok(_) => Hangup::TerminalGone,
            Err(_) => Hangup::Reload,
        };
        Ok(Hangups { signal, meaning })
    }

    pub(crate) async fn next(&mut self) -> Hangup {
        match &mut self.signal {
            Some(signal) => signal.recv().await,
            None => pending().await,
        };
        self.meaning
    }
}

/// Whether a signal is ignored by this process, where the system tells (Linux).
fn is_ignored(kind: SignalKind) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    mask.is_some_and(|mask| mask >> (kind.as_raw_value() - 1) & 1 == 1)
}
