//! A database of ended tasks, written through the store.

use anyhow::Result;
use rbee_orchestrator::domain::{
    Ending, HiveId, JobId, JobKind, JobRecord, JobState, ModelRef, Outcome, PlacedOn, StopReason,
    TenantId, Times, UnixMillis, Usage, WorkerId,
};
use rbee_orchestrator::store::sqlite::{SqliteOptions, Synchronous};
use rbee_orchestrator::store::{JobChange, SqliteStore, Store};
use rbee_orchestrator::{Code, Error};
use std::path::Path;

pub(super) const RARE_MODEL: &str = "file:rare.gguf";
pub(super) const LARGE_TENANT: &str = "reports";

/// What lists filter by, of one task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Kind {
    pub(super) state: JobState,
    pub(super) model: String,
    pub(super) tenant: String,
    pub(super) is_large: bool,
}

impl Kind {
    /// Of the task with this number.
    fn of(number: usize, large_one_of: usize) -> Self {
        let is_large = number % large_one_of == large_one_of / 2;
        Kind {
            state: match number % 20 {
                _ if is_large => JobState::Complete,
                1 => JobState::Failed,
                2 => JobState::Cancelled,
                _ => JobState::Complete,
            },
            model: match number % 100 {
                7 | 21 => RARE_MODEL.to_owned(),
                _ => format!("file:common-{}.gguf", number % 8),
            },
            tenant: match is_large {
                true => LARGE_TENANT.to_owned(),
                false => format!("tenant-{}", number % 10),
            },
            is_large,
        }
    }
}

/// The tasks of a database, in the order of their submission.
pub(super) struct Filled(pub(super) Vec<(JobId, Kind)>);

/// Fills a new database with so many ended tasks.
pub(super) fn fill(database: &Path, tasks: usize, large_one_of: usize) -> Result<Filled> {
    tokio::runtime::Runtime::new()?.block_on(async {
        let options = SqliteOptions::default().synchronous(Synchronous::Normal);
        let store = SqliteStore::open_with(database, options).await?;
        let (short, long) = ("word ".repeat(40), "word ".repeat(200_000));
        let mut filled = Vec::with_capacity(tasks);
        for number in 0..tasks {
            let kind = Kind::of(number, large_one_of);
            let text = if kind.is_large { &long } else { &short };
            store.ready().await?;
            filled.push((record(&store, &kind, text)?, kind));
        }
        store.close().await?;
        Ok(Filled(filled))
    })
}

/// A task's life, as an interactive one's is recorded.
fn record(store: &SqliteStore, kind: &Kind, text: &str) -> Result<JobId> {
    let (job, now, model) = (
        JobId::mint(),
        UnixMillis::now(),
        ModelRef::new(&kind.model)?,
    );
    let record = JobRecord {
        tenant: TenantId::new(&kind.tenant)?,
        correlation_id: job.to_string(),
        ..JobRecord::queued(job, JobKind::Task, model.clone(), now)
    };
    store.record(JobChange::Submitted {
        record: Box::new(record),
        request: None,
    });
    let placed = PlacedOn {
        worker: WorkerId::new("worker-c75b1358bc4647bf99e8e838d8f64b04")?,
        hive: Some(HiveId::localhost()),
        model,
        why: "has the model and the most free slots".to_owned(),
    };
    store.record(JobChange::Claimed {
        job,
        attempt: 1,
        placed,
        at: now,
    });
    let error = |code| Error::new(code, "the worker said: ".to_owned() + &"error ".repeat(200));
    let ending = match kind.state {
        JobState::Failed => Ending::new(Outcome::Failed(error(Code::WorkerFailed)), now),
        JobState::Cancelled => Ending::new(Outcome::Cancelled(error(Code::Cancelled)), now),
        _ => Ending {
            result: Some(text.to_owned()),
            stop: Some(StopReason::Eos),
            ..Ending::new(Outcome::Complete, now)
        },
    };
    let ending = Ending {
        usage: Some(Usage {
            tokens_in: 50,
            tokens_out: text.len() as u64 / 5,
            estimated: false,
        }),
        times: Times {
            inference_ms: 700,
            slot_ms: 800,
        },
        ..ending
    };
    store.record(JobChange::Finished {
        job,
        attempt: 1,
        ending: Box::new(ending),
    });
    Ok(job)
}
