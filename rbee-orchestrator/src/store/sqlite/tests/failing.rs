use rusqlite::Connection;
use tokio::time::{sleep, timeout};

use super::*;
use crate::error::Code;
use crate::store::testing::{asynchronous_job, claimed, complete_hive, finished, submission};

const PATIENCE: Duration = Duration::from_secs(20);

fn impatient() -> Tuning {
    Tuning {
        linger: Duration::from_millis(1),
        queue_max: 3,
        retry_first: Duration::from_millis(5),
        retry_max: Duration::from_millis(20),
        ..Tuning::default()
    }
}

/// Another program that has the database locked until this is dropped.
fn lock(store: &SqliteStore) -> Connection {
    let other = Connection::open(store.path()).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    other
}

/// Waits until a commit has failed.
async fn until_failing(store: &SqliteStore) -> Error {
    let failing = async {
        loop {
            if let Err(error) = store.flush().await {
                return error;
            }
            sleep(Duration::from_millis(1)).await;
        }
    };
    timeout(PATIENCE, failing).await.unwrap()
}

async fn until_written(store: &SqliteStore) {
    let written = async {
        while store.flush().await.is_err() {
            sleep(Duration::from_millis(1)).await;
        }
    };
    timeout(PATIENCE, written).await.unwrap();
}

#[tokio::test]
async fn while_the_database_is_locked_changes_are_kept_and_reads_go_on() {
    let (_folder, store) = new_store(impatient()).await;
    let before = submit(&store);
    store.put_hive(complete_hive("gpu-0")).await.unwrap();

    let other = lock(&store);
    let waiting = submit(&store);
    let error = until_failing(&store).await;
    assert_eq!(error.code, Code::StoreFailed);
    assert!(error.message.contains("locked"), "{error}");
    let refused = store.put_hive(complete_hive("gpu-1")).await.unwrap_err();
    assert_eq!(refused.code, Code::StoreFailed);
    store.record(finished(before.id, 0, "an answer"));

    assert_eq!(store.job(before.id).await.unwrap(), Some(before.clone()));
    let unknown = store.job(waiting.id).await.unwrap_err();
    assert_eq!(
        unknown.code,
        Code::StoreFailed,
        "it does not say that there is none"
    );
    assert_eq!(all_jobs(&store).await, std::slice::from_ref(&before));
    assert_eq!(store.hives().await.unwrap().len(), 1);

    drop(other);
    until_written(&store).await;
    let jobs = whole_jobs(&store).await;
    assert_eq!(jobs[0], waiting);
    assert_eq!(jobs[1].result.as_deref(), Some("an answer"));
    assert_eq!(
        store.hives().await.unwrap().len(),
        1,
        "what was refused stays undone"
    );
}

#[tokio::test]
async fn what_was_refused_never_happens_and_can_be_tried_again() {
    let (_folder, store) = new_store(impatient()).await;
    let job = asynchronous_job();
    store.submit(submission(job.clone())).await.unwrap();
    let ending = || Ending::new(crate::domain::Outcome::Complete, UnixMillis(1));

    let other = lock(&store);
    store.record(claimed(job.id, 1));
    let refused = store.finish(job.id, 1, ending()).await.unwrap_err();
    assert_eq!(refused.code, Code::StoreFailed);
    let later = asynchronous_job();
    let refused = store.submit(submission(later.clone())).await.unwrap_err();
    assert_eq!(refused.code, Code::StoreFailed);
    drop(other);
    until_written(&store).await;

    let jobs = all_jobs(&store).await;
    assert_eq!(jobs.len(), 1, "what was refused is not there");
    assert_eq!(jobs[0].state, crate::domain::JobState::Running);
    assert!(store.request(job.id).await.unwrap().is_some());
    let again = store.submit(submission(later)).await.unwrap();
    assert_eq!(again, Submitted::New);
    assert!(store.finish(job.id, 1, ending()).await.unwrap());
}

#[tokio::test]
async fn a_full_queue_makes_submitters_wait_and_tells_them_why_it_stays_full() {
    let (_folder, store) = new_store(impatient()).await;
    let other = lock(&store);
    for _ in 0..3 {
        timeout(PATIENCE, store.ready()).await.unwrap().unwrap();
        submit(&store);
    }
    let error = timeout(PATIENCE, store.ready()).await.unwrap().unwrap_err();
    assert_eq!(error.code, Code::StoreFailed);

    drop(other);
    let room = async {
        while store.ready().await.is_err() {
            sleep(Duration::from_millis(1)).await;
        }
    };
    timeout(PATIENCE, room).await.unwrap();
    assert_eq!(all_jobs(&store).await.len(), 3);
}

