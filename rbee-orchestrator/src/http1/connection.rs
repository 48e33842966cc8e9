//! One HTTP/1.1 connection to a worker, driven by whoever waits for its answer.
//!
//! There is no task behind it and no buffer of its own: what arrives is read into the thread's one
//! scratch buffer and copied out as exactly the bytes of the body. Dropping it closes the socket
//! at once. Framing is that of RFC 9112, sections 6 and 7.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncWriteExt, ReadBuf};

use super::HiveStream;
use super::head::{Framing, Head, HeadReader, Opening, SendError};

const SCRATCH_BYTES: usize = 32 << 10;

/// Reads in a row, after which a worker that sends without end lets others have the thread.
const READS_IN_A_ROW: u32 = 32;

thread_local! {
    static SCRATCH: RefCell<Box<[u8]>> = RefCell::new(vec![0; SCRATCH_BYTES].into());
}

/// A connection with at most one request on it.
pub(crate) struct Connection {
    stream: Box<dyn HiveStream>,
    /// What came behind the head, in the same read.
    early: Bytes,
    framing: Framing,
    keep_alive: bool,
    /// Reads since the last that had to wait.
    reads: u32,
}

impl Connection {
    pub(crate) fn new(stream: Box<dyn HiveStream>) -> Self {
        Connection {
            stream,
            early: Bytes::new(),
            framing: Framing::Ended,
            keep_alive: true,
            reads: 0,
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

    /// The same, but for the thread's other work: a peer that always has more is read again later.
    fn poll_read_in_turn<T>(
        &mut self,
        cx: &mut Context<'_>,
        take: impl FnOnce(&mut Self, &[u8]) -> T,
    ) -> Poll<io::Result<T>> {
        if self.reads == READS_IN_A_ROW {
            self.reads = 0;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let read = self.poll_read(cx, take);
        self.reads = if read.is_ready() { self.reads + 1 } else { 0 };
        read
    }

    /// Sends a request, in two writes if the body does not stand behind the head already, and waits
    /// for the head of its answer.
    pub(crate) async fn send(&mut self, head: &[u8], body: &[u8]) -> Result<Head, SendError> {
        let sent = self.write(head, body).await;
        let mut reader = HeadReader::default();
        loop {
            let read =
                poll_fn(|cx| self.poll_read_in_turn(cx, |_, data| (data.len(), reader.push(data))));
            let ended = match read.await {
                Ok((0, _)) => "it closed the connection".to_owned(),
                Err(error) => error.to_string(),
                Ok((_, pushed)) => match pushed? {
                    Some(opening) => return Ok(self.open(opening)),
                    None => continue,
                },
            };
            return Err(match (reader.is_empty(), sent) {
                // A worker may refuse before it has read everything: only then the write's own
                // error is the better one to tell.
                (true, Err(error)) => SendError::NoAnswer(error.to_string()),
                (true, Ok(())) => SendError::NoAnswer(ended),
                (false, _) => SendError::Invalid("it stopped inside the answer's head".to_owned()),
            });
        }
    }

    fn open(&mut self, opening: Opening) -> Head {
        self.framing = opening.framing;
        self.keep_alive = opening.keep_alive;
        self.early = opening.early;
        opening.head
    }

    async fn write(&mut self, head: &[u8], body: &[u8]) -> io::Result<()> {
        self.stream.write_all(head).await?;
        if !body.is_empty() {
            self.stream.write_all(body).await?;
        }
        self.stream.flush().await
    }

    /// The length of what is to come of the body, where the head told it.
    pub(crate) fn told_length(&self) -> Option<u64> {
        match self.framing {
            Framing::Length(left) => Some(left),
            Framing::Ended => Some(0),
            Framing::Chunked(_) | Framing::UntilClose => None,
        }
    }

    /// The next piece of an answer's body; `None` at its end.
    pub(crate) fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Option<io::Result<Bytes>>> {
        loop {
            if let Framing::Ended = self.framing {
                return Poll::Ready(None);
            }
            let early = std::mem::take(&mut self.early);
            let taken = match (early.is_empty(), &self.framing) {
                // As it is, when it is nothing but body.
                (false, Framing::Length(left)) if early.len() as u64 == *left => {
                    self.framing = Framing::Ended;
                    Ok(early)
                }
                (false, _) => self.take(&early),
                (true, _) => match ready!(self.poll_read_in_turn(cx, Self::take)) {
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
