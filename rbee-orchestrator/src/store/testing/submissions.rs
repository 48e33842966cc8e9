//! Checks of submissions that are awaited, of their keys and of their requests.

use std::time::Duration;

use super::jobs::{find, happens, together};
use super::samples::{
    answer, asynchronous_job, cancelled, claimed, finished, queued_job, request_of, submission,
    submitted, tenant,
};
use crate::domain::{JobId, JobRecord, RequestHash};
use crate::store::{JobChange, Store, Submission, Submitted};

pub(super) async fn submit<S: Store>(store: &S, submission: Submission) -> Submitted {
    let submitted = store.submit(submission).await;
    submitted.expect("a job is submitted")
}

async fn request<S: Store>(store: &S, job: JobId) -> Option<Vec<u8>> {
    let request = store.request(job).await;
    request.expect("a request is read")
}

pub(super) fn keyed(key: &str, hash: u8) -> JobRecord {
    JobRecord {
        idempotency_key: Some(key.to_owned()),
        request_hash: Some(RequestHash([hash; 32])),
        ..asynchronous_job()
    }
}

fn repeated(first: &JobRecord) -> Submitted {
    Submitted::Repeated(Box::new(first.clone()))
}

async fn is_unknown<S: Store>(store: &S, job: JobId) -> bool {
    let found = store.job(job).await.expect("a job is looked for");
    found.is_none() && request(store, job).await.is_none()
}

pub(super) async fn a_submitted_job_reads_back_with_its_request<S: Store>(store: &S) {
    for job in [asynchronous_job(), queued_job(), keyed("a", 1)] {
        let answer = submit(store, submission(job.clone())).await;
        assert_eq!(answer, Submitted::New);
        assert_eq!(find(store, job.id).await, job);
        assert_eq!(request(store, job.id).await, Some(request_of(&job)));
    }
    let mut without = submission(asynchronous_job());
    without.request = None;
    let job = without.record.id;
    assert_eq!(submit(store, without).await, Submitted::New);
    assert_eq!(request(store, job).await, None);
}

pub(super) async fn a_repeated_key_finds_the_first_job<S: Store>(store: &S) {
    let mut first = keyed("a key", 1);
    assert_eq!(
        submit(store, submission(first.clone())).await,
        Submitted::New
    );
    for step in 0..3 {
        let again = keyed("a key", 1);
        let answer = submit(store, submission(again.clone())).await;
        assert_eq!(answer, repeated(&first), "after {step} steps");
        assert!(is_unknown(store, again.id).await, "nothing was written");
        match step {
            0 => happens(store, claimed(first.id, 1), &mut first),
            _ => happens(store, finished(first.id, 1, "an answer"), &mut first),
        }
    }
}

pub(super) async fn another_request_under_the_same_key_is_told_so<S: Store>(store: &S) {
    let first = keyed("a key", 1);
    submit(store, submission(first.clone())).await;
    let other = keyed("a key", 2);
    let answer = submit(store, submission(other.clone())).await;
    assert_eq!(answer, Submitted::OtherRequest(first.id));
    assert!(is_unknown(store, other.id).await, "nothing was written");
    let answer = submit(store, submission(keyed("another key", 2))).await;
    assert_eq!(answer, Submitted::New);
}

pub(super) async fn each_tenant_has_keys_of_its_own<S: Store>(store: &S) {
    for name in ["a", "b"] {
        let job = JobRecord {
            tenant: tenant(name),
            ..keyed("a key", 1)
        };
        assert_eq!(submit(store, submission(job.clone())).await, Submitted::New);
        let found = store
            .submission(&job.tenant, "a key", job.submitted_at)
            .await;
        assert_eq!(found.expect("a key is looked for"), Some(job));
    }
}

