//! What a caller is told when a call fails: a status, a stable code, a sentence.

use std::borrow::Cow;

use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

#[derive(Debug, Clone)]
pub(crate) struct ApiError {
    pub(crate) status: StatusCode,
    pub(crate) code: Cow<'static, str>,
    pub(crate) message: String,
    pub(crate) details: Option<Value>,
}

pub(crate) type Result<T, E = ApiError> = std::result::Result<T, E>;

impl ApiError {
    pub(crate) fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        ApiError {
            status,
            code: code.into(),
            message: message.into(),
            details: None,
        }
    }

    pub(crate) fn invalid(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "INVALID_REQUEST", message)
    }

    pub(crate) fn model_not_found(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, "MODEL_NOT_FOUND", message)
    }

    pub(crate) fn worker_not_found(id: &str) -> Self {
        let message = format!("no worker {id:?} on this hive; GET /v1/workers/list names them");
        Self::new(StatusCode::NOT_FOUND, "WORKER_NOT_FOUND", message)
    }

    pub(crate) fn not_implemented(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_IMPLEMENTED, "NOT_IMPLEMENTED", message)
    }

    pub(crate) fn shutting_down() -> Self {
        let message = "this hive is shutting down and starts no more workers";
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "SHUTTING_DOWN", message)
    }

    pub(crate) fn internal(message: impl Into<String>) -> Self {
        Self::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "INTERNAL",
            message.into(),
        )
    }

    /// The engine is not there or can't be run: the machine's owner must act.
    pub(crate) fn engine(message: impl Into<String>) -> Self {
        Self::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "ENGINE_NOT_FOUND",
            message.into(),
        )
    }

    #[must_use]
    pub(crate) fn details(mut self, details: Value) -> Self {
        self.details = Some(details);
        self
    }

    pub(crate) fn body(&self, correlation_id: &str) -> Value {
        let mut error = json!({
            "code": self.code,
            "message": self.message,
            "correlation_id": correlation_id,
        });
        if let Some(details) = &self.details {
            error["details"] = details.clone();
        }
        json!({ "error": error })
    }
}

/// The body is written by [`crate::http::correlation`], which knows the request's id.
impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = self.status.into_response();
        response.extensions_mut().insert(self);
        response
    }
}
