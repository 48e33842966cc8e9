//! Checks of lists of jobs.

use super::samples::{cancelled, claimed, finished, model, queued_job, submitted};
use crate::domain::{
    Ending, JobFilter, JobId, JobPage, JobRecord, JobState, LISTED_ERROR_CHARS, Outcome, TenantId,
    UnixMillis,
};
use crate::error::{Code, Error};
use crate::store::{JobChange, Store};

const ALL: JobFilter = JobFilter {
    state: None,
    model: None,
    tenant: None,
};

async fn list<S: Store>(
    store: &S,
    filter: &JobFilter,
    limit: usize,
    after: Option<&str>,
) -> JobPage {
    let page = store.jobs(filter, limit, after).await;
    page.expect("jobs are listed")
}

fn ids<'a>(jobs: impl IntoIterator<Item = &'a JobRecord>) -> Vec<JobId> {
    jobs.into_iter().map(|job| job.id).collect()
}

fn submit_many<S: Store>(store: &S, count: usize) -> Vec<JobRecord> {
    let jobs: Vec<JobRecord> = (0..count).map(|_| queued_job()).collect();
    for job in &jobs {
        store.record(submitted(job));
    }
    jobs
}

pub(super) async fn jobs_are_listed_newest_first<S: Store>(store: &S) {
    assert_eq!(list(store, &ALL, 10, None).await, JobPage::default());
    let mut jobs: Vec<JobRecord> = (0..5).map(|_| queued_job()).collect();
    for written in [2, 0, 4, 1, 3] {
        store.record(submitted(&jobs[written]));
    }
    jobs.reverse();
    let page = list(store, &ALL, 5, None).await;
    let whole = JobPage {
        jobs,
        ..JobPage::default()
    };
    assert_eq!(page, whole);
}

pub(super) async fn filters_narrow_the_list<S: Store>(store: &S) {
    let (model_b, tenant_b) = (model("file:b.gguf"), TenantId::new("b").ok());
    let mut jobs = submit_many(store, 5);
    store.record(claimed(jobs[1].id, 1));
    store.record(finished(jobs[2].id, 0, "an answer"));
    store.record(cancelled(jobs[3].id, 0));
    for by_state in [
        (JobState::Queued, vec![4, 0]),
        (JobState::Running, vec![1]),
        (JobState::Complete, vec![2]),
        (JobState::Failed, vec![]),
        (JobState::Cancelled, vec![3]),
    ] {
        let (state, expected) = by_state;
        let state = Some(state);
        let filter = JobFilter { state, ..ALL };
        let expected: Vec<JobId> = expected.into_iter().map(|at| jobs[at].id).collect();
        let page = list(store, &filter, 10, None).await;
        assert_eq!(ids(&page.jobs), expected, "{state:?}");
    }

    for (of_b, of_tenant_b) in [(true, false), (false, true), (true, true)] {
        let mut job = queued_job();
        if of_b {
            job.model = model_b.clone();
        }
        if of_tenant_b {
            job.tenant = tenant_b.clone().expect("the name is well-formed");
        }
        store.record(submitted(&job));
        jobs.push(job);
    }
    let b = JobFilter {
        model: Some(model_b),
        ..ALL
    };
    assert_eq!(
        ids(&list(store, &b, 9, None).await.jobs),
        [jobs[7].id, jobs[5].id]
    );
    let b = JobFilter {
        tenant: tenant_b,
        ..ALL
    };
    assert_eq!(
        ids(&list(store, &b, 9, None).await.jobs),
        [jobs[7].id, jobs[6].id]
    );
    let both = JobFilter {
        model: Some(model("file:b.gguf")),
        state: Some(JobState::Queued),
        ..b
    };
    assert_eq!(ids(&list(store, &both, 9, None).await.jobs), [jobs[7].id]);
}

pub(super) async fn pages_follow_each_other<S: Store>(store: &S) {
    let mut jobs = submit_many(store, 7);
    for job in jobs.iter_mut().step_by(2) {
        store.record(cancelled(job.id, 0));
    }
    jobs.reverse();
    let open = JobFilter {
        state: Some(JobState::Queued),
        ..ALL
    };
    let odd: Vec<JobId> = jobs.iter().skip(1).step_by(2).map(|job| job.id).collect();
    for (filter, expected) in [(ALL, ids(&jobs)), (open, odd)] {
        for limit in 1..=8 {
            let mut seen = Vec::new();
            let mut after = None;
            loop {
                let page = list(store, &filter, limit, after.as_deref()).await;
                let left = expected.len() - seen.len();
                assert_eq!(
                    page.jobs.len(),
                    limit.min(left),
                    "no page is short but the last"
                );
                seen.extend(ids(&page.jobs));
                after = page.next;
                if after.is_none() {
                    break;
                }
            }
            assert_eq!(seen, expected, "in pages of {limit}");
        }
    }
}

pub(super) async fn pages_neither_repeat_nor_lose_a_job_while_new_ones_come<S: Store>(store: &S) {
    let mut jobs = submit_many(store, 9);
    jobs.reverse();
    let mut page = list(store, &ALL, 2, None).await;
    let mut seen = ids(&page.jobs);
    while let Some(after) = page.next {
        submit_many(store, 3);
        store.record(cancelled(seen[0], 0));
        page = list(store, &ALL, 2, Some(&after)).await;
        seen.extend(ids(&page.jobs));
    }
    assert_eq!(seen, ids(&jobs));
}

pub(super) async fn a_cursor_that_is_none_is_refused<S: Store>(store: &S) {
    submit_many(store, 3);
    for bad in ["", " ", "1", "no cursor", "%00", "'--", &"f".repeat(500)] {
        let refused = store.jobs(&ALL, 2, Some(bad)).await;
        let error = refused.expect_err("it is no cursor");
        assert_eq!(error.code.as_str(), "INVALID_REQUEST", "{bad:?}");
        assert_eq!(error.param, Some("after"), "{bad:?}");
    }
}

/// Neither results nor long errors: a page of them would be larger than anybody wants to read.
pub(super) async fn lists_have_no_results_and_the_beginnings_of_errors<S: Store>(store: &S) {
    let [complete, failed] = [(); 2].map(|()| queued_job());
    for job in [&complete, &failed] {
        store.record(submitted(job));
        store.record(claimed(job.id, 1));
    }
    store.record(finished(complete.id, 1, "an answer"));
    let error = Error::new(Code::WorkerFailed, "ä".repeat(5000));
    let ending = Ending::new(Outcome::Failed(error), UnixMillis(1_700_000_000_020));
    store.record(JobChange::Finished {
        job: failed.id,
        attempt: 1,
        ending: Box::new(ending),
    });
    let page = list(store, &ALL, 10, None).await;
    assert_eq!(ids(&page.jobs), [failed.id, complete.id]);
    let message = page.jobs[0].error_message.as_deref().unwrap_or_default();
    assert_eq!(message, "ä".repeat(LISTED_ERROR_CHARS));
    assert_eq!(
        (&page.jobs[1].result, &page.jobs[1].thinking),
        (&None, &None)
    );
    let whole = store.job(complete.id).await.expect("a job is read");
    assert_eq!(
        whole.and_then(|job| job.result).as_deref(),
        Some("an answer")
    );
    let whole = store.job(failed.id).await.expect("a job is read");
    let message = whole.and_then(|job| job.error_message);
    assert_eq!(message.map_or(0, |message| message.len()), 10_000);
}
