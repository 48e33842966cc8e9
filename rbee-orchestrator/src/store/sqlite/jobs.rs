//! The SQL of the `jobs` table.

use rusqlite::types::Type;
use rusqlite::{CachedStatement, Connection, Row, ToSql, params};
use uuid::Uuid;

use crate::domain::{
    Attempt, Ending, JobFilter, JobId, JobKind, JobRecord, JobState, PlacedOn, Priority,
    UnixMillis, Usage,
};
use crate::store::{JobChange, interrupted};

const COLUMNS: &str = "id, kind, priority, state, attempt, owner, model, tenant, session, worker, \
     hive, why, submitted_at, started_at, ended_at, tokens_in, tokens_out, tokens_estimated, \
     error_code, error_message, correlation_id, result";

const INSERT: &str = "INSERT INTO jobs (id, kind, priority, state, attempt, owner, model, tenant, \
     session, worker, hive, why, submitted_at, started_at, ended_at, tokens_in, tokens_out, \
     tokens_estimated, error_code, error_message, correlation_id, result) \
     VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) \
     ON CONFLICT DO NOTHING";

const CLAIM: &str = "UPDATE jobs SET state = 1, attempt = ?2, worker = ?3, hive = ?4, why = ?5, \
     started_at = ?6, model = ?7 WHERE id = ?1 AND state = 0 AND attempt = ?2 - 1";

const FINISH: &str = "UPDATE jobs SET state = ?3, ended_at = ?4, tokens_in = ?5, tokens_out = ?6, \
     tokens_estimated = ?7, error_code = coalesce(?8, error_code), \
     error_message = coalesce(?9, error_message), result = ?10 \
     WHERE id = ?1 AND state < 2 AND attempt = ?2";

/// The statements of a batch, each compiled or fetched once: to look one up by its text for each
/// job costs as much as a tenth of its insert.
pub(super) struct Statements<'db> {
    pub(super) db: &'db Connection,
    insert: CachedStatement<'db>,
    claim: CachedStatement<'db>,
    finish: CachedStatement<'db>,
}

impl<'db> Statements<'db> {
    pub(super) fn new(db: &'db Connection) -> rusqlite::Result<Self> {
        Ok(Statements {
            db,
            insert: db.prepare_cached(INSERT)?,
            claim: db.prepare_cached(CLAIM)?,
            finish: db.prepare_cached(FINISH)?,
        })
    }

    /// Writes a new job, in whatever state it is.
    pub(super) fn insert(&mut self, job: &JobRecord) -> rusqlite::Result<()> {
        let placed = job.placed.as_ref();
        let written = self.insert.execute(params![
            job.id.0.as_bytes(),
            kind_code(job.kind),
            priority_code(job.priority),
            state_code(job.state),
            job.attempt,
            job.owner.as_bytes(),
            job.model.as_str(),
            job.tenant.as_str(),
            job.session.as_ref().map(|session| session.as_str()),
            placed.map(|placed| placed.worker.as_str()),
            placed.and_then(|placed| placed.hive.as_ref().map(|hive| hive.as_str())),
            placed.map(|placed| placed.why.as_str()),
            job.submitted_at.0,
            job.started_at.map(|at| at.0),
            job.ended_at.map(|at| at.0),
            job.usage.map(|usage| usage.tokens_in.cast_signed()),
            job.usage.map(|usage| usage.tokens_out.cast_signed()),
            job.usage.map(|usage| usage.estimated),
            job.error_code,
            job.error_message,
            job.correlation_id,
            job.result,
        ])?;
        if written == 0 {
            report_twin(job.id);
        }
        Ok(())
    }

    /// Applies a change if it wins; the same rules as [`JobRecord::claim`] and
    /// [`JobRecord::finish`].
    pub(super) fn update(&mut self, change: &JobChange) -> rusqlite::Result<()> {
        match change {
            JobChange::Submitted(record) => self.insert(record),
            JobChange::Claimed {
                job,
                attempt,
                placed,
                at,
            } => self.claim(*job, *attempt, placed, *at),
            JobChange::Finished {
                job,
                attempt,
                ending,
            } => self.finish(*job, *attempt, ending),
        }
    }

