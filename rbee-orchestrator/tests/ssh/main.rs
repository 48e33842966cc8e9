//! `SshTransport` against a real sshd on a loopback port. Needs Debian's `openssh-server` and
//! `openssh-client`.
#![cfg(unix)]

mod commands;
mod install;
mod life;
mod outage;
mod proxy;
mod sshd;
mod trust;
mod tunnel;
