//! The search for damage in the background, once a database is open.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rusqlite::{Connection, ErrorCode, OpenFlags};

use super::failure::Faults;

/// How long it may take: as long as it reads, the write-ahead log can't be cut down.
const TIME_MAX: Duration = Duration::from_secs(60);

/// Faults that are listed; there may be thousands.
const FAULTS_LISTED: usize = 8;

/// Steps of SQLite's machine between two looks at the clock.
const STEPS_BETWEEN_LOOKS: i32 = 1000;

/// Where its thread stands among others of the machine; 0 is usual, 19 the last.
#[cfg(target_os = "linux")]
const NICENESS: i32 = 19;

/// A check that runs until it has an answer, or this is ended.
pub(super) struct Check {
    ended: Arc<AtomicBool>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Check {
    /// Starts it, on a connection of its own. Without a thread nothing is checked.
    pub(super) fn start(faults: Arc<Faults>) -> Self {
        let ended = Arc::new(AtomicBool::new(false));
        let seen = ended.clone();
        let thread = thread::Builder::new()
            .name("store-check".into())
            .spawn(move || run(&faults, &seen));
        if let Err(error) = &thread {
            tracing::warn!(%error, "the database is not checked for damage");
        }
        Check {
            ended,
            thread: Mutex::new(thread.ok()),
        }
    }

    /// Breaks it off and waits until its connection is closed. Blocks, shortly.
    pub(super) fn end(&self) {
        self.ended.store(true, Ordering::Relaxed);
        let mut thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner);
        if thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the check of the database has panicked");
        }
    }
}

impl Drop for Check {
    fn drop(&mut self) {
        self.end();
    }
}

fn run(faults: &Faults, ended: &Arc<AtomicBool>) {
    // Of the thread alone: that is what Linux takes a process for here.
    #[cfg(target_os = "linux")]
    if let Err(error) = rustix::process::setpriority_process(None, NICENESS) {
        tracing::debug!(%error, "the check of the database runs with the usual priority");
    }
    let database = faults.path().display();
    match quick_check(faults, ended.clone()) {
        Ok(found) if found.is_empty() => tracing::debug!(%database, "the database is sound"),
        Ok(found) => faults.note_damage(&found.join("; ")),
        Err(error) if error.sqlite_error_code() == Some(ErrorCode::OperationInterrupted) => {
            if !ended.load(Ordering::Relaxed) {
                let within = TIME_MAX.as_secs();
                tracing::info!(
                    %database,
                    "the database could not be checked for damage within {within} s; while no \
                     queen runs, `sqlite3 PATH 'PRAGMA integrity_check'` does it"
                );
            }
        }
        Err(error) => {
            let error = faults.failed("checked for damage", &error);
            tracing::warn!(%database, "{}", error.message);
        }
    }
}

/// What is wrong with the database; nothing if it is sound.
fn quick_check(faults: &Faults, ended: Arc<AtomicBool>) -> rusqlite::Result<Vec<String>> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let db = Connection::open_with_flags(faults.path(), flags)?;
    db.pragma_update(None, "query_only", true)?;
    let until = Instant::now() + TIME_MAX;
    let look = move || ended.load(Ordering::Relaxed) || Instant::now() > until;
    db.progress_handler(STEPS_BETWEEN_LOOKS, Some(look))?;
    let mut check = db.prepare(&format!("PRAGMA quick_check({FAULTS_LISTED})"))?;
    let found = check.query_map([], |row| row.get(0))?;
    let mut found: Vec<String> = found.collect::<rusqlite::Result<_>>()?;
    found.retain(|line| line != "ok");
    Ok(found)
}
