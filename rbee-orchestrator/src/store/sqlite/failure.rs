//! What can go wrong with a database, in words and with the cure.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rusqlite::ErrorCode;

use crate::error::{Code, Error};
use crate::store::Condition;

/// When those come back whom a full disk or a lock has refused: a person has to do something.
const RETRY_AFTER: Duration = Duration::from_secs(5);

/// How a database that is open does, as its reader, its writer and its check found it.
#[derive(Debug)]
pub(super) struct Faults {
    path: PathBuf,
    condition: Mutex<Condition>,
}

impl Faults {
    pub(super) fn new(path: &Path) -> Self {
        Faults {
            path: path.to_owned(),
            condition: Mutex::new(Condition::Sound),
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn condition(&self) -> Condition {
        *self
            .condition
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Something could be written.
    pub(super) fn note_written(&self) {
        self.note(Condition::Sound);
    }

    /// A commit failed, and will be tried again.
    pub(super) fn note_unwritable(&self, error: &rusqlite::Error) {
        self.note(if is_full(&self.path, error) {
            Condition::Full
        } else {
            Condition::Unwritable
        });
    }

    /// Notes what was found, and says whether it is new. Damage does not heal by itself.
    fn note(&self, found: Condition) -> bool {
        let mut condition = self
            .condition
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if *condition == Condition::Damaged || *condition == found {
            return false;
        }
        *condition = found;
        true
    }

    /// SQLite refused to read or to write.
    pub(super) fn failed(&self, verb: &str, error: &rusqlite::Error) -> Error {
        let cure = cure(&self.path, error);
        let message = format!("the database can't be {verb}: {error}: {cure}");
        if is_damage(error) {
            self.note_damage(&error.to_string());
        }
        let failed = Error::new(Code::StoreFailed, message);
        if is_full(&self.path, error) || is_busy(error) {
            failed.retry_after(RETRY_AFTER)
        } else {
            failed
        }
    }

    /// Part of the database can't be trusted; it is logged once.
    pub(super) fn note_damage(&self, what: &str) {
        if self.note(Condition::Damaged) {
            let cure = restore(&self.path);
            tracing::error!(database = %self.path.display(), "the database is damaged: {what}: {cure}");
        }
    }
}

/// A database that can't be used at all: `what` is wrong with it.
pub(super) fn unusable(path: &Path, what: impl std::fmt::Display) -> Error {
    let message = format!("the database {}: {what}", path.display());
    Error::new(Code::StoreFailed, message)
}

/// Nothing is left that could do it.
pub(super) fn closed() -> Error {
    Error::new(
        Code::StoreFailed,
        "the store is closed: open the database again",
    )
}

/// What a person can do about it.
pub(super) fn cure(path: &Path, error: &rusqlite::Error) -> String {
    if is_full(path, error) {
        let path = path.display();
        return format!(
            "no room on the disk of {path}: free space there, and it goes on by itself"
        );
    }
    match error.sqlite_error_code() {
        Some(ErrorCode::ReadOnly | ErrorCode::PermissionDenied | ErrorCode::CannotOpen) => {
            "make the file and its folder writable for the user that runs this".into()
        }
        _ if is_busy(error) => "end the other program that has it locked".into(),
        Some(ErrorCode::NotADatabase) => format!(
            "if this never was a database, choose another path, or move that file away; \
             otherwise {}",
            restore(path)
        ),
        Some(ErrorCode::DatabaseCorrupt) => restore(path),
        _ => "check its disk, the quota there and the system's log".into(),
    }
}

/// What a person can do about damage.
fn restore(path: &Path) -> String {
    let path = path.display();
    format!(
        "stop the queen and bring back a backup of {path}, or save what can be read with \
         sqlite3 {path} .recover"
    )
}

fn is_damage(error: &rusqlite::Error) -> bool {
    let code = error.sqlite_error_code();
    matches!(
        code,
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase)
    )
}

fn is_busy(error: &rusqlite::Error) -> bool {
    let code = error.sqlite_error_code();
    matches!(
        code,
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked)
    )
}

/// Whether it is for want of room. SQLite says so of its pages; where it can't make or lengthen one
/// of its other files it only says that it can't.
fn is_full(path: &Path, error: &rusqlite::Error) -> bool {
    match error.sqlite_error_code() {
        Some(ErrorCode::DiskFull) => true,
        Some(ErrorCode::SystemIoFailure | ErrorCode::CannotOpen) => {
            rustix::fs::statvfs(path).is_ok_and(|disk| disk.f_bavail == 0)
        }
        _ => false,
    }
}

/// Whether the step itself is to blame, so that it would fail again on a healthy disk.
pub(super) fn is_about_the_step(error: &rusqlite::Error) -> bool {
    match error.sqlite_error_code() {
        Some(code) => matches!(
            code,
            ErrorCode::ConstraintViolation
                | ErrorCode::TooBig
                | ErrorCode::TypeMismatch
                | ErrorCode::ParameterOutOfRange
        ),
        None => true,
    }
}
