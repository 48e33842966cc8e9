//! Machines that are reached by TCP and whose hive someone else runs.

/// Reaches a machine by TCP; starts and stops nothing.
#[derive(Debug)]
pub struct DirectTransport;
