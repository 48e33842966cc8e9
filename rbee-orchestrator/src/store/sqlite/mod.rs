//! The store on SQLite.
//!
//! One thread writes: it takes all that waits, commits it in one transaction
//! with `synchronous=FULL`, and answers those who wait. Reads go to a pool of connections beside
//! it and first have the queue written, so that they see what was recorded before. While nothing
//! can be written (a full disk, a lock), recorded changes are kept and tried again, what is awaited
//! fails with the cause, and reads show what is on the disk.

mod failure;
mod handover;
mod hives;
mod jobs;
mod open;
mod queue;
mod reads;
mod schema;
#[cfg(test)]
mod tests;
mod writer;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::task::{JoinError, spawn_blocking};
use uuid::Uuid;

use self::handover::Tuning;
use self::reads::Reads;
use self::writer::Writer;
use super::page::{page, read_cursor};
use super::{JobChange, Store};
use crate::domain::{HiveId, HiveRecord, JobFilter, JobId, JobPage, JobRecord, UnixMillis};
use crate::error::{Error, Result};

/// How long SQLite waits for a lock that another program (a shell, a backup) holds.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// Keeps everything in one SQLite database, which this process alone writes.
///
/// Dropping it writes what waits, which blocks for as long as that takes; [`Store::close`] does
/// the same without blocking and says whether it went well.
pub struct SqliteStore {
    writer: Arc<Writer>,
    reads: Reads,
    path: PathBuf,
}

impl fmt::Debug for SqliteStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("SqliteStore");
        shown.field("path", &self.path).finish_non_exhaustive()
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
        Self::open_with(path.into(), Tuning::default(), BUSY_TIMEOUT).await
    }

    async fn open_with(path: PathBuf, tuning: Tuning, busy_timeout: Duration) -> Result<Self> {
        let opening = spawn_blocking(move || open::open(&path, busy_timeout));
        let opened = opening.await.map_err(|error| broken_off(&error))??;
        let path = opened.path.clone();
        Ok(SqliteStore {
            reads: Reads::new(&path, busy_timeout)?,
            writer: Arc::new(Writer::start(opened, tuning)?),
            path,
        })
    }

    /// Where the database is: absolute, symbolic links resolved.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
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

    async fn ready(&self) -> Result<()> {
        self.writer.ready().await
    }

    fn record(&self, change: JobChange) {
        self.writer.record(change);
    }

    async fn flush(&self) -> Result<()> {
        self.writer.flush().await
    }

    async fn job(&self, id: JobId) -> Result<Option<JobRecord>> {
        let written = self.flush().await;
        match self.reads.read(move |db| jobs::find(db, id)).await? {
            Some(job) => Ok(Some(job)),
            // It may be among what could not be written: better no answer than a wrong one.
            None => written.map(|()| None),
        }
    }

    async fn jobs(&self, filter: &JobFilter, limit: usize, after: Option<&str>) -> Result<JobPage> {
        let before = read_cursor(after)?;
        // Without a disk to write to, what is on it is the best answer there is.
        let _ = self.flush().await;
        let filter = filter.clone();
        let one_more = limit.saturating_add(1);
        let found = move |db: &_| jobs::list(db, &filter, one_more, before);
        Ok(page(self.reads.read(found).await?, limit))
    }

    async fn recover(&self, owner: Uuid, at: UnixMillis) -> Result<u64> {
        self.writer
            .call(move |db| jobs::recover(db, owner, at))
            .await
    }

    async fn close(&self) -> Result<()> {
        self.reads.close();
        let writer = self.writer.clone();
        let closing = spawn_blocking(move || writer.close());
        closing.await.map_err(|error| broken_off(&error))?
    }
}