    fn claim(
        &mut self,
        job: JobId,
        attempt: Attempt,
        placed: &PlacedOn,
        at: UnixMillis,
    ) -> rusqlite::Result<()> {
        self.claim.execute(params![
            job.0.as_bytes(),
            attempt,
            placed.worker.as_str(),
            placed.hive.as_ref().map(|hive| hive.as_str()),
            placed.why,
            at.0,
            placed.model.as_str(),
        ])?;
        Ok(())
    }

    fn finish(&mut self, job: JobId, attempt: Attempt, ending: &Ending) -> rusqlite::Result<()> {
        let error = ending.outcome.error();
        self.finish.execute(params![
            job.0.as_bytes(),
            attempt,
            state_code(ending.outcome.state()),
            ending.at.0,
            ending.usage.map(|usage| usage.tokens_in.cast_signed()),
            ending.usage.map(|usage| usage.tokens_out.cast_signed()),
            ending.usage.map(|usage| usage.estimated),
            error.map(|error| error.code.as_str()),
            error.map(|error| error.message.as_str()),
            ending.result,
        ])?;
        Ok(())
    }
}

/// Says that a caller broke the contract: a second submission can't win and is dropped.
pub(super) fn report_twin(job: JobId) {
    tracing::error!(%job, "a job was submitted twice; the second one is dropped");
}

pub(super) const RECOVER: &str = "UPDATE jobs SET state = 3, ended_at = ?2, tokens_in = NULL, \
     tokens_out = NULL, tokens_estimated = NULL, result = NULL, error_code = ?3, \
     error_message = ?4 WHERE state < 2 AND owner <> ?1";

/// Ends every open job of another owner; says how many.
pub(super) fn recover(db: &Connection, owner: Uuid, at: UnixMillis) -> rusqlite::Result<u64> {
    let error = interrupted();
    let ended = db.prepare_cached(RECOVER)?.execute(params![
        owner.as_bytes(),
        at.0,
        error.code.as_str(),
        error.message,
    ])?;
    Ok(ended as u64)
}

/// One job.
pub(super) fn find(db: &Connection, id: JobId) -> rusqlite::Result<Option<JobRecord>> {
    let sql = format!("SELECT {COLUMNS} FROM jobs WHERE id = ?");
    let mut found = db.prepare_cached(&sql)?;
    let mut rows = found.query_map([id.0.as_bytes()], read)?;
    rows.next().transpose()
}

/// At most `limit` jobs older than `before`, newest first.
pub(super) fn list(
    db: &Connection,
    filter: &JobFilter,
    limit: usize,
    before: Option<JobId>,
) -> rusqlite::Result<Vec<JobRecord>> {
    let before = before.map(|id| id.0.into_bytes());
    let state = filter.state.map(state_code);
    let model = filter.model.as_ref().map(|model| model.as_str());
    let tenant = filter.tenant.as_ref().map(|tenant| tenant.as_str());
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);

    let mut values: Vec<&dyn ToSql> = Vec::new();
    values.extend(before.as_ref().map(|value| value as &dyn ToSql));
    values.extend(state.as_ref().map(|value| value as &dyn ToSql));
    values.extend(model.as_ref().map(|value| value as &dyn ToSql));
    values.extend(tenant.as_ref().map(|value| value as &dyn ToSql));
    values.push(&limit);
    let mut found = db.prepare_cached(&list_sql(filter, before.is_some()))?;
    found.query_map(values.as_slice(), read)?.collect()
}

/// The query for a list; its parameters are those of the filter's fields that are set.
pub(super) fn list_sql(filter: &JobFilter, has_cursor: bool) -> String {
    // Unless it is told to, SQLite reads the whole table to spare itself the sort that this
    // index, too, makes needless.
    let is_open = filter.state.is_some_and(|state| !state.is_ended());
    let mut sql = match is_open {
        true => format!("SELECT {COLUMNS} FROM jobs INDEXED BY jobs_open WHERE state < 2"),
        false => format!("SELECT {COLUMNS} FROM jobs WHERE TRUE"),
    };
    for (condition, is_set) in [
        (" AND id < ?", has_cursor),
        (" AND state = ?", filter.state.is_some()),
        (" AND model = ?", filter.model.is_some()),
        (" AND tenant = ?", filter.tenant.is_some()),
    ] {
        if is_set {
            sql.push_str(condition);
        }
    }
    sql.push_str(" ORDER BY id DESC LIMIT ?");
    sql
}

