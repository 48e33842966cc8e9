//! The steps of jobs in SQL, by the same rules as [`JobRecord`] has in memory.

use rusqlite::{Connection, OptionalExtension, Row, Statement, params};

use super::codes::state_code;
use super::failure::is_about_the_step;
use super::inserts::Inserts;
use super::jobs::{self, checked};
use super::usage::{self, Sums};
use crate::domain::{Attempt, Ending, JobId, JobRecord, ModelRef, PlacedOn, TenantId, UnixMillis};
use crate::error::Error;
use crate::store::steps::compare;
use crate::store::{Submission, Submitted};

const CLAIM: &str = "UPDATE jobs SET state = 1, attempt = ?2, worker = ?3, hive = ?4, why = ?5, \
     started_at = ?6, model = ?7, not_before = NULL \
     WHERE id = ?1 AND state = 0 AND attempt = ?2 - 1";

const REQUEUE: &str = "UPDATE jobs SET state = 0, failures = failures + ?3, not_before = ?4 \
     WHERE id = ?1 AND state = 1 AND attempt = ?2";

const FINISH: &str = "UPDATE jobs SET state = ?3, ended_at = ?4, tokens_in = ?5, tokens_out = ?6, \
     tokens_estimated = ?7, error_code = coalesce(?8, error_code), \
     error_message = coalesce(?9, error_message), inference_ms = ?10, \
     slot_ms = ?11, stop_reason = ?12, not_before = NULL \
     WHERE id = ?1 AND state < 2 AND attempt = ?2";

/// [`CLAIM`] and [`FINISH`] of the same attempt in one write.
const RUN: &str = "UPDATE jobs SET state = ?3, ended_at = ?4, tokens_in = ?5, tokens_out = ?6, \
     tokens_estimated = ?7, error_code = coalesce(?8, error_code), \
     error_message = coalesce(?9, error_message), inference_ms = ?10, \
     slot_ms = ?11, stop_reason = ?12, not_before = NULL, attempt = ?2, worker = ?13, \
     hive = ?14, why = ?15, started_at = ?16, model = ?17 \
     WHERE id = ?1 AND state = 0 AND attempt = ?2 - 1";

/// What is to be known of a job that has just ended. (`RETURNING` makes a table for its rows, which
/// costs more than the update.)
const ENDED: &str = "SELECT tenant, model, asynchronous FROM jobs WHERE id = ?";

const PUT_REQUEST: &str = "INSERT INTO requests (job, body) VALUES (?, ?)";

pub(super) const DROP_RESULT: &str = "DELETE FROM results WHERE job = ?";

pub(super) const DROP_REQUEST: &str = "DELETE FROM requests WHERE job = ?";

const PUT_RESULT: &str = "INSERT OR REPLACE INTO results (job, text, thinking) VALUES (?, ?, ?)";

const PUT_KEY: &str = "INSERT OR REPLACE INTO idempotency (tenant, key, job, expires_at) \
     VALUES (?, ?, ?, ?)";

const FIND_KEY: &str = "SELECT job FROM idempotency \
     WHERE tenant = ?1 AND key = ?2 AND expires_at > ?3";

/// A dispatch.
#[derive(Debug)]
pub(super) struct Claim {
    pub(super) job: JobId,
    pub(super) attempt: Attempt,
    pub(super) placed: PlacedOn,
    pub(super) at: UnixMillis,
}

/// The writer's statements, compiled once, and what the open transaction has counted.
pub(super) struct Statements<'db> {
    pub(super) db: &'db Connection,
    inserts: Inserts<'db>,
    claim: Statement<'db>,
    requeue: Statement<'db>,
    finish: Statement<'db>,
    run: Statement<'db>,
    ended: Statement<'db>,
    put_request: Statement<'db>,
    drop_request: Statement<'db>,
    put_result: Statement<'db>,
    put_key: Statement<'db>,
    find_key: Statement<'db>,
    add_usage: Statement<'db>,
    sums: Sums,
}

