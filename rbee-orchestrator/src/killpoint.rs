//! Places at which a test has a debug build kill itself, as a power cut would.
//!
//! `QUEEN_TEST_KILL_AT=name[:n]` kills the process (SIGKILL) when it passes the place of that name
//! for the n-th time. A release build has no such places.

/// Passes a place.
#[cfg(debug_assertions)]
pub(crate) fn pass(name: &str) {
    use std::sync::LazyLock;
    use std::sync::atomic::{AtomicI64, Ordering};

    static WANTED: LazyLock<Option<(String, AtomicI64)>> = LazyLock::new(|| {
        let wanted = std::env::var("QUEEN_TEST_KILL_AT").ok()?;
        let (name, count) = wanted.split_once(':').unwrap_or((&wanted, "1"));
        Some((name.to_owned(), AtomicI64::new(count.parse().ok()?)))
    });
    if let Some((wanted, left)) = &*WANTED
        && wanted == name
        && left.fetch_sub(1, Ordering::SeqCst) == 1
    {
        let _ =
            rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
    }
}

/// Passes a place.
#[cfg(not(debug_assertions))]
pub(crate) fn pass(_name: &str) {}
