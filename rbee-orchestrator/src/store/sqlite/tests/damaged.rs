use std::fs;
use std::os::unix::fs::FileExt;

use rusqlite::Connection;
use tokio::time::{sleep, timeout};

use super::*;
use crate::error::Code;
use crate::store::Condition;

/// Overwrites the first page of a table in a database that nobody has open.
fn damage(path: &Path, table: &str) {
    let db = Connection::open(path).unwrap();
    let root = "SELECT rootpage FROM sqlite_schema WHERE name = ?";
    let root: u32 = db.query_row(root, [table], |row| row.get(0)).unwrap();
    let size: u32 = db
        .pragma_query_value(None, "page_size", |row| row.get(0))
        .unwrap();
    drop(db);
    let file = fs::OpenOptions::new().write(true).open(path).unwrap();
    let page = vec![0xa5; usize::try_from(size).unwrap()];
    file.write_all_at(&page, u64::from(root - 1) * u64::from(size))
        .unwrap();
}

async fn damaged(table: &str) -> (TempDir, SqliteStore) {
    let (folder, store) = new_store(Tuning::default()).await;
    submit(&store);
    store.close().await.unwrap();
    damage(store.path(), table);
    drop(store);
    let store = open_quick(&folder, Tuning::default()).await;
    (folder, store)
}

async fn until_known(store: &SqliteStore) {
    let known = async {
        while store.condition() != Condition::Damaged {
            sleep(Duration::from_millis(1)).await;
        }
    };
    timeout(Duration::from_secs(20), known).await.unwrap();
}

#[tokio::test]
async fn damage_is_found_in_the_background_and_what_is_whole_goes_on() {
    let (_folder, store) = damaged("idempotency").await;
    until_known(&store).await;
    let job = submit(&store);
    assert_eq!(store.job(job.id).await.unwrap(), Some(job));
    assert_eq!(all_jobs(&store).await.len(), 2);
    assert_eq!(store.condition(), Condition::Damaged, "it does not heal");
}

#[tokio::test]
async fn what_is_damaged_is_told_with_the_cure_when_it_is_read_or_written() {
    let (_folder, store) = damaged("usage").await;
    let read = store.usage(&UsageFilter::default()).await.unwrap_err();
    let write = |db: &Connection| db.execute("DELETE FROM usage", []);
    let written = store.writer.call(write).await.unwrap_err();
    for error in [read, written] {
        assert_eq!(error.code, Code::StoreFailed);
        let path = store.path().display().to_string();
        for told in ["malformed", "backup", ".recover", &path] {
            assert!(error.message.contains(told), "no {told:?} in {error}");
        }
    }
    assert_eq!(store.condition(), Condition::Damaged);
}

#[tokio::test]
async fn a_sound_store_says_so() {
    let (_folder, store) = new_store(Tuning::default()).await;
    submit(&store);
    store.flush().await.unwrap();
    store.close().await.unwrap();
    assert_eq!(store.condition(), Condition::Sound);
}
