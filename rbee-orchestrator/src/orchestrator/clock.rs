//! Both clocks, as the shell reads them for the brain.

use std::time::{Duration, Instant};

use crate::domain::{Mono, Now, UnixMillis};

/// Monotonic time counts from here.
#[derive(Debug, Clone, Copy)]
pub(super) struct Clock {
    origin: Instant,
}

impl Clock {
    pub(super) fn start() -> Self {
        Clock {
            origin: Instant::now(),
        }
    }

    pub(super) fn now(self) -> Now {
        Now {
            mono: Mono(self.origin.elapsed()),
            wall: UnixMillis::now(),
        }
    }

    /// How long until `at`; zero if that has passed.
    pub(super) fn until(self, at: Mono) -> Duration {
        at.since(Mono(self.origin.elapsed()))
    }
}