impl<'db> Statements<'db> {
    pub(super) fn new(db: &'db Connection) -> rusqlite::Result<Self> {
        Ok(Statements {
            db,
            inserts: Inserts::new(db)?,
            claim: db.prepare(CLAIM)?,
            requeue: db.prepare(REQUEUE)?,
            finish: db.prepare(FINISH)?,
            run: db.prepare(RUN)?,
            ended: db.prepare(ENDED)?,
            put_request: db.prepare(PUT_REQUEST)?,
            drop_request: db.prepare(DROP_REQUEST)?,
            put_result: db.prepare(PUT_RESULT)?,
            put_key: db.prepare(PUT_KEY)?,
            find_key: db.prepare(FIND_KEY)?,
            add_usage: db.prepare(usage::ADD)?,
            sums: Sums::default(),
        })
    }

    /// To be called when a transaction begins.
    pub(super) fn begin(&mut self) {
        self.sums.clear();
    }

    /// Writes what the transaction has counted; to be called before it is committed.
    pub(super) fn end(&mut self) -> rusqlite::Result<()> {
        self.sums.write(&mut self.add_usage)
    }

    /// Writes a new job, in whatever state it is; says whether it was new.
    pub(super) fn insert(
        &mut self,
        job: &JobRecord,
        request: Option<&[u8]>,
    ) -> rusqlite::Result<bool> {
        if !self.inserts.one(job)? {
            return Ok(false);
        }
        let ended = job.state.is_ended();
        if let Some(request) = request.filter(|_| !(ended && job.asynchronous)) {
            self.put_request
                .execute(params![job.id.0.as_bytes(), request])?;
        }
        if let Some(result) = &job.result {
            self.put_result
                .execute(params![job.id.0.as_bytes(), result, job.thinking])?;
        }
        self.sums.add_record(job);
        Ok(true)
    }

    /// Writes [`TOGETHER`](super::inserts::TOGETHER) new jobs that are nothing but rows; says whether it
    /// did. It does not if there is anything wrong about one of them: which one, [`Statements::insert`]
    /// finds.
    pub(super) fn insert_together<'a>(
        &mut self,
        jobs: impl Iterator<Item = &'a JobRecord> + Clone,
    ) -> rusqlite::Result<bool> {
        match self.inserts.many(jobs.clone()) {
            Ok(()) => {}
            Err(error) if is_about_the_step(&error) => return Ok(false),
            Err(error) => return Err(error),
        }
        for job in jobs {
            self.sums.add_record(job);
        }
        Ok(true)
    }

    /// Writes a new job with its key, unless it is a repeated one.
    pub(super) fn submit(&mut self, submission: &Submission) -> rusqlite::Result<Submitted> {
        let job = &submission.record;
        if let Some(first) = self.first(job)? {
            return Ok(compare(job, first));
        }
        if !self.insert(job, submission.request.as_deref())?
            && let Some(twin) = jobs::find(self.db, job.id)?
        {
            return Ok(compare(job, twin));
        }
        if let Some(key) = &job.idempotency_key {
            self.put_key.execute(params![
                job.tenant.as_str(),
                key,
                job.id.0.as_bytes(),
                submission.key_expires_at.0,
            ])?;
        }
        Ok(Submitted::New)
    }

    fn first(&mut self, job: &JobRecord) -> rusqlite::Result<Option<JobRecord>> {
        let Some(key) = &job.idempotency_key else {
            return Ok(None);
        };
        let first = find_key(&mut self.find_key, &job.tenant, key, job.submitted_at)?;
        first.map_or(Ok(None), |first| jobs::find(self.db, first))
    }

    /// See [`JobRecord::claim`].
    pub(super) fn claim(&mut self, claim: &Claim) -> rusqlite::Result<()> {
        let placed = &claim.placed;
        self.claim.execute(params![
            claim.job.0.as_bytes(),
            claim.attempt,
            placed.worker.as_str(),
            placed.hive.as_ref().map(|hive| hive.as_str()),
            placed.why,
            claim.at.0,
            placed.model.as_str(),
        ])?;
        Ok(())
    }

    /// See [`JobRecord::requeue`].
    pub(super) fn requeue(
        &mut self,
        job: JobId,
        attempt: Attempt,
        failed: bool,
        not_before: Option<UnixMillis>,
    ) -> rusqlite::Result<()> {
        let not_before = not_before.map(|at| at.0);
        self.requeue
            .execute(params![job.0.as_bytes(), attempt, failed, not_before])?;
        Ok(())
    }

    /// See [`JobRecord::finish`].
    pub(super) fn finish(
        &mut self,
        job: JobId,
        attempt: Attempt,
        ending: &Ending,
    ) -> rusqlite::Result<bool> {
        let error = ending.outcome.error();
        let written = self.finish.execute(params![
            job.0.as_bytes(),
            attempt,
            state_code(ending.outcome.state()),
            ending.at.0,
            ending.usage.map(|usage| usage.tokens_in.cast_signed()),
            ending.usage.map(|usage| usage.tokens_out.cast_signed()),
            ending.usage.map(|usage| usage.estimated),
            error.map(|error| error.code.as_str()),
            error.map(Error::kept),
            ending.times.inference_ms.cast_signed(),
            ending.times.slot_ms.cast_signed(),
            ending.stop.map(|stop| stop.as_str()),
        ])?;
        self.note_ended(job, written, ending)
    }

    /// A dispatch and the ending of that attempt.
    pub(super) fn run(&mut self, claim: &Claim, ending: &Ending) -> rusqlite::Result<bool> {
        let (placed, error) = (&claim.placed, ending.outcome.error());
        let written = self.run.execute(params![
            claim.job.0.as_bytes(),
            claim.attempt,
            state_code(ending.outcome.state()),
            ending.at.0,
            ending.usage.map(|usage| usage.tokens_in.cast_signed()),
            ending.usage.map(|usage| usage.tokens_out.cast_signed()),
            ending.usage.map(|usage| usage.estimated),
            error.map(|error| error.code.as_str()),
            error.map(Error::kept),
            ending.times.inference_ms.cast_signed(),
            ending.times.slot_ms.cast_signed(),
            ending.stop.map(|stop| stop.as_str()),
            placed.worker.as_str(),
            placed.hive.as_ref().map(|hive| hive.as_str()),
            placed.why,
            claim.at.0,
            placed.model.as_str(),
        ])?;
        match written {
            // The claim does not win, so the ending is on its own.
            0 => self.finish(claim.job, claim.attempt, ending),
            _ => self.note_ended(claim.job, written, ending),
        }
    }

    fn note_ended(
        &mut self,
        job: JobId,
        written: usize,
        ending: &Ending,
    ) -> rusqlite::Result<bool> {
        if written == 0 {
            return Ok(false);
        }
        let id = [job.0.as_bytes()];
        let ended = self.ended.query_row(id, Ended::read)?;
        if ended.asynchronous {
            self.drop_request.execute(id)?;
        }
        if let Some(result) = &ending.result {
            self.put_result
                .execute(params![job.0.as_bytes(), result, ending.thinking])?;
        }
        self.sums.add_ending(ended.tenant, ended.model, ending);
        Ok(true)
    }
}

