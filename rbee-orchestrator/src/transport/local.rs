//! Hives on this machine.

/// Starts hives as child processes.
#[derive(Debug)]
pub struct LocalTransport;
