//! Checks of what is counted of jobs that end.

use std::collections::BTreeMap;

use uuid::Uuid;

use super::jobs::settle;
use super::samples::{
    answer, asynchronous_job, cancelled, claimed, ended_job, finished, model, queued_job,
    request_of, requeued, submission, submitted, tenant,
};
use crate::domain::{
    Ending, JobFilter, JobId, JobRecord, ModelRef, Outcome, TenantId, Times, UnixMillis, Usage,
    UsageFilter, UsageRow,
};
use crate::store::{JobChange, Store};

const DAY_MS: i64 = 24 * 60 * 60 * 1000;

pub(super) async fn usage<S: Store>(store: &S, filter: &UsageFilter) -> Vec<UsageRow> {
    store.usage(filter).await.expect("usage is read")
}

pub(super) async fn all_usage<S: Store>(store: &S) -> Vec<UsageRow> {
    usage(store, &UsageFilter::default()).await
}

/// What the jobs add up to that the store has.
async fn sum_over_jobs<S: Store>(store: &S) -> Vec<UsageRow> {
    let page = store.jobs(&JobFilter::default(), usize::MAX, None).await;
    let jobs = page.expect("jobs are listed").jobs;
    let mut sums: BTreeMap<(i64, TenantId, ModelRef), UsageRow> = BTreeMap::new();
    for job in jobs.iter().filter(|job| job.state.is_ended()) {
        let day = job.ended_at.expect("an ended job has an end").day();
        let key = (day, job.tenant.clone(), job.model.clone());
        let sum = sums.entry(key).or_insert_with(|| row_of(job, day));
        let usage = job.usage.unwrap_or_default();
        sum.jobs += 1;
        sum.tokens_in += usage.tokens_in;
        sum.tokens_out += usage.tokens_out;
        sum.inference_ms += job.times.inference_ms;
        sum.slot_ms += job.times.slot_ms;
    }
    sums.into_values().collect()
}

fn row_of(job: &JobRecord, day: i64) -> UsageRow {
    UsageRow {
        day,
        tenant: job.tenant.clone(),
        model: job.model.clone(),
        jobs: 0,
        tokens_in: 0,
        tokens_out: 0,
        inference_ms: 0,
        slot_ms: 0,
    }
}

pub(super) async fn a_job_counts_once_when_it_ends<S: Store>(store: &S) {
    let job = queued_job();
    store.record(submitted(&job));
    store.record(claimed(job.id, 1));
    assert_eq!(all_usage(store).await, [], "an open job counts nothing");
    store.record(finished(job.id, 1, "an answer"));
    store.record(finished(job.id, 1, "late"));
    let late = store.finish(job.id, 1, answer("late")).await;
    assert!(!late.expect("an ending is refused"));
    let day = 19_675;
    let expected = UsageRow {
        jobs: 1,
        tokens_in: 5,
        tokens_out: 7,
        inference_ms: 11,
        slot_ms: 13,
        ..row_of(&job, day)
    };
    assert_eq!(all_usage(store).await, [expected]);
}

pub(super) async fn every_way_to_end_counts<S: Store>(store: &S) {
    let awaited = asynchronous_job();
    let submitting = store.submit(submission(awaited.clone())).await;
    submitting.expect("a job is submitted");
    let won = store.finish(awaited.id, 0, answer("an answer")).await;
    assert!(won.expect("an ending is written"));

    let never_ran = queued_job();
    store.record(submitted(&never_ran));
    settle(store).await;
    store.record(cancelled(never_ran.id, 0));

    let merged = queued_job();
    store.record(submitted(&merged));
    store.record(cancelled(merged.id, 0));

    let mut already_over = ended_job();
    already_over.usage = None;
    store.record(submitted(&already_over));

    let expected = sum_over_jobs(store).await;
    assert_eq!(expected.iter().map(|row| row.jobs).sum::<u64>(), 4);
    assert_eq!(all_usage(store).await, expected);
}

pub(super) async fn usage_is_listed_by_day_tenant_and_model<S: Store>(store: &S) {
    let models = ["hf:b/b", "file:z", "hf:a/a"].map(model);
    let mut expected = Vec::new();
    for day in [3, -1, 2] {
        for tenant in ["b", "a", "default"].map(tenant) {
            for model in models.clone() {
                let mut job = queued_job();
                (job.tenant, job.model) = (tenant.clone(), model);
                store.record(submitted(&job));
                let at = UnixMillis(day * DAY_MS + DAY_MS - 1);
                let won = store.finish(job.id, 0, Ending::new(Outcome::Complete, at));
                assert!(won.await.expect("an ending is written"));
                let jobs = 1;
                expected.push(UsageRow {
                    jobs,
                    ..row_of(&job, day)
                });
            }
        }
    }
    expected.sort_by(|a, b| (a.day, &a.tenant, &a.model).cmp(&(b.day, &b.tenant, &b.model)));
    assert_eq!(all_usage(store).await, expected);
    for with_tenant in [false, true] {
        for with_model in [false, true] {
            for since_day in [None, Some(-1), Some(0), Some(3), Some(4)] {
                let filter = UsageFilter {
                    tenant: with_tenant.then(|| tenant("a")),
                    model: with_model.then(|| models[1].clone()),
                    since_day,
                };
                let matches = |row: &&UsageRow| {
                    (!with_tenant || row.tenant == tenant("a"))
                        && (!with_model || row.model == models[1])
                        && since_day.is_none_or(|day| row.day >= day)
                };
                let expected: Vec<UsageRow> = expected.iter().filter(matches).cloned().collect();
                assert_eq!(usage(store, &filter).await, expected, "{filter:?}");
            }
        }
    }
}

