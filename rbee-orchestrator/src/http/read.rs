//! Bodies and queries of requests.

use std::pin::Pin;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body::Body as HttpBody;
use serde::de::DeserializeOwned;
use tokio::time::Instant;

use super::Context;
use crate::budget::{Held, SMALL};
use crate::error::{Code, Error, Result};
use crate::relay::openai::read_json;

/// A body without a told length is counted in steps of this size.
const STEP: usize = 256 << 10;

/// Reads a whole body. It is counted against the bound of all bodies for as long as a part of it is
/// kept.
///
/// # Errors
/// `PAYLOAD_TOO_LARGE`; `OVERLOADED` when all bodies together are too large; `REQUEST_TIMEOUT` when
/// it comes too slowly; `INVALID_REQUEST` when it breaks off.
pub(super) async fn bytes<B>(context: &Context<'_>, mut body: B) -> Result<Bytes>
where
    B: HttpBody<Data = Bytes> + Unpin,
    B::Error: std::fmt::Display,
{
    let limit = context.orchestrator.config().limits.max_body_bytes;
    let told = usize::try_from(body.size_hint().lower()).unwrap_or(usize::MAX);
    if told > limit {
        // Nothing of it is read.
        return Err(too_large(limit));
    }
    let mut share = Share::new(context);
    share.holds(told)?;
    let mut pace = Pace::new(context);
    let mut first = Bytes::new();
    let mut all = BytesMut::new();
    while !body.is_end_stream()
        && let Some(data) = pace.next(&mut body).await?
    {
        let length = first.len().max(all.len()) + data.len();
        if length > limit {
            return Err(too_large(limit));
        }
        share.holds(length)?;
        if first.is_empty() && all.is_empty() {
            first = data;
            continue;
        }
        if all.is_empty() {
            all.reserve(told.max(length));
            all.extend_from_slice(&first);
        }
        all.extend_from_slice(&data);
    }
    let whole = match (all.is_empty(), first.len() <= SMALL) {
        // It is a part of the server's read buffer, which would stay as long as the request does.
        (true, true) => Bytes::copy_from_slice(&first),
        (true, false) => first,
        (false, _) => all.freeze(),
    };
    Ok(share.keeps(whole))
}

fn too_large(limit: usize) -> Error {
    let message = format!(
        "the body is larger than {limit} bytes; limits.max_body_bytes of the queen's configuration \
         sets how large it may be"
    );
    Error::new(Code::PayloadTooLarge, message)
}

/// What a body takes of that which all bodies together may hold.
struct Share<'a> {
    context: &'a Context<'a>,
    held: Option<Held>,
    bytes: usize,
}

impl<'a> Share<'a> {
    fn new(context: &'a Context<'a>) -> Self {
        Share {
            context,
            held: None,
            bytes: SMALL,
        }
    }

    fn holds(&mut self, bytes: usize) -> Result<()> {
        if bytes <= self.bytes {
            return Ok(());
        }
        let bodies = self.context.orchestrator.bodies();
        let wanted = match &self.held {
            None => bytes,
            Some(_) => bytes.max(self.bytes.saturating_add(STEP)),
        };
        let fits = match &mut self.held {
            None => {
                self.held = bodies.hold(wanted);
                self.held.is_some()
            }
            Some(held) => held.grow(wanted),
        };
        if !fits {
            return Err(bodies.is_full());
        }
        self.bytes = wanted;
        Ok(())
    }

    fn keeps(self, bytes: Bytes) -> Bytes {
        match self.held {
            None => bytes,
            Some(held) => held.keep(bytes),
        }
    }
}

/// How fast a body must come.
struct Pace {
    /// How long it may be silent, and how much of a delay it may have.
    patience: Duration,
    bytes_per_second: u64,
    started: Instant,
    received: u64,
}

impl Pace {
    fn new(context: &Context<'_>) -> Self {
        let config = context.orchestrator.config();
        Pace {
            patience: config.timeouts.client_stall,
            bytes_per_second: config.limits.min_body_bytes_per_second,
            started: Instant::now(),
            received: 0,
        }
    }

    /// When the next piece must be there.
    fn deadline(&self) -> Instant {
        let silence = Instant::now() + self.patience;
        let due = self.received.checked_div(self.bytes_per_second);
        match due.and_then(|due| {
            self.started
                .checked_add(self.patience + Duration::from_secs(due))
        }) {
            Some(due) => silence.min(due),
            None => silence,
        }
    }

    async fn next<B>(&mut self, body: &mut B) -> Result<Option<Bytes>>
    where
        B: HttpBody<Data = Bytes> + Unpin,
        B::Error: std::fmt::Display,
    {
        let deadline = self.deadline();
        loop {
            let frame = std::future::poll_fn(|cx| Pin::new(&mut *body).poll_frame(cx));
            let frame = tokio::time::timeout_at(deadline, frame).await;
            let frame = frame.map_err(|_| self.too_slow())?;
            match frame {
                None => return Ok(None),
                Some(Err(error)) => {
                    return Err(Error::invalid(format!("the body broke off: {error}")));
                }
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        self.received += data.len() as u64;
                        return Ok(Some(data));
                    }
                }
            }
        }
    }

    fn too_slow(&self) -> Error {
        let message = format!(
            "the body came too slowly: {} bytes in {} s; it may be silent for {} s, and must come at \
             {} bytes a second (limits.min_body_bytes_per_second)",
            self.received,
            self.started.elapsed().as_secs(),
            self.patience.as_secs(),
            self.bytes_per_second
        );
        Error::new(Code::RequestTimeout, message)
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
