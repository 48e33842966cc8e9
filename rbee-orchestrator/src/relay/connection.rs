//! One HTTP/1.1 connection to a worker, driven by whoever waits for its answer.
//!
//! There is no task behind it and no buffer of its own: what arrives is read into the thread's one
//! scratch buffer and copied out as exactly the bytes of the body. Dropping it closes the socket
//! at once. Heads are parsed by `httparse`; framing is that of RFC 9112, sections 6 and 7.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use http::{HeaderValue, StatusCode};
use tokio::io::{AsyncRead, AsyncWriteExt, ReadBuf};

use super::chunked::Chunked;
use crate::transport::HiveStream;

const SCRATCH_BYTES: usize = 32 << 10;
const MAX_HEAD_BYTES: usize = 64 << 10;
const MAX_HEADERS: usize = 96;

thread_local! {
    static SCRATCH: RefCell<Box<[u8]>> = RefCell::new(vec![0; SCRATCH_BYTES].into());
}

/// Why a request got no answer.
#[derive(Debug)]
pub(crate) enum SendError {
    /// The connection closed before the first byte of an answer.
    NoAnswer(String),
    /// What came is not HTTP, or stopped inside the head.
    Invalid(String),
}

/// The head of an answer, as far as anybody reads it.
#[derive(Debug)]
pub(crate) struct Head {
    pub(crate) status: StatusCode,
    pub(crate) content_type: Option<HeaderValue>,
    pub(crate) retry_after: Option<HeaderValue>,
}

/// How an answer's body ends.
#[derive(Debug)]
enum Framing {
    Length(u64),
    Chunked(Chunked),
    UntilClose,
    Ended,
}

/// A connection with at most one request on it.
pub(crate) struct Connection {
    stream: Box<dyn HiveStream>,
    /// What came behind the head, in the same read.
    early: Bytes,
    framing: Framing,
    keep_alive: bool,
}

impl Connection {
    pub(crate) fn new(stream: Box<dyn HiveStream>) -> Self {
        Connection {
            stream,
            early: Bytes::new(),
            framing: Framing::Ended,
            keep_alive: true,
        }
    }

    /// Reads what is there and shows it; nothing at the end of the stream.
    fn poll_read<T>(
        &mut self,
        cx: &mut Context<'_>,
        take: impl FnOnce(&mut Self, &[u8]) -> T,
    ) -> Poll<io::Result<T>> {
        SCRATCH.with_borrow_mut(|scratch| {
            let mut buffer = ReadBuf::new(scratch);
            ready!(Pin::new(&mut self.stream).poll_read(cx, &mut buffer))?;
            Poll::Ready(Ok(take(self, buffer.filled())))
        })
    }

    /// Whether an idle connection can take a request: its peer has not closed it.
    pub(crate) async fn is_open(&mut self) -> bool {
        poll_fn(|cx| Poll::Ready(self.poll_read(cx, |_, _| ()).is_pending())).await
    }

    /// Sends a request, in two writes if the body does not stand behind the head already, and waits
    /// for the head of its answer.
    pub(crate) async fn send(&mut self, head: &[u8], body: &[u8]) -> Result<Head, SendError> {
        let sent = self.write(head, body).await;
        let mut received = BytesMut::new();
        loop {
            let count = poll_fn(|cx| {
                self.poll_read(cx, |_, data| {
                    received.extend_from_slice(data);
                    data.len()
                })
            });
            let ended = match count.await {
                Ok(0) => "it closed the connection".to_owned(),
                Err(error) => error.to_string(),
                Ok(_) => {
                    if let Some(head) = self.parse(&mut received)? {
                        return Ok(head);
                    }
                    continue;
                }
            };
            return Err(match (received.is_empty(), sent) {
                // A worker may refuse before it has read everything: only then the write's own
                // error is the better one to tell.
                (true, Err(error)) => SendError::NoAnswer(error.to_string()),
                (true, Ok(())) => SendError::NoAnswer(ended),
                (false, _) => SendError::Invalid("it stopped inside the answer's head".to_owned()),
            });
        }
    }

