//! A client's socket, of which the first bytes were already read.

use std::io;
use std::net::TcpStream as StdStream;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;

/// Most heads are shorter, and come in one read with the first byte.
const FIRST_READ: usize = 2 << 10;

/// How long a client may go on sending after its answer went out, so that it gets to read it: to
/// close a socket with unread bytes takes back what the other side has not read yet.
const LINGER: Duration = Duration::from_secs(30);

/// How long such a client may be silent.
const LINGER_SILENCE: Duration = Duration::from_secs(2);

/// A socket.
pub(super) struct Socket {
    stream: TcpStream,
    /// What was read and not yet given out.
    first: BytesMut,
    /// The client has ended its side.
    is_over: bool,
}

impl Socket {
    /// Nagle's algorithm with delayed ACKs costs 40 ms for each small write; a peer that takes
    /// nothing for `stall` has gone, and its socket with it.
    pub(super) fn new(stream: StdStream, stall: Duration) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        #[cfg(target_os = "linux")]
        {
            let millis = u32::try_from(stall.as_millis()).unwrap_or(u32::MAX);
            rustix::net::sockopt::set_tcp_user_timeout(&stream, millis)?;
        }
        #[cfg(not(target_os = "linux"))]
        let _ = stall;
        Ok(Socket {
            stream: TcpStream::from_std(stream)?,
            first: BytesMut::new(),
            is_over: false,
        })
    }

    /// Whether the client begins with HTTP/2's preface (RFC 9113, section 3.4), of which no
    /// HTTP/1.1 method shares the first three bytes. What is read for that is given out again.
    pub(super) async fn speaks_http2(&mut self) -> io::Result<bool> {
        const PREFACE: &[u8] = b"PRI";
        self.first.reserve(FIRST_READ);
        while PREFACE.starts_with(&self.first) {
            if self.first.len() == PREFACE.len() {
                return Ok(true);
            }
            if self.stream.read_buf(&mut self.first).await? == 0 {
                self.is_over = true;
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        Ok(self.first.starts_with(PREFACE))
    }

    /// Ends this side, and takes what the client still sends until it ends its own, but not for
    /// long.
    pub(super) async fn linger(mut self) {
        let mut scratch = BytesMut::with_capacity(64 << 10);
        let draining = async {
            let _ = self.stream.shutdown().await;
            while !self.is_over {
                scratch.clear();
                let read = self.stream.read_buf(&mut scratch);
                let read = tokio::time::timeout(LINGER_SILENCE, read).await;
                self.is_over = !matches!(read, Ok(Ok(1..)));
            }
        };
        let _ = tokio::time::timeout(LINGER, draining).await;
    }

    /// Sends an answer to a client whose request nobody reads.
    pub(super) async fn say(mut self, answer: &[u8]) {
        if self.stream.write_all(answer).await.is_ok() {
            self.linger().await;
        }
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.first.is_empty() {
            let count = self.first.len().min(buffer.remaining());
            buffer.put_slice(&self.first[..count]);
            self.first.advance(count);
            if self.first.is_empty() {
                self.first = BytesMut::new();
            }
            return Poll::Ready(Ok(()));
        }
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, buffer);
        if let Poll::Ready(Ok(())) = read
            && buffer.filled().len() == before
        {
            self.is_over = true;
        }
        read
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, data)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, data)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