fn read(row: &Row<'_>) -> rusqlite::Result<JobRecord> {
    Ok(JobRecord {
        id: JobId(Uuid::from_bytes(row.get(0)?)),
        kind: named(row, 1, kind_from)?,
        priority: named(row, 2, priority_from)?,
        state: named(row, 3, state_from)?,
        attempt: row.get(4)?,
        owner: Uuid::from_bytes(row.get(5)?),
        model: checked(row, 6)?,
        tenant: checked(row, 7)?,
        session: checked_option(row, 8)?,
        asynchronous: false,
        idempotency_key: None,
        request_hash: None,
        not_before: None,
        times: crate::domain::Times::default(),
        stop: None,
        placed: read_placed(row)?,
        submitted_at: UnixMillis(row.get(12)?),
        started_at: row.get::<_, Option<i64>>(13)?.map(UnixMillis),
        ended_at: row.get::<_, Option<i64>>(14)?.map(UnixMillis),
        usage: read_usage(row)?,
        error_code: row.get(18)?,
        error_message: row.get(19)?,
        correlation_id: row.get(20)?,
        result: row.get(21)?,
    })
}

fn read_placed(row: &Row<'_>) -> rusqlite::Result<Option<PlacedOn>> {
    let Some(worker) = checked_option(row, 9)? else {
        return Ok(None);
    };
    Ok(Some(PlacedOn {
        worker,
        hive: checked_option(row, 10)?,
        model: checked(row, 6)?,
        why: row.get(11)?,
    }))
}

fn read_usage(row: &Row<'_>) -> rusqlite::Result<Option<Usage>> {
    let Some(tokens_in) = row.get::<_, Option<i64>>(15)? else {
        return Ok(None);
    };
    Ok(Some(Usage {
        tokens_in: tokens_in.cast_unsigned(),
        tokens_out: row.get::<_, i64>(16)?.cast_unsigned(),
        estimated: row.get(17)?,
    }))
}

/// Text that was checked when it was written, and is checked again: a database can be edited.
pub(super) fn checked<T>(row: &Row<'_>, column: usize) -> rusqlite::Result<T>
where
    T: TryFrom<String, Error = crate::Error>,
{
    T::try_from(row.get(column)?).map_err(|error| unreadable(column, Type::Text, error))
}

fn checked_option<T>(row: &Row<'_>, column: usize) -> rusqlite::Result<Option<T>>
where
    T: TryFrom<String, Error = crate::Error>,
{
    match row.get_ref(column)?.data_type() {
        Type::Null => Ok(None),
        _ => checked(row, column).map(Some),
    }
}

fn named<T>(row: &Row<'_>, column: usize, from: fn(u8) -> Option<T>) -> rusqlite::Result<T> {
    let code = row.get(column)?;
    let unknown = || crate::Error::internal(format!("{code} stands for nothing here"));
    from(code).ok_or_else(|| unreadable(column, Type::Integer, unknown()))
}

/// A value of the database that means nothing to us.
pub(super) fn unreadable(
    column: usize,
    was: Type,
    why: impl std::error::Error + Send + Sync + 'static,
) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(column, was, Box::new(why))
}

// The numbers are on disks: they never change their meaning. The index of open jobs and the
// updates above know that a state below 2 is open.

fn state_code(state: JobState) -> u8 {
    match state {
        JobState::Queued => 0,
        JobState::Running => 1,
        JobState::Complete => 2,
        JobState::Failed => 3,
        JobState::Cancelled => 4,
    }
}

fn state_from(code: u8) -> Option<JobState> {
    JobState::ALL
        .into_iter()
        .find(|state| state_code(*state) == code)
}

fn kind_code(kind: JobKind) -> u8 {
    match kind {
        JobKind::Task => 0,
        JobKind::Chat => 1,
        JobKind::Completion => 2,
        JobKind::Embedding => 3,
    }
}

fn kind_from(code: u8) -> Option<JobKind> {
    use JobKind::{Chat, Completion, Embedding, Task};
    let all = [Task, Chat, Completion, Embedding];
    all.into_iter().find(|kind| kind_code(*kind) == code)
}

fn priority_code(priority: Priority) -> u8 {
    match priority {
        Priority::Interactive => 0,
        Priority::Batch => 1,
    }
}

fn priority_from(code: u8) -> Option<Priority> {
    let all = [Priority::Interactive, Priority::Batch];
    all.into_iter()
        .find(|priority| priority_code(*priority) == code)
}
