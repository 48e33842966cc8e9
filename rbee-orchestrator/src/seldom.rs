//! Log lines that could come with every request.

use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::{Duration, Instant};

/// Between two lines about the same trouble.
const BETWEEN: Duration = Duration::from_secs(10);

/// Says whether a line is due that must not come too often.
#[derive(Debug, Default)]
pub(crate) struct Seldom {
    last: Mutex<Option<Instant>>,
}

impl Seldom {
    /// One that has said nothing yet.
    pub(crate) const fn new() -> Self {
        Seldom {
            last: Mutex::new(None),
        }
    }

    /// Whether the last line is so long ago that this one may be written; it counts as written then.
    pub(crate) fn is_due(&self) -> bool {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let is_due = last.is_none_or(|last| last.elapsed() >= BETWEEN);
        if is_due {
            *last = Some(Instant::now());
        }
        is_due
    }
}
