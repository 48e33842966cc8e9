//! Tests of what only a store on a disk has.

mod damaged;
mod durability;
mod failing;
mod migrating;
mod opening;
mod same_as_memory;
mod together;

use tempfile::TempDir;

use super::*;
use crate::store::testing::{conformance, queued_job, submitted};

#[tokio::test]
async fn a_sqlite_store_conforms() {
    let folder = tempfile::tempdir().unwrap();
    let count = std::cell::Cell::new(0);
    conformance(|| async {
        count.set(count.get() + 1);
        let path = folder.path().join(format!("{}.db", count.get()));
        SqliteStore::open(path).await.unwrap()
    })
    .await;
}

#[tokio::test]
async fn what_is_looked_for_is_found_by_an_index() {
    let (_folder, store) = new_store(Tuning::default()).await;
    let queued = Some(crate::domain::JobState::Queued);
    let filter = JobFilter {
        state: queued,
        ..JobFilter::default()
    };
    for (sql, expected) in [
        (
            jobs::list_sql(&filter, true),
            "SEARCH jobs USING INDEX jobs_open",
        ),
        (
            jobs::list_sql(&JobFilter::default(), true),
            "SEARCH jobs USING PRIMARY KEY",
        ),
        (
            upkeep::INTERRUPT.to_owned(),
            "SCAN jobs USING INDEX jobs_open",
        ),
    ] {
        let plan = plan(&store, &sql).await;
        assert!(plan.contains(expected), "{plan} for {sql}");
        assert!(!plan.contains("B-TREE"), "nothing is sorted: {plan}");
    }
}

async fn plan(store: &SqliteStore, sql: &str) -> String {
    let explain = format!("EXPLAIN QUERY PLAN {sql}");
    let read = move |db: &rusqlite::Connection| {
        let mut explained = db.prepare(&explain)?;
        let steps = explained.raw_query().mapped(|row| row.get(3));
        steps.collect::<rusqlite::Result<Vec<String>>>()
    };
    store.reads.read(read).await.unwrap().join("; ")
}

/// A store in a folder of its own, which goes with the guard.
async fn new_store(tuning: Tuning) -> (TempDir, SqliteStore) {
    let folder = tempfile::tempdir().unwrap();
    let store = open_quick(&folder, tuning).await;
    (folder, store)
}

/// Opens the folder's store with a short patience for locks.
async fn open_quick(folder: &TempDir, tuning: Tuning) -> SqliteStore {
    let path = folder.path().join("queen.db");
    let busy_timeout = Duration::from_millis(10);
    SqliteStore::open_tuned(path, Synchronous::Full, tuning, busy_timeout)
        .await
        .unwrap()
}

/// What a disk has after a SIGKILL: the files as they are while the store lives.
fn killed(folder: &TempDir) -> TempDir {
    let after = tempfile::tempdir().unwrap();
    for name in ["queen.db", "queen.db-wal"] {
        std::fs::copy(folder.path().join(name), after.path().join(name)).unwrap();
    }
    after
}

/// Submits a job, and does not wait for it.
fn submit(store: &SqliteStore) -> JobRecord {
    let job = queued_job();
    store.record(submitted(&job));
    job
}

/// All jobs with their results, newest first.
async fn whole_jobs(store: &SqliteStore) -> Vec<JobRecord> {
    let mut whole = Vec::new();
    for job in all_jobs(store).await {
        whole.extend(store.job(job.id).await.unwrap());
    }
    whole
}

async fn all_jobs(store: &SqliteStore) -> Vec<JobRecord> {
    let page = store.jobs(&JobFilter::default(), usize::MAX, None).await;
    page.unwrap().jobs
}