pub(super) async fn an_expired_key_begins_anew<S: Store>(store: &S) {
    const HOUR: Duration = Duration::from_secs(60 * 60);
    let first = keyed("a key", 1);
    let expires_at = first.submitted_at + HOUR;
    let of = |record| Submission {
        key_expires_at: expires_at,
        ..submission(record)
    };
    submit(store, of(first.clone())).await;
    let look_up = async |at| {
        let found = store.submission(&first.tenant, "a key", at).await;
        found.expect("a key is looked for")
    };
    let before = crate::domain::UnixMillis(expires_at.0 - 1);
    assert_eq!(look_up(before).await, Some(first.clone()));
    assert_eq!(look_up(expires_at).await, None, "it has expired");

    let mut again = keyed("a key", 2);
    again.submitted_at = before;
    let answer = submit(store, of(again.clone())).await;
    assert_eq!(answer, Submitted::OtherRequest(first.id));
    again.submitted_at = expires_at;
    let answer = submit(store, submission(again.clone())).await;
    assert_eq!(answer, Submitted::New);
    assert_eq!(look_up(expires_at).await, Some(again), "the key is its own");
    assert_eq!(find(store, first.id).await, first, "the first one goes on");
}

pub(super) async fn a_known_id_is_the_same_job<S: Store>(store: &S) {
    let mut first = asynchronous_job();
    for written in [false, true] {
        match written {
            false => store.record(submitted(&first)),
            true => happens(store, claimed(first.id, 1), &mut first),
        }
        let mut again = keyed("a key", 1);
        (again.id, again.request_hash) = (first.id, None);
        let answer = submit(store, submission(again.clone())).await;
        assert_eq!(answer, repeated(&first));
        again.request_hash = Some(RequestHash([1; 32]));
        let answer = submit(store, submission(again)).await;
        assert_eq!(answer, Submitted::OtherRequest(first.id));
    }
    let answer = submit(store, submission(keyed("a key", 1))).await;
    assert_eq!(answer, Submitted::New, "their key was not noted");
}

pub(super) async fn a_key_that_comes_many_times_at_once_makes_one_job<S: Store>(store: &S) {
    const SUBMITTERS: usize = 32;
    for round in 0..10 {
        let key = format!("key {round}");
        let jobs: Vec<JobRecord> = (0..SUBMITTERS).map(|_| keyed(&key, 1)).collect();
        let submitting = jobs.iter().map(|job| {
            let job = job.clone();
            async {
                let id = job.id;
                (id, submit(store, submission(job)).await)
            }
        });
        let answers = together(submitting).await;
        let new = answers.iter().filter(|(_, a)| *a == Submitted::New);
        let new: Vec<JobId> = new.map(|(id, _)| *id).collect();
        let [first] = new[..] else {
            panic!("{} jobs are new under one key", new.len());
        };
        let first = find(store, first).await;
        for (id, answer) in answers {
            assert!(id == first.id || answer == repeated(&first));
        }
        let listed = store.jobs(&Default::default(), SUBMITTERS, None).await;
        assert_eq!(listed.expect("jobs are listed").jobs.len(), round + 1);
    }
}

/// Every way for a job to end, with its request at hand.
async fn end_in_every_way<S: Store>(store: &S, job: fn() -> JobRecord) -> Vec<JobRecord> {
    let jobs: Vec<JobRecord> = (0..5).map(|_| job()).collect();
    for job in &jobs[..3] {
        submit(store, submission(job.clone())).await;
    }
    let won = store.finish(jobs[0].id, 0, answer("an answer")).await;
    assert!(won.expect("an ending is written"));
    store.record(claimed(jobs[1].id, 1));
    let won = store.finish(jobs[1].id, 1, answer("an answer")).await;
    assert!(won.expect("an ending is written"));
    assert_eq!(request(store, jobs[2].id).await, Some(request_of(&jobs[2])));
    store.record(cancelled(jobs[2].id, 0));
    // Of these, the ending may merge into the submission.
    for job in &jobs[3..] {
        store.record(JobChange::Submitted {
            record: Box::new(job.clone()),
            request: Some(request_of(job)),
        });
        store.record(cancelled(job.id, 0));
    }
    jobs
}

pub(super) async fn the_request_of_an_asynchronous_job_goes_when_it_ends<S: Store>(store: &S) {
    for job in end_in_every_way(store, asynchronous_job).await {
        assert!(find(store, job.id).await.state.is_ended());
        assert_eq!(request(store, job.id).await, None);
    }
}

pub(super) async fn the_request_of_a_connections_job_stays<S: Store>(store: &S) {
    for job in end_in_every_way(store, queued_job).await {
        assert!(find(store, job.id).await.state.is_ended());
        assert_eq!(request(store, job.id).await, Some(request_of(&job)));
    }
}
