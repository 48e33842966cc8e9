//! Hives on a machine that is reached over SSH, as a user of the queen sees them: a real sshd, the
//! real queen and hive, stub engines. The machine is this one, with another home. Needs Debian's
//! `openssh-server` and `openssh-client`.
#![cfg(target_os = "linux")]

mod adding;
mod far;
mod hostile;
mod install;
mod life;
mod outage;
