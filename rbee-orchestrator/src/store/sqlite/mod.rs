//! The store on SQLite.
//!
//! One thread writes: it takes all that waits, and what comes while it works, commits it in one
//! transaction with `synchronous=FULL`, and answers those who wait. Reads go to a pool of connections beside
//! it and first have the queue written, so that they see what was recorded before. While nothing
//! can be written (a full disk, a lock), recorded changes are kept and tried again, what is awaited
//! fails with the cause, and reads show what is on the disk.

mod check;
mod codes;
mod failure;
mod handover;
mod hives;
mod inserts;
mod jobs;
mod lock;
mod op;
mod open;
mod options;
mod queue;
mod reads;
mod schema;
mod statements;
mod tenants;
#[cfg(test)]
mod tests;
mod upkeep;
mod usage;
mod writer;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use rusqlite::Connection;
use tokio::task::{JoinError, spawn_blocking};
use uuid::Uuid;

use self::check::Check;
use self::failure::Faults;
use self::handover::Tuning;
use self::reads::Reads;
use self::writer::Writer;
use super::page::{page, read_cursor};
use super::{Condition, JobChange, Recovered, Store, Submission, Submitted};
use crate::domain::{
    Attempt, Ending, HiveId, HiveRecord, JobFilter, JobId, JobPage, JobRecord, Tenant, TenantId,
    UnixMillis, UsageFilter, UsageRow,
};
use crate::error::{Error, Result};

pub use options::{SqliteOptions, Synchronous};

/// How long SQLite waits for a lock that another program (a shell, a backup) holds.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// Keeps everything in one SQLite database, which this process alone writes.
///
/// Dropping it writes what waits, which blocks for as long as that takes; [`Store::close`] does
/// the same without blocking and says whether it went well.
pub struct SqliteStore {
    check: Arc<Check>,
    reads: Reads,
    writer: Arc<Writer>,
    faults: Arc<Faults>,
}

impl fmt::Debug for SqliteStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("SqliteStore");
        shown.field("path", &self.path()).finish_non_exhaustive()
    }
}

impl SqliteStore {
    /// Opens a database, creates it (readable by its owner only) if there is none, and brings its
    /// tables up to date.
    ///
    /// # Errors
    /// `DATABASE_IN_USE` when another store has it open, here or in another process;
    /// `STORE_FAILED` when it can't be written, is no database or of a newer version. The messages
    /// name the path and the cure.
    pub async fn open(path: impl Into<PathBuf>) -> Result<Self> {
        Self::open_with(path, SqliteOptions::default()).await
    }

    /// As [`SqliteStore::open`], with other settings than the defaults.
    ///
    /// # Errors
    /// As [`SqliteStore::open`].
    pub async fn open_with(path: impl Into<PathBuf>, options: SqliteOptions) -> Result<Self> {
        let tuning = Tuning {
            batch_max: options.batch_max.get(),
            ..Tuning::default()
        };
        Self::open_tuned(path.into(), options.synchronous, tuning, BUSY_TIMEOUT).await
    }

    async fn open_tuned(
        path: PathBuf,
        synchronous: Synchronous,
        tuning: Tuning,
        busy_timeout: Duration,
    ) -> Result<Self> {
        let opening = spawn_blocking(move || open::open(&path, synchronous, busy_timeout));
        let opened = opening.await.map_err(|error| broken_off(&error))??;
        let faults = Arc::new(Faults::new(&opened.path));
        Ok(SqliteStore {
            reads: Reads::new(faults.clone(), busy_timeout)?,
            writer: Arc::new(Writer::start(opened, tuning, faults.clone())?),
            check: Arc::new(Check::start(faults.clone())),
            faults,
        })
    }

    /// Where the database is: absolute, symbolic links resolved.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.faults.path()
    }
}

