//! What the store in memory holds, and how jobs go through it.

use std::collections::{BTreeMap, HashMap, VecDeque};

use uuid::Uuid;

use super::super::steps::{compare, interrupted, take_over};
use super::super::{JobChange, Recovered, Submission, Submitted};
use crate::domain::{
    Attempt, Ending, HiveId, HiveRecord, JobId, JobRecord, ModelRef, Tenant, TenantId, UnixMillis,
    UsageFilter, UsageRow,
};

/// Sums that are kept: of the oldest days those beyond are dropped.
const USAGE_ROWS: usize = 10_000;

/// The largest sum, as in a database whose integers have a sign.
const LARGEST: u64 = i64::MAX.cast_unsigned();

#[derive(Debug, Default)]
pub(super) struct Tables {
    pub(super) hives: BTreeMap<HiveId, HiveRecord>,
    pub(super) tenants: BTreeMap<TenantId, Tenant>,
    pub(super) jobs: BTreeMap<JobId, JobRecord>,
    pub(super) requests: HashMap<JobId, Vec<u8>>,
    keys: HashMap<(TenantId, String), Key>,
    usage: BTreeMap<(i64, TenantId, ModelRef), UsageRow>,
    /// Ended jobs, the first to end in front.
    ended: VecDeque<JobId>,
    ended_max: usize,
}

#[derive(Debug)]
struct Key {
    job: JobId,
    expires_at: UnixMillis,
}

impl Tables {
    pub(super) fn new(ended_max: usize) -> Self {
        Tables {
            ended_max,
            ..Tables::default()
        }
    }

    pub(super) fn apply(&mut self, change: JobChange) {
        match change {
            JobChange::Submitted { record, request } => {
                let id = record.id;
                if self.jobs.contains_key(&id) {
                    tracing::error!(job = %id, "a job was submitted twice; the second one is dropped");
                } else {
                    self.insert(*record, request);
                }
            }
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
            JobChange::Requeued {
                job,
                attempt,
                failed,
                not_before,
            } => {
                if let Some(record) = self.jobs.get_mut(&job) {
                    record.requeue(attempt, failed, not_before);
                }
            }
            JobChange::Finished {
                job,
                attempt,
                ending,
            } => {
                self.finish(job, attempt, *ending);
            }
        }
    }

    pub(super) fn submit(&mut self, submission: Submission) -> Submitted {
        let Submission {
            record,
            request,
            key_expires_at,
        } = submission;
        if let Some(first) = self.first(&record) {
            return compare(&record, first.clone());
        }
        if let Some(key) = &record.idempotency_key {
            let found_by = (record.tenant.clone(), key.clone());
            let key = Key {
                job: record.id,
                expires_at: key_expires_at,
            };
            self.keys.insert(found_by, key);
        }
        self.insert(record, request);
        Submitted::New
    }

    /// The job that makes a submission a repeated one.
    fn first(&self, record: &JobRecord) -> Option<&JobRecord> {
        let key = record.idempotency_key.as_ref();
        let by_key = key.and_then(|key| self.by_key(&record.tenant, key, record.submitted_at));
        by_key.or_else(|| self.jobs.get(&record.id))
    }

    pub(super) fn by_key(
        &self,
        tenant: &TenantId,
        key: &str,
        at: UnixMillis,
    ) -> Option<&JobRecord> {
        let key = self.keys.get(&(tenant.clone(), key.to_owned()))?;
        let job = self.jobs.get(&key.job);
        job.filter(|_| key.expires_at > at)
    }

    fn insert(&mut self, record: JobRecord, request: Option<Vec<u8>>) {
        let (id, ended) = (record.id, record.state.is_ended());
        self.requests.extend(request.map(|request| (id, request)));
        self.jobs.insert(id, record);
        if ended {
            self.note_ended(id);
        }
    }

    pub(super) fn finish(&mut self, job: JobId, attempt: Attempt, ending: Ending) -> bool {
        let record = self.jobs.get_mut(&job);
        let wins = record.is_some_and(|record| record.finish(attempt, ending));
        if wins {
            self.note_ended(job);
        }
        wins
    }

    /// Counts a job that has just ended, and drops the first that ended if there are too many.
    fn note_ended(&mut self, job: JobId) {
        if let Some(record) = self.jobs.get(&job) {
            if record.asynchronous {
                self.requests.remove(&job);
            }
            if let Some(row) = used(record) {
                self.add_usage(&row);
            }
        }
        self.ended.push_back(job);
        while self.ended.len() > self.ended_max {
            if let Some(first) = self.ended.pop_front() {
                self.remove(first);
            }
        }
    }

