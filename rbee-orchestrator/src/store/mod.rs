//! What must survive a restart: [`Store`], with [`SqliteStore`] for daemons and [`MemoryStore`] for
//! tests and for services that keep nothing.
//!
//! ```
//! use rbee_orchestrator::domain::{HiveId, HiveRecord, HiveSpec};
//! use rbee_orchestrator::store::{MemoryStore, Store};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> rbee_orchestrator::Result<()> {
//! let store = MemoryStore::new();
//! let spec = HiveSpec::local(HiveId::localhost());
//! store.put_hive(HiveRecord::new(spec)).await?;
//! assert_eq!(store.hives().await?.len(), 1);
//! # Ok(())
//! # }
//! ```

mod memory;
mod page;
pub mod sqlite;
#[cfg(any(test, feature = "testing"))]
pub mod testing;

use async_trait::async_trait;
use uuid::Uuid;

use crate::domain::{
    Attempt, Ending, HiveId, HiveRecord, JobFilter, JobId, JobPage, JobRecord, PlacedOn, UnixMillis,
};
use crate::error::{Code, Error, Result};

pub use memory::MemoryStore;
pub use sqlite::SqliteStore;

/// One step in a job's life that need not be on disk before the job goes on.
#[derive(Debug, Clone)]
pub enum JobChange {
    /// It was submitted. Its id is new: a second submission of one id is a defect of the caller
    /// and is dropped.
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

impl JobChange {
    /// The job that it is about.
    #[must_use]
    pub fn job(&self) -> JobId {
        match self {
            JobChange::Submitted(record) => record.id,
            JobChange::Claimed { job, .. } | JobChange::Finished { job, .. } => *job,
        }
    }
}

/// What must survive a restart: the hives and the jobs.
///
/// Each method is one atomic step. Time is an argument; cursors are opaque; transitions are
/// compare-and-set (see [`JobRecord::claim`] and [`JobRecord::finish`]), so that a late or a
/// repeated one changes nothing. What every store must do beyond what the types say is written
/// down as code in `testing::conformance` (feature `testing`).
///
/// Dropping the future of a writing method leaves open whether the step happens; it never happens
/// by half. A method fails with `STORE_FAILED`, and a message that says why, when the store can't
/// be read or written.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// Writes a hive, in place of an older one of that name; durable when it returns.
    async fn put_hive(&self, hive: HiveRecord) -> Result<()>;

    /// Forgets a hive; says whether there was one.
    async fn remove_hive(&self, id: &HiveId) -> Result<bool>;

    /// All hives, by name.
    async fn hives(&self) -> Result<Vec<HiveRecord>>;

    /// Waits until there is room for more changes: back-pressure for submitters.
    ///
    /// # Errors
    /// `STORE_FAILED` when there is no room because nothing can be written.
    async fn ready(&self) -> Result<()>;

    /// Notes a change of an interactive job and returns at once. Changes are applied in the order
    /// of these calls; those of one job that still wait may become one write. A change that does
    /// not win its compare-and-set is dropped. It never refuses: [`Store::ready`], asked before a
    /// job is submitted, is what bounds how much can wait.
    fn record(&self, change: JobChange);

    /// Waits until everything recorded before is durable.
    async fn flush(&self) -> Result<()>;

    /// One job, with everything recorded before this call. A store that can't write at the moment
    /// may answer with the job as it was written last.
    async fn job(&self, id: JobId) -> Result<Option<JobRecord>>;

    /// Jobs, newest first, at most `limit`, going on after the cursor of the page before, with
    /// everything recorded before this call. A store that can't write at the moment may answer
    /// with what was written last.
    ///
    /// # Errors
    /// `INVALID_REQUEST` with the parameter `after` for a cursor that is none.
    async fn jobs(&self, filter: &JobFilter, limit: usize, after: Option<&str>) -> Result<JobPage>;

    /// Takes over after a crash: every job that has not ended and whose owner is another than
    /// `owner` ends as failed with `INTERRUPTED`. To be called only when that owner is known to be
    /// gone. Returns how many there were.
    async fn recover(&self, owner: Uuid, at: UnixMillis) -> Result<u64>;

    /// Makes everything durable and lets go of files and locks. Afterwards the store is of no more
    /// use: what is recorded then is lost, and what is asked for may fail.
    ///
    /// # Errors
    /// `STORE_FAILED` when recorded changes could not be written; they are lost.
    async fn close(&self) -> Result<()> {
        self.flush().await
    }
}

/// What an open job ends with when its queen is gone.
fn interrupted() -> Error {
    Error::new(
        Code::Interrupted,
        "the queen went down while this job was open: submit it again",
    )
}
