//! Opening a database: the checks that make a wrong path a clear message, the lock, the pragmas.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::{Connection, OpenFlags};
use rusqlite_migration::{Error as MigrationError, MigrationDefinitionError};

use super::failure::{cure, unusable};
use super::lock::{Locked, cant_write, owned_file};
use super::options::Synchronous;
use super::schema::MIGRATIONS;
use crate::error::Result;

/// The write-ahead log is cut down to this after a burst, so that it does not keep a disk full.
const LOG_BYTES_KEPT: i64 = 64 * 1024 * 1024;

/// Statements that stay compiled on a connection; more than there are.
const STATEMENTS_KEPT: usize = 64;

/// A database that is ours, with today's tables.
pub(super) struct Opened {
    pub(super) db: Connection,
    /// Absolute, with symbolic links resolved.
    pub(super) path: PathBuf,
    /// Held for as long as the database is written.
    pub(super) lock: Locked,
}

/// Opens a database and creates it if need be. Blocks.
pub(super) fn open(
    path: &Path,
    synchronous: Synchronous,
    busy_timeout: Duration,
) -> Result<Opened> {
    let path = create_file(path)?;
    let lock = Locked::take(&path)?;
    // Without SQLITE_OPEN_URI: a path is a path, whatever it looks like.
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let opened = Connection::open_with_flags(&path, flags)
        .and_then(|db| prepare(&db, synchronous, busy_timeout).map(|()| db));
    let mut db = opened.map_err(|error| {
        let cure = cure(&path, &error);
        unusable(&path, format!("it can't be opened: {error}: {cure}"))
    })?;
    MIGRATIONS
        .to_latest(&mut db)
        .map_err(|error| unusable(&path, describe_migration(&db, &error)))?;
    Ok(Opened { db, path, lock })
}

/// Makes sure that there is a file, and says where it really is. One that is there is not opened:
/// see [`Locked`].
fn create_file(path: &Path) -> Result<PathBuf> {
    let path = std::path::absolute(path)
        .map_err(|error| unusable(path, format!("this is no path: {error}: choose another")))?;
    let folder = path.parent().unwrap_or(Path::new("/"));
    if !folder.is_dir() {
        let folder = folder.display();
        let what = format!("its folder {folder} does not exist: create it, or choose another path");
        return Err(unusable(&path, what));
    }
    if fs::metadata(&path).is_ok_and(|found| !found.is_file()) {
        let what = "this is no regular file: choose another path";
        return Err(unusable(&path, what));
    }
    if !path.exists() {
        owned_file(&path).map_err(|error| unusable(&path, cant_write(&path, &error)))?;
    }
    fs::canonicalize(&path).map_err(|error| unusable(&path, format!("it can't be found: {error}")))
}

fn prepare(
    db: &Connection,
    synchronous: Synchronous,
    busy_timeout: Duration,
) -> rusqlite::Result<()> {
    db.busy_timeout(busy_timeout)?;
    db.set_prepared_statement_cache_capacity(STATEMENTS_KEPT);
    // In WAL mode readers and the writer do not wait for each other; FULL syncs the log at each
    // commit, without which a power cut takes back what was acknowledged.
    db.pragma_update(None, "journal_mode", "WAL")?;
    let synchronous = match synchronous {
        Synchronous::Full => "FULL",
        Synchronous::Normal => "NORMAL",
    };
    db.pragma_update(None, "synchronous", synchronous)?;
    db.pragma_update(None, "foreign_keys", true)?;
    db.pragma_update(None, "journal_size_limit", LOG_BYTES_KEPT)
}

fn describe_migration(db: &Connection, error: &MigrationError) -> String {
    let too_new =
        MigrationError::MigrationDefinition(MigrationDefinitionError::DatabaseTooFarAhead);
    if *error == too_new {
        let version = MIGRATIONS.current_version(db);
        let version = version.map_or("newer".into(), |version| version.to_string());
        return format!(
            "its tables are of a newer version of this program ({version}): run that version, or \
             choose another path"
        );
    }
    format!(
        "its tables can't be brought up to date: {error}: bring back a copy, or choose another path"
    )
}
