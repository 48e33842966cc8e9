//! The tables, and how older databases become them.
//!
//! A migration that was released is never edited; a change of the tables is a new entry at the end.

use std::sync::LazyLock;

use rusqlite_migration::{M, Migrations};

use crate::killpoint;

/// `hives` has the columns that queens always had and what they lacked. `status` is what a hive is
/// while no queen watches it; `last_connected_unix` follows from `last_seen`.
///
/// `jobs` is clustered by id: ids sort by submission, so inserts go to the right edge of one
/// B-tree and lists read it backwards. The only index covers jobs that have not ended, which
/// are few: a short job, inserted when it has ended, never touches it.
const HIVES_AND_JOBS: &str = "
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
";

/// `requests` is apart from `jobs`, so that lists read past no prompts. `idempotency` finds the job
/// of a key; what that job asked for is in its row. `usage` is summed up while jobs end, since their
/// rows are purged.
pub(super) const DURABLE_QUEUE: &str = "
ALTER TABLE jobs ADD COLUMN asynchronous INTEGER NOT NULL DEFAULT 0;
ALTER TABLE jobs ADD COLUMN idempotency_key TEXT;
ALTER TABLE jobs ADD COLUMN request_hash BLOB;
ALTER TABLE jobs ADD COLUMN not_before INTEGER;
ALTER TABLE jobs ADD COLUMN inference_ms INTEGER NOT NULL DEFAULT 0;
ALTER TABLE jobs ADD COLUMN slot_ms INTEGER NOT NULL DEFAULT 0;
ALTER TABLE jobs ADD COLUMN stop_reason TEXT;

CREATE TABLE requests (
    job BLOB PRIMARY KEY NOT NULL,
    body BLOB NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE idempotency (
    tenant TEXT NOT NULL,
    key TEXT NOT NULL,
    job BLOB NOT NULL,
    expires_at INTEGER NOT NULL,
    PRIMARY KEY (tenant, key)
) STRICT, WITHOUT ROWID;

CREATE INDEX idempotency_expiry ON idempotency (expires_at);

CREATE TABLE usage (
    day INTEGER NOT NULL,
    tenant TEXT NOT NULL,
    model TEXT NOT NULL,
    jobs INTEGER NOT NULL,
    tokens_in INTEGER NOT NULL,
    tokens_out INTEGER NOT NULL,
    inference_ms INTEGER NOT NULL,
    slot_ms INTEGER NOT NULL,
    PRIMARY KEY (day, tenant, model)
) STRICT, WITHOUT ROWID;

CREATE TABLE tenants (
    id TEXT PRIMARY KEY NOT NULL,
    limits TEXT NOT NULL
) STRICT;
";

/// What hives over SSH have; those that are known are as new ones are by default.
const HIVES_OVER_SSH: &str = "
ALTER TABLE hives ADD COLUMN tunnel INTEGER NOT NULL DEFAULT 0;
ALTER TABLE hives ADD COLUMN install INTEGER NOT NULL DEFAULT 0;
UPDATE hives SET tunnel = 1, install = 1 WHERE ssh_host IS NOT NULL;
";

/// How often and when a hive's models were used, as JSON: it is read and written with the hive only.
const MODEL_USE: &str = "ALTER TABLE hives ADD COLUMN model_use TEXT;";

/// What counts towards the bound of attempts: not every attempt that is given up has failed.
const FAILURES: &str = "ALTER TABLE jobs ADD COLUMN failures INTEGER NOT NULL DEFAULT 0;";

/// What lists filter by, in one index that is read in place of the table: it grows at its right edge, as the
/// table does. Results are apart from `jobs`: what stands behind a long text in a row is read past all of it.
const LISTS: &str = "
CREATE INDEX jobs_listed ON jobs (id, state, tenant, model);
CREATE TABLE results (
    job BLOB PRIMARY KEY NOT NULL,
    text TEXT NOT NULL
) STRICT, WITHOUT ROWID;
INSERT INTO results SELECT id, result FROM jobs WHERE result IS NOT NULL;
UPDATE jobs SET result = NULL WHERE result IS NOT NULL;
";

/// What a model thought before its result: of most there is nothing.
const THINKING: &str = "ALTER TABLE results ADD COLUMN thinking TEXT;";

/// Every step from an empty database to today's tables. An open applies those that are missing in
/// one transaction, so that one that is killed leaves the database as it was.
pub(super) static MIGRATIONS: LazyLock<Migrations<'static>> = LazyLock::new(|| {
    let durable_queue = M::up_with_hook(DURABLE_QUEUE, |_| {
        killpoint::pass("migrating");
        Ok(())
    });
    Migrations::new(vec![
        M::up(HIVES_AND_JOBS),
        durable_queue,
        M::up(HIVES_OVER_SSH),
        M::up(MODEL_USE),
        M::up(FAILURES),
        M::up(LISTS),
        M::up(THINKING),
    ])
});

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_migrations_apply() {
        MIGRATIONS.validate().unwrap();
    }
}
