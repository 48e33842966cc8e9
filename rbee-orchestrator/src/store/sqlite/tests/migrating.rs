use rusqlite::{Connection, params};

use super::*;
use crate::domain::{JobState, Times};
use crate::store::sqlite::schema::{DURABLE_QUEUE, MIGRATIONS};

/// A database of the first version, with a job that ended and one that runs.
fn first_version(folder: &TempDir) -> (PathBuf, Connection) {
    let path = folder.path().join("queen.db");
    let mut db = Connection::open(&path).unwrap();
    db.pragma_update(None, "journal_mode", "WAL").unwrap();
    MIGRATIONS.to_version(&mut db, 1).unwrap();
    for (id, state, ended_at) in [(1_u128, 2, Some(20)), (2, 1, None)] {
        let job = "INSERT INTO jobs (id, kind, priority, state, attempt, owner, model, tenant, \
             submitted_at, started_at, ended_at, tokens_in, tokens_out, tokens_estimated, \
             correlation_id, result) \
             VALUES (?, 1, 0, ?, 1, ?, 'file:a', 't', 10, 11, ?, 5, 7, 0, 'c', 'text')";
        let (id, owner) = (Uuid::from_u128(id), Uuid::from_u128(9));
        db.execute(
            job,
            params![id.as_bytes(), state, owner.as_bytes(), ended_at],
        )
        .unwrap();
    }
    let hive = "INSERT INTO hives (node_name, ssh_host, backends, devices, mode, hostname, labels) \
         VALUES (?, ?, '[]', '{}', 'network', 'h', '{}')";
    for (name, ssh) in [("far", Some("h")), ("others", None)] {
        db.execute(hive, params![name, ssh]).unwrap();
    }
    (path, db)
}

fn version(db: &Connection) -> i64 {
    let version = db.pragma_query_value(None, "user_version", |row| row.get(0));
    version.unwrap()
}

async fn is_brought_up_to_date(path: PathBuf) {
    let store = SqliteStore::open(path).await.unwrap();
    for hive in store.hives().await.unwrap() {
        let over_ssh = hive.spec.ssh.is_some();
        assert_eq!((hive.spec.tunnel, hive.spec.install), (over_ssh, over_ssh));
    }
    let jobs = whole_jobs(&store).await;
    assert_eq!(jobs.len(), 2);
    assert_eq!(jobs[1].result.as_deref(), Some("text"));
    for (job, state) in jobs.iter().zip([JobState::Running, JobState::Complete]) {
        assert_eq!(job.state, state);
        assert!(!job.asynchronous, "the first version had no others");
        assert_eq!(job.times, Times::default());
        assert_eq!((&job.idempotency_key, job.request_hash), (&None, None));
        assert_eq!((job.not_before, job.stop, job.failures), (None, None, 0));
    }
    assert_eq!(store.usage(&UsageFilter::default()).await.unwrap(), []);
    let recovered = store.recover(Uuid::from_u128(8), UnixMillis(30)).await;
    assert_eq!(recovered.unwrap().interrupted, 1);
    assert_eq!(all_jobs(&store).await[0].state, JobState::Failed);
    submit(&store);
    store.close().await.unwrap();
}

#[tokio::test]
async fn a_database_of_the_first_version_is_brought_up_to_date() {
    let folder = tempfile::tempdir().unwrap();
    let (path, db) = first_version(&folder);
    drop(db);
    is_brought_up_to_date(path).await;
}

#[tokio::test]
async fn a_migration_that_is_killed_leaves_the_older_version() {
    let folder = tempfile::tempdir().unwrap();
    let (_, mut db) = first_version(&folder);
    // So that SQLite writes its pages before they are committed.
    db.pragma_update(None, "cache_size", 1).unwrap();
    let migration = db.transaction().unwrap();
    migration.execute_batch(DURABLE_QUEUE).unwrap();
    migration.pragma_update(None, "user_version", 2).unwrap();

    let after = killed(&folder);
    let path = after.path().join("queen.db");
    assert_eq!(version(&Connection::open(&path).unwrap()), 1);
    is_brought_up_to_date(path).await;
}

#[tokio::test]
async fn a_migration_that_fails_leaves_the_older_version() {
    let folder = tempfile::tempdir().unwrap();
    let (path, db) = first_version(&folder);
    db.execute_batch("CREATE TABLE usage (mine)").unwrap();
    let refused = SqliteStore::open(&path).await.unwrap_err();
    assert!(refused.message.contains("up to date"), "{refused}");
    assert_eq!(version(&db), 1);
    db.prepare("SELECT asynchronous FROM jobs")
        .expect_err("no column was added");
    db.execute_batch("DROP TABLE usage").unwrap();
    drop(db);
    is_brought_up_to_date(path).await;
}
