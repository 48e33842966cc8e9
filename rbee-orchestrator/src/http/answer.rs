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

/// The `error` object. OpenAI's clients want their own codes, a `type` and a `param`, and find ours
/// beside them.
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
        let (code, kind) = openai_names(error);
        object["rbee_code"] = object["code"].take();
        object["code"] = code.into();
        object["type"] = kind.into();
        object["param"] = error.param.into();
    } else if let Some(param) = error.param {
        object["param"] = param.into();
    }
    object
}

/// OpenAI's code and type for an error; our code where it has none.
fn openai_names(error: &Error) -> (&'static str, &'static str) {
    const CALLERS: &str = "invalid_request_error";
    let code = error.code.as_str();
    match error.code {
        Code::InvalidRequest if error.is_too_long() => ("context_length_exceeded", CALLERS),
        Code::Unauthorized => ("invalid_api_key", CALLERS),
        Code::ModelNotFound => ("model_not_found", CALLERS),
        Code::NotFound => ("unknown_url", CALLERS),
        Code::MethodNotAllowed => ("method_not_supported", CALLERS),
        // Its clients give up on that, and on the next they wait.
        Code::QuotaExceeded if !error.should_retry() => {
            ("insufficient_quota", "insufficient_quota")
        }
        Code::RateLimited | Code::QuotaExceeded | Code::SystemAtCapacity => {
            ("rate_limit_exceeded", "rate_limit_error")
        }
        Code::Forbidden => (code, "permission_error"),
        _ if (400..500).contains(&error.code.status()) => (code, CALLERS),
        _ => (code, "server_error"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn openais_clients_get_openais_codes_and_ours_beside_them() {
        let new = |code| Error::new(code, "why");
        let bad = "invalid_request_error";
        for (error, code, kind) in [
            (new(Code::ModelNotFound), "model_not_found", bad),
            (new(Code::Unauthorized), "invalid_api_key", bad),
            (
                Error::invalid("why").too_long(),
                "context_length_exceeded",
                bad,
            ),
            (Error::invalid("why"), "INVALID_REQUEST", bad),
            (new(Code::Forbidden), "FORBIDDEN", "permission_error"),
            (
                new(Code::RateLimited),
                "rate_limit_exceeded",
                "rate_limit_error",
            ),
            (
                new(Code::SystemAtCapacity),
                "rate_limit_exceeded",
                "rate_limit_error",
            ),
            (
                new(Code::QuotaExceeded),
                "rate_limit_exceeded",
                "rate_limit_error",
            ),
            (
                new(Code::QuotaExceeded).do_not_retry(),
                "insufficient_quota",
                "insufficient_quota",
            ),
            (new(Code::NoCapacity), "NO_CAPACITY", "server_error"),
            (new(Code::WorkerFailed), "WORKER_FAILED", "server_error"),
        ] {
            let told = error_object(&error, true, "id");
            let ours = error.code.as_str();
            assert_eq!(
                (&told["code"], &told["type"]),
                (&json!(code), &json!(kind)),
                "{told}"
            );
            assert_eq!(told["rbee_code"], ours, "{told}");
            assert!(told.get("param").is_some(), "{told}");
            let plain = error_object(&error, false, "id");
            assert_eq!(plain["code"], ours, "{plain}");
            assert!(plain.get("rbee_code").is_none(), "{plain}");
        }
    }
}
