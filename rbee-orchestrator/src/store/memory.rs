//! A store in memory, for tests and for services that keep nothing.

/// Keeps everything in memory.
#[derive(Debug, Default)]
pub struct MemoryStore;
