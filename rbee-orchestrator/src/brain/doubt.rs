//! Workers that answer one job after the other with an error. Whether they or the jobs are at fault
//! is not known, so nobody waits for it: such a worker becomes the last resort, and gets what no
//! other with the model can take at once.

use crate::config::BreakerConfig;
use crate::domain::Mono;

/// What is held against one worker.
#[derive(Debug, Default)]
pub(super) struct Doubt {
    /// Jobs in a row that it answered with an error.
    errors_in_a_row: u32,
    /// How often it became the last resort without a success in between.
    times_in_a_row: u32,
    until: Mono,
}

impl Doubt {
    /// A job was answered in full.
    pub(super) fn clear(&mut self) {
        *self = Doubt::default();
    }

    /// One more job was answered with an error. Returns until when the worker is the last resort,
    /// if it became so just now, and after how many.
    pub(super) fn add(&mut self, now: Mono, config: &BreakerConfig) -> Option<(Mono, u32)> {
        self.errors_in_a_row = self.errors_in_a_row.saturating_add(1);
        if self.errors_in_a_row < config.failures.max(1) || self.until > now {
            return None;
        }
        self.until = now + config.open_time(self.times_in_a_row);
        self.times_in_a_row = self.times_in_a_row.saturating_add(1);
        Some((self.until, self.errors_in_a_row))
    }
}
