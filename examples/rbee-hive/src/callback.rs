//! Telling the queen that a worker is ready or dead, without waiting for her to ask.

use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use serde_json::{Value, json};
use tracing::Instrument;

use crate::hive::Hive;
use crate::worker::Worker;

const ATTEMPTS: u32 = 5;
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const TIMEOUT: Duration = Duration::from_secs(5);

/// The queen's address and token, when she gave them.
#[derive(Debug)]
pub(crate) struct Callbacks {
    url: Option<String>,
    token: Option<String>,
    client: reqwest::Client,
}

impl Callbacks {
    pub(crate) fn new(url: Option<String>, token: Option<String>, client: reqwest::Client) -> Self {
        Callbacks { url, token, client }
    }

    async fn post(&self, url: &str, body: &Value) -> Result<(), String> {
        let mut request = self.client.post(url).json(body).timeout(TIMEOUT);
        if let Some(token) = &self.token {
            request = request.bearer_auth(token);
        }
        let answer = request.send().await.map_err(|error| format!("{error:#}"))?;
        match answer.status() {
            status if status.is_success() => Ok(()),
            status => Err(format!("the queen answered {status}")),
        }
    }
}

pub(crate) fn ready(hive: &Hive, worker: &Worker) {
    let plan = &worker.plan;
    let now = worker.now();
    let mut body = json!({
        "worker_id": worker.id,
        "url": hive.settings.worker_host.url(now.port),
        "model_ref": plan.model_ref,
        "backend": plan.backend,
        "device": plan.device,
        "slots_total": now.slots_total,
        "vram_bytes": plan.vram_bytes,
        "protocol": plan.protocol,
    });
    if plan.serves_model_ref {
        body["served_model"] = json!(plan.model_ref);
    }
    if let Some(key) = &now.api_key {
        body["api_key"] = json!(key);
    }
    send(hive, "/v2/workers/ready", body);
}

pub(crate) fn failed(hive: &Hive, worker: &Worker, exit_code: Option<i32>, reason: &str) {
    let body = json!({"worker_id": worker.id, "exit_code": exit_code, "reason": reason});
    send(hive, "/v2/workers/failed", body);
}

/// Tries a few times in the background. The queen also asks by herself, so a callback that does
/// not get through is no more than a delay.
fn send(hive: &Hive, path: &'static str, body: Value) {
    let Some(base) = &hive.callbacks.url else {
        return;
    };
    let url = format!("{base}{path}");
    let task_hive = hive.clone();
    let tries = async move {
        let mut pause = FIRST_PAUSE;
        for attempt in 1..=ATTEMPTS {
            match task_hive.callbacks.post(&url, &body).await {
                Ok(()) => return,
                Err(error) => tracing::warn!(url, attempt, error, "the queen was not reached"),
            }
            if attempt < ATTEMPTS {
                tokio::time::sleep(pause).await;
                pause *= 2;
            }
        }
        task_hive.registry.lost_callbacks.fetch_add(1, Relaxed);
    };
    let stopping = hive.stopping.clone();
    let task = async move {
        stopping.run_until_cancelled(tries).await;
    };
    hive.tasks.spawn(task.in_current_span());
}
