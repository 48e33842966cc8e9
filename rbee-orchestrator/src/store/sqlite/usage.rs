//! The `usage` table: sums over the jobs that ended, made while they end.

use std::collections::HashMap;

use rusqlite::{Connection, Row, Statement, ToSql, params};

use super::jobs::checked;
use crate::domain::{
    Ending, JobRecord, ModelRef, TenantId, Times, UnixMillis, Usage, UsageFilter, UsageRow,
};

/// A sum that grows past what an integer holds becomes a float, and the cast takes the largest
/// integer for that.
pub(super) const ADD: &str = "INSERT INTO usage (day, tenant, model, jobs, tokens_in, tokens_out, \
     inference_ms, slot_ms) VALUES (?, ?, ?, ?, ?, ?, ?, ?) \
     ON CONFLICT (day, tenant, model) DO UPDATE SET \
     jobs = CAST(jobs + excluded.jobs AS INTEGER), \
     tokens_in = CAST(tokens_in + excluded.tokens_in AS INTEGER), \
     tokens_out = CAST(tokens_out + excluded.tokens_out AS INTEGER), \
     inference_ms = CAST(inference_ms + excluded.inference_ms AS INTEGER), \
     slot_ms = CAST(slot_ms + excluded.slot_ms AS INTEGER)";

/// What the jobs used that ended in one transaction: one write for each row of the table, however
/// many jobs there are.
#[derive(Default)]
pub(super) struct Sums {
    rows: HashMap<(i64, TenantId, ModelRef), Sum>,
}

#[derive(Default)]
struct Sum {
    jobs: u64,
    usage: Usage,
    times: Times,
}

impl Sums {
    /// Counts a job that ended.
    pub(super) fn add(
        &mut self,
        tenant: TenantId,
        model: ModelRef,
        at: UnixMillis,
        usage: Option<Usage>,
        times: Times,
    ) {
        let usage = usage.unwrap_or_default();
        let sum = self.rows.entry((at.day(), tenant, model)).or_default();
        sum.jobs += 1;
        for (sum, more) in [
            (&mut sum.usage.tokens_in, usage.tokens_in),
            (&mut sum.usage.tokens_out, usage.tokens_out),
            (&mut sum.times.inference_ms, times.inference_ms),
            (&mut sum.times.slot_ms, times.slot_ms),
        ] {
            *sum = sum.saturating_add(more);
        }
    }

    /// Counts a job by its record, if it has ended.
    pub(super) fn add_record(&mut self, job: &JobRecord) {
        if let Some(at) = job.ended_at.filter(|_| job.state.is_ended()) {
            let (tenant, model) = (job.tenant.clone(), job.model.clone());
            self.add(tenant, model, at, job.usage, job.times);
        }
    }

    /// Counts a job by its ending.
    pub(super) fn add_ending(&mut self, tenant: TenantId, model: ModelRef, ending: &Ending) {
        self.add(tenant, model, ending.at, ending.usage, ending.times);
    }

    /// Writes the sums with [`ADD`] and starts afresh.
    pub(super) fn write(&mut self, add: &mut Statement<'_>) -> rusqlite::Result<()> {
        for ((day, tenant, model), sum) in self.rows.drain() {
            add.execute(params![
                day,
                tenant.as_str(),
                model.as_str(),
                integer(sum.jobs),
                integer(sum.usage.tokens_in),
                integer(sum.usage.tokens_out),
                integer(sum.times.inference_ms),
                integer(sum.times.slot_ms),
            ])?;
        }
        Ok(())
    }

    /// Forgets what a transaction counted that came to nothing.
    pub(super) fn clear(&mut self) {
        self.rows.clear();
    }
}

fn integer(sum: u64) -> i64 {
    i64::try_from(sum).unwrap_or(i64::MAX)
}

/// The rows that match, by day, tenant and model.
pub(super) fn list(db: &Connection, filter: &UsageFilter) -> rusqlite::Result<Vec<UsageRow>> {
    let UsageFilter {
        tenant,
        model,
        since_day,
    } = filter;
    let tenant = tenant.as_ref().map(|tenant| tenant.as_str());
    let model = model.as_ref().map(|model| model.as_str());
    let mut sql = "SELECT day, tenant, model, jobs, tokens_in, tokens_out, inference_ms, slot_ms \
         FROM usage WHERE TRUE"
        .to_owned();
    let mut values: Vec<&dyn ToSql> = Vec::new();
    for (condition, value) in [
        (" AND day >= ?", since_day.as_ref().map(|v| v as &dyn ToSql)),
        (" AND tenant = ?", tenant.as_ref().map(|v| v as &dyn ToSql)),
        (" AND model = ?", model.as_ref().map(|v| v as &dyn ToSql)),
    ] {
        if let Some(value) = value {
            sql.push_str(condition);
            values.push(value);
        }
    }
    sql.push_str(" ORDER BY day, tenant, model");
    let mut found = db.prepare_cached(&sql)?;
    found.query_map(values.as_slice(), read)?.collect()
}

fn read(row: &Row<'_>) -> rusqlite::Result<UsageRow> {
    let sum = |column: usize| row.get::<_, i64>(column).map(i64::cast_unsigned);
    Ok(UsageRow {
        day: row.get(0)?,
        tenant: checked(row, 1)?,
        model: checked(row, 2)?,
        jobs: sum(3)?,
        tokens_in: sum(4)?,
        tokens_out: sum(5)?,
        inference_ms: sum(6)?,
        slot_ms: sum(7)?,
    })
}
