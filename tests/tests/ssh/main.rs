//! `SshTransport` against a real sshd on a loopback port. Needs Debian's `openssh-server` and
//! `openssh-client`.
#![cfg(unix)]

mod commands;
mod install;
mod life;
mod outage;
mod proxy;
mod trust;
mod tunnel;

use std::time::{Duration, Instant};

/// Waits for something to come true, and fails after 20 s.
async fn eventually(what: &str, mut is_true: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !is_true() {
        assert!(Instant::now() < deadline, "it never came true: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
