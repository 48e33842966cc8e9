//! Checks of the recovery after a crash.

use uuid::Uuid;

use super::jobs::{find, happens, late_changes};
use super::samples::{
    answer, asynchronous_job, cancelled, claimed, queued_job, request_of, requeued, submission,
    submitted,
};
use super::submissions::submit;
use crate::domain::{Attempt, JobRecord, JobState, UnixMillis};
use crate::store::{Recovered, Store};

const NOW: UnixMillis = UnixMillis(1_800_000_000_000);
const GONE: Uuid = Uuid::from_u128(1);
const HERE: Uuid = Uuid::from_u128(2);

async fn recover<S: Store>(store: &S) -> Recovered {
    let recovered = store.recover(HERE, NOW).await;
    recovered.expect("jobs are recovered")
}

async fn is_interrupted<S: Store>(store: &S, before: &JobRecord) {
    let after = find(store, before.id).await;
    assert_eq!(after.state, JobState::Failed);
    assert_eq!(after.error_code.as_deref(), Some("INTERRUPTED"));
    let message = after.error_message.as_deref();
    assert!(message.is_some_and(|message| !message.is_empty()));
    assert_eq!(after.ended_at, Some(NOW));
    assert_eq!((after.usage, after.times), (None, Default::default()));
    assert_eq!(
        (after.attempt, &after.placed),
        (before.attempt, &before.placed)
    );
}

/// A queued, a running and an ended job.
fn one_in_each_state<S: Store>(store: &S, owner: Uuid) -> [JobRecord; 3] {
    let [queued, mut running, mut ended] = [(); 3].map(|()| {
        let mut job = queued_job();
        job.owner = owner;
        store.record(submitted(&job));
        job
    });
    happens(store, claimed(running.id, 1), &mut running);
    happens(store, cancelled(ended.id, 0), &mut ended);
    [queued, running, ended]
}

pub(super) async fn recovery_ends_only_open_jobs_of_other_owners<S: Store>(store: &S) {
    let jobs = [GONE, HERE].map(|owner| one_in_each_state(store, owner));
    let recovered = recover(store).await;
    assert_eq!(
        recovered.interrupted, 2,
        "one was queued and one was running"
    );
    assert_eq!(recovered.waiting, []);
    for before in jobs.into_iter().flatten() {
        if before.owner == HERE || before.state.is_ended() {
            let after = find(store, before.id).await;
            assert_eq!(after, before, "it is none of the recovery's business");
        } else {
            is_interrupted(store, &before).await;
        }
    }
    assert_eq!(recover(store).await, Recovered::default());
}

pub(super) async fn a_recovered_job_is_over<S: Store>(store: &S) {
    let job = queued_job();
    store.record(submitted(&job));
    store.record(claimed(job.id, 1));
    assert_eq!(recover(store).await.interrupted, 1);
    let after = find(store, job.id).await;
    for late in late_changes(job.id) {
        store.record(late);
        assert_eq!(find(store, job.id).await, after);
    }
}

/// An asynchronous job that was dispatched so often, and waits again if the last was given up.
async fn tried<S: Store>(store: &S, attempts: Attempt, waits: bool) -> JobRecord {
    let mut job = asynchronous_job();
    submit(store, submission(job.clone())).await;
    for attempt in 1..=attempts {
        happens(store, claimed(job.id, attempt), &mut job);
        if waits || attempt < attempts {
            happens(store, requeued(job.id, attempt), &mut job);
        }
    }
    job
}

pub(super) async fn asynchronous_jobs_wait_again_in_their_order<S: Store>(store: &S) {
    let mut expected = Vec::new();
    for (attempts, waits) in [(0, true), (1, false), (2, true), (9, false), (3, true)] {
        let mut job = tried(store, attempts, waits).await;
        (job.state, job.owner) = (JobState::Queued, HERE);
        let request = request_of(&job);
        expected.push((job, request));
    }
    // The newest is written first: the order is that of submission.
    let [older, newer] = [(); 2].map(|()| asynchronous_job());
    for job in [newer, older.clone()] {
        submit(store, submission(job)).await;
    }
    let recovered = recover(store).await;
    assert_eq!(recovered.interrupted, 0);
    assert_eq!(recovered.waiting[..5], expected);
    assert_eq!(recovered.waiting[5].0.id, older.id);
    assert_eq!(recovered.waiting.len(), 7);
    for (job, request) in &recovered.waiting {
        assert_eq!(find(store, job.id).await, *job);
        let kept = store.request(job.id).await;
        assert_eq!(kept.expect("a request is read").as_ref(), Some(request));
    }
    assert_eq!(recover(store).await, Recovered::default());
}

pub(super) async fn a_job_that_waits_again_is_fenced_and_ends_once<S: Store>(store: &S) {
    let mut job = tried(store, 1, false).await;
    assert_eq!(recover(store).await.waiting.len(), 1);
    (job.state, job.owner) = (JobState::Queued, HERE);
    happens(store, claimed(job.id, 2), &mut job);
    let late = store.finish(job.id, 1, answer("late")).await;
    assert!(!late.expect("an ending is refused"), "attempt 1 is void");
    assert_eq!(find(store, job.id).await, job);
    let won = store.finish(job.id, 2, answer("an answer")).await;
    assert!(won.expect("an ending is written"));
}

pub(super) async fn what_can_not_go_on_is_interrupted<S: Store>(store: &S) {
    let no_request = asynchronous_job();
    store.record(submitted(&no_request));
    let of_a_connection = queued_job();
    submit(store, submission(of_a_connection.clone())).await;
    let recovered = recover(store).await;
    assert_eq!(recovered.interrupted, 2);
    assert_eq!(recovered.waiting, []);
    for (job, keeps_request) in [(no_request, false), (of_a_connection, true)] {
        is_interrupted(store, &job).await;
        let request = store.request(job.id).await;
        let request = request.expect("a request is read");
        assert_eq!(request, keeps_request.then(|| request_of(&job)));
    }
    let usage = super::usage::all_usage(store).await;
    let [row] = &usage[..] else {
        panic!("all jobs have one day, tenant and model: {usage:?}");
    };
    assert_eq!((row.jobs, row.tokens_out, row.slot_ms), (2, 0, 0));
    assert_eq!(row.day, NOW.day());
}
