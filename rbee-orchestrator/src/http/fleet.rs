//! Health.

use http::{HeaderName, Response, StatusCode};
use serde_json::json;

use super::body::Body;
use super::{Context, answer};
use crate::error::{Code, Error};
use crate::store::Condition;

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
    let draining = context.orchestrator.is_draining();
    let mut body = json!({"status": if draining { "draining" } else { "ok" }, "version": version});
    // Trouble with the store does not stop what needs none.
    let store = context.orchestrator.store_condition();
    if store != Condition::Sound {
        body["database"] = store.as_str().into();
    }
    if draining {
        answer::json(StatusCode::SERVICE_UNAVAILABLE, &body)
    } else {
        answer::ok(&body)
    }
}
