//! Health.

use http::{HeaderName, Response, StatusCode};
use serde_json::json;

use super::body::Body;
use super::{Context, answer};
use crate::error::{Code, Error};

/// Which queen asks for a worker's health.
static INSTANCE: HeaderName = HeaderName::from_static("x-rbee-instance");

/// `GET /health`.
pub(super) fn health(context: &Context<'_>) -> Response<Body> {
    let version = env!("CARGO_PKG_VERSION");
    let asking = context.headers.get(&INSTANCE);
    if asking.is_some_and(|id| id == context.orchestrator.instance()) {
        let error = Error::new(
            Code::LoopDetected,
            "this is the queen who asks: she is no worker of her own",
        );
        return answer::error(&error, false, context.correlation_id);
    }
    match context.orchestrator.is_draining() {
        false => answer::ok(&json!({"status": "ok", "version": version})),
        true => {
            let body = json!({"status": "draining", "version": version});
            answer::json(StatusCode::SERVICE_UNAVAILABLE, &body)
        }
    }
}
