//! Answers: JSON and errors.

use std::time::Duration;

use bytes::Bytes;
use http::header::{ALLOW, CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderValue, Response, StatusCode};
use serde::Serialize;
use serde_json::{Value, json};

use super::body::Body;
use crate::error::{Code, Error};

/// A JSON answer.
pub(super) fn json(status: StatusCode, value: &impl Serialize) -> Response<Body> {
    let bytes = serde_json::to_vec(value).unwrap_or_default();
    whole(
        status,
        HeaderValue::from_static("application/json"),
        bytes.into(),
    )
}

/// An answer of bytes.
pub(super) fn whole(status: StatusCode, kind: HeaderValue, bytes: Bytes) -> Response<Body> {
    let mut response = Response::new(Body::full(bytes));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
}

/// A duration as the wire has it.
pub(super) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// 200 with a JSON answer.
pub(super) fn ok(value: &impl Serialize) -> Response<Body> {
    json(StatusCode::OK, value)
}

/// An error as an answer.
pub(super) fn error(error: &Error, openai: bool, correlation_id: &str) -> Response<Body> {
    let body = json!({"error": error_object(error, openai, correlation_id)});
    with_headers(error, json(status(error), &body))
}

/// An error whose body has more fields beside the `error` object.
pub(super) fn error_with(error: &Error, correlation_id: &str, mut body: Value) -> Response<Body> {
    body["error"] = error_object(error, false, correlation_id);
    with_headers(error, json(status(error), &body))
}

fn status(error: &Error) -> StatusCode {
    StatusCode::from_u16(error.code.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
}

fn with_headers(error: &Error, mut response: Response<Body>) -> Response<Body> {
    let headers = response.headers_mut();
    if let Some(after) = error.retry_after {
        // Whole seconds (RFC 9110, Retry-After), and never "at once".
        let seconds = after.as_secs_f64().ceil().max(1.0);
        headers.insert(RETRY_AFTER, HeaderValue::from(seconds as u64));
    }
    if !error.should_retry() {
        headers.insert("x-should-retry", HeaderValue::from_static("false"));
    }
    let allow = error
        .details
        .as_ref()
        .and_then(|details| details.get("allow")?.as_str());
    if let Some(allow) = allow.and_then(|allow| HeaderValue::try_from(allow).ok()) {
        headers.insert(ALLOW, allow);
    }
    if error.code == Code::Unauthorized {
        headers.insert(
            http::header::WWW_AUTHENTICATE,
            HeaderValue::from_static("Bearer"),
        );
    }
    response
}

/// The `error` object; OpenAI's clients also want a `type` and a `param`.
pub(super) fn error_object(error: &Error, openai: bool, correlation_id: &str) -> Value {
    let mut object = json!({
        "code": error.code.as_str(),
        "message": error.message,
        "correlation_id": correlation_id,
    });
    if let Some(details) = &error.details {
        object["details"] = Value::Object((**details).clone());
    }
    if openai {
        object["type"] = openai_type(error.code).into();
        object["param"] = error.param.into();
    } else if let Some(param) = error.param {
        object["param"] = param.into();
    }
    object
}

fn openai_type(code: Code) -> &'static str {
    match code.status() {
        401 => "authentication_error",
        403 => "permission_error",
        429 => "rate_limit_error",
        400..=499 => "invalid_request_error",
        _ => "server_error",
    }
}
