//! What must survive a restart.

mod memory;
pub mod sqlite;
#[cfg(feature = "testing")]
pub mod testing;

use async_trait::async_trait;
use uuid::Uuid;

use crate::domain::{
    Attempt, Ending, HiveId, HiveRecord, JobFilter, JobId, JobPage, JobRecord, PlacedOn, UnixMillis,
};
use crate::error::Result;

pub use memory::MemoryStore;
pub use sqlite::SqliteStore;

/// One step in a job's life that need not be on disk before the job goes on.
#[derive(Debug, Clone)]
pub enum JobChange {
    /// It was submitted.
    Submitted(Box<JobRecord>),
    /// It was dispatched.
    Claimed {
        /// The job.
        job: JobId,
        /// The new attempt.
        attempt: Attempt,
        /// Where, and why there.
        placed: PlacedOn,
        /// When.
        at: UnixMillis,
    },
    /// It ended.
    Finished {
        /// The job.
        job: JobId,
        /// The attempt that reports.
        attempt: Attempt,
        /// How.
        ending: Box<Ending>,
    },
}

/// What must survive a restart: the hives and the jobs.
///
/// Each method is one atomic step. Time is an argument; cursors are opaque; transitions are
/// compare-and-set (see [`JobRecord::claim`] and [`JobRecord::finish`]), so that a late or a
/// repeated one changes nothing. [`testing::conformance`] shows what every store must do.
///
/// Dropping the future of a writing method leaves open whether the step happens; it never happens
/// by half.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// Writes a hive, in place of an older one of that name.
    async fn put_hive(&self, hive: HiveRecord) -> Result<()>;

    /// Forgets a hive; says whether there was one.
    async fn remove_hive(&self, id: &HiveId) -> Result<bool>;

    /// All hives, by name.
    async fn hives(&self) -> Result<Vec<HiveRecord>>;

    /// Waits until there is room for more changes: back-pressure for submitters.
    async fn ready(&self) -> Result<()>;

    /// Notes a change of an interactive job and returns at once. Changes are applied in the order
    /// of these calls; those of one job that still wait may become one write. A change that does
    /// not win its compare-and-set is dropped.
    fn record(&self, change: JobChange);

    /// Waits until everything recorded before is durable.
    async fn flush(&self) -> Result<()>;

    /// One job, with everything recorded before this call.
    async fn job(&self, id: JobId) -> Result<Option<JobRecord>>;

    /// Jobs, newest first, at most `limit`, going on after the cursor of the page before, with
    /// everything recorded before this call.
    ///
    /// # Errors
    /// `INVALID_REQUEST` for a cursor that is none.
    async fn jobs(&self, filter: &JobFilter, limit: usize, after: Option<&str>) -> Result<JobPage>;

    /// Takes over after a crash: every job that has not ended and whose owner is another than
    /// `owner` ends as failed with `INTERRUPTED`. To be called only when that owner is known to be
    /// gone. Returns how many there were.
    async fn recover(&self, owner: Uuid, at: UnixMillis) -> Result<u64>;
}
