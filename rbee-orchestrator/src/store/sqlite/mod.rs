//! The store on SQLite.

/// Keeps everything in one SQLite database.
#[derive(Debug)]
pub struct SqliteStore;
