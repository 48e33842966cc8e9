//! A database as the first version wrote it, to be brought up to date by today's.

use anyhow::Result;
use rusqlite::{Connection, params};
use std::path::Path;

/// The first version's tables; what was released does not change.
const TABLES: &str = "
CREATE TABLE hives (
    node_name TEXT PRIMARY KEY NOT NULL,
    ssh_host TEXT,
    ssh_port INTEGER,
    ssh_user TEXT,
    ssh_key_path TEXT,
    git_repo_url TEXT,
    git_branch TEXT,
    install_path TEXT,
    last_connected_unix INTEGER GENERATED ALWAYS AS (last_seen / 1000) VIRTUAL,
    status TEXT NOT NULL DEFAULT 'offline',
    backends TEXT NOT NULL,
    devices TEXT NOT NULL,
    mode TEXT NOT NULL,
    hostname TEXT NOT NULL,
    port INTEGER,
    command TEXT,
    labels TEXT NOT NULL,
    capabilities TEXT,
    process_port INTEGER,
    process_pid INTEGER,
    process_start_time INTEGER,
    process_started_by_queen INTEGER,
    last_seen INTEGER
) STRICT;

CREATE TABLE jobs (
    id BLOB PRIMARY KEY NOT NULL,
    kind INTEGER NOT NULL,
    priority INTEGER NOT NULL,
    state INTEGER NOT NULL,
    attempt INTEGER NOT NULL,
    owner BLOB NOT NULL,
    model TEXT NOT NULL,
    tenant TEXT NOT NULL,
    session TEXT,
    worker TEXT,
    hive TEXT,
    why TEXT,
    submitted_at INTEGER NOT NULL,
    started_at INTEGER,
    ended_at INTEGER,
    tokens_in INTEGER,
    tokens_out INTEGER,
    tokens_estimated INTEGER,
    error_code TEXT,
    error_message TEXT,
    correlation_id TEXT NOT NULL,
    result TEXT
) STRICT, WITHOUT ROWID;

CREATE INDEX jobs_open ON jobs (id) WHERE state < 2;
PRAGMA user_version = 1;
PRAGMA journal_mode = WAL;
";

/// The model of its jobs.
pub const MODEL: &str = "file:first";

/// 2020-01-01: older than anything that is kept.
const LONG_AGO_MS: i64 = 1_577_836_800_000;

// States as numbers.
const RUNNING: i64 = 1;
const COMPLETE: i64 = 2;

/// Writes it to `path`: one job that was running, and `ended` jobs that ended long ago.
///
/// # Errors
/// When there is a file already, or none can be written.
pub fn write(path: &Path, ended: usize) -> Result<()> {
    let mut db = Connection::open(path)?;
    db.execute_batch(TABLES)?;
    let rows = db.transaction()?;
    for number in 0..=ended {
        let state = if number == ended { RUNNING } else { COMPLETE };
        insert(&rows, number, state)?;
    }
    rows.commit()?;
    Ok(())
}

fn insert(db: &Connection, number: usize, state: i64) -> Result<()> {
    const COLUMNS: &str = "INSERT INTO jobs (id, kind, priority, state, attempt, owner, model, \
         tenant, worker, why, submitted_at, started_at, ended_at, tokens_in, tokens_out, \
         tokens_estimated, correlation_id, result) \
         VALUES (?, 0, 0, ?, 1, ?, ?, 'default', 'w', 'is idle', ?, ?, ?, 8, 4, 0, 'first', ?)";
    let at = LONG_AGO_MS + number as i64;
    let ended = state == COMPLETE;
    db.prepare_cached(COLUMNS)?.execute(params![
        id(at),
        state,
        [7u8; 16],
        MODEL,
        at,
        at + 1,
        ended.then_some(at + 2),
        ended.then_some("an answer"),
    ])?;
    Ok(())
}

/// A UUID of version 7, which sorts by its time.
fn id(at_ms: i64) -> [u8; 16] {
    let mut id = [0x11; 16];
    id[..6].copy_from_slice(&at_ms.to_be_bytes()[2..]);
    id[6] = 0x70;
    id[8] = 0x80;
    id
}
