//! Reading the `jobs` table.

use rusqlite::types::Type;
use rusqlite::{Connection, Row, ToSql};
use uuid::Uuid;

use super::super::page::Listed;
use super::codes::{kind_from, priority_from, state_code, state_from};
use crate::domain::{
    JobFilter, JobId, JobRecord, LISTED_ERROR_CHARS, PlacedOn, RequestHash, StopReason, Times,
    UnixMillis, Usage,
};

/// The columns that [`read`] expects.
pub(super) const COLUMNS: &str = "id, kind, priority, state, attempt, owner, model, tenant, \
     session, worker, hive, why, submitted_at, started_at, ended_at, tokens_in, tokens_out, \
     tokens_estimated, error_code, error_message, correlation_id, \
     (SELECT text FROM results WHERE results.job = jobs.id), asynchronous, \
     idempotency_key, request_hash, not_before, inference_ms, slot_ms, stop_reason, \
     failures, (SELECT thinking FROM results WHERE results.job = jobs.id)";

/// The same as lists have it: no result, and of an error the beginning.
fn listed_columns() -> String {
    let begin = format!("substr(error_message, 1, {LISTED_ERROR_CHARS})");
    let of_result = |column| format!("(SELECT {column} FROM results WHERE results.job = jobs.id)");
    COLUMNS
        .replace("error_message", &begin)
        .replace(&of_result("text"), "NULL")
        .replace(&of_result("thinking"), "NULL")
}

/// One job.
pub(super) fn find(db: &Connection, id: JobId) -> rusqlite::Result<Option<JobRecord>> {
    let sql = format!("SELECT {COLUMNS} FROM jobs WHERE id = ?");
    let mut found = db.prepare_cached(&sql)?;
    let mut rows = found.query_map([id.0.as_bytes()], read)?;
    rows.next().transpose()
}

/// At most `limit` jobs older than `before`, newest first. A row that can't be read is named in the log.
pub(super) fn list(
    db: &Connection,
    filter: &JobFilter,
    limit: usize,
    before: Option<JobId>,
) -> rusqlite::Result<Vec<Listed>> {
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
    found.query_map(values.as_slice(), listed)?.collect()
}

fn listed(row: &Row<'_>) -> rusqlite::Result<Listed> {
    let error = match read(row) {
        Ok(job) => return Ok(Listed::Job(Box::new(job))),
        Err(error) => error,
    };
    let id = JobId(Uuid::from_bytes(row.get(0)?));
    tracing::error!(job = %id, %error, "a stored job can't be read; lists leave it out");
    Ok(Listed::Unreadable(id))
}

/// The query for a list; its parameters are those of the filter's fields that are set. Which jobs they are is read
/// of an index that has just what lists filter by: however few match, no other row is touched.
pub(super) fn list_sql(filter: &JobFilter, has_cursor: bool) -> String {
    // Unless it is told to, SQLite reads the whole table to spare itself the sort that these
    // indexes, too, make needless.
    let is_open = filter.state.is_some_and(|state| !state.is_ended());
    let mut ids = match is_open {
        true => "SELECT id FROM jobs INDEXED BY jobs_open WHERE state < 2".to_owned(),
        false => "SELECT id FROM jobs INDEXED BY jobs_listed WHERE TRUE".to_owned(),
    };
    for (condition, is_set) in [
        (" AND id < ?", has_cursor),
        (" AND state = ?", filter.state.is_some()),
        (" AND model = ?", filter.model.is_some()),
        (" AND tenant = ?", filter.tenant.is_some()),
    ] {
        if is_set {
            ids.push_str(condition);
        }
    }
    format!(
        "SELECT {} FROM jobs WHERE id IN ({ids} ORDER BY id DESC LIMIT ?) ORDER BY id DESC",
        listed_columns()
    )
}

pub(super) fn read(row: &Row<'_>) -> rusqlite::Result<JobRecord> {
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
        placed: read_placed(row)?,
        submitted_at: UnixMillis(row.get(12)?),
        started_at: row.get::<_, Option<i64>>(13)?.map(UnixMillis),
        ended_at: row.get::<_, Option<i64>>(14)?.map(UnixMillis),
        usage: read_usage(row)?,
        error_code: row.get(18)?,
        error_message: row.get(19)?,
        correlation_id: row.get(20)?,
        result: row.get(21)?,
        asynchronous: row.get(22)?,
        idempotency_key: row.get(23)?,
        request_hash: row.get::<_, Option<[u8; 32]>>(24)?.map(RequestHash),
        not_before: row.get::<_, Option<i64>>(25)?.map(UnixMillis),
        times: Times {
            inference_ms: row.get::<_, i64>(26)?.cast_unsigned(),
            slot_ms: row.get::<_, i64>(27)?.cast_unsigned(),
        },
        stop: read_stop(row)?,
        failures: row.get(29)?,
        thinking: row.get(30)?,
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

fn read_stop(row: &Row<'_>) -> rusqlite::Result<Option<StopReason>> {
    let Some(name) = row.get::<_, Option<String>>(28)? else {
        return Ok(None);
    };
    let unknown = || crate::Error::internal(format!("{name:?} is no reason to stop"));
    let stop = StopReason::parse(&name).ok_or_else(|| unreadable(28, Type::Text, unknown()));
    stop.map(Some)
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
