//! What can go wrong with a database, in words and with the cure.

use std::path::Path;

use rusqlite::ErrorCode;

use crate::error::{Code, Error};

/// A database that can't be used at all: `what` is wrong with it.
pub(super) fn unusable(path: &Path, what: impl std::fmt::Display) -> Error {
    let message = format!("the database {}: {what}", path.display());
    Error::new(Code::StoreFailed, message)
}

/// SQLite refused to read or to write.
pub(super) fn failed(verb: &str, error: &rusqlite::Error) -> Error {
    let message = format!("the database can't be {verb}: {error}: {}", cure(error));
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
pub(super) fn cure(error: &rusqlite::Error) -> &'static str {
    match error.sqlite_error_code() {
        Some(ErrorCode::DiskFull) => "free space on its disk",
        Some(ErrorCode::ReadOnly | ErrorCode::PermissionDenied | ErrorCode::CannotOpen) => {
            "make the file and its folder writable for the user that runs this"
        }
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => {
            "end the other program that has it locked"
        }
        Some(ErrorCode::NotADatabase) => "choose another path, or move that file away",
        Some(ErrorCode::DatabaseCorrupt) => "bring back a copy of it, or move the file away",
        _ => "check its disk and the system's log",
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
