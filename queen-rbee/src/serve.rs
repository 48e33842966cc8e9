//! Sockets: connections accepted, HTTP/1.1 and h2c spoken.
//!
//! There is a lane for each core, a thread with a runtime of its own, and a connection stays on the
//! lane that it was given: its client, its worker's connection and what happens in between never
//! wake another thread.

use std::convert::Infallible;
use std::net::{SocketAddr, TcpListener, TcpStream as StdStream};
use std::pin::pin;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulConnection;
use rbee_orchestrator::http::HttpApi;
use tokio::net::TcpStream;
use tokio::runtime::{Builder, Handle};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// How long a client may take to send a request's head.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);

/// How long answers that are complete may take to be written out at shutdown.
const FINISH_TIMEOUT: Duration = Duration::from_secs(2);

pub(crate) fn bind(address: SocketAddr) -> Result<TcpListener> {
    let listener = TcpListener::bind(address).map_err(|error| match error.kind() {
        std::io::ErrorKind::AddrInUse => anyhow!(
            "port {} on {} is in use; stop what listens there, or take another with --port",
            address.port(),
            address.ip()
        ),
        _ => anyhow!("{address} can't be listened on: {error}"),
    })?;
    listener
        .set_nonblocking(true)
        .context("the socket can't be made non-blocking")?;
    Ok(listener)
}

/// Serves until it is told to stop.
pub(crate) struct Server {
    accepting: JoinHandle<()>,
    connections: TaskTracker,
    /// Ends the lanes.
    end: CancellationToken,
}

/// Starts a lane, which lives until `end`.
fn lane(end: CancellationToken) -> Result<Handle> {
    let mut builder = Builder::new_current_thread();
    // Before a lane sleeps it lets others run, if any wait for the core: meanwhile more comes in, and
    // each read and write carries more.
    builder.on_thread_park(thread::yield_now);
    let runtime = builder.enable_all().build();
    let runtime = runtime.context("an async runtime could not be started")?;
    let handle = runtime.handle().clone();
    thread::Builder::new()
        .name("queen-lane".into())
        .spawn(move || {
            runtime.block_on(end.cancelled());
            runtime.shutdown_background();
        })
        .context("a thread could not be started")?;
    Ok(handle)
}

impl Server {
    pub(crate) fn start(
        listener: TcpListener,
        api: HttpApi,
        stop: CancellationToken,
    ) -> Result<Self> {
        let listener = tokio::net::TcpListener::from_std(listener)?;
        let connections = TaskTracker::new();
        let tracker = connections.clone();
        let end = CancellationToken::new();
        let cores = thread::available_parallelism().map_or(1, usize::from);
        let lanes: Vec<Handle> = (0..cores)
            .map(|_| lane(end.clone()))
            .collect::<Result<_>>()?;
        let mut lanes_in_turn = lanes.into_iter().cycle();
        let accepting = tokio::spawn(async move {
            loop {
                let accepted = tokio::select! {
                    accepted = listener.accept() => accepted,
                    () = stop.cancelled() => return,
                };
                let stream = accepted.and_then(|(stream, _)| stream.into_std());
                match (stream, lanes_in_turn.next()) {
                    (_, None) => return,
                    (Ok(stream), Some(lane)) => {
                        tracker.spawn_on(connection(stream, api.clone(), stop.clone()), &lane);
                    }
                    (Err(error), _) => {
                        // Out of file descriptors, most likely: it passes when clients leave.
                        tracing::warn!(%error, "a connection was not accepted");
                        tokio::time::sleep(Duration::from_millis(50)).await;
                    }
                }
            }
        });
        Ok(Server {
            accepting,
            connections,
            end,
        })
    }

    /// Waits until open answers are written out, but not for long.
    pub(crate) async fn finish(self) {
        self.connections.close();
        let ended = async {
            let _ = self.accepting.await;
            self.connections.wait().await;
        };
        if tokio::time::timeout(FINISH_TIMEOUT, ended).await.is_err() {
            tracing::debug!("connections were still open at the end");
        }
        self.end.cancel();
    }
}

/// Whether a client begins with HTTP/2's preface (RFC 9113, section 3.4), of which no HTTP/1.1
/// method shares the first three bytes.
async fn speaks_http2(stream: &TcpStream) -> std::io::Result<bool> {
    const PREFACE: &[u8; 3] = b"PRI";
    let mut first = [0; PREFACE.len()];
    loop {
        let seen = stream.peek(&mut first).await?;
        if seen == first.len() || seen == 0 || !PREFACE.starts_with(&first[..seen]) {
            return Ok(first == *PREFACE);
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

async fn connection(stream: StdStream, api: HttpApi, stop: CancellationToken) {
    let stall = api.orchestrator().config().timeouts.client_stall;
    let stream = match prepare(&stream, stall).and_then(|()| TcpStream::from_std(stream)) {
        Ok(stream) => stream,
        Err(error) => return tracing::debug!(%error, "a connection could not be taken on"),
    };
    let service = service_fn(move |request: Request<Incoming>| {
        let api = api.clone();
        async move { Ok::<_, Infallible>(api.call(request).await) }
    });
    let first = tokio::time::timeout(HEAD_TIMEOUT, speaks_http2(&stream));
    let http2 = tokio::select! {
        first = first => match first {
            Ok(Ok(http2)) => http2,
            Ok(Err(_)) | Err(_) => return,
        },
        () = stop.cancelled() => return,
    };
    let served = if http2 {
        let mut builder = http2::Builder::new(TokioExecutor::new());
        builder
            .timer(TokioTimer::new())
            .keep_alive_interval(Some(HEAD_TIMEOUT));
        // Boxed: it is rare, and every connection would have room for it.
        let served = until_stopped(
            builder.serve_connection(TokioIo::new(stream), service),
            &stop,
        );
        Box::pin(served).await
    } else {
        let mut builder = http1::Builder::new();
        builder
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_TIMEOUT)
            .writev(false);
        until_stopped(
            builder.serve_connection(TokioIo::new(stream), service),
            &stop,
        )
        .await
    };
    if let Err(error) = served {
        tracing::debug!(%error, "a connection ended with an error");
    }
}

/// Nagle's algorithm with delayed ACKs costs 40 ms for each small write; a peer that takes nothing
/// for `stall` has gone, and its socket with it.
fn prepare(stream: &StdStream, stall: Duration) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    #[cfg(target_os = "linux")]
    socket2::SockRef::from(stream).set_tcp_user_timeout(Some(stall))?;
    #[cfg(not(target_os = "linux"))]
    let _ = stall;
    Ok(())
}

/// Serves a connection; when told to stop, it ends after the answers that are under way.
async fn until_stopped<C: GracefulConnection>(
    connection: C,
    stop: &CancellationToken,
) -> Result<(), C::Error> {
    let mut serving = pin!(connection);
    tokio::select! {
        served = serving.as_mut() => served,
        () = stop.cancelled() => {
            serving.as_mut().graceful_shutdown();
            serving.await
        }
    }
}