    async fn write(&mut self, head: &[u8], body: &[u8]) -> io::Result<()> {
        self.stream.write_all(head).await?;
        if !body.is_empty() {
            self.stream.write_all(body).await?;
        }
        self.stream.flush().await
    }

    /// Takes a head off what was received, if all of it is there.
    fn parse(&mut self, received: &mut BytesMut) -> Result<Option<Head>, SendError> {
        let invalid = |why: &str| SendError::Invalid(why.to_owned());
        loop {
            let mut fields = [httparse::EMPTY_HEADER; MAX_HEADERS];
            let mut response = httparse::Response::new(&mut fields);
            let parsed = response
                .parse(received)
                .map_err(|e| SendError::Invalid(e.to_string()))?;
            let httparse::Status::Complete(length) = parsed else {
                return match received.len() > MAX_HEAD_BYTES {
                    true => Err(invalid("the answer's head is too long")),
                    false => Ok(None),
                };
            };
            let status = response
                .code
                .and_then(|code| StatusCode::from_u16(code).ok());
            let status = status.ok_or_else(|| invalid("the answer has no status"))?;
            if status.is_informational() {
                let _ = received.split_to(length);
                continue;
            }
            let mut head = Head {
                status,
                content_type: None,
                retry_after: None,
            };
            self.framing = Framing::UntilClose;
            self.keep_alive = response.version == Some(1);
            for field in response.headers.iter() {
                self.note(field, &mut head)?;
            }
            if matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED) {
                self.framing = Framing::Ended;
            }
            let _ = received.split_to(length);
            self.early = received.split().freeze();
            return Ok(Some(head));
        }
    }

    /// Reads what matters of one header field.
    fn note(&mut self, field: &httparse::Header<'_>, head: &mut Head) -> Result<(), SendError> {
        let is = |name: &str| field.name.eq_ignore_ascii_case(name);
        let has = |word: &str| {
            let words = field.value.split(|b| *b == b',').map(<[u8]>::trim_ascii);
            words
                .into_iter()
                .any(|found| found.eq_ignore_ascii_case(word.as_bytes()))
        };
        if is("content-type") {
            head.content_type = HeaderValue::from_bytes(field.value).ok();
        } else if is("retry-after") {
            head.retry_after = HeaderValue::from_bytes(field.value).ok();
        } else if is("transfer-encoding") && has("chunked") {
            self.framing = Framing::Chunked(Chunked::default());
        } else if is("content-length") && !matches!(self.framing, Framing::Chunked(_)) {
            let text = std::str::from_utf8(field.value).ok();
            let length = text.and_then(|text| text.trim().parse().ok());
            let wrong =
                || SendError::Invalid("the answer's content-length is no number".to_owned());
            self.framing = match length.ok_or_else(wrong)? {
                0 => Framing::Ended,
                length => Framing::Length(length),
            };
        } else if is("connection") && has("close") {
            self.keep_alive = false;
        } else if is("connection") && has("keep-alive") {
            self.keep_alive = true;
        }
        Ok(())
    }

    /// The next piece of an answer's body; `None` at its end.
    pub(crate) fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Option<io::Result<Bytes>>> {
        loop {
            if let Framing::Ended = self.framing {
                return Poll::Ready(None);
            }
            let early = std::mem::take(&mut self.early);
            let taken = match early.is_empty() {
                false => self.take(&early),
                true => match ready!(self.poll_read(cx, Self::take)) {
                    Ok(taken) => taken,
                    Err(error) => Err(error),
                },
            };
            match taken {
                Ok(data) if data.is_empty() => {}
                Ok(data) => return Poll::Ready(Some(Ok(data))),
                Err(error) => return Poll::Ready(Some(Err(error))),
            }
        }
    }

    /// Takes the body's bytes out of what was read; nothing read is the end of the stream.
    fn take(&mut self, read: &[u8]) -> io::Result<Bytes> {
        let early_end = || io::Error::new(io::ErrorKind::UnexpectedEof, "it closed the connection");
        match &mut self.framing {
            Framing::UntilClose if read.is_empty() => {
                self.framing = Framing::Ended;
                self.keep_alive = false;
                Ok(Bytes::new())
            }
            Framing::UntilClose => Ok(Bytes::copy_from_slice(read)),
            _ if read.is_empty() => Err(early_end()),
            Framing::Length(left) => {
                let of_body = usize::try_from(*left).unwrap_or(usize::MAX).min(read.len());
                *left -= of_body as u64;
                let ended = *left == 0;
                // What comes behind the body belongs to no request.
                self.keep_alive &= of_body == read.len();
                if ended {
                    self.framing = Framing::Ended;
                }
                Ok(Bytes::copy_from_slice(&read[..of_body]))
            }
            Framing::Chunked(chunked) => {
                let mut out = BytesMut::with_capacity(read.len());
                let used = chunked.decode(read, &mut out)?;
                if chunked.is_ended() {
                    self.framing = Framing::Ended;
                    self.keep_alive &= used == read.len();
                }
                Ok(out.freeze())
            }
            Framing::Ended => Ok(Bytes::new()),
        }
    }

    /// Whether the connection can serve another request: its answer was read to the end.
    pub(crate) fn is_reusable(&self) -> bool {
        self.keep_alive && matches!(self.framing, Framing::Ended) && self.early.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncReadExt;

    /// What a client makes of an answer that arrives in these pieces.
    async fn answer(pieces: &[&[u8]]) -> Result<(u16, Result<Vec<u8>, String>, bool), SendError> {
        let (near, mut far) = tokio::io::duplex(1 << 16);
        let pieces: Vec<Vec<u8>> = pieces.iter().map(|piece| piece.to_vec()).collect();
        let server = tokio::spawn(async move {
            let mut request = [0; 64];
            let _ = far.read(&mut request).await;
            for piece in pieces {
                far.write_all(&piece).await.expect("the client reads");
                tokio::task::yield_now().await;
            }
        });
        let mut connection = Connection::new(Box::new(near));
        let head = connection.send(b"GET / HTTP/1.1\r\n\r\n", b"").await?;
        let mut body = Vec::new();
        let told = loop {
            match poll_fn(|cx| connection.poll_data(cx)).await {
                None => break Ok(body),
                Some(Ok(data)) => body.extend_from_slice(&data),
                Some(Err(error)) => break Err(error.to_string()),
            }
        };
        server.await.expect("the server ends");
        Ok((head.status.as_u16(), told, connection.is_reusable()))
    }

    #[tokio::test]
    async fn every_framing_is_read_wherever_it_is_cut() {
        let answers: [(&str, &str, bool); 5] = [
            (
                "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
                "hello",
                true,
            ),
            (
                "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2;x=y\r\nhe\r\n3\r\nllo\r\n0\r\nt: v\r\n\r\n",
                "hello",
                true,
            ),
            (
                "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 1\r\n\r\nx",
                "x",
                false,
            ),
            (
                "HTTP/1.1 200 OK\r\n\r\nuntil the end",
                "until the end",
                false,
            ),
            ("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", "", true),
        ];
        for (text, body, reusable) in answers {
            for cut in 1..text.len() {
                let (first, second) = text.as_bytes().split_at(cut);
                let read = answer(&[first, second]).await.expect("an answer");
                assert_eq!(
                    read,
                    (200, Ok(body.as_bytes().to_vec()), reusable),
                    "{text:?} {cut}"
                );
            }
        }
    }

    #[tokio::test]
    async fn what_is_no_answer_is_told_by_its_kind() {
        assert!(matches!(answer(&[]).await, Err(SendError::NoAnswer(_))));
        assert!(matches!(
            answer(&[b"HTTP/1.1 2"]).await,
            Err(SendError::Invalid(_))
        ));
        assert!(matches!(
            answer(&[b"\x00\xffgarbage\r\n\r\n"]).await,
            Err(SendError::Invalid(_))
        ));
        let cut = answer(&[b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhe"]).await;
        assert!(matches!(cut, Ok((200, Err(_), false))));
        let bad = answer(&[b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n"]).await;
        assert!(matches!(bad, Ok((200, Err(_), false))));
    }
}
