//! Health.

use http::{Response, StatusCode};
use serde_json::json;

use super::body::Body;
use super::{Context, answer};

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
