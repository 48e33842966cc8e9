//! An id for each request, in its log lines, in its answer and in its error.

use axum::Json;
use axum::extract::Request;
use axum::http::{HeaderMap, HeaderName, HeaderValue, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use tracing::Instrument;
use uuid::Uuid;

use crate::error::ApiError;

const CORRELATION_ID: HeaderName = HeaderName::from_static("x-correlation-id");
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const RETRY_AFTER_SECS: u64 = 5;

/// Takes the caller's id or mints one, and writes the body of an error.
pub(super) async fn correlate(request: Request, next: Next) -> Response {
    let given = given(request.headers());
    let id = given.unwrap_or_else(|| Uuid::now_v7().to_string());
    let span = tracing::info_span!(
        "call",
        method = %request.method(),
        path = request.uri().path(),
        correlation_id = id,
    );
    let answer = async {
        let mut response = next.run(request).await;
        if let Some(error) = response.extensions_mut().remove::<ApiError>() {
            tracing::info!(
                status = error.status.as_u16(),
                code = &*error.code,
                "{}",
                error.message
            );
            response = write(&error, &id);
        } else {
            tracing::debug!(status = response.status().as_u16(), "answered");
        }
        response
    };
    let mut response = answer.instrument(span).await;
    if let Ok(value) = HeaderValue::from_str(&id) {
        response.headers_mut().insert(CORRELATION_ID, value);
    }
    response
}

fn given(headers: &HeaderMap) -> Option<String> {
    let header = headers
        .get(CORRELATION_ID)
        .or_else(|| headers.get(REQUEST_ID))?;
    let id = header.to_str().ok()?;
    let is_allowed = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    let is_good = (1..=128).contains(&id.len()) && id.chars().all(is_allowed);
    is_good.then(|| id.to_owned())
}

fn write(error: &ApiError, id: &str) -> Response {
    let mut response = (error.status, Json(error.body(id))).into_response();
    if matches!(error.status.as_u16(), 429 | 503) {
        response
            .headers_mut()
            .insert(header::RETRY_AFTER, RETRY_AFTER_SECS.into());
    }
    response
}
