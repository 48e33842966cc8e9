//! What can be set of a database.

use std::num::NonZero;

use super::handover::BATCH_MAX;

/// How a [`SqliteStore`](super::SqliteStore) works with its database.
///
/// ```
/// use rbee_orchestrator::store::SqliteStore;
/// use rbee_orchestrator::store::sqlite::{SqliteOptions, Synchronous};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> rbee_orchestrator::Result<()> {
/// # let folder = tempfile::tempdir().unwrap();
/// # let path = folder.path().join("queen.db");
/// let options = SqliteOptions::default().synchronous(Synchronous::Normal);
/// let store = SqliteStore::open_with(path, options).await?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Copy)]
pub struct SqliteOptions {
    pub(super) synchronous: Synchronous,
    pub(super) batch_max: NonZero<usize>,
}

/// When what was committed is forced to the disk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Synchronous {
    /// With each commit: what is durable survives a crash and a power cut.
    #[default]
    Full,
    /// Now and then: what is durable survives a crash of the process, but the last of it may be
    /// gone after a power cut or a crash of the system. The database stays whole.
    Normal,
}

impl Default for SqliteOptions {
    fn default() -> Self {
        SqliteOptions {
            synchronous: Synchronous::Full,
            batch_max: BATCH_MAX,
        }
    }
}

impl SqliteOptions {
    /// Sets when what was committed is forced to the disk; with each commit by default.
    #[must_use]
    pub fn synchronous(mut self, synchronous: Synchronous) -> Self {
        self.synchronous = synchronous;
        self
    }

    /// Sets how many steps one transaction holds at most; 1,024 by default. With 1 each step is
    /// synced by itself.
    #[must_use]
    pub fn batch_max(mut self, steps: NonZero<usize>) -> Self {
        self.batch_max = steps;
        self
    }
}
