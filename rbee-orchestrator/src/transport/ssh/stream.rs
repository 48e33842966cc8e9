//! A tunnelled connection as the async side holds it, and the buffers it shares with the session's
//! thread.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, Waker};

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::wake::Wake;

/// A buffer that grew beyond this is given back once it is empty.
const KEEP_BUFFER_BYTES: usize = 64 << 10;

/// Both directions' bytes, between the stream and the session's thread. The channel itself never
/// leaves that thread.
#[derive(Debug)]
pub(super) struct Pipe {
    state: Mutex<State>,
    read_bound: usize,
    write_bound: usize,
    wake: Arc<Wake>,
}

#[derive(Debug, Default)]
struct State {
    /// Received and not yet read.
    inbound: BytesMut,
    inbound_ended: bool,
    /// The thread has left bytes in the channel, for want of room here.
    held_back: bool,
    reader: Option<Waker>,
    /// Written and not yet taken by the thread.
    outbound: BytesMut,
    /// Taken by the thread and not yet sent.
    unsent: usize,
    writer: Option<Waker>,
    /// The writer wants the other side to see an end.
    shutdown: Shutdown,
    failure: Option<(io::ErrorKind, Arc<str>)>,
    dropped: bool,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Shutdown {
    #[default]
    No,
    Wanted,
    Sent,
}

/// What the thread is to send next.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Outbound {
    Nothing,
    Bytes(Bytes),
    /// The end of the writer's bytes.
    End,
    /// Nothing any more: its user has gone.
    Dropped,
}

impl Pipe {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    // ---- the thread's side ----

    /// How many more bytes may be received now. None lets the reader wake the thread.
    pub(super) fn room(&self) -> usize {
        let mut state = self.state();
        let room = self.read_bound.saturating_sub(state.inbound.len());
        state.held_back = room == 0;
        room
    }

    pub(super) fn received(&self, bytes: &[u8]) {
        let reader = {
            let mut state = self.state();
            state.inbound.extend_from_slice(bytes);
            state.reader.take()
        };
        wake(reader);
    }

    pub(super) fn received_end(&self) {
        let reader = {
            let mut state = self.state();
            state.inbound_ended = true;
            state.reader.take()
        };
        wake(reader);
    }

    /// What to send next, `most` bytes at most.
    pub(super) fn next(&self, most: usize) -> Outbound {
        let (next, writer) = {
            let mut state = self.state();
            if state.dropped {
                return Outbound::Dropped;
            }
            let length = state.outbound.len().min(most);
            if length == 0 {
                return match state.shutdown {
                    Shutdown::Wanted => Outbound::End,
                    Shutdown::No | Shutdown::Sent => Outbound::Nothing,
                };
            }
            state.unsent += length;
            let next = state.outbound.split_to(length).freeze();
            (next, state.writer.take())
        };
        wake(writer);
        Outbound::Bytes(next)
    }

    pub(super) fn sent(&self, count: usize) {
        let writer = {
            let mut state = self.state();
            state.unsent = state.unsent.saturating_sub(count);
            state.writer.take()
        };
        wake(writer);
    }

    pub(super) fn sent_end(&self) {
        let writer = {
            let mut state = self.state();
            state.shutdown = Shutdown::Sent;
            state.writer.take()
        };
        wake(writer);
    }

    pub(super) fn is_dropped(&self) -> bool {
        self.state().dropped
    }

    /// Ends both directions with an error; what was received before can still be read.
    pub(super) fn fail(&self, kind: io::ErrorKind, why: &Arc<str>) {
        let (reader, writer) = {
            let mut state = self.state();
            state.failure.get_or_insert((kind, Arc::clone(why)));
            (state.reader.take(), state.writer.take())
        };
        wake(reader);
        wake(writer);
    }
}

/// Outside the lock: it may run the task at once.
fn wake(waker: Option<Waker>) {
    if let Some(waker) = waker {
        waker.wake();
    }
}

impl State {
    fn check(&self) -> io::Result<()> {
        match &self.failure {
            Some((kind, why)) => Err(io::Error::new(*kind, why.to_string())),
            None => Ok(()),
        }
    }
}

/// A connection through a session. Its buffers are bounded; dropping it closes the connection at
/// the other end, and what was not flushed is lost.
#[derive(Debug)]
pub(super) struct SshStream(Arc<Pipe>);

impl SshStream {
    pub(super) fn new(
        read_bound: usize,
        write_bound: usize,
        wake: &Arc<Wake>,
    ) -> (Self, Arc<Pipe>) {
        let pipe = Arc::new(Pipe {
            state: Mutex::default(),
            read_bound: read_bound.max(1),
            write_bound: write_bound.max(1),
            wake: Arc::clone(wake),
        });
        (SshStream(Arc::clone(&pipe)), pipe)
    }
}