    fn remove(&mut self, job: JobId) {
        self.requests.remove(&job);
        let record = self.jobs.remove(&job);
        let key = record.and_then(|record| Some((record.tenant, record.idempotency_key?)));
        if let Some(key) = key
            && self.keys.get(&key).is_some_and(|found| found.job == job)
        {
            self.keys.remove(&key);
        }
    }

    fn add_usage(&mut self, row: &UsageRow) {
        let key = (row.day, row.tenant.clone(), row.model.clone());
        let sums = self.usage.entry(key).or_insert_with(|| UsageRow {
            jobs: 0,
            tokens_in: 0,
            tokens_out: 0,
            inference_ms: 0,
            slot_ms: 0,
            ..row.clone()
        });
        for (sum, more) in [
            (&mut sums.jobs, row.jobs),
            (&mut sums.tokens_in, row.tokens_in),
            (&mut sums.tokens_out, row.tokens_out),
            (&mut sums.inference_ms, row.inference_ms),
            (&mut sums.slot_ms, row.slot_ms),
        ] {
            *sum = sum.saturating_add(more).min(LARGEST);
        }
        while self.usage.len() > USAGE_ROWS {
            self.usage.pop_first();
        }
    }

    pub(super) fn usage(&self, filter: &UsageFilter) -> Vec<UsageRow> {
        let UsageFilter {
            tenant,
            model,
            since_day,
        } = filter;
        let matches = |row: &&UsageRow| {
            tenant.as_ref().is_none_or(|tenant| row.tenant == *tenant)
                && model.as_ref().is_none_or(|model| row.model == *model)
                && since_day.is_none_or(|day| row.day >= day)
        };
        self.usage.values().filter(matches).cloned().collect()
    }

    pub(super) fn recover(&mut self, owner: Uuid, at: UnixMillis) -> Recovered {
        let open = self.jobs.values().filter(|job| !job.state.is_ended());
        let orphans = open.filter(|job| job.owner != owner);
        let orphans: Vec<_> = orphans.map(|job| (job.id, job.attempt)).collect();
        let mut recovered = Recovered::default();
        for (job, attempt) in orphans {
            match self.can_go_on(job) {
                Some(request) => {
                    let record = self.jobs.get_mut(&job).map(|record| {
                        take_over(record, owner);
                        record.clone()
                    });
                    recovered.waiting.extend(record.zip(Some(request)));
                }
                None => {
                    self.finish(job, attempt, interrupted(at));
                    recovered.interrupted += 1;
                }
            }
        }
        recovered
    }

    /// The request of a job that another owner may run.
    fn can_go_on(&self, job: JobId) -> Option<Vec<u8>> {
        let record = self.jobs.get(&job)?;
        let request = self.requests.get(&job);
        request.filter(|_| record.asynchronous).cloned()
    }

    pub(super) fn purge(&mut self, ended_before: UnixMillis, now: UnixMillis, limit: usize) -> u64 {
        let expired = self.keys.iter().filter(|(_, key)| key.expires_at <= now);
        let expired: Vec<_> = expired.map(|(key, _)| key.clone()).take(limit).collect();
        for key in &expired {
            self.keys.remove(key);
        }
        let old = self.jobs.range(..JobId::bound(ended_before));
        let old = old.map(|(_, job)| job).filter(|job| {
            job.state.is_ended()
                && job.ended_at.is_some_and(|at| at < ended_before)
                && !self.is_found_by_its_key(job, now)
        });
        let old: Vec<JobId> = old.map(|job| job.id).take(limit).collect();
        for job in &old {
            self.remove(*job);
        }
        self.ended.retain(|job| self.jobs.contains_key(job));
        (expired.len() + old.len()) as u64
    }

    fn is_found_by_its_key(&self, job: &JobRecord, now: UnixMillis) -> bool {
        let key = job.idempotency_key.as_ref();
        let found = key.and_then(|key| self.by_key(&job.tenant, key, now));
        found.is_some_and(|found| found.id == job.id)
    }
}

/// What a job that has ended adds to the sums.
fn used(job: &JobRecord) -> Option<UsageRow> {
    let usage = job.usage.unwrap_or_default();
    Some(UsageRow {
        day: job.ended_at?.day(),
        tenant: job.tenant.clone(),
        model: job.model.clone(),
        jobs: 1,
        tokens_in: usage.tokens_in,
        tokens_out: usage.tokens_out,
        inference_ms: job.times.inference_ms,
        slot_ms: job.times.slot_ms,
    })
}
