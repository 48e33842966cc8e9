//! Calls about models on disk.

use std::convert::Infallible;
use std::time::Duration;

use axum::Json;
use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::response::sse::{Event, KeepAlive, Sse};
use futures_util::{Stream, StreamExt, stream};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::timeout;

use super::body::Body;
use crate::error::{ApiError, Result};
use crate::hive::Hive;
use crate::models::{self, SourceRef, Stage};
use crate::worker::State as WorkerState;

/// How long a caller waits for the hub's first word, which tells if it can be fetched at all.
const FIRST_WORD: Duration = Duration::from_secs(8);
const KEEP_ALIVE: Duration = Duration::from_secs(10);

#[derive(Debug, Deserialize)]
pub(super) struct ModelRequest {
    model_ref: String,
}

/// Every model as the protocol shows it. Reads the disk.
pub(super) fn describe(hive: &Hive) -> Vec<Value> {
    let rules = hive.rules();
    let models = hive.catalog.models().into_iter();
    models
        .map(|model| {
            json!({
                "model_ref": model.model_ref,
                "aliases": model.aliases,
                "size_bytes": model.size_bytes,
                "vram_bytes": model.memory(rules.slots, rules.context),
                "removable": model.removable,
                "local_path": model.path,
            })
        })
        .collect()
}

pub(super) async fn list(State(hive): State<Hive>) -> Result<Json<Value>> {
    blocking(move || Ok(Json(json!({"models": describe(&hive)})))).await
}

/// Answers once the hub has: a model that can't be had, or does not fit, is refused here.
pub(super) async fn download(
    State(hive): State<Hive>,
    Body(request): Body<ModelRequest>,
) -> Result<Json<Value>> {
    let (looking, model_ref) = (hive.clone(), request.model_ref);
    let missing = blocking(move || missing(&looking, &model_ref)).await?;
    let reference = match missing {
        Missing::Nothing(path) => {
            return Ok(Json(json!({"download_id": "cached", "local_path": path})));
        }
        Missing::At(reference) => reference,
    };
    let download = models::download(&hive, &reference)?;
    let mut stage = download.follow();
    let first = timeout(FIRST_WORD, stage.wait_for(Option::is_some)).await;
    let first = first.ok().and_then(|first| first.ok()?.clone());
    match first {
        Some(Stage::Error {
            status,
            code,
            message,
            details,
        }) => Err(ApiError {
            status: StatusCode::from_u16(status).unwrap_or(StatusCode::BAD_GATEWAY),
            code: code.into(),
            message,
            details,
        }),
        _ => Ok(Json(
            json!({"download_id": download.id, "local_path": null}),
        )),
    }
}

enum Missing {
    /// It is here.
    Nothing(std::path::PathBuf),
    At(SourceRef),
}

fn missing(hive: &Hive, model_ref: &str) -> Result<Missing> {
    let Some(reference) = SourceRef::parse(model_ref) else {
        let found = hive.catalog.find(model_ref, "");
        return match found {
            Ok(model) => Ok(Missing::Nothing(model.path)),
            Err(_) if model_ref.starts_with("http") => Err(ApiError::invalid(format!(
                "{model_ref:?} can't be fetched: it must be https://host/path/file, with \
                 #sha256=… if wanted, and without user, query or escapes"
            ))),
            Err(error) => Err(error),
        };
    };
    if !hive.catalog.could_be_served(&reference) {
        let message = format!("no engine of this hive serves a file like {reference}");
        return Err(ApiError::invalid(message));
    }
    Ok(match hive.catalog.fetched(&reference) {
        Some(model) => Missing::Nothing(model.path),
        None => Missing::At(reference),
    })
}

#[derive(Debug, Deserialize)]
pub(super) struct ProgressQuery {
    #[serde(default)]
    id: String,
}

/// How far a download is, then how it ended, then `[DONE]`.
pub(super) async fn progress(
    State(hive): State<Hive>,
    Query(query): Query<ProgressQuery>,
) -> Result<Sse<impl Stream<Item = Result<Event, Infallible>>>> {
    let download = hive.downloads.get(&query.id).ok_or_else(|| {
        let message = format!("no download {:?} runs here; it may have ended", query.id);
        ApiError::new(StatusCode::NOT_FOUND, "NOT_FOUND", message)
    })?;
    let mut follow = download.follow();
    // The first look shows how far it is already.
    follow.mark_changed();
    let stages = stream::unfold(Some(follow), |follow| async {
        let mut follow = follow?;
        let stage = next(&mut follow).await?;
        let is_last = !matches!(stage, Stage::Downloading { .. });
        let event = Event::default()
            .json_data(&stage)
            .expect("a stage has text keys only");
        Some((event, (!is_last).then_some(follow)))
    });
    let done = stream::once(async { Event::default().data("[DONE]") });
    let events = stages.chain(done).map(Ok);
    Ok(Sse::new(events).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)))
}

/// The newest stage, once there is one that was not seen.
async fn next(follow: &mut watch::Receiver<Option<Stage>>) -> Option<Stage> {
    loop {
        follow.changed().await.ok()?;
        if let Some(stage) = follow.borrow_and_update().clone() {
            return Some(stage);
        }
    }
}

/// Deletes the files of a model that nothing uses.
pub(super) async fn remove(
    State(hive): State<Hive>,
    Body(request): Body<ModelRequest>,
) -> Result<Json<Value>> {
    blocking(move || {
        let model = hive.catalog.find(&request.model_ref, "")?;
        let workers = hive.registry.all().into_iter();
        let user = workers
            .filter(|worker| worker.state() != WorkerState::Failed)
            .find(|worker| worker.plan.model_path == model.path);
        let conflict = |why: String| {
            let message = format!("{} {why}", model.model_ref);
            Err(ApiError::new(StatusCode::CONFLICT, "CONFLICT", message))
        };
        if let Some(worker) = user {
            return conflict(format!(
                "is served by worker {:?}; stop it first",
                worker.id
            ));
        }
        if hive.downloads.has(&model.model_ref) {
            return conflict("is being downloaded; wait until it is here".into());
        }
        let freed = hive.catalog.remove(&model)?;
        tracing::info!(model = model.model_ref, freed, "model removed");
        let message = format!("{} is removed", model.model_ref);
        Ok(Json(
            json!({"success": true, "message": message, "freed_bytes": freed}),
        ))
    })
    .await
}

/// Runs what reads or writes the disk.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| ApiError::internal(error.to_string()))?
}
