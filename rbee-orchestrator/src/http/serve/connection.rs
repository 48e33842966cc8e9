//! One connection, from its first byte to its last.

use std::convert::Infallible;
use std::future::poll_fn;
use std::net::TcpStream as StdStream;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http_body::{Body as HttpBody, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulConnection;

use serde_json::json;
use uuid::Uuid;

use super::seats::{Asking, Place, Word};
use super::socket::Socket;
use crate::error::{Code, Error};
use crate::http::{Body, HttpApi, answer};

/// A request's head, in bytes: line and headers, compressed or not.
const MAX_HEAD: u32 = 32 << 10;

/// Requests at once on one HTTP/2 connection.
const MAX_STREAMS: u32 = 256;

/// What an HTTP/2 client may leave unread of one answer before the worker is held back, in bytes.
const MAX_UNREAD: usize = 64 << 10;

/// Requests of an HTTP/2 connection that its client may take back before they were looked at.
const MAX_EARLY_RESETS: usize = 20;

/// Requests of an HTTP/2 connection that may end for the client's faults.
const MAX_FAULTS: usize = 256;

/// How often an HTTP/2 client is asked whether it is still there, and how long its answer may take.
const PING: Duration = Duration::from_secs(30);

/// Serves a connection until its client leaves, or it is told to end.
pub(super) async fn serve(stream: StdStream, api: HttpApi, mut place: Place) {
    let stall = api.orchestrator().config().timeouts.client_stall;
    let mut socket = match Socket::new(stream, stall) {
        Ok(socket) => socket,
        Err(error) => return tracing::debug!(%error, "a connection could not be taken on"),
    };
    let first = until_told(pin!(socket.speaks_http2()), &mut place).await;
    let Some(Ok(is_http2)) = first else {
        return;
    };
    let guest = place.guest();
    let left_over = Arc::new(AtomicBool::new(false));
    let unread = Arc::clone(&left_over);
    let service = service_fn(move |request: Request<Incoming>| {
        let api = api.clone();
        let asking = guest.asks();
        let request = request.map(|body| Upload {
            body,
            left_over: Arc::clone(&left_over),
        });
        async move {
            let response = api.answer(request, Some(&asking)).await;
            Ok::<_, Infallible>(response.map(|body| Download {
                body,
                _asking: asking,
            }))
        }
    });
    if is_http2 {
        let mut builder = http2::Builder::new(TokioExecutor::new());
        builder
            .timer(TokioTimer::new())
            .keep_alive_interval(Some(PING))
            .keep_alive_timeout(PING)
            .max_concurrent_streams(MAX_STREAMS)
            .max_header_list_size(MAX_HEAD)
            .max_pending_accept_reset_streams(MAX_EARLY_RESETS)
            .max_local_error_reset_streams(MAX_FAULTS)
            .max_send_buf_size(MAX_UNREAD);
        // Boxed: it is rare, and every connection would have room for it.
        let mut serving = Box::pin(builder.serve_connection(TokioIo::new(socket), service));
        note(serve_until_told(serving.as_mut(), &mut place).await);
    } else {
        let mut builder = http1::Builder::new();
        builder.max_header_size(MAX_HEAD as usize).writev(false);
        let mut serving = builder.serve_connection(TokioIo::new(socket), service);
        let served = serve_until_told(Pin::new(&mut serving), &mut place).await;
        let is_cut_short = match &served {
            Some(Ok(())) => unread.load(Relaxed),
            Some(Err(error)) => error.is_parse(),
            None => return,
        };
        note(served);
        if is_cut_short {
            let socket = serving.into_parts().io.into_inner();
            until_told(pin!(socket.linger()), &mut place).await;
        }
    }
}

/// Tells a client that there is no room for it.
pub(super) async fn refuse(stream: StdStream) {
    let error = Error::new(
        Code::Overloaded,
        "this queen has as many connections as she may have; try again, or see \
         limits.max_connections in her configuration",
    );
    let id = Uuid::new_v4().simple().to_string();
    let body = json!({"error": answer::error_object(&error, true, &id)}).to_string();
    let text = format!(
        "HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\nretry-after: {}\r\n\
         connection: close\r\ncontent-length: {}\r\n\r\n{body}",
        error.retry_after.unwrap_or_default().as_secs().max(1),
        body.len()
    );
    if let Ok(socket) = Socket::new(stream, Duration::from_secs(1)) {
        let _ = tokio::time::timeout(REFUSAL, socket.say(text.as_bytes())).await;
    }
}

/// How long a client that is refused may take to read why.
const REFUSAL: Duration = Duration::from_secs(2);

fn note(served: Option<hyper::Result<()>>) {
    if let Some(Err(error)) = served {
        tracing::debug!(%error, "a connection ended with an error");
    }
}

/// Waits for something, but not when the connection has to end.
async fn until_told<F: Future>(mut future: Pin<&mut F>, place: &mut Place) -> Option<F::Output> {
    poll_fn(|cx| {
        if place.poll_word(cx).is_ready() {
            return Poll::Ready(None);
        }
        future.as_mut().poll(cx).map(Some)
    })
    .await
}

/// Serves a connection; told to finish, it ends after the answers that are under way, told to
/// leave, at once.
async fn serve_until_told<C: GracefulConnection>(
    mut connection: Pin<&mut C>,
    place: &mut Place,
) -> Option<Result<(), C::Error>> {
    let mut is_finishing = false;
    poll_fn(|cx| {
        match place.poll_word(cx) {
            Poll::Ready(Word::Leave) => return Poll::Ready(None),
            Poll::Ready(Word::Finish) if !is_finishing => {
                is_finishing = true;
                connection.as_mut().graceful_shutdown();
            }
            Poll::Ready(Word::Finish) | Poll::Pending => {}
        }
        connection.as_mut().poll(cx).map(Some)
    })
    .await
}

/// A request's body; notes when it is not read to its end.
struct Upload {
    body: Incoming,
    left_over: Arc<AtomicBool>,
}

impl HttpBody for Upload {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        if !self.body.is_end_stream() {
            self.left_over.store(true, Relaxed);
        }
    }
}

/// An answer's body; while it is there, its connection is at work.
struct Download {
    body: Body,
    _asking: Asking,
}

impl HttpBody for Download {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
