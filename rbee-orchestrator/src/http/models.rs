//! `/v2/models`.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode};
use http_body::Body as HttpBody;
use serde::Deserialize;
use serde_json::{Value, json};

use super::body::Body;
use super::openai::event_stream;
use super::{Context, answer, options, read};
use crate::domain::{HiveId, ModelRef};
use crate::error::{Error, Result};
use crate::hives::Progress;
use crate::orchestrator::ModelDownload;
use crate::relay::openai::missing;
use crate::relay::sse;

/// How long the status line waits for the hive's first word, which tells if the model can be had.
const FIRST_WORD: Duration = Duration::from_secs(10);

/// `GET /v2/models/list`.
pub(super) async fn list(context: &Context<'_>) -> Result<Response<Body>> {
    let node = read::query(context, "node").map(HiveId::new).transpose()?;
    let models = context.orchestrator.models(node.as_ref()).await?;
    let there = models.iter().map(|model| {
        json!({
            "model_ref": model.model_ref,
            "aliases": model.aliases,
            "node": model.node.as_ref().map_or("", HiveId::as_str),
            "size_bytes": model.size_bytes,
            "removable": model.removable,
            "state": if model.loaded { "loaded" } else { "available" },
        })
    });
    let mut listed: Vec<Value> = there.collect();
    for (hive, model, progress) in context.orchestrator.downloads() {
        if node.as_ref().is_some_and(|node| *node != hive) {
            continue;
        }
        let (bytes, total) = bytes(&progress);
        listed.push(json!({
            "model_ref": model,
            "aliases": [],
            "node": hive,
            "size_bytes": total,
            "removable": false,
            "state": "downloading",
            "bytes_downloaded": bytes,
        }));
    }
    Ok(answer::ok(&json!({"models": listed})))
}

/// The body of `download` and `remove`.
#[derive(Deserialize)]
struct Asked {
    model: Option<String>,
    model_ref: Option<String>,
    node: Option<String>,
}

impl Asked {
    fn model(&self) -> Result<&str> {
        let name = self.model.as_deref().or(self.model_ref.as_deref());
        let name = name.ok_or_else(|| missing("model"))?;
        ModelRef::check_name(name).map_err(|error| error.param("model"))?;
        Ok(name)
    }

    fn node(&self) -> Result<Option<HiveId>> {
        let node = self.node.as_deref().filter(|node| !node.is_empty());
        let node = node.map(HiveId::new).transpose();
        node.map_err(|error| error.param("node"))
    }
}

/// `POST /v2/models/download`.
pub(super) async fn download<B>(context: &Context<'_>, body: B) -> Result<Response<Body>>
where
    B: HttpBody<Data = Bytes> + Unpin,
    B::Error: std::fmt::Display,
{
    let asked: Asked = read::json(context, body).await?;
    let (name, node) = (asked.model()?, asked.node()?);
    let orchestrator = context.orchestrator;
    let mut download = orchestrator.download_model(name, node.as_ref()).await?;
    let first = match download.now() {
        Progress::Asked => tokio::time::timeout(FIRST_WORD, download.next()).await.ok(),
        now => Some(Some(now)),
    };
    if let Some(Some(Progress::Failed(error))) = first {
        return Err(error);
    }
    if options::prefers_async(&context.headers) {
        return Ok(accepted(&mut download));
    }
    let keep_alive = orchestrator.config().timeouts.keep_alive;
    Ok(event_stream(Body::download(download, keep_alive)))
}

fn accepted(download: &mut ModelDownload) -> Response<Body> {
    let status = match download.now() {
        Progress::Complete { .. } => "complete",
        _ => "downloading",
    };
    let body = json!({"status": status, "model": download.model, "node": download.node});
    let mut response = answer::json(StatusCode::ACCEPTED, &body);
    let applied = HeaderValue::from_static("respond-async");
    response.headers_mut().insert("preference-applied", applied);
    response
}

/// `POST /v2/models/remove`.
pub(super) async fn remove<B>(context: &Context<'_>, body: B) -> Result<Response<Body>>
where
    B: HttpBody<Data = Bytes> + Unpin,
    B::Error: std::fmt::Display,
{
    let asked: Asked = read::json(context, body).await?;
    let (name, node) = (asked.model()?, asked.node()?);
    let removed = context.orchestrator.remove_model(name, node.as_ref());
    let (model, node) = removed.await?;
    let message = format!("{model} is removed from {node}");
    Ok(answer::ok(
        &json!({"success": true, "message": message, "node": node, "model": model}),
    ))
}

fn bytes(progress: &Progress) -> (u64, u64) {
    match progress {
        Progress::Downloading {
            bytes_downloaded,
            bytes_total,
            ..
        } => (*bytes_downloaded, *bytes_total),
        _ => (0, 0),
    }
}

/// One event of a download's stream.
pub(super) fn event(download: &ModelDownload, progress: &Progress) -> Bytes {
    let (model, node) = (&download.model, &download.node);
    let said = |action: &str, human: String| {
        json!({
            "type": "narration",
            "actor": "queen",
            "action": action,
            "target": node,
            "human": human,
            "stage": "downloading",
            "model": model,
            "node": node,
        })
    };
    let event = match progress {
        Progress::Downloading {
            bytes_downloaded,
            bytes_total,
            speed_mbps,
        } => {
            let percent = bytes_downloaded.saturating_mul(100) / (*bytes_total).max(1);
            let mut event = said(
                "provision",
                format!("Downloading {model} to {node}: {percent} %"),
            );
            event["bytes_downloaded"] = (*bytes_downloaded).into();
            event["bytes_total"] = (*bytes_total).into();
            event["speed_mbps"] = (*speed_mbps).into();
            event
        }
        Progress::Complete { .. } => {
            json!({"type": "complete", "stage": "complete", "model": model, "node": node})
        }
        Progress::Failed(error) => failed(error),
        Progress::Asked => said("provision", format!("Asking {node} for {model}")),
    };
    sse::encode(event.to_string().as_bytes())
}

/// The event of an error.
pub(super) fn failed(error: &Error) -> Value {
    json!({
        "type": "error",
        "stage": "error",
        "code": error.code.as_str(),
        "message": error.in_full(),
    })
}