/// What is to be known of a job that has just ended.
pub(super) struct Ended {
    pub(super) tenant: TenantId,
    pub(super) model: ModelRef,
    pub(super) asynchronous: bool,
}

impl Ended {
    /// From the columns `tenant, model, asynchronous`.
    pub(super) fn read(row: &Row<'_>) -> rusqlite::Result<Self> {
        Ok(Ended {
            tenant: checked(row, 0)?,
            model: checked(row, 1)?,
            asynchronous: row.get(2)?,
        })
    }
}

fn find_key(
    find: &mut Statement<'_>,
    tenant: &TenantId,
    key: &str,
    at: UnixMillis,
) -> rusqlite::Result<Option<JobId>> {
    let found = find.query_row(params![tenant.as_str(), key, at.0], |row| {
        row.get(0).map(|id| JobId(uuid::Uuid::from_bytes(id)))
    });
    found.optional()
}

/// The job that an unexpired key finds.
pub(super) fn by_key(
    db: &Connection,
    tenant: &TenantId,
    key: &str,
    at: UnixMillis,
) -> rusqlite::Result<Option<JobRecord>> {
    let mut find = db.prepare_cached(FIND_KEY)?;
    let first = find_key(&mut find, tenant, key, at)?;
    first.map_or(Ok(None), |first| jobs::find(db, first))
}

/// What a job asks for.
pub(super) fn request(db: &Connection, id: JobId) -> rusqlite::Result<Option<Vec<u8>>> {
    let mut find = db.prepare_cached("SELECT body FROM requests WHERE job = ?")?;
    let found = find.query_row([id.0.as_bytes()], |row| row.get(0));
    found.optional()
}
