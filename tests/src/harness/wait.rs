//! Waiting for what other processes do.

use std::time::{Duration, Instant};

/// How often a condition is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(10);

#[expect(
    clippy::disallowed_methods,
    reason = "the one place where tests wait for other processes"
)]
fn pause() {
    std::thread::sleep(LOOK_EVERY);
}

/// Asks until there is something, for at most `within`.
pub fn until<T>(within: Duration, mut ask: impl FnMut() -> Option<T>) -> Option<T> {
    let deadline = Instant::now() + within;
    loop {
        if let Some(found) = ask() {
            return Some(found);
        }
        if Instant::now() >= deadline {
            return None;
        }
        pause();
    }
}

/// Waits until `is_so`.
///
/// # Panics
/// When it is still not so after `within`; `what` says what was waited for.
#[track_caller]
pub fn eventually(what: &str, within: Duration, mut is_so: impl FnMut() -> bool) {
    let came = until(within, || is_so().then_some(()));
    assert!(came.is_some(), "not within {within:?}: {what}");
}
