//! Asking an engine how it is.

use std::time::Duration;

use serde_json::Value;

use super::{Now, Plan};
use crate::hive::Hive;

/// An engine that computes may be slow to say how it is.
const HEALTH_TIMEOUT: Duration = Duration::from_secs(2);
const PROPS_TIMEOUT: Duration = Duration::from_secs(2);
/// A list of workers must not wait for a busy engine.
const SLOTS_TIMEOUT: Duration = Duration::from_millis(250);

/// Whether the engine is ready for work.
pub(super) async fn is_healthy(hive: &Hive, plan: &Plan, port: u16) -> bool {
    let url = hive.settings.worker_host.probe_url(port, &plan.health);
    let answer = hive.client.get(url).timeout(HEALTH_TIMEOUT).send().await;
    answer.is_ok_and(|answer| answer.status().is_success())
}

/// How many requests it really serves at once; `None` when it can't say.
pub(super) async fn total_slots(hive: &Hive, plan: &Plan, port: u16) -> Option<u32> {
    let props = get(hive, plan, port, "/props", PROPS_TIMEOUT).await?;
    let slots = u32::try_from(props["total_slots"].as_u64()?).ok()?;
    (slots > 0).then_some(slots)
}

/// How many requests it could take now. Where the engine can't say, or not in time, all its
/// slots: only the queen knows her leases.
pub(crate) async fn free_slots(hive: &Hive, plan: &Plan, now: &Now) -> u32 {
    let slots = get(hive, plan, now.port, "/slots", SLOTS_TIMEOUT).await;
    let Some(Value::Array(slots)) = slots else {
        return now.slots_total;
    };
    let free = slots
        .iter()
        .filter(|slot| slot["is_processing"] == Value::Bool(false));
    u32::try_from(free.count()).unwrap_or(now.slots_total)
}

async fn get(hive: &Hive, plan: &Plan, port: u16, path: &str, timeout: Duration) -> Option<Value> {
    if !plan.llama_api {
        return None;
    }
    let url = hive.settings.worker_host.probe_url(port, path);
    let answer = hive.client.get(url).timeout(timeout).send().await.ok()?;
    answer.error_for_status().ok()?.json().await.ok()
}
