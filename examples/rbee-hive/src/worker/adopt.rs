//! What earlier hives left: workers that still serve are taken over, everything else is ended.

use std::collections::HashSet;
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
    let serving = join_all(records.iter().map(|record| serves(hive, record))).await;
    let mut adopted = HashSet::new();
    for (record, serves) in records.iter().zip(serving) {
        if serves {
            adopt(hive, record);
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

/// A worker that is reached under another name by now can't be handed out any more.
async fn serves(hive: &Hive, record: &WorkerRecord) -> bool {
    let healthy = async {
        while !probe::is_healthy(hive, &record.plan, record.port).await {
            sleep(PROBE_PAUSE).await;
        }
    };
    record.process.is_alive()
        && record.url == hive.settings.worker_host.url(record.port)
        && timeout(PROBE, healthy).await.is_ok()
        && record.process.is_alive()
}

fn adopt(hive: &Hive, record: &WorkerRecord) {
    let worker = Worker::new(
        record.worker_id.clone(),
        record.plan.clone(),
        record.port,
        record.slots_total,
    );
    worker.set_process(Some(record.process.clone()), record.port);
    hive.registry.adopt(&worker);
    let span = tracing::info_span!("worker", id = worker.id);
    span.in_scope(|| tracing::info!(pid = record.process.pid, "worker adopted"));
    let process = EngineProcess::Adopted(record.process.clone());
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