impl AsyncRead for SshStream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let pipe = &self.0;
        let mut state = pipe.state();
        if state.inbound.is_empty() {
            if state.inbound_ended || buffer.remaining() == 0 {
                return Poll::Ready(Ok(()));
            }
            state.check()?;
            state.reader = Some(context.waker().clone());
            return Poll::Pending;
        }
        let length = state.inbound.len().min(buffer.remaining());
        buffer.put_slice(&state.inbound[..length]);
        state.inbound.advance(length);
        if state.inbound.is_empty() && state.inbound.capacity() > KEEP_BUFFER_BYTES {
            state.inbound = BytesMut::new();
        }
        let has_room_again = state.held_back && state.inbound.len() <= pipe.read_bound / 2;
        if has_room_again {
            state.held_back = false;
        }
        drop(state);
        if has_room_again {
            pipe.wake.ring();
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for SshStream {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let pipe = &self.0;
        let mut state = pipe.state();
        state.check()?;
        if state.shutdown != Shutdown::No {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let room = pipe.write_bound.saturating_sub(state.outbound.len());
        if room == 0 {
            state.writer = Some(context.waker().clone());
            return Poll::Pending;
        }
        let length = room.min(bytes.len());
        state.outbound.extend_from_slice(&bytes[..length]);
        drop(state);
        pipe.wake.ring();
        Poll::Ready(Ok(length))
    }

    /// Ready once the session has sent everything.
    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut state = self.0.state();
        state.check()?;
        if state.outbound.is_empty() && state.unsent == 0 {
            return Poll::Ready(Ok(()));
        }
        state.writer = Some(context.waker().clone());
        Poll::Pending
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let pipe = &self.0;
        let mut state = pipe.state();
        state.check()?;
        if state.shutdown == Shutdown::Sent {
            return Poll::Ready(Ok(()));
        }
        state.shutdown = Shutdown::Wanted;
        state.writer = Some(context.waker().clone());
        drop(state);
        pipe.wake.ring();
        Poll::Pending
    }
}

impl Drop for SshStream {
    fn drop(&mut self) {
        self.0.state().dropped = true;
        self.0.wake.ring();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    fn pair(bound: usize) -> (SshStream, Arc<Pipe>) {
        let wake = Arc::new(Wake::new().expect("sockets are there"));
        SshStream::new(bound, bound, &wake)
    }

    #[tokio::test]
    async fn a_writer_waits_at_the_bound_and_a_flush_for_the_network() {
        let (mut stream, pipe) = pair(4);
        assert_eq!(stream.write(b"abcdef").await.expect("room"), 4);
        tokio::select! {
            biased;
            _ = stream.write(b"ef") => panic!("there is no room"),
            () = std::future::ready(()) => {}
        }
        assert_eq!(pipe.next(3), Outbound::Bytes("abc".into()));
        assert_eq!(stream.write(b"ef").await.expect("room again"), 2);
        assert_eq!(pipe.next(9), Outbound::Bytes("def".into()));
        assert_eq!(pipe.next(9), Outbound::Nothing);
        let flushed = tokio::spawn(async move { stream.flush().await.map(|()| stream) });
        pipe.sent(6);
        let mut stream = flushed.await.expect("no panic").expect("flushed");
        let ended = tokio::spawn(async move { stream.shutdown().await });
        while pipe.next(9) != Outbound::End {
            tokio::task::yield_now().await;
        }
        pipe.sent_end();
        ended.await.expect("no panic").expect("ended");
        assert_eq!(pipe.next(9), Outbound::Dropped);
    }

    #[tokio::test]
    async fn a_slow_reader_stops_the_thread_and_sets_it_off_again() {
        let (mut stream, pipe) = pair(4);
        assert_eq!(pipe.room(), 4);
        pipe.received(b"abcd");
        assert_eq!(pipe.room(), 0);
        pipe.wake.clear();
        let mut two = [0; 2];
        stream.read_exact(&mut two).await.expect("there are four");
        assert_eq!(&two, b"ab");
        assert_eq!(pipe.room(), 2);
        let why: Arc<str> = "the session ended".into();
        pipe.fail(io::ErrorKind::ConnectionReset, &why);
        stream.read_exact(&mut two).await.expect("received before");
        let error = stream.read_u8().await.expect_err("it failed");
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        assert!(error.to_string().contains("the session ended"), "{error}");
        assert!(stream.write(b"x").await.is_err());
    }
}
