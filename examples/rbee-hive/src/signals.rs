//! Signals, and what they mean to a hive.

use std::fs::File;
use std::future::pending;

use anyhow::Result;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// What asks a daemon to end, or to read its configuration again.
pub(crate) struct Signals {
    terminate: Signal,
    interrupt: Signal,
    /// None where SIGHUP was ignored at the start, as `nohup` does.
    hangup: Option<Signal>,
    /// Whether it was started from a terminal, whose end is a hangup.
    has_terminal: bool,
}

/// What is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wanted {
    End,
    Reload,
}

impl Signals {
    /// To be called at the start: later the terminal may be gone.
    pub(crate) fn new() -> Result<Self> {
        let kind = SignalKind::hangup();
        Ok(Signals {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: (!is_ignored(kind)).then(|| signal(kind)).transpose()?,
            // It can be opened by whoever has a controlling terminal.
            has_terminal: File::open("/dev/tty").is_ok(),
        })
    }

    pub(crate) async fn next(&mut self) -> Wanted {
        let (hangup, has_terminal) = (&mut self.hangup, self.has_terminal);
        let hung_up = async {
            match hangup {
                Some(hangup) => hangup.recv().await,
                None => pending().await,
            }
        };
        tokio::select! {
            _ = self.terminate.recv() => Wanted::End,
            _ = self.interrupt.recv() => Wanted::End,
            _ = hung_up => if has_terminal { Wanted::End } else { Wanted::Reload },
        }
    }

    /// Waits until it is to end.
    pub(crate) async fn end(&mut self) {
        while self.next().await != Wanted::End {}
    }
}

/// Whether a signal is ignored by this process, where the system tells (Linux).
fn is_ignored(kind: SignalKind) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    mask.is_some_and(|mask| mask >> (kind.as_raw_value() - 1) & 1 == 1)
}
