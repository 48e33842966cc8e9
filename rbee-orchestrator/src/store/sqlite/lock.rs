//! What proves that no other store writes a database, under whatever name it opens it.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use super::failure::unusable;
use crate::error::{Code, Error, Result};

/// The databases that this process has open.
static OPEN_HERE: Mutex<BTreeSet<Identity>> = Mutex::new(BTreeSet::new());

/// The locks of an open database: on its name and on the file itself.
///
/// The lock on a file beside it outlives a database that is put into the place of another; the
/// lock on the file itself is seen through hard links and bind mounts. Both are of `flock`, which
/// on a local disk knows nothing of the byte ranges that SQLite locks. But whoever closes any
/// descriptor of a file takes away the byte locks that the process has on it, SQLite's too. So
/// this one is opened before SQLite opens the file and closed after it, and a database that the
/// process has open already is refused before it is opened once more.
#[derive(Debug)]
pub(super) struct Locked {
    _file: File,
    _beside: File,
    _claim: Claim,
}

impl Locked {
    /// Takes the locks of a file that exists; its path has no symbolic links.
    pub(super) fn take(database: &Path) -> Result<Self> {
        let beside = lock_file(database);
        let beside = lock(database, &beside)?;
        let claim = Claim::take(database)?;
        let file = lock(database, database)?;
        warn_of_other_names(database, &file);
        Ok(Locked {
            _file: file,
            _beside: beside,
            _claim: claim,
        })
    }
}

/// Device and inode of a file: the same under all of its names.
type Identity = (u64, u64);

/// An entry in [`OPEN_HERE`], until it is dropped.
#[derive(Debug)]
struct Claim(Identity);

impl Claim {
    fn take(database: &Path) -> Result<Self> {
        let found = fs::metadata(database)
            .map_err(|error| unusable(database, format!("it can't be found: {error}")))?;
        let identity = (found.dev(), found.ino());
        let mut open = OPEN_HERE.lock().unwrap_or_else(PoisonError::into_inner);
        if open.insert(identity) {
            Ok(Claim(identity))
        } else {
            Err(in_use(database))
        }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let mut open = OPEN_HERE.lock().unwrap_or_else(PoisonError::into_inner);
        open.remove(&self.0);
    }
}

/// Where the lock on a database's name is. The file stays when the lock goes: to remove it would
/// let two processes each lock a file of that name.
fn lock_file(database: &Path) -> PathBuf {
    let mut path = database.as_os_str().to_owned();
    path.push(".lock");
    path.into()
}

fn lock(database: &Path, path: &Path) -> Result<File> {
    let file = owned_file(path).map_err(|error| unusable(database, cant_write(path, &error)))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(in_use(database)),
        Err(TryLockError::Error(error)) => {
            let path = path.display();
            let what = format!(
                "{path} can't be locked: {error}: put the database on a file system that has locks"
            );
            Err(unusable(database, what))
        }
    }
}

fn in_use(database: &Path) -> Error {
    let database = database.display();
    let message = format!(
        "the database {database} is in use by another queen-rbee, under this name or another: \
         stop that one, or choose another path for this one"
    );
    Error::new(Code::DatabaseInUse, message)
}

/// What was committed last may be in a write-ahead log, which SQLite finds by the database's name.
fn warn_of_other_names(database: &Path, file: &File) {
    let names = file.metadata().map_or(1, |found| found.nlink());
    if names > 1 {
        tracing::warn!(
            database = %database.display(),
            names,
            "the database has hard links: always open it by the same name, since its write-ahead \
             log is beside that name, and make backups by copying"
        );
    }
}

/// Opens a file for writing; a new one can only be read by its owner, since prompts are secrets.
/// SQLite gives its other files the same mode.
pub(super) fn owned_file(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    options.mode(0o600).open(path)
}

pub(super) fn cant_write(path: &Path, error: &io::Error) -> String {
    let path = path.display();
    if error.kind() == io::ErrorKind::StorageFull {
        return format!("{path} can't be made: no room on its disk: free space there");
    }
    format!(
        "{path} can't be written: {error}: make it and its folder writable for the user that runs \
         this, or choose another path"
    )
}
