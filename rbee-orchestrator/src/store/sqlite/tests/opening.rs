use std::fs;

use rusqlite::Connection;

use super::*;
use crate::error::Code;

async fn refusal(path: impl Into<PathBuf>) -> Error {
    let refused = SqliteStore::open(path).await;
    refused.expect_err("it can't be opened")
}

#[tokio::test]
async fn a_second_store_on_the_same_file_is_refused_until_the_first_is_gone() {
    let (folder, store) = new_store(Tuning::default()).await;
    let link = folder.path().join("link.db");
    std::os::unix::fs::symlink(store.path(), &link).unwrap();
    let hard_link = folder.path().join("hard-link.db");
    fs::hard_link(store.path(), &hard_link).unwrap();
    for (path, named) in [
        (store.path(), store.path()),
        (&link, store.path()),
        (&hard_link, &hard_link),
    ] {
        let error = refusal(path).await;
        assert_eq!(error.code, Code::DatabaseInUse);
        let names_it = error.message.contains(&named.display().to_string());
        assert!(names_it && error.message.contains("stop"), "{error}");
    }
    let path = store.path().to_owned();
    drop(store);
    let again = SqliteStore::open(&path).await.unwrap();
    again.close().await.unwrap();
    SqliteStore::open(&path).await.unwrap();
}

#[tokio::test]
async fn a_path_that_can_not_be_a_database_is_refused_with_the_cure() {
    let folder = tempfile::tempdir().unwrap();
    let inside = |name: &str| folder.path().join(name);
    fs::write(
        inside("text.db"),
        "This is a text and no database. ".repeat(64),
    )
    .unwrap();
    fs::create_dir(inside("locked.db.lock")).unwrap();
    for (path, cure) in [
        (inside("missing/queen.db"), "create it"),
        (inside("text.db/queen.db"), "create it"),
        (folder.path().to_owned(), "choose another path"),
        ("/dev/null".into(), "choose another path"),
        ("/proc/queen.db".into(), "choose another path"),
        (inside("text.db"), "choose another path"),
        (inside("locked.db"), "choose another path"),
        ("".into(), "choose another"),
        (inside("nul\0.db"), "choose another path"),
    ] {
        let error = refusal(&path).await;
        assert_eq!(error.code, Code::StoreFailed, "{path:?}");
        let names_it = error.message.contains(&path.display().to_string());
        assert!(
            names_it && error.message.contains(cure),
            "{path:?}: {error}"
        );
    }
    let text = fs::read_to_string(inside("text.db")).unwrap();
    assert!(text.starts_with("This is a text"), "it is left alone");
}

#[tokio::test]
async fn a_file_that_may_only_be_read_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("queen.db");
    drop(SqliteStore::open(&path).await.unwrap());
    let mut permissions = fs::metadata(&path).unwrap().permissions();
    permissions.set_readonly(true);
    fs::set_permissions(&path, permissions).unwrap();
    if fs::OpenOptions::new().write(true).open(&path).is_ok() {
        eprintln!("skipped: this user may write everything");
        return;
    }
    let error = refusal(&path).await;
    assert_eq!(error.code, Code::StoreFailed);
    assert!(error.message.contains("writable"), "{error}");
}

#[tokio::test]
async fn a_database_of_a_newer_version_is_refused_and_left_alone() {
    let (folder, store) = new_store(Tuning::default()).await;
    let path = store.path().to_owned();
    drop(store);
    let db = Connection::open(&path).unwrap();
    db.pragma_update(None, "user_version", 99).unwrap();
    drop(db);
    let error = refusal(&path).await;
    assert_eq!(error.code, Code::StoreFailed);
    let path = path.display().to_string();
    let says_it = ["newer", "99", "run that version", &path];
    assert!(
        says_it.iter().all(|word| error.message.contains(word)),
        "{error}"
    );
    let db = Connection::open(path).unwrap();
    let version: i64 = db
        .pragma_query_value(None, "user_version", |row| row.get(0))
        .unwrap();
    assert_eq!(version, 99);
    drop(folder);
}

#[tokio::test]
async fn commits_are_synced_and_readers_do_not_block() {
    let (_folder, store) = new_store(Tuning::default()).await;
    let pragma = |name: &'static str| {
        store.writer.call(move |db| {
            db.pragma_query_value(None, name, |row| row.get::<_, rusqlite::types::Value>(0))
        })
    };
    const FULL: i64 = 2;
    assert_eq!(
        pragma("journal_mode").await.unwrap(),
        "wal".to_owned().into()
    );
    assert_eq!(pragma("synchronous").await.unwrap(), FULL.into());
    assert_eq!(pragma("foreign_keys").await.unwrap(), 1.into());
    assert_eq!(pragma("busy_timeout").await.unwrap(), 10.into());
    let write = store
        .reads
        .read(|db| db.execute("DELETE FROM hives", []))
        .await;
    assert!(write.is_err(), "readers can't write");
}

#[cfg(unix)]
#[tokio::test]
async fn only_the_owner_can_read_the_files() {
    use std::os::unix::fs::PermissionsExt;

    let (folder, store) = new_store(Tuning::default()).await;
    submit(&store);
    store.flush().await.unwrap();
    let mut names = Vec::new();
    for file in fs::read_dir(folder.path()).unwrap() {
        let file = file.unwrap();
        let mode = file.metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{file:?}");
        names.push(file.file_name().into_string().unwrap());
    }
    names.sort();
    let expected = ["queen.db", "queen.db-shm", "queen.db-wal", "queen.db.lock"];
    assert_eq!(names, expected);
}

#[tokio::test]
async fn a_path_is_a_path_whatever_it_looks_like() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["file:a.db?mode=memory", ":memory:", "ä 🐝%20"] {
        let path = folder.path().join(name);
        drop(SqliteStore::open(&path).await.unwrap());
        assert!(path.is_file(), "{name}");
    }
}
