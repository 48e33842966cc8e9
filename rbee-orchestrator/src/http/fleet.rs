//! Health and models.

use http::{Response, StatusCode};
use serde_json::{Value, json};

use super::body::Body;
use super::{Context, answer, read};
use crate::domain::HiveId;
use crate::error::Result;

/// `GET /health`.
pub(super) fn health(context: &Context<'_>) -> Response<Body> {
    let version = env!("CARGO_PKG_VERSION");
    match context.orchestrator.is_draining() {
        false => answer::ok(&json!({"status": "ok", "version": version})),
        true => {
            let body = json!({"status": "draining", "version": version});
            answer::json(StatusCode::SERVICE_UNAVAILABLE, &body)
        }
    }
}

/// `GET /v2/models/list`.
pub(super) async fn models(context: &Context<'_>) -> Result<Response<Body>> {
    let node = read::query(context, "node").map(HiveId::new).transpose()?;
    let models = context.orchestrator.models(node.as_ref()).await?;
    let listed: Vec<Value> = models
        .iter()
        .map(|model| {
            json!({
                "model_ref": model.model_ref,
                "aliases": model.aliases,
                "node": model.node.as_ref().map_or("", HiveId::as_str),
                "size_bytes": model.size_bytes,
                "state": if model.loaded { "loaded" } else { "available" },
            })
        })
        .collect();
    Ok(answer::ok(&json!({"models": listed})))
}
