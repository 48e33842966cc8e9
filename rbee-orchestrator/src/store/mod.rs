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

mod condition;
mod memory;
mod page;
mod shared;
#[cfg(feature = "sqlite")]
pub mod sqlite;
mod steps;
#[cfg(any(test, feature = "testing"))]
pub mod testing;

use async_trait::async_trait;
use uuid::Uuid;

use crate::domain::{
    Attempt, Ending, HiveId, HiveRecord, JobFilter, JobId, JobPage, JobRecord, Tenant, TenantId,
    UnixMillis, UsageFilter, UsageRow,
};
use crate::error::Result;

pub use condition::Condition;
pub use memory::MemoryStore;
pub use shared::IntoStore;
#[cfg(feature = "sqlite")]
pub use sqlite::SqliteStore;
pub use steps::{JobChange, Recovered, Submission, Submitted};

/// What must survive a restart: the hives, the tenants, the jobs and what they used.
///
/// Each method is one atomic step. Time is an argument; cursors are opaque; transitions are
/// compare-and-set (see [`JobRecord::claim`], [`JobRecord::requeue`] and [`JobRecord::finish`]), so
/// that a late or a repeated one changes nothing. What every store must do beyond what the types
/// say is written down as code in `testing::conformance` (feature `testing`).
///
/// Dropping the future of a writing method leaves open whether the step happens; it never happens
/// by half. A method fails with `STORE_FAILED`, and a message that says why, when the store can't
/// be read or written; nothing of a step that failed happens later.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// Writes a hive, in place of an older one of that name; durable when it returns.
    async fn put_hive(&self, hive: HiveRecord) -> Result<()>;

    /// Forgets a hive; says whether there was one.
    async fn remove_hive(&self, id: &HiveId) -> Result<bool>;

    /// All hives, by name.
    async fn hives(&self) -> Result<Vec<HiveRecord>>;

    /// Writes a tenant, in place of an older one of that name; durable when it returns.
    async fn put_tenant(&self, tenant: Tenant) -> Result<()>;

    /// Forgets a tenant; says whether there was one. What it used stays.
    async fn remove_tenant(&self, id: &TenantId) -> Result<bool>;

    /// All tenants, by name.
    async fn tenants(&self) -> Result<Vec<Tenant>>;

    /// Waits until there is room for more changes: back-pressure for submitters.
    ///
    /// # Errors
    /// `STORE_FAILED` when there is no room because nothing can be written.
    async fn ready(&self) -> Result<()>;

    /// Submits a job, its request and its idempotency key; durable when it returns. It waits for
    /// room by itself.
    ///
    /// A key that the tenant has used, and that has not expired when the job is submitted, finds
    /// the first job instead: the same request repeats it, another is told so, and both write
    /// nothing. So does the id of a job that is known, which makes it safe to try again after an
    /// error. A key whose job is gone counts as expired.
    async fn submit(&self, submission: Submission) -> Result<Submitted>;

    /// The job that has this key of the tenant, unless the key has expired at that time, with
    /// everything recorded before this call.
    async fn submission(
        &self,
        tenant: &TenantId,
        key: &str,
        at: UnixMillis,
    ) -> Result<Option<JobRecord>>;

    /// Notes a change of a job and returns at once. Changes are applied in the order of these
    /// calls and of those of [`Store::submit`] and [`Store::finish`]; those of one job that still
    /// wait may become one write. A change that does not win its compare-and-set is dropped. It
    /// never refuses: [`Store::ready`], asked before a job is submitted, is what bounds how much
    /// can wait.
    fn record(&self, change: JobChange);

    /// Ends a job, durable when it returns; says whether it won its compare-and-set.
    ///
    /// The ending that wins, here or through [`Store::record`], counts the job and what it used to
    /// the day, the tenant and the model, and takes the request of an asynchronous job away, all
    /// in the same step.
    async fn finish(&self, job: JobId, attempt: Attempt, ending: Ending) -> Result<bool>;

    /// Waits until everything recorded before is durable.
    async fn flush(&self) -> Result<()>;

    /// One job, with everything recorded before this call. A store that can't write at the moment
    /// may answer with the job as it was written last.
    async fn job(&self, id: JobId) -> Result<Option<JobRecord>>;

    /// What a job asks for, as it was submitted; `None` if that was not kept or is gone.
    async fn request(&self, id: JobId) -> Result<Option<Vec<u8>>>;

    /// Jobs, newest first, at most `limit`, going on after the cursor of the page before, with
    /// everything recorded before this call. A store that can't write at the moment may answer
    /// with what was written last.
    ///
    /// # Errors
    /// `INVALID_REQUEST` with the parameter `after` for a cursor that is none.
    async fn jobs(&self, filter: &JobFilter, limit: usize, after: Option<&str>) -> Result<JobPage>;

    /// What was used, by day, tenant and model, with everything recorded before this call: the
    /// sums over the jobs that ended, those too that were purged. A sum that is too large for 63
    /// bits stays at the largest. A store that can't write at the moment may answer with what was
    /// written last.
    async fn usage(&self, filter: &UsageFilter) -> Result<Vec<UsageRow>>;

    /// Takes over after a crash what has not ended and whose owner is another than `owner`. To be
    /// called only when that owner is known to be gone.
    ///
    /// Asynchronous jobs wait again, with `owner`: their attempts and failures count on, those that
    /// waited keep the time before which they may not be dispatched. An attempt that was cut off is
    /// no failure. Jobs of a connection, and those whose request is not kept, end as failed with
    /// `INTERRUPTED`, and what the attempt used that was cut off is not counted.
    async fn recover(&self, owner: Uuid, at: UnixMillis) -> Result<Recovered>;

    /// Deletes jobs, with their requests, that were submitted and ended before `ended_before`, and
    /// keys that have expired; at most `limit` of each. Returns how many jobs and keys; as long as
    /// that is not 0, there may be more. A job stays while its key finds it. Usage stays.
    async fn purge(&self, ended_before: UnixMillis, now: UnixMillis, limit: usize) -> Result<u64>;

    /// How the store does, as far as it is known: for people to look at. Does not block.
    fn condition(&self) -> Condition {
        Condition::Sound
    }

    /// Makes everything durable and lets go of files and locks. Afterwards the store is of no more
    /// use: what is recorded then is lost, and what is asked for may fail.
    ///
    /// # Errors
    /// `STORE_FAILED` when recorded changes could not be written; they are lost.
    async fn close(&self) -> Result<()> {
        self.flush().await
    }
}
