//! One measurement: producers that send jobs through a new store, one after the other.

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use rbee_orchestrator::domain::{
    Ending, HiveId, JobId, JobKind, JobRecord, ModelRef, Outcome, PlacedOn, Priority, StopReason,
    Times, UnixMillis, Usage, WorkerId,
};
use rbee_orchestrator::store::sqlite::{SqliteOptions, Synchronous};
use rbee_orchestrator::store::{JobChange, SqliteStore, Store, Submission, Submitted};
use std::fs::File;
use std::io::Write;
use std::num::NonZero;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};
use uuid::Uuid;

/// How steps are committed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Way {
    /// Each step in a transaction of its own, synced
    Single,
    /// All that wait in one transaction, synced
    Full,
    /// All that wait in one transaction, synced now and then
    Normal,
}

impl Way {
    fn options(self) -> SqliteOptions {
        let options = SqliteOptions::default();
        match self {
            Way::Single => options.batch_max(NonZero::<usize>::MIN),
            Way::Full => options,
            Way::Normal => options.synchronous(Synchronous::Normal),
        }
    }
}

/// Cycles a second by so many producers, without the first sixth of the time.
pub(super) fn cycles_per_second(
    folder: &Path,
    way: Way,
    producers: usize,
    time: Duration,
) -> Result<f64> {
    let folder = tempfile::Builder::new()
        .prefix("bench-store-")
        .tempdir_in(folder)?;
    let runtime = tokio::runtime::Runtime::new()?;
    runtime.block_on(measure(folder.path(), way, producers, time))
}

async fn measure(folder: &Path, way: Way, producers: usize, time: Duration) -> Result<f64> {
    let store = SqliteStore::open_with(folder.join("queen.db"), way.options()).await?;
    let store = Arc::new(store);
    let (cycles, over) = (
        Arc::new(AtomicU64::new(0)),
        Arc::new(AtomicBool::new(false)),
    );
    let producing: Vec<_> = (0..producers)
        .map(|_| tokio::spawn(produce(store.clone(), cycles.clone(), over.clone())))
        .collect();
    tokio::time::sleep(time / 6).await;
    let (begun, start) = (cycles.load(Relaxed), Instant::now());
    tokio::time::sleep(time).await;
    let (done, took) = (cycles.load(Relaxed) - begun, start.elapsed());
    over.store(true, Relaxed);
    for producer in producing {
        producer.await??;
    }
    let counted = store.usage(&Default::default()).await?;
    let counted: u64 = counted.iter().map(|row| row.jobs).sum();
    let produced = cycles.load(Relaxed);
    ensure!(
        counted == produced,
        "{produced} jobs ended, and {counted} were counted"
    );
    store.close().await?;
    Ok(done as f64 / took.as_secs_f64())
}

async fn produce(
    store: Arc<SqliteStore>,
    cycles: Arc<AtomicU64>,
    over: Arc<AtomicBool>,
) -> Result<()> {
    let sample = Sample::new()?;
    while !over.load(Relaxed) {
        let submission = sample.submission();
        let job = submission.record.id;
        let submitted = store.submit(submission).await?;
        ensure!(
            submitted == Submitted::New,
            "a new job was taken for another"
        );
        store.record(sample.claim(job));
        let ended = store.finish(job, 1, sample.ending()).await?;
        ensure!(ended, "a job could not end");
        cycles.fetch_add(1, Relaxed);
    }
    Ok(())
}

/// What the jobs of a producer have in common: prompts and answers of 200 bytes.
struct Sample {
    record: JobRecord,
    request: Vec<u8>,
    placed: PlacedOn,
    result: String,
}

impl Sample {
    fn new() -> Result<Self> {
        let model = ModelRef::new("hf:org/model-with-a-usual-name-GGUF/model.Q4_K_M.gguf")?;
        Ok(Sample {
            record: queued(model.clone()),
            request: vec![b'x'; 200],
            placed: PlacedOn {
                worker: WorkerId::mint(),
                hive: Some(HiveId::localhost()),
                model,
                why: "it has the model and the most free slots".into(),
            },
            result: "x".repeat(200),
        })
    }

    fn submission(&self) -> Submission {
        let (id, now) = (JobId::mint(), UnixMillis::now());
        Submission {
            record: JobRecord {
                id,
                submitted_at: now,
                correlation_id: id.to_string(),
                ..self.record.clone()
            },
            request: Some(self.request.clone()),
            key_expires_at: now,
        }
    }

    fn claim(&self, job: JobId) -> JobChange {
        JobChange::Claimed {
            job,
            attempt: 1,
            placed: self.placed.clone(),
            at: UnixMillis::now(),
        }
    }

    fn ending(&self) -> Ending {
        Ending {
            usage: Some(Usage {
                tokens_in: 50,
                tokens_out: 50,
                estimated: false,
            }),
            times: Times {
                inference_ms: 700,
                slot_ms: 800,
            },
            result: Some(self.result.clone()),
            stop: Some(StopReason::Eos),
            ..Ending::new(Outcome::Complete, UnixMillis::now())
        }
    }
}

fn queued(model: ModelRef) -> JobRecord {
    JobRecord {
        priority: Priority::Batch,
        asynchronous: true,
        owner: Uuid::new_v4(),
        ..JobRecord::queued(JobId::mint(), JobKind::Task, model, UnixMillis::now())
    }
}

/// What it takes to append 16 KiB to a file and to sync them, in the middle of many times.
pub(super) fn sync_time(folder: &Path) -> Result<Duration> {
    const TIMES: usize = 401;
    let mut file: File = tempfile::tempfile_in(folder)?;
    let mut took = Vec::with_capacity(TIMES);
    for _ in 0..TIMES {
        let start = Instant::now();
        file.write_all(&[7; 16 * 1024])?;
        file.sync_data()?;
        took.push(start.elapsed());
    }
    took.sort();
    took.get(TIMES / 2).copied().context("there are many times")
}