#[tokio::test]
async fn submitters_wait_for_a_slow_disk() {
    let tuning = Tuning {
        linger: Duration::from_millis(300),
        queue_max: 2,
        ..Tuning::default()
    };
    let (_folder, store) = new_store(tuning).await;
    submit(&store);
    submit(&store);
    assert!(!store.writer.is_settled());
    timeout(PATIENCE, store.ready()).await.unwrap().unwrap();
    assert!(store.writer.is_settled(), "room came with the commit");
}

#[tokio::test]
async fn a_full_disk_loses_nothing_that_was_recorded() {
    let tuning = Tuning {
        queue_max: 1_000,
        ..impatient()
    };
    let (_folder, store) = new_store(tuning).await;
    let path = store.path().to_owned();
    let other = Connection::open(&path).unwrap();
    let ballast = "CREATE TABLE ballast (x); INSERT INTO ballast VALUES (zeroblob(4000000))";
    other.execute_batch(ballast).unwrap();
    // The database may not grow any more.
    let limit = |db: &Connection| db.pragma_update_and_check(None, "max_page_count", 1, |_| Ok(()));
    store.writer.call(limit).await.unwrap();

    let mut jobs: Vec<JobRecord> = (0..100).map(|_| submit(&store)).collect();
    for job in &jobs {
        store.record(finished(job.id, 0, &"x".repeat(10_000)));
    }
    let error = until_failing(&store).await;
    assert_eq!(error.code, Code::StoreFailed);
    assert!(error.message.contains("free space"), "{error}");
    assert!(all_jobs(&store).await.len() < jobs.len(), "reads go on");

    other.execute_batch("DROP TABLE ballast").unwrap();
    until_written(&store).await;
    jobs.reverse();
    let ids: Vec<JobId> = jobs.iter().map(|job| job.id).collect();
    let found = whole_jobs(&store).await;
    assert_eq!(found.iter().map(|job| job.id).collect::<Vec<_>>(), ids);
    assert!(found.iter().all(|job| job.result.is_some()));
}

#[tokio::test]
async fn a_store_that_can_not_write_says_at_its_close_what_is_lost() {
    let (folder, store) = new_store(impatient()).await;
    let kept = submit(&store);
    store.flush().await.unwrap();
    let read_only = |db: &Connection| db.pragma_update(None, "query_only", true);
    store.writer.call(read_only).await.unwrap();
    let error = store.put_hive(complete_hive("gpu-0")).await.unwrap_err();
    assert!(error.message.contains("writable"), "{error}");

    submit(&store);
    submit(&store);
    until_failing(&store).await;
    submit(&store);
    let error = store.close().await.unwrap_err();
    assert_eq!(error.code, Code::StoreFailed);
    assert!(
        error.message.contains("3 recorded changes are lost"),
        "{error}"
    );
    drop(store);
    let store = open_quick(&folder, Tuning::default()).await;
    assert_eq!(all_jobs(&store).await, [kept]);
}

#[tokio::test]
async fn a_change_that_can_never_be_written_does_not_hold_up_the_others() {
    let (_folder, store) = new_store(impatient()).await;
    let refuses = "CREATE TEMP TRIGGER refuses BEFORE INSERT ON jobs \
         WHEN new.correlation_id = 'bad' BEGIN SELECT RAISE(ABORT, 'no'); END";
    store
        .writer
        .call(move |db| db.execute_batch(refuses))
        .await
        .unwrap();
    let first = submit(&store);
    let bad = JobRecord {
        correlation_id: "bad".into(),
        ..queued_job()
    };
    store.record(submitted(&bad));
    let last = submit(&store);
    assert_eq!(all_jobs(&store).await, [last, first]);
}

#[tokio::test]
async fn of_a_step_that_can_not_be_written_nothing_is_left() {
    let (_folder, store) = new_store(impatient()).await;
    let refuses = "CREATE TEMP TRIGGER refuses BEFORE INSERT ON requests \
         WHEN new.body = x'62616464' BEGIN SELECT RAISE(ABORT, 'no'); END";
    let refuses = move |db: &Connection| db.execute_batch(refuses);
    store.writer.call(refuses).await.unwrap();
    let first = submit(&store);
    store.record(finished(first.id, 0, "an answer"));
    let bad = Submission {
        request: Some(b"badd".to_vec()),
        ..submission(asynchronous_job())
    };
    let refused = store.submit(bad).await.unwrap_err();
    assert_eq!(refused.code, Code::StoreFailed);
    let last = submit(&store);
    let jobs = all_jobs(&store).await;
    assert_eq!(jobs.len(), 2);
    assert_eq!((&jobs[0], jobs[1].id), (&last, first.id));
    let usage = store.usage(&UsageFilter::default()).await.unwrap();
    assert_eq!(usage[0].jobs, 1, "what was done again is counted once");
}
