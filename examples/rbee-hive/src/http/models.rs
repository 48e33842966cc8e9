//! Calls about models on disk. This hive fetches none.

use axum::Json;
use axum::extract::State;
use serde::Deserialize;
use serde_json::{Value, json};

use super::body::Body;
use crate::error::{ApiError, Result};
use crate::hive::Hive;

#[derive(Debug, Deserialize)]
pub(super) struct ModelRequest {
    model_ref: String,
}

/// Every model as the protocol shows it. Reads the disk.
pub(super) fn describe(hive: &Hive) -> Vec<Value> {
    let settings = &hive.settings;
    let models = hive.catalog.models().into_iter();
    models
        .map(|model| {
            json!({
                "model_ref": model.model_ref,
                "aliases": model.aliases,
                "size_bytes": model.size_bytes,
                "vram_bytes": model.memory(settings.slots, settings.context),
                "local_path": model.path,
            })
        })
        .collect()
}

pub(super) async fn list(State(hive): State<Hive>) -> Result<Json<Value>> {
    let read = tokio::task::spawn_blocking(move || json!({"models": describe(&hive)}));
    let models = read
        .await
        .map_err(|error| ApiError::internal(error.to_string()))?;
    Ok(Json(models))
}

pub(super) async fn download(
    State(hive): State<Hive>,
    Body(request): Body<ModelRequest>,
) -> Result<Json<Value>> {
    let folder = hive.catalog.folder().to_owned();
    let name = request.model_ref.clone();
    let find = tokio::task::spawn_blocking(move || hive.catalog.find(&name, ""));
    let found = find
        .await
        .map_err(|error| ApiError::internal(error.to_string()))?;
    match found {
        Ok(model) => Ok(Json(
            json!({"download_id": "cached", "local_path": model.path}),
        )),
        Err(error) if error.code == "MODEL_NOT_FOUND" => Err(ApiError::not_implemented(format!(
            "this hive downloads no models yet, and {} is not here; put its file into {}",
            request.model_ref,
            folder.display()
        ))),
        Err(error) => Err(error),
    }
}

pub(super) async fn progress() -> ApiError {
    ApiError::not_implemented("this hive downloads no models yet")
}

pub(super) async fn remove(Body(request): Body<ModelRequest>) -> ApiError {
    ApiError::not_implemented(format!(
        "this hive removes no models yet; delete the file of {} yourself",
        request.model_ref
    ))
}
