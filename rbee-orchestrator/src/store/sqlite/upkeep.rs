//! What is done to many jobs at once: the recovery after a crash, and the purge of what is old.

use rusqlite::{Connection, Row, params};
use uuid::Uuid;

use super::jobs::{COLUMNS, read};
use super::statements::{DROP_REQUEST, DROP_RESULT, Ended};
use super::usage::{self, Sums};
use crate::domain::{JobId, JobRecord, UnixMillis};
use crate::error::Error;
use crate::killpoint;
use crate::store::Recovered;
use crate::store::steps::{interrupted, take_over};

/// Ends what nobody can go on with. Of what an attempt used that was cut off nothing is charged.
pub(super) const INTERRUPT: &str = "UPDATE jobs SET state = 3, ended_at = ?2, tokens_in = NULL, \
     tokens_out = NULL, tokens_estimated = NULL, inference_ms = 0, slot_ms = 0, \
     stop_reason = NULL, not_before = NULL, error_code = ?3, error_message = ?4 \
     WHERE state < 2 AND owner <> ?1 AND (asynchronous = 0 \
     OR NOT EXISTS (SELECT 1 FROM requests WHERE job = id)) \
     RETURNING tenant, model, asynchronous, id";

const TAKE_OVER: &str = "UPDATE jobs SET state = 0, owner = ?1 WHERE state < 2 AND owner <> ?1";

/// Ids sort by submission: what was submitted since is not even looked at.
pub(super) const OLD_JOBS: &str = "SELECT id FROM jobs \
     WHERE id < ?1 AND state >= 2 AND ended_at < ?2 AND (idempotency_key IS NULL OR NOT EXISTS \
     (SELECT 1 FROM idempotency AS k WHERE k.tenant = jobs.tenant \
     AND k.key = jobs.idempotency_key AND k.job = jobs.id AND k.expires_at > ?3)) \
     ORDER BY id LIMIT ?4";

pub(super) const DROP_KEYS: &str = "DELETE FROM idempotency WHERE (tenant, key) IN \
     (SELECT tenant, key FROM idempotency WHERE expires_at <= ?1 ORDER BY expires_at LIMIT ?2)";

/// Takes over the open jobs of other owners; see `Store::recover`.
pub(super) fn recover(db: &Connection, owner: Uuid, at: UnixMillis) -> rusqlite::Result<Recovered> {
    let interrupted = interrupt(db, owner, at)?;
    let mut waiting = left_behind(db, owner)?;
    for (job, _) in &mut waiting {
        take_over(job, owner);
    }
    db.prepare_cached(TAKE_OVER)?.execute([owner.as_bytes()])?;
    killpoint::pass("recovery-uncommitted");
    Ok(Recovered {
        interrupted,
        waiting,
    })
}

fn interrupt(db: &Connection, owner: Uuid, at: UnixMillis) -> rusqlite::Result<u64> {
    let ending = interrupted(at);
    let error = ending.outcome.error();
    let mut interrupt = db.prepare_cached(INTERRUPT)?;
    let ended = interrupt.query_map(
        params![
            owner.as_bytes(),
            at.0,
            error.map(|error| error.code.as_str()),
            error.map(Error::kept),
        ],
        |row| Ok((Ended::read(row)?, job_id(row, 3)?)),
    )?;
    // All of it: a statement that changes rows changes them as they are asked for.
    let ended: Vec<rusqlite::Result<(Ended, JobId)>> = ended.collect();
    let count = ended.len() as u64;
    let mut sums = Sums::default();
    let mut drop_request = db.prepare_cached(DROP_REQUEST)?;
    for row in ended {
        let (ended, job) = match row {
            Ok(ended) => ended,
            Err(error @ rusqlite::Error::SqliteFailure(..)) => return Err(error),
            Err(error) => {
                tracing::error!(%error, "a stored job that was ended can't be read");
                continue;
            }
        };
        if ended.asynchronous {
            drop_request.execute([job.0.as_bytes()])?;
        }
        sums.add_ending(ended.tenant, ended.model, &ending);
    }
    let mut add_usage = db.prepare_cached(usage::ADD)?;
    sums.write(&mut add_usage)?;
    Ok(count)
}

/// The open jobs of other owners with their requests, in the order of their submission.
fn left_behind(db: &Connection, owner: Uuid) -> rusqlite::Result<Vec<(JobRecord, Vec<u8>)>> {
    let sql = format!(
        "SELECT {COLUMNS}, body FROM jobs INDEXED BY jobs_open JOIN requests ON job = id \
         WHERE state < 2 AND owner <> ? ORDER BY id"
    );
    let mut found = db.prepare(&sql)?;
    let mut rows = found.query([owner.as_bytes()])?;
    let mut left = Vec::new();
    while let Some(row) = rows.next()? {
        match readable(row) {
            Ok(job) => left.push(job),
            // It stays as it is: what can't be read is for people to look at.
            Err(error) => {
                let job = job_id(row, 0).map_or_else(|_| "?".to_owned(), |id| id.to_string());
                tracing::error!(job, %error, "a stored job can't be read; it is left as it is");
            }
        }
    }
    Ok(left)
}

fn readable(row: &Row<'_>) -> rusqlite::Result<(JobRecord, Vec<u8>)> {
    Ok((read(row)?, row.get("body")?))
}

/// Deletes expired keys and old jobs; see `Store::purge`.
pub(super) fn purge(
    db: &Connection,
    ended_before: UnixMillis,
    now: UnixMillis,
    limit: usize,
) -> rusqlite::Result<u64> {
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let keys = db
        .prepare_cached(DROP_KEYS)?
        .execute(params![now.0, limit])?;
    let bound = JobId::bound(ended_before);
    let mut old = db.prepare_cached(OLD_JOBS)?;
    let old = old.query_map(
        params![bound.0.as_bytes(), ended_before.0, now.0, limit],
        |row| job_id(row, 0),
    )?;
    let old: Vec<JobId> = old.collect::<rusqlite::Result<_>>()?;
    let mut drop_request = db.prepare_cached(DROP_REQUEST)?;
    let mut drop_result = db.prepare_cached(DROP_RESULT)?;
    let mut drop_job = db.prepare_cached("DELETE FROM jobs WHERE id = ?")?;
    for job in &old {
        drop_request.execute([job.0.as_bytes()])?;
        drop_result.execute([job.0.as_bytes()])?;
        drop_job.execute([job.0.as_bytes()])?;
    }
    Ok((keys + old.len()) as u64)
}

fn job_id(row: &Row<'_>, column: usize) -> rusqlite::Result<JobId> {
    row.get(column).map(|id| JobId(Uuid::from_bytes(id)))
}
