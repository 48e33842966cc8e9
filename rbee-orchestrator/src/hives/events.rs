//! A hive's event streams. Followed without a thread: dropped, the connection is closed.

use std::collections::VecDeque;
use std::fmt;
use std::future::poll_fn;
use std::io;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::StatusCode;

use super::client::HiveClient;
use super::exchange::{Answer, Failure};
use super::wire;
use crate::error::{Code, Error, Result};
use crate::http1::Connection;
use crate::relay::sse::{self, Splitter};

/// A longer event ends the stream.
const LONGEST_EVENT_BYTES: usize = 1 << 20;
/// How much of a refusal is read.
const LONGEST_REFUSAL_BYTES: usize = 64 << 10;

/// The events of one answer of a hive.
pub struct HiveEvents {
    client: HiveClient,
    connection: Connection,
    splitter: Splitter,
    /// Data of whole events that have come.
    waiting: VecDeque<Bytes>,
    over: bool,
}

impl fmt::Debug for HiveEvents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HiveEvents")
            .field("client", &self.client.port())
            .finish_non_exhaustive()
    }
}

impl HiveClient {
    /// Opens an event stream: `GET` with the token. `path` is ours, with whatever it carries
    /// encoded.
    ///
    /// # Errors
    /// The hive's own code for a status that is no success, `NOT_IMPLEMENTED` where it has no such
    /// call. See also [`HiveClient`].
    pub async fn events(&self, path: &str) -> Result<HiveEvents> {
        let limit = self.timeouts.call;
        let opened = tokio::time::timeout(limit, self.open(path)).await;
        opened.unwrap_or_else(|_| Err(self.failed(&Failure::TimedOut, limit)))
    }

    async fn open(&self, path: &str) -> Result<HiveEvents> {
        let stream = self.transport.connect(self.port()).await;
        let stream = stream.map_err(|error| self.not_reached(&error))?;
        let mut connection = Connection::new(stream);
        let head = connection.send(self.head(path).as_bytes(), b"").await;
        let head =
            head.map_err(|error| self.not_reached(&io::Error::other(format!("{error:?}"))))?;
        if !head.status.is_success() {
            let body = whole(&mut connection).await;
            let status = head.status;
            return Err(self.stream_refused(path, &Answer { status, body }));
        }
        Ok(HiveEvents {
            client: self.clone(),
            connection,
            splitter: Splitter::new(LONGEST_EVENT_BYTES),
            waiting: VecDeque::new(),
            over: false,
        })
    }

    fn head(&self, path: &str) -> String {
        let mut head = format!(
            "GET {path} HTTP/1.1\r\nhost: {}\r\nauthorization: Bearer {}\r\n\
             accept: text/event-stream\r\nconnection: close\r\n",
            self.address(),
            self.token.expose()
        );
        if let Some(id) = &self.correlation {
            head += &format!("x-correlation-id: {id}\r\n");
        }
        head + "\r\n"
    }

    fn stream_refused(&self, path: &str, answer: &Answer) -> Error {
        let (code, _) = wire::read_error(&answer.body);
        match (answer.status, code.as_deref().and_then(Code::parse)) {
            (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN, _) => {
                self.token_refused(answer.status)
            }
            (_, Some(code)) => self.refused(path, answer, code),
            (StatusCode::NOT_FOUND, None) => self.refused(path, answer, Code::NotImplemented),
            (_, None) => self.refused(path, answer, Code::HiveUnreachable),
        }
    }
}

async fn whole(connection: &mut Connection) -> Vec<u8> {
    let mut body = Vec::new();
    while let Some(Ok(data)) = poll_fn(|cx| connection.poll_data(cx)).await {
        body.extend_from_slice(&data);
        if body.len() > LONGEST_REFUSAL_BYTES {
            break;
        }
    }
    body
}

impl HiveEvents {
    /// The data of the next event; `None` at the end. Comments are left out. Cancel-safe.
    ///
    /// # Errors
    /// `HIVE_UNREACHABLE` when the stream breaks, `UPSTREAM_INVALID` for an endless event.
    pub async fn next(&mut self) -> Option<Result<Bytes>> {
        poll_fn(|cx| self.poll_next(cx)).await
    }

    /// The same for those who poll.
    pub(crate) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes>>> {
        loop {
            if let Some(data) = self.waiting.pop_front() {
                return Poll::Ready(Some(Ok(data)));
            }
            if self.over {
                return Poll::Ready(None);
            }
            let read = match ready!(self.connection.poll_data(cx)) {
                None => {
                    self.over = true;
                    continue;
                }
                Some(Ok(read)) => self.splitter.push(read).map_err(|_| {
                    let longest = format!("sent an event of more than {LONGEST_EVENT_BYTES} bytes");
                    self.client.error(Code::UpstreamInvalid, &longest)
                }),
                Some(Err(error)) => {
                    let broken = format!("broke its stream off: {error}");
                    Err(self.client.unreachable(&broken))
                }
            };
            match read {
                Ok(whole) => {
                    let data = sse::events(&whole).filter_map(sse::data);
                    let data = data.map(|data| Bytes::copy_from_slice(&data));
                    self.waiting.extend(data);
                }
                Err(error) => {
                    self.over = true;
                    return Poll::Ready(Some(Err(error)));
                }
            }
        }
    }
}
