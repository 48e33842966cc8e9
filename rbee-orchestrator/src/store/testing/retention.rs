//! Checks of the purge of what is old.

use std::time::Duration;

use uuid::Uuid;

use super::jobs::find;
use super::samples::{answer, queued_job, request_of, submission};
use super::submissions::{keyed, submit};
use super::usage::all_usage;
use crate::domain::{Ending, JobFilter, JobId, JobRecord, UnixMillis};
use crate::store::{Store, Submission, Submitted};

/// When the old jobs of these checks were submitted.
const LONG_AGO: UnixMillis = UnixMillis(1_600_000_000_000);

const HOUR: Duration = Duration::from_secs(60 * 60);

/// A job whose id and times say that it was submitted then.
fn submitted_at(at: UnixMillis, job: JobRecord) -> JobRecord {
    JobRecord {
        id: JobId(Uuid::from_u128(
            JobId::bound(at).0.as_u128() | Uuid::new_v4().as_u128() >> 48,
        )),
        submitted_at: at,
        ..job
    }
}

/// Submits a job long ago, and ends it then.
async fn old<S: Store>(store: &S, ended_at: UnixMillis, job: JobRecord) -> JobRecord {
    let mut job = submitted_at(LONG_AGO, job);
    submit(store, submission(job.clone())).await;
    let ending = Ending {
        at: ended_at,
        ..answer("an answer")
    };
    let won = store.finish(job.id, 0, ending.clone()).await;
    assert!(won.expect("an ending is written"));
    job.finish(0, ending);
    job
}

async fn purge<S: Store>(store: &S, ended_before: UnixMillis, limit: usize) -> u64 {
    let purged = store.purge(ended_before, ended_before, limit).await;
    purged.expect("old things are purged")
}

async fn kept<S: Store>(store: &S) -> Vec<JobId> {
    let page = store.jobs(&JobFilter::default(), 1_000, None).await;
    let jobs = page.expect("jobs are listed").jobs;
    jobs.iter().map(|job| job.id).collect()
}

pub(super) async fn jobs_that_ended_before_are_purged_with_their_requests<S: Store>(store: &S) {
    let bound = LONG_AGO + HOUR;
    let gone = old(store, UnixMillis(bound.0 - 1), queued_job()).await;
    let later = old(store, bound, queued_job()).await;
    let open = submitted_at(LONG_AGO, queued_job());
    submit(store, submission(open.clone())).await;
    let new = queued_job();
    submit(store, submission(new.clone())).await;
    let usage = all_usage(store).await;

    assert_eq!(purge(store, bound, 100).await, 1);
    let found = store.job(gone.id).await.expect("a job is looked for");
    assert_eq!(found, None);
    let request = store.request(gone.id).await;
    assert_eq!(request.expect("a request is looked for"), None);
    for job in [later, open, new] {
        assert_eq!(find(store, job.id).await, job);
        let request = store.request(job.id).await;
        assert_eq!(request.expect("a request is read"), Some(request_of(&job)));
    }
    assert_eq!(purge(store, bound, 100).await, 0, "there is nothing more");
    assert_eq!(all_usage(store).await, usage, "what was used stays");
    let late = store.finish(gone.id, 0, answer("late")).await;
    assert!(!late.expect("an ending is refused"));
}

pub(super) async fn a_purge_takes_no_more_than_its_limit<S: Store>(store: &S) {
    for _ in 0..5 {
        old(store, LONG_AGO, queued_job()).await;
    }
    let new = queued_job();
    submit(store, submission(new.clone())).await;
    let now = LONG_AGO + HOUR;
    for (purged, left) in [(2, 4), (2, 2), (1, 1), (0, 1)] {
        assert_eq!(purge(store, now, 2).await, purged);
        assert_eq!(kept(store).await.len(), left);
    }
    assert_eq!(kept(store).await, [new.id]);
}

pub(super) async fn a_job_stays_while_its_key_finds_it<S: Store>(store: &S) {
    let first = old(store, LONG_AGO, keyed("a key", 1)).await;
    let expires_at = submission(first.clone()).key_expires_at;
    let before = UnixMillis(expires_at.0 - 1);
    assert_eq!(purge(store, before, 100).await, 0);
    let mut again = keyed("a key", 1);
    again.submitted_at = before;
    let answer = submit(store, submission(again)).await;
    assert_eq!(answer, Submitted::Repeated(Box::new(first.clone())));

    let purged = purge(store, expires_at, 100).await;
    assert_eq!(purged, 2, "the job and its key");
    assert_eq!(kept(store).await, []);
    let mut again = keyed("a key", 1);
    again.submitted_at = before;
    let answer = submit(store, submission(again)).await;
    assert_eq!(answer, Submitted::New, "of the first one nothing is left");
}

pub(super) async fn a_key_that_another_job_has_taken_keeps_no_job<S: Store>(store: &S) {
    old(store, LONG_AGO, keyed("a key", 1)).await;
    let second = keyed("a key", 2);
    let far = second.submitted_at + HOUR;
    let answer = submit(
        store,
        Submission {
            key_expires_at: far,
            ..submission(second.clone())
        },
    );
    assert_eq!(answer.await, Submitted::New, "the first key has expired");
    assert_eq!(purge(store, second.submitted_at, 100).await, 1);
    assert_eq!(kept(store).await, [second.id]);
    let found = store
        .submission(&second.tenant, "a key", second.submitted_at)
        .await;
    assert_eq!(found.expect("a key is looked for"), Some(second));
}
