//! Calls about the hive and its machine.

use std::fmt::Write;
use std::sync::atomic::Ordering::Relaxed;

use axum::Json;
use axum::extract::State;
use axum::response::IntoResponse;
use serde_json::{Value, json};

use super::models;
use crate::devices::{devices, disk_free_bytes};
use crate::error::{ApiError, Result};
use crate::hive::Hive;
use crate::worker::State as WorkerState;

pub(super) async fn health() -> Json<Value> {
    Json(json!({
        "status": "alive",
        "version": env!("CARGO_PKG_VERSION"),
        "api_version": "v1",
    }))
}

/// Free memory is what the hive would give a new worker: loading ones have theirs already.
pub(super) async fn capabilities(State(hive): State<Hive>) -> Result<Json<Value>> {
    let read = tokio::task::spawn_blocking(move || {
        let mut devices = devices();
        for device in &mut devices {
            device.vram_free_bytes = hive.registry.free_bytes(device);
        }
        let mut backends: Vec<&str> = devices.iter().map(|d| d.backend.as_str()).collect();
        backends.dedup();
        json!({
            "devices": devices,
            "backends": backends,
            "models": models::describe(&hive),
            "disk_free_bytes": disk_free_bytes(hive.catalog.folder()),
        })
    });
    let report = read
        .await
        .map_err(|error| ApiError::internal(error.to_string()))?;
    Ok(Json(report))
}

/// Answers at once; the hive ends its workers and then itself.
pub(super) async fn shutdown(State(hive): State<Hive>) -> Json<Value> {
    hive.stopping.cancel();
    Json(json!({"success": true, "message": "the hive stops its workers and ends"}))
}

/// Prometheus' text format.
pub(super) async fn metrics(State(hive): State<Hive>) -> impl IntoResponse {
    let workers = hive.registry.all();
    let mut text = String::from(
        "# HELP rbee_hive_workers Workers by state.\n# TYPE rbee_hive_workers gauge\n",
    );
    let states = [
        (WorkerState::Loading, "loading"),
        (WorkerState::Ready, "ready"),
        (WorkerState::Stopping, "draining"),
        (WorkerState::Failed, "failed"),
    ];
    for (state, name) in states {
        let count = workers
            .iter()
            .filter(|worker| worker.state() == state)
            .count();
        let _ = writeln!(text, "rbee_hive_workers{{state=\"{name}\"}} {count}");
    }
    let registry = &hive.registry;
    let counters = [
        ("spawns", "Workers started.", &registry.spawns),
        (
            "worker_failures",
            "Workers that ended by themselves.",
            &registry.failures,
        ),
        (
            "callbacks_lost",
            "Callbacks the queen did not take.",
            &registry.lost_callbacks,
        ),
    ];
    for (name, help, counter) in counters {
        let name = format!("rbee_hive_{name}_total");
        let value = counter.load(Relaxed);
        let _ = writeln!(
            text,
            "# HELP {name} {help}\n# TYPE {name} counter\n{name} {value}"
        );
    }
    ([("content-type", "text/plain; version=0.0.4")], text)
}
