//! A store in memory.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use uuid::Uuid;

use super::page::{page, read_cursor};
use super::{JobChange, Store, interrupted};
use crate::domain::{
    Ending, HiveId, HiveRecord, JobFilter, JobId, JobPage, JobRecord, Outcome, UnixMillis,
};
use crate::error::Result;

/// Keeps everything in memory, for tests and for services that need nothing after a restart.
///
/// It is bounded: of the jobs that have ended it keeps the [`MemoryStore::ENDED_JOBS`] (or as many
/// as [`MemoryStore::with_ended_jobs`] says) that ended last.
#[derive(Debug)]
pub struct MemoryStore {
    tables: Mutex<Tables>,
}

#[derive(Debug, Default)]
struct Tables {
    hives: BTreeMap<HiveId, HiveRecord>,
    jobs: BTreeMap<JobId, JobRecord>,
    /// Ended jobs, the first to end in front.
    ended: VecDeque<JobId>,
    ended_max: usize,
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
        let tables = Tables {
            ended_max,
            ..Tables::default()
        };
        MemoryStore {
            tables: Mutex::new(tables),
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

impl Tables {
    fn apply(&mut self, change: JobChange) {
        match change {
            JobChange::Submitted(record) => self.submit(*record),
            JobChange::Claimed {
                job,
                attempt,
                placed,
                at,
            } => {
                if let Some(record) = self.jobs.get_mut(&job) {
                    record.claim(attempt, placed, at);
                }
            }
            JobChange::Finished {
                job,
                attempt,
                ending,
            } => {
                let record = self.jobs.get_mut(&job);
                if record.is_some_and(|record| record.finish(attempt, *ending)) {
                    self.note_ended(job);
                }
            }
        }
    }

    fn submit(&mut self, record: JobRecord) {
        let (id, ended) = (record.id, record.state.is_ended());
        if self.jobs.contains_key(&id) {
            tracing::error!(job = %id, "a job was submitted twice; the second one is dropped");
            return;
        }
        self.jobs.insert(id, record);
        if ended {
            self.note_ended(id);
        }
    }

    fn note_ended(&mut self, job: JobId) {
        self.ended.push_back(job);
        while self.ended.len() > self.ended_max {
            if let Some(first) = self.ended.pop_front() {
                self.jobs.remove(&first);
            }
        }
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

    async fn ready(&self) -> Result<()> {
        Ok(())
    }

    fn record(&self, change: JobChange) {
        self.tables().apply(change);
    }

    async fn flush(&self) -> Result<()> {
        Ok(())
    }

    async fn job(&self, id: JobId) -> Result<Option<JobRecord>> {
        Ok(self.tables().jobs.get(&id).cloned())
    }

    async fn jobs(&self, filter: &JobFilter, limit: usize, after: Option<&str>) -> Result<JobPage> {
        let before = read_cursor(after)?.unwrap_or(JobId(Uuid::max()));
        let tables = self.tables();
        let newest_first = tables.jobs.range(..before).rev().map(|(_, job)| job);
        let matching = newest_first.filter(|job| matches(filter, job));
        let jobs = matching.take(limit.saturating_add(1)).cloned().collect();
        Ok(page(jobs, limit))
    }

    async fn recover(&self, owner: Uuid, at: UnixMillis) -> Result<u64> {
        let mut tables = self.tables();
        let open = tables.jobs.values().filter(|job| !job.state.is_ended());
        let orphans = open.filter(|job| job.owner != owner);
        let orphans: Vec<_> = orphans.map(|job| (job.id, job.attempt)).collect();
        let count = orphans.len() as u64;
        for (job, attempt) in orphans {
            let ending = Box::new(Ending::new(Outcome::Failed(interrupted()), at));
            tables.apply(JobChange::Finished {
                job,
                attempt,
                ending,
            });
        }
        Ok(count)
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
            store.record(JobChange::Submitted(Box::new(job.clone())));
        }
        for ended in [3, 1, 2] {
            store.record(testing::cancelled(jobs[ended].id, 0));
        }
        let page = store.jobs(&JobFilter::default(), 10, None).await.unwrap();
        let kept: Vec<JobId> = page.jobs.iter().map(|job| job.id).collect();
        assert_eq!(kept, [jobs[2].id, jobs[1].id, jobs[0].id]);
    }
}
