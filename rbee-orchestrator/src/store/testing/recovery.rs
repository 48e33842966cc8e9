//! Checks of the recovery after a crash.

use uuid::Uuid;

use super::jobs::{find, happens, late_changes};
use super::samples::{cancelled, claimed, queued_job, submitted};
use crate::domain::{JobRecord, JobState, UnixMillis};
use crate::store::{Recovered, Store};

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
    let (gone, here) = (Uuid::from_u128(1), Uuid::from_u128(2));
    let now = UnixMillis(1_800_000_000_000);
    let jobs = [gone, here].map(|owner| one_in_each_state(store, owner));
    let count = store
        .recover(here, now, 5)
        .await
        .expect("jobs are recovered");
    assert_eq!(count.interrupted, 2, "one was queued and one was running");
    for before in jobs.into_iter().flatten() {
        let after = find(store, before.id).await;
        if before.owner == here || before.state.is_ended() {
            assert_eq!(after, before, "it is none of the recovery's business");
            continue;
        }
        assert_eq!(after.state, JobState::Failed);
        assert_eq!(after.error_code.as_deref(), Some("INTERRUPTED"));
        assert!(
            after
                .error_message
                .is_some_and(|message| !message.is_empty())
        );
        assert_eq!(after.ended_at, Some(now));
        assert_eq!(
            (after.attempt, after.placed),
            (before.attempt, before.placed)
        );
    }
    let again = store
        .recover(here, now, 5)
        .await
        .expect("nothing is recovered");
    assert_eq!(again, Recovered::default());
}

pub(super) async fn a_recovered_job_is_over<S: Store>(store: &S) {
    let job = queued_job();
    store.record(submitted(&job));
    store.record(claimed(job.id, 1));
    let other = Uuid::from_u128(2);
    let count = store.recover(other, UnixMillis(0), 5).await;
    assert_eq!(count.expect("jobs are recovered").interrupted, 1);
    let after = find(store, job.id).await;
    for late in late_changes(job.id) {
        store.record(late);
        assert_eq!(find(store, job.id).await, after);
    }
}
