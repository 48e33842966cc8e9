//! Asking an engine how it is.

use std::time::Duration;

use serde_json::Value;

use super::Worker;
use crate::hive::Hive;

/// An engine that computes may be slow to say how it is.
const HEALTH_TIMEOUT: Duration = Duration::from_secs(2);
const PROPS_TIMEOUT: Duration = Duration::from_secs(2);
/// A list of workers must not wait for a busy engine.
const SLOTS_TIMEOUT: Duration = Duration::from_millis(250);

/// Whether the engine is ready for work.
pub(super) async fn is_healthy(hive: &Hive, worker: &Worker) -> bool {
    let answer = ask(hive, worker, &worker.plan.health, HEALTH_TIMEOUT).await;
    answer.is_ok_and(|answer| answer.status().is_success())
}

/// How many requests it really serves at once; `None` when it can't say.
pub(super) async fn total_slots(hive: &Hive, worker: &Worker) -> Option<u32> {
    let props = get(hive, worker, "/props", PROPS_TIMEOUT).await?;
    let slots = u32::try_from(props["total_slots"].as_u64()?).ok()?;
    (slots > 0).then_some(slots)
}

/// What an engine does.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Activity {
    pub(crate) free_slots: u32,
    /// It has let go of its model until a request comes.
    pub(crate) sleeps: bool,
}

/// What an engine does now; `None` where it can't say, or not in time. llama-server's `/slots` wakes it, and,
/// asked again and again, keeps it awake: so it is asked only when somebody wants to know, and only where
/// `/props` says that it is awake.
pub(crate) async fn activity(hive: &Hive, worker: &Worker) -> Option<Activity> {
    let props = get(hive, worker, "/props", SLOTS_TIMEOUT).await?;
    if props["is_sleeping"] == Value::Bool(true) {
        return Some(Activity {
            free_slots: worker.now().slots_total,
            sleeps: true,
        });
    }
    let slots = get(hive, worker, "/slots", SLOTS_TIMEOUT).await?;
    let is_free = |slot: &&Value| slot["is_processing"] == Value::Bool(false);
    let free = slots.as_array()?.iter().filter(is_free).count();
    Some(Activity {
        free_slots: u32::try_from(free).ok()?,
        sleeps: false,
    })
}

async fn get(hive: &Hive, worker: &Worker, path: &str, timeout: Duration) -> Option<Value> {
    if !worker.plan.llama_api {
        return None;
    }
    let answer = ask(hive, worker, path, timeout).await.ok()?;
    answer.error_for_status().ok()?.json().await.ok()
}

async fn ask(
    hive: &Hive,
    worker: &Worker,
    path: &str,
    timeout: Duration,
) -> reqwest::Result<reqwest::Response> {
    let now = worker.now();
    let url = hive.settings.worker_host.probe_url(now.port, path);
    let mut request = hive.client.get(url).timeout(timeout);
    if let Some(key) = now.api_key {
        request = request.bearer_auth(key.expose());
    }
    request.send().await
}
