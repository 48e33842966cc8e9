//! How far a download is, from the process that fetches to whoever follows.

use std::io::{self, Write};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::ApiError;

const REPORT_EVERY: Duration = Duration::from_millis(250);

/// How far a download is: a line each on standard output, an event each for the queen.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "stage", rename_all = "lowercase")]
pub(crate) enum Stage {
    Downloading {
        bytes_downloaded: u64,
        bytes_total: u64,
        /// Megabits a second.
        speed_mbps: f64,
    },
    Complete {
        local_path: PathBuf,
    },
    Error {
        status: u16,
        code: String,
        message: String,
        details: Option<Value>,
    },
}

impl From<ApiError> for Stage {
    fn from(error: ApiError) -> Self {
        Stage::Error {
            status: error.status.as_u16(),
            code: error.code.into_owned(),
            message: error.message,
            details: error.details,
        }
    }
}

/// Ends the process when nobody reads: the hive that asked is gone.
pub(super) fn print(stage: &Stage) {
    let line = serde_json::to_string(stage).expect("a stage has text keys only");
    if writeln!(io::stdout(), "{line}").is_err() {
        std::process::exit(1);
    }
}

/// Counts what has come, and says so four times a second at most.
pub(super) struct Meter {
    total: u64,
    /// Bytes of files that are done.
    done: u64,
    /// Bytes of the file that comes now.
    current: u64,
    /// Bytes that came over the network, since when.
    received: u64,
    since: Instant,
    /// What comes first is the position that the transfer begins at.
    is_first: bool,
    reported: Instant,
}

impl Meter {
    pub(super) fn new(total: u64) -> Self {
        let now = Instant::now();
        Meter {
            total,
            done: 0,
            current: 0,
            received: 0,
            since: now,
            is_first: false,
            reported: now,
        }
    }

    /// The next file begins. What is told of it first is where.
    pub(super) fn begin(&mut self) {
        self.current = 0;
        self.is_first = true;
    }

    /// So many bytes have come.
    pub(super) fn update(&mut self, bytes: u64) {
        self.current += bytes;
        if !std::mem::take(&mut self.is_first) {
            self.received += bytes;
        }
        self.tick();
    }

    pub(super) fn finished(&mut self, bytes: u64) {
        self.done += bytes;
        self.current = 0;
    }

    /// Reports, if the last one is old enough.
    pub(super) fn tick(&mut self) {
        if self.reported.elapsed() >= REPORT_EVERY {
            self.reported = Instant::now();
            self.report();
        }
    }

    pub(super) fn report(&self) {
        let seconds = self.since.elapsed().as_secs_f64().max(0.001);
        let speed = self.received as f64 * 8.0 / 1e6 / seconds;
        print(&Stage::Downloading {
            bytes_downloaded: (self.done + self.current).min(self.total),
            bytes_total: self.total,
            speed_mbps: (speed * 10.0).round() / 10.0,
        });
    }
}
