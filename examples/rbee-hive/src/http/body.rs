//! A JSON body, whatever the request says it is: `curl -d` and some clients name no type.

use std::time::Duration;

use axum::body::Body as RequestBody;
use axum::extract::{FromRequest, Request};
use axum::http::StatusCode;
use futures_util::TryStreamExt;
use serde::de::DeserializeOwned;

use crate::error::{ApiError, Result};

const LARGEST: usize = 1 << 20;
/// How long a body may take to come.
const BODY_TIME: Duration = Duration::from_secs(30);
/// What is read of a body that is too large. A caller that is cut off while it writes would not
/// see why.
const READ_AND_DROPPED: usize = 32 << 20;

pub(super) struct Body<T>(pub(super) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Body<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, _state: &S) -> Result<Self> {
        let bytes = tokio::time::timeout(BODY_TIME, read(request.into_body()))
            .await
            .map_err(|_| {
                ApiError::new(
                    StatusCode::REQUEST_TIMEOUT,
                    "REQUEST_TIMEOUT",
                    "the body did not come within 30 s",
                )
            })??;
        // Readers of fields take an array of their values too.
        let first = bytes.iter().find(|byte| !byte.is_ascii_whitespace());
        if first.is_some_and(|first| *first == b'[') {
            return Err(ApiError::invalid(
                "the body must be a JSON object, and is an array",
            ));
        }
        serde_json::from_slice(&bytes)
            .map(Body)
            .map_err(|error| ApiError::invalid(format!("the body is not as it must be: {error}")))
    }
}

async fn read(body: RequestBody) -> Result<Vec<u8>> {
    let mut chunks = body.into_data_stream();
    let (mut bytes, mut length) = (Vec::new(), 0);
    let broken = |error: axum::Error| ApiError::invalid(format!("the body broke off: {error}"));
    while let Some(chunk) = chunks.try_next().await.map_err(broken)? {
        length += chunk.len();
        if length <= LARGEST {
            bytes.extend_from_slice(&chunk);
        } else if length > READ_AND_DROPPED {
            break;
        }
    }
    match length {
        0..=LARGEST => Ok(bytes),
        _ => Err(ApiError::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "PAYLOAD_TOO_LARGE",
            "the body is larger than 1 MiB",
        )),
    }
}
