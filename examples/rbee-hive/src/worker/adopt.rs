//! What earlier hives left: workers that still serve are taken over, everything else is ended.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::{sleep, timeout};
use tracing::Instrument;

use super::launch::EngineProcess;
use super::{Worker, probe, supervise};
use crate::hive::Hive;
use crate::process::{self, ProcessId};
use crate::state_dir::{StateDir, WorkerRecord};

/// How long an engine may take to show that it serves.
const PROBE: Duration = Duration::from_secs(3);
const PROBE_PAUSE: Duration = Duration::from_millis(100);
/// A hive that starts must not be silent for long.
const OWN_GRACE: Duration = Duration::from_secs(2);
const ABANDONED_GRACE: Duration = Duration::from_secs(5);

/// Takes over this hive's own workers of its last life and ends what does not serve.
pub(crate) async fn adopt_own(hive: &Hive) {
    let records = hive.state_dir.records();
    let workers = join_all(records.iter().map(|record| serving(hive, record))).await;
    let mut adopted = HashSet::new();
    for (record, worker) in records.iter().zip(workers) {
        if let Some(worker) = worker {
            adopt(hive, worker, record.process.clone());
            adopted.insert(record.worker_id.clone());
        }
    }
    end_leftovers(&hive.state_dir, &adopted, OWN_GRACE).await;
}

/// Ends what hives left that are dead.
pub(crate) async fn end_abandoned(hive: Hive) {
    let nobody = HashSet::new();
    let siblings = hive.state_dir.abandoned_siblings();
    let ends = siblings
        .iter()
        .map(|dir| end_leftovers(dir, &nobody, ABANDONED_GRACE));
    join_all(ends).await;
}

/// The worker as it was, if it serves. One that is reached under another name by now can't be handed
/// out any more.
async fn serving(hive: &Hive, record: &WorkerRecord) -> Option<Arc<Worker>> {
    let (process, port) = (&record.process, record.port);
    let worker = Worker::new(
        record.worker_id.clone(),
        record.plan.clone(),
        port,
        record.slots_total,
    );
    worker.set_process(process.clone(), port, record.api_key.clone());
    if !process.is_alive() || record.url != hive.settings.worker_host.url(port) {
        return None;
    }
    let healthy = async {
        while !probe::is_healthy(hive, &worker).await {
            sleep(PROBE_PAUSE).await;
        }
    };
    timeout(PROBE, healthy).await.ok()?;
    process.is_alive().then_some(worker)
}

fn adopt(hive: &Hive, worker: Arc<Worker>, process: ProcessId) {
    hive.registry.adopt(&worker);
    let span = tracing::info_span!("worker", id = worker.id);
    span.in_scope(|| tracing::info!(pid = process.pid, "worker adopted"));
    let process = EngineProcess::Adopted(process);
    let life = supervise::serve_adopted(hive.clone(), worker, process);
    hive.tasks.spawn(life.instrument(span));
}

/// Ends the processes of a state folder but those of the workers to keep, then forgets them.
async fn end_leftovers(dir: &StateDir, keep: &HashSet<String>, grace: Duration) {
    let records: Vec<WorkerRecord> = dir
        .records()
        .into_iter()
        .filter(|record| !keep.contains(&record.worker_id))
        .collect();
    let path = dir.path().to_owned();
    let marked = tokio::task::spawn_blocking(move || process::marked(&path));
    let marked = marked.await.unwrap_or_default();
    let mut leftovers: Vec<ProcessId> = marked
        .into_iter()
        .filter(|(_, worker_id)| !keep.contains(worker_id))
        .map(|(process, _)| process)
        .collect();
    for record in &records {
        if record.process.is_alive() && !leftovers.contains(&record.process) {
            leftovers.push(record.process.clone());
        }
    }
    for process in &leftovers {
        tracing::warn!(pid = process.pid, dir = %dir.path().display(), "ending a leftover engine");
    }
    process::end(&leftovers, grace).await;
    for record in &records {
        dir.remove(&record.worker_id);
    }
}
