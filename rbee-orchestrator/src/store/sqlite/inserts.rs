//! New jobs in the `jobs` table: a statement for each, or, since what a statement costs by itself is more
//! than a row, one for many.

use rusqlite::{Connection, Statement, ToSql};

use super::codes::{kind_code, priority_code, state_code};
use crate::domain::JobRecord;

/// The rows of a statement for many.
pub(super) const TOGETHER: usize = 32;

const COLUMNS: [&str; 29] = [
    "id",
    "kind",
    "priority",
    "state",
    "attempt",
    "owner",
    "model",
    "tenant",
    "session",
    "worker",
    "hive",
    "why",
    "submitted_at",
    "started_at",
    "ended_at",
    "tokens_in",
    "tokens_out",
    "tokens_estimated",
    "error_code",
    "error_message",
    "correlation_id",
    "asynchronous",
    "idempotency_key",
    "request_hash",
    "not_before",
    "inference_ms",
    "slot_ms",
    "stop_reason",
    "failures",
];

/// Both statements, compiled once.
pub(super) struct Inserts<'db> {
    one: Statement<'db>,
    many: Statement<'db>,
}

impl<'db> Inserts<'db> {
    pub(super) fn new(db: &'db Connection) -> rusqlite::Result<Self> {
        Ok(Inserts {
            one: db.prepare(&(sql(1) + " ON CONFLICT DO NOTHING"))?,
            many: db.prepare(&sql(TOGETHER))?,
        })
    }

    /// Writes a job; says whether it was new.
    pub(super) fn one(&mut self, job: &JobRecord) -> rusqlite::Result<bool> {
        bind(&mut self.one, 0, job)?;
        Ok(self.one.raw_execute()? == 1)
    }

    /// Writes [`TOGETHER`] jobs, or, with an error, none of them.
    pub(super) fn many<'a>(
        &mut self,
        jobs: impl Iterator<Item = &'a JobRecord>,
    ) -> rusqlite::Result<()> {
        let mut rows = 0;
        for job in jobs {
            bind(&mut self.many, rows, job)?;
            rows += 1;
        }
        debug_assert_eq!(rows, TOGETHER, "what is not bound would be a row of before");
        self.many.raw_execute().map(|_| ())
    }
}

fn sql(rows: usize) -> String {
    let row = format!("({})", ["?"; COLUMNS.len()].join(", "));
    let rows = vec![row; rows].join(", ");
    format!("INSERT INTO jobs ({}) VALUES {rows}", COLUMNS.join(", "))
}

/// Gives a statement's row its values, in the order of the columns.
fn bind(statement: &mut Statement<'_>, row: usize, job: &JobRecord) -> rusqlite::Result<()> {
    let placed = job.placed.as_ref();
    let values: [&dyn ToSql; COLUMNS.len()] = [
        job.id.0.as_bytes(),
        &kind_code(job.kind),
        &priority_code(job.priority),
        &state_code(job.state),
        &job.attempt,
        job.owner.as_bytes(),
        &job.model.as_str(),
        &job.tenant.as_str(),
        &job.session.as_ref().map(|session| session.as_str()),
        &placed.map(|placed| placed.worker.as_str()),
        &placed.and_then(|placed| placed.hive.as_ref().map(|hive| hive.as_str())),
        &placed.map(|placed| placed.why.as_str()),
        &job.submitted_at.0,
        &job.started_at.map(|at| at.0),
        &job.ended_at.map(|at| at.0),
        &job.usage.map(|usage| usage.tokens_in.cast_signed()),
        &job.usage.map(|usage| usage.tokens_out.cast_signed()),
        &job.usage.map(|usage| usage.estimated),
        &job.error_code,
        &job.error_message,
        &job.correlation_id,
        &job.asynchronous,
        &job.idempotency_key,
        &job.request_hash.as_ref().map(|hash| &hash.0),
        &job.not_before.map(|at| at.0),
        &job.times.inference_ms.cast_signed(),
        &job.times.slot_ms.cast_signed(),
        &job.stop.map(|stop| stop.as_str()),
        &job.failures,
    ];
    for (at, value) in (row * COLUMNS.len() + 1..).zip(values) {
        statement.raw_bind_parameter(at, value)?;
    }
    Ok(())
}
