//! A store in memory.

mod tables;

use std::sync::{Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use uuid::Uuid;

use self::tables::Tables;
use super::page::{Listed, in_short, page, read_cursor};
use super::{JobChange, Recovered, Store, Submission, Submitted};
use crate::domain::{
    Attempt, Ending, HiveId, HiveRecord, JobFilter, JobId, JobPage, JobRecord, Tenant, TenantId,
    UnixMillis, UsageFilter, UsageRow,
};
use crate::error::Result;

/// Keeps everything in memory, for tests and for services that need nothing after a restart.
///
/// It is bounded: of the jobs that have ended it keeps the [`MemoryStore::ENDED_JOBS`] (or as many
/// as [`MemoryStore::with_ended_jobs`] says) that ended last. A key goes with its job.
#[derive(Debug)]
pub struct MemoryStore {
    tables: Mutex<Tables>,
}

impl MemoryStore {
    /// How many ended jobs are kept unless it is said otherwise.
    pub const ENDED_JOBS: usize = 10_000;

    /// An empty store.
    #[must_use]
    pub fn new() -> Self {
        Self::with_ended_jobs(Self::ENDED_JOBS)
    }

    /// An empty store that keeps the last `ended_max` ended jobs.
    #[must_use]
    pub fn with_ended_jobs(ended_max: usize) -> Self {
        MemoryStore {
            tables: Mutex::new(Tables::new(ended_max)),
        }
    }

    fn tables(&self) -> MutexGuard<'_, Tables> {
        // Every step leaves the tables whole, so a panic elsewhere does not spoil them.
        self.tables.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for MemoryStore {
    fn default() -> Self {
        Self::new()
    }
}

#[async_trait]
impl Store for MemoryStore {
    async fn put_hive(&self, hive: HiveRecord) -> Result<()> {
        self.tables().hives.insert(hive.spec.id.clone(), hive);
        Ok(())
    }

    async fn remove_hive(&self, id: &HiveId) -> Result<bool> {
        Ok(self.tables().hives.remove(id).is_some())
    }

    async fn hives(&self) -> Result<Vec<HiveRecord>> {
        Ok(self.tables().hives.values().cloned().collect())
    }

    async fn put_tenant(&self, tenant: Tenant) -> Result<()> {
        self.tables().tenants.insert(tenant.id.clone(), tenant);
        Ok(())
    }

    async fn remove_tenant(&self, id: &TenantId) -> Result<bool> {
        Ok(self.tables().tenants.remove(id).is_some())
    }

    async fn tenants(&self) -> Result<Vec<Tenant>> {
        Ok(self.tables().tenants.values().cloned().collect())
    }

    async fn ready(&self) -> Result<()> {
        Ok(())
    }

    async fn submit(&self, submission: Submission) -> Result<Submitted> {
        Ok(self.tables().submit(submission))
    }

    async fn submission(
        &self,
        tenant: &TenantId,
        key: &str,
        at: UnixMillis,
    ) -> Result<Option<JobRecord>> {
        Ok(self.tables().by_key(tenant, key, at).cloned())
    }

    fn record(&self, change: JobChange) {
        self.tables().apply(change);
    }

    async fn finish(&self, job: JobId, attempt: Attempt, ending: Ending) -> Result<bool> {
        Ok(self.tables().finish(job, attempt, ending))
    }

    async fn flush(&self) -> Result<()> {
        Ok(())
    }

    async fn job(&self, id: JobId) -> Result<Option<JobRecord>> {
        Ok(self.tables().jobs.get(&id).cloned())
    }

    async fn request(&self, id: JobId) -> Result<Option<Vec<u8>>> {
        Ok(self.tables().requests.get(&id).cloned())
    }

    async fn jobs(&self, filter: &JobFilter, limit: usize, after: Option<&str>) -> Result<JobPage> {
        let before = read_cursor(after)?.unwrap_or(JobId(Uuid::max()));
        let tables = self.tables();
        let newest_first = tables.jobs.range(..before).rev().map(|(_, job)| job);
        let matching = newest_first.filter(|job| matches(filter, job));
        let rows = matching.take(limit.saturating_add(1));
        let rows = rows.map(|job| Listed::Job(Box::new(in_short(job))));
        Ok(page(rows.collect(), limit))
    }

    async fn usage(&self, filter: &UsageFilter) -> Result<Vec<UsageRow>> {
        Ok(self.tables().usage(filter))
    }

    async fn recover(&self, owner: Uuid, at: UnixMillis) -> Result<Recovered> {
        Ok(self.tables().recover(owner, at))
    }

    async fn purge(&self, ended_before: UnixMillis, now: UnixMillis, limit: usize) -> Result<u64> {
        Ok(self.tables().purge(ended_before, now, limit))
    }
}

fn matches(filter: &JobFilter, job: &JobRecord) -> bool {
    let JobFilter {
        state,
        model,
        tenant,
    } = filter;
    state.is_none_or(|state| job.state == state)
        && model.as_ref().is_none_or(|model| job.model == *model)
        && tenant.as_ref().is_none_or(|tenant| job.tenant == *tenant)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::testing::{self, conformance};

    #[tokio::test]
    async fn a_memory_store_conforms() {
        conformance(|| async { MemoryStore::new() }).await;
    }

    #[tokio::test]
    async fn the_job_that_ended_first_is_dropped_first_and_open_ones_never() {
        let store = MemoryStore::with_ended_jobs(2);
        let jobs: Vec<JobRecord> = (0..4).map(|_| testing::queued_job()).collect();
        for job in &jobs {
            store.record(testing::submitted(job));
        }
        for ended in [3, 1, 2] {
            store.record(testing::cancelled(jobs[ended].id, 0));
        }
        let page = store.jobs(&JobFilter::default(), 10, None).await.unwrap();
        let kept: Vec<JobId> = page.jobs.iter().map(|job| job.id).collect();
        assert_eq!(kept, [jobs[2].id, jobs[1].id, jobs[0].id]);
    }
}