impl SqliteStore {
    /// Looks for something with everything recorded before. It may be among what could not be
    /// written: better no answer than a wrong one.
    async fn look_for<T: Send + 'static>(
        &self,
        step: impl FnOnce(&Connection) -> rusqlite::Result<Option<T>> + Send + 'static,
    ) -> Result<Option<T>> {
        let written = self.writer.flush().await;
        match self.reads.read(step).await? {
            Some(found) => Ok(Some(found)),
            None => written.map(|()| None),
        }
    }

    /// Lists something with everything recorded before. Without a disk to write to, what is on it
    /// is the best answer there is.
    async fn list<T: Send + 'static>(
        &self,
        step: impl FnOnce(&Connection) -> rusqlite::Result<Vec<T>> + Send + 'static,
    ) -> Result<Vec<T>> {
        let _ = self.writer.flush().await;
        self.reads.read_much(step).await
    }
}

fn broken_off(error: &JoinError) -> Error {
    Error::internal(format!("work on the database broke off: {error}"))
}

#[async_trait]
impl Store for SqliteStore {
    async fn put_hive(&self, hive: HiveRecord) -> Result<()> {
        self.writer.call(move |db| hives::put(db, &hive)).await
    }

    async fn remove_hive(&self, id: &HiveId) -> Result<bool> {
        let id = id.clone();
        self.writer.call(move |db| hives::remove(db, &id)).await
    }

    async fn hives(&self) -> Result<Vec<HiveRecord>> {
        self.reads.read(hives::list).await
    }

    async fn put_tenant(&self, tenant: Tenant) -> Result<()> {
        self.writer.call(move |db| tenants::put(db, &tenant)).await
    }

    async fn remove_tenant(&self, id: &TenantId) -> Result<bool> {
        let id = id.clone();
        self.writer.call(move |db| tenants::remove(db, &id)).await
    }

    async fn tenants(&self) -> Result<Vec<Tenant>> {
        self.reads.read(tenants::list).await
    }

    async fn ready(&self) -> Result<()> {
        self.writer.ready().await
    }

    async fn submit(&self, submission: Submission) -> Result<Submitted> {
        self.writer.submit(submission).await
    }

    async fn submission(
        &self,
        tenant: &TenantId,
        key: &str,
        at: UnixMillis,
    ) -> Result<Option<JobRecord>> {
        let (tenant, key) = (tenant.clone(), key.to_owned());
        self.look_for(move |db| statements::by_key(db, &tenant, &key, at))
            .await
    }

    fn record(&self, change: JobChange) {
        self.writer.record(change);
    }

    async fn finish(&self, job: JobId, attempt: Attempt, ending: Ending) -> Result<bool> {
        self.writer.finish(job, attempt, Box::new(ending)).await
    }

    async fn flush(&self) -> Result<()> {
        self.writer.flush().await
    }

    async fn job(&self, id: JobId) -> Result<Option<JobRecord>> {
        self.look_for(move |db| jobs::find(db, id)).await
    }

    async fn request(&self, id: JobId) -> Result<Option<Vec<u8>>> {
        self.look_for(move |db| statements::request(db, id)).await
    }

    async fn jobs(&self, filter: &JobFilter, limit: usize, after: Option<&str>) -> Result<JobPage> {
        let before = read_cursor(after)?;
        let filter = filter.clone();
        let one_more = limit.saturating_add(1);
        let found = self.list(move |db| jobs::list(db, &filter, one_more, before));
        Ok(page(found.await?, limit))
    }

    async fn usage(&self, filter: &UsageFilter) -> Result<Vec<UsageRow>> {
        let filter = filter.clone();
        self.list(move |db| usage::list(db, &filter)).await
    }

    async fn recover(&self, owner: Uuid, at: UnixMillis) -> Result<Recovered> {
        self.writer
            .call(move |db| upkeep::recover(db, owner, at))
            .await
    }

    async fn purge(&self, ended_before: UnixMillis, now: UnixMillis, limit: usize) -> Result<u64> {
        self.writer
            .call(move |db| upkeep::purge(db, ended_before, now, limit))
            .await
    }

    fn condition(&self) -> Condition {
        self.faults.condition()
    }

    async fn close(&self) -> Result<()> {
        self.reads.close();
        let (check, writer) = (self.check.clone(), self.writer.clone());
        let closing = spawn_blocking(move || {
            check.end();
            writer.close()
        });
        closing.await.map_err(|error| broken_off(&error))?
    }
}
