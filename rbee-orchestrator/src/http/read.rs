//! Bodies and queries of requests.

use std::pin::Pin;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body::Body as HttpBody;
use serde::de::DeserializeOwned;

use super::Context;
use crate::error::{Code, Error, Result};
use crate::relay::openai::read_json;

/// What is read and thrown away of a body that is too large, so that its sender gets to read the
/// answer: this many times the limit.
const DISCARD: usize = 16;

/// A piece up to this size is copied: it is a part of the server's read buffer, which would stay as
/// long as the request does.
const COPIED: usize = 8 << 10;

/// Reads a whole body.
///
/// # Errors
/// `PAYLOAD_TOO_LARGE`; `INVALID_REQUEST` when it breaks off or its sender falls silent.
pub(super) async fn bytes<B>(context: &Context<'_>, mut body: B) -> Result<Bytes>
where
    B: HttpBody<Data = Bytes> + Unpin,
    B::Error: std::fmt::Display,
{
    let config = context.orchestrator.config();
    let limit = config.limits.max_body_bytes;
    let patience = config.timeouts.client_stall;
    let too_large = || {
        let message = format!(
            "the body is larger than {limit} bytes; limits.max_body_bytes of the queen's \
             configuration sets how large it may be"
        );
        Error::new(Code::PayloadTooLarge, message)
    };
    let told = body.size_hint().lower();
    if told > limit as u64 {
        discard(&mut body, limit, patience).await;
        return Err(too_large());
    }
    let mut first = Bytes::new();
    let mut all = BytesMut::new();
    while !body.is_end_stream()
        && let Some(data) = next(&mut body, patience).await?
    {
        if first.is_empty() && all.is_empty() {
            first = data;
        } else {
            if all.is_empty() {
                all.reserve(first.len() + data.len().max(usize::try_from(told).unwrap_or(0)));
                all.extend_from_slice(&first);
            }
            all.extend_from_slice(&data);
        }
        if first.len().max(all.len()) > limit {
            drop((first, all));
            discard(&mut body, limit, patience).await;
            return Err(too_large());
        }
    }
    Ok(match (all.is_empty(), first.len() <= COPIED) {
        (true, true) => Bytes::copy_from_slice(&first),
        (true, false) => first,
        (false, _) => all.freeze(),
    })
}

async fn next<B>(body: &mut B, patience: Duration) -> Result<Option<Bytes>>
where
    B: HttpBody<Data = Bytes> + Unpin,
    B::Error: std::fmt::Display,
{
    loop {
        let frame = std::future::poll_fn(|cx| Pin::new(&mut *body).poll_frame(cx));
        let frame = tokio::time::timeout(patience, frame).await;
        let frame = frame.map_err(|_| Error::invalid("the body did not come in time"))?;
        match frame {
            None => return Ok(None),
            Some(Err(error)) => {
                return Err(Error::invalid(format!("the body broke off: {error}")));
            }
            Some(Ok(frame)) => {
                if let Ok(data) = frame.into_data() {
                    return Ok(Some(data));
                }
            }
        }
    }
}

async fn discard<B>(body: &mut B, limit: usize, patience: Duration)
where
    B: HttpBody<Data = Bytes> + Unpin,
    B::Error: std::fmt::Display,
{
    let mut left = limit.saturating_mul(DISCARD);
    while let Ok(Some(data)) = next(body, patience).await {
        left = left.saturating_sub(data.len());
        if left == 0 {
            return;
        }
    }
}

/// Reads a body as JSON.
///
/// # Errors
/// Those of [`bytes`]; `INVALID_REQUEST` for what is not JSON of the right form.
pub(super) async fn json<B, T>(context: &Context<'_>, body: B) -> Result<T>
where
    B: HttpBody<Data = Bytes> + Unpin,
    B::Error: std::fmt::Display,
    T: DeserializeOwned,
{
    let bytes = bytes(context, body).await?;
    read_json(&bytes)
}

/// One value of a query; the empty text is the same as none.
pub(super) fn query(context: &Context<'_>, key: &str) -> Option<String> {
    let pairs = url::form_urlencoded::parse(context.query?.as_bytes());
    let found = pairs.into_iter().find(|(name, _)| name == key);
    found
        .map(|(_, value)| value.into_owned())
        .filter(|value| !value.is_empty())
}

/// Every value that a query has for a key, but the empty text.
pub(super) fn queries(context: &Context<'_>, key: &str) -> Vec<String> {
    let pairs = url::form_urlencoded::parse(context.query.unwrap_or_default().as_bytes());
    let found = pairs.filter(|(name, value)| name == key && !value.is_empty());
    found.map(|(_, value)| value.into_owned()).collect()
}