/// A worker may report what it likes: it must not stop the store from writing.
pub(super) async fn a_sum_stays_at_the_largest<S: Store>(store: &S) {
    const LARGEST: u64 = u64::MAX / 2;
    for turn in 1..=3 {
        // In one step with another, and in a step of their own.
        for awaited in [false, true] {
            let job = queued_job();
            store.record(submitted(&job));
            let mut ending = answer("an answer");
            ending.usage = Some(Usage {
                tokens_in: LARGEST - 1,
                tokens_out: u64::MAX,
                estimated: false,
            });
            ending.times = Times {
                inference_ms: u64::MAX / 3,
                slot_ms: turn,
            };
            if awaited {
                let won = store.finish(job.id, 0, ending).await;
                assert!(won.expect("an ending is written"));
            } else {
                let (job, attempt, ending) = (job.id, 0, Box::new(ending));
                store.record(JobChange::Finished {
                    job,
                    attempt,
                    ending,
                });
            }
        }
    }
    let rows = all_usage(store).await;
    let [row] = &rows[..] else {
        panic!("all jobs have one day, tenant and model: {rows:?}");
    };
    assert_eq!((row.jobs, row.slot_ms), (6, 12));
    assert_eq!(row.tokens_in, LARGEST);
    assert_eq!(row.tokens_out, LARGEST);
    assert_eq!(row.inference_ms, LARGEST);
}

/// Numbers that look random and are the same in every run (SplitMix64).
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % sides
    }

    fn job(&mut self) -> JobRecord {
        let names = ["a", "b", "default"];
        JobRecord {
            tenant: tenant(names[self.roll(3) as usize]),
            model: model(["file:a", "file:b"][self.roll(2) as usize]),
            asynchronous: self.roll(2) == 0,
            owner: Uuid::from_u128(u128::from(self.roll(3))),
            ..queued_job()
        }
    }

    fn ending(&mut self) -> Ending {
        let outcome = match self.roll(3) {
            0 => Outcome::Complete,
            1 => Outcome::Failed(crate::Error::internal("it failed")),
            _ => Outcome::Cancelled(crate::Error::internal("nobody waits")),
        };
        let ran = self.roll(4) > 0;
        Ending {
            usage: ran.then(|| Usage {
                tokens_in: self.roll(1000),
                tokens_out: self.roll(1000),
                estimated: self.roll(2) == 0,
            }),
            times: Times {
                inference_ms: self.roll(1000),
                slot_ms: self.roll(1000),
            },
            ..Ending::new(outcome, UnixMillis(self.roll(3) as i64 * DAY_MS))
        }
    }
}

pub(super) async fn usage_is_the_sum_over_the_jobs_that_ended<S: Store>(store: &S) {
    let mut dice = Dice(1);
    let mut jobs: Vec<JobId> = Vec::new();
    for step in 0..2_000 {
        if jobs.is_empty() || dice.roll(4) == 0 {
            jobs.push(begin(store, &mut dice).await);
            continue;
        }
        let newest = jobs.len() as u64 - 1;
        let job = jobs[(newest - dice.roll(jobs.len().min(6) as u64)) as usize];
        let attempt = dice.roll(3) as u32;
        match dice.roll(9) {
            0..3 => store.record(claimed(job, attempt)),
            3 => store.record(requeued(job, attempt)),
            4..6 => store.record(JobChange::Finished {
                job,
                attempt,
                ending: Box::new(dice.ending()),
            }),
            6..8 => {
                let finishing = store.finish(job, attempt, dice.ending());
                finishing.await.expect("an ending is written or refused");
            }
            _ => match dice.roll(10) {
                0 => {
                    let owner = Uuid::from_u128(u128::from(dice.roll(3)));
                    let recovering = store.recover(owner, UnixMillis(step));
                    recovering.await.expect("jobs are recovered");
                }
                _ => settle(store).await,
            },
        }
    }
    let expected = sum_over_jobs(store).await;
    assert!(expected.len() > 10, "many things ended: {expected:?}");
    assert_eq!(all_usage(store).await, expected);
}

async fn begin<S: Store>(store: &S, dice: &mut Dice) -> JobId {
    let record = dice.job();
    let job = record.id;
    if dice.roll(2) == 0 {
        let submitting = store.submit(submission(record)).await;
        submitting.expect("a job is submitted");
    } else {
        store.record(JobChange::Submitted {
            request: Some(request_of(&record)),
            record: Box::new(record),
        });
    }
    job
}
