//! Calls about workers.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use futures_util::future::join_all;
use serde::Deserialize;
use serde_json::{Value, json};
use tracing::Instrument;

use super::body::Body;
use crate::error::{ApiError, Result};
use crate::hive::Hive;
use crate::worker::{self, SpawnRequest, State as WorkerState, Worker};

/// Longest grace that a caller may give a worker.
const LONGEST_GRACE: Duration = Duration::from_secs(600);

/// Answers as soon as the engine runs; it loads its model afterwards.
pub(super) async fn spawn(
    State(hive): State<Hive>,
    Body(request): Body<SpawnRequest>,
) -> Result<Json<Value>> {
    // In a task of its own: a caller that goes away must not leave a half-made worker.
    let task_hive = hive.clone();
    let task = async move { worker::spawn(&task_hive, request).await };
    let worker = tokio::spawn(task.in_current_span())
        .await
        .map_err(|error| ApiError::internal(error.to_string()))??;
    let now = worker.now();
    let mut answer = json!({
        "worker_id": worker.id,
        "url": hive.settings.worker_host.url(now.port),
        "state": "loading",
    });
    if let Some(key) = &now.api_key {
        answer["api_key"] = json!(key);
    }
    Ok(Json(answer))
}

#[derive(Debug, Deserialize)]
pub(super) struct ListQuery {
    /// Whether the engines are to be asked what they do now.
    #[serde(default)]
    slots: bool,
}

pub(super) async fn list(
    State(hive): State<Hive>,
    query: Result<Query<ListQuery>, QueryRejection>,
) -> Result<Json<Value>> {
    let Query(query) = query.map_err(|error| ApiError::invalid(error.body_text()))?;
    let workers = hive.registry.all();
    let described = workers
        .iter()
        .map(|worker| describe(&hive, worker, query.slots));
    Ok(Json(json!({"workers": join_all(described).await})))
}

async fn describe(hive: &Hive, worker: &Arc<Worker>, asks: bool) -> Value {
    let (plan, now) = (&worker.plan, worker.now());
    let is_ready = now.state == WorkerState::Ready;
    let activity = match is_ready && asks {
        true => worker::activity(hive, worker).await,
        false => None,
    };
    let free = match activity {
        Some(activity) => activity.free_slots,
        None if is_ready => now.slots_total,
        None => 0,
    };
    let state = match now.state {
        WorkerState::Loading => "loading",
        WorkerState::Ready if free < now.slots_total => "busy",
        WorkerState::Ready => "idle",
        WorkerState::Stopping => "draining",
        WorkerState::Failed => "failed",
    };
    let mut described = json!({
        "id": worker.id,
        "url": hive.settings.worker_host.url(now.port),
        "model_ref": plan.model_ref,
        "backend": plan.backend,
        "device": plan.device,
        "state": state,
        "slots_total": now.slots_total,
        "slots_available": free,
        "vram_bytes": plan.vram_bytes,
        "protocol": plan.protocol,
        "engine": plan.engine,
    });
    if let Some(key) = &now.api_key {
        described["api_key"] = json!(key);
    }
    if let Some(activity) = activity {
        described["sleeping"] = json!(activity.sleeps);
    }
    if let Some(process) = now.process {
        described["pid"] = json!(process.pid);
    }
    if plan.serves_model_ref {
        described["served_model"] = json!(plan.model_ref);
    }
    if let Some(error) = now.error {
        described["error"] = json!(error);
    }
    described
}

#[derive(Debug, Deserialize)]
pub(super) struct ShutdownRequest {
    worker_id: String,
    grace_ms: Option<u64>,
}

/// Answers at once; the worker is listed as `draining` until it is gone.
pub(super) async fn shutdown(
    State(hive): State<Hive>,
    Body(request): Body<ShutdownRequest>,
) -> Result<Json<Value>> {
    let worker = hive
        .registry
        .get(&request.worker_id)
        .ok_or_else(|| ApiError::worker_not_found(&request.worker_id))?;
    let grace = request.grace_ms.map(Duration::from_millis);
    let message = match worker.state() {
        WorkerState::Failed => {
            worker::forget(&hive, &worker);
            "the worker had failed; it is forgotten"
        }
        _ => {
            worker.stop(grace.unwrap_or(hive.rules().stop_grace).min(LONGEST_GRACE));
            "the worker is being stopped"
        }
    };
    tracing::info!(worker_id = worker.id, message);
    Ok(Json(
        json!({"success": true, "message": message, "worker_id": worker.id}),
    ))
}
