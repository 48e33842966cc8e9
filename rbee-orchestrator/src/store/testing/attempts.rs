//! Checks of attempts that are given up, and of endings that are awaited.

use super::jobs::{find, happens, late_changes, settle, written};
use super::samples::{answer, cancelled, claimed, finished, requeued};
use crate::domain::{Attempt, JobId, JobRecord, JobState};
use crate::store::{JobChange, Store};

async fn finish<S: Store>(store: &S, job: JobId, attempt: Attempt) -> bool {
    let won = store.finish(job, attempt, answer("an answer")).await;
    won.expect("an ending is written")
}

pub(super) async fn a_job_whose_attempt_was_given_up_waits_again<S: Store>(store: &S) {
    let mut job = written(store).await;
    happens(store, claimed(job.id, 1), &mut job);
    settle(store).await;
    happens(store, requeued(job.id, 1), &mut job);
    assert_eq!(job.state, JobState::Queued);
    assert!(job.not_before.is_some());
    assert_eq!(find(store, job.id).await, job, "it waits");
    happens(store, claimed(job.id, 2), &mut job);
    assert_eq!((job.attempt, job.not_before), (2, None));
    assert_eq!(find(store, job.id).await, job, "it runs again");
    let at_once = JobChange::Requeued {
        job: job.id,
        attempt: 2,
        failed: false,
        not_before: None,
    };
    happens(store, at_once, &mut job);
    assert_eq!(find(store, job.id).await, job);
    assert_eq!(job.failures, 1, "the second was no failure");
}

pub(super) async fn only_the_running_attempt_is_given_up<S: Store>(store: &S) {
    let mut job = written(store).await;
    for wrong in [0, 1] {
        store.record(requeued(job.id, wrong));
        assert_eq!(find(store, job.id).await, job, "it does not run");
    }
    happens(store, claimed(job.id, 1), &mut job);
    for wrong in [0, 2] {
        store.record(requeued(job.id, wrong));
        assert_eq!(find(store, job.id).await, job, "attempt {wrong}");
    }
    happens(store, cancelled(job.id, 1), &mut job);
    store.record(requeued(job.id, 1));
    assert_eq!(find(store, job.id).await, job, "it has ended");
}

pub(super) async fn what_a_void_attempt_reports_changes_nothing<S: Store>(store: &S) {
    let mut job = written(store).await;
    for change in [claimed(job.id, 1), requeued(job.id, 1), claimed(job.id, 2)] {
        happens(store, change, &mut job);
    }
    for late in [finished(job.id, 1, "late"), requeued(job.id, 1)] {
        store.record(late);
        assert_eq!(find(store, job.id).await, job);
    }
    assert!(!finish(store, job.id, 1).await, "attempt 1 is void");
    assert_eq!(find(store, job.id).await, job);
    assert!(finish(store, job.id, 2).await, "attempt 2 runs");
}

pub(super) async fn an_awaited_ending_says_whether_it_won<S: Store>(store: &S) {
    let mut job = written(store).await;
    assert!(
        !finish(store, JobId::mint(), 0).await,
        "there is no such job"
    );
    happens(store, claimed(job.id, 1), &mut job);
    for wrong in [0, 2] {
        assert!(!finish(store, job.id, wrong).await, "attempt {wrong}");
    }
    assert_eq!(find(store, job.id).await, job);
    assert!(finish(store, job.id, 1).await);
    job.finish(1, answer("an answer"));
    assert!(!finish(store, job.id, 1).await, "a job ends once");
    for late in late_changes(job.id) {
        store.record(late);
    }
    assert_eq!(find(store, job.id).await, job);
}

/// Whatever waits in front of an awaited ending, the job ends the same.
pub(super) async fn an_awaited_ending_comes_after_what_was_recorded<S: Store>(store: &S) {
    let lives: [fn(JobId) -> Vec<JobChange>; 5] = [
        |id| vec![claimed(id, 1)],
        |id| vec![claimed(id, 1), claimed(id, 1)],
        |id| vec![claimed(id, 1), claimed(id, 2)],
        |id| vec![claimed(id, 1), requeued(id, 1)],
        |id| vec![claimed(id, 2), claimed(id, 1), requeued(id, 2)],
    ];
    for life in lives {
        let mut job: JobRecord = written(store).await;
        for change in life(job.id) {
            happens(store, change, &mut job);
        }
        assert!(finish(store, job.id, 1).await, "{:?}", life(job.id));
        store.record(claimed(job.id, 2));
        job.finish(1, answer("an answer"));
        assert_eq!(find(store, job.id).await, job, "{:?}", life(job.id));
    }
}
