//! Sockets: connections accepted and bounded, HTTP/1.1 and h2c spoken.
//!
//! There is a lane for each core, a thread with a runtime of its own, and a connection stays on the
//! lane that it was given: its client, its worker's connection and what happens in between never
//! wake another thread.
//!
//! ```no_run
//! use rbee_orchestrator::Orchestrator;
//! use rbee_orchestrator::http::{Access, HttpApi, Server};
//!
//! # async fn mount() -> rbee_orchestrator::Result<()> {
//! let orchestrator = Orchestrator::builder().start().await?;
//! let listener = std::net::TcpListener::bind("127.0.0.1:8080").expect("the port is free");
//! let server = Server::start(listener, HttpApi::new(orchestrator, Access::loopback()))?;
//! // Much later:
//! server.finish().await;
//! # Ok(())
//! # }
//! ```

mod connection;
mod descriptors;
mod seats;
mod socket;

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream as StdStream};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use tokio::runtime::{Builder, Handle};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::HttpApi;
use crate::error::{Error, Result};
use crate::seldom::Seldom;
use seats::{Bounds, Seats};

pub use descriptors::raise_open_files;
pub(super) use seats::Asking;

/// How long answers that are complete may take to be written out at the end.
const FINISH_TIMEOUT: Duration = Duration::from_secs(2);

/// How often it is looked which connections have been silent for too long.
const SWEEP: Duration = Duration::from_secs(1);

/// How long nothing is accepted when there are no descriptors left, or too many connections that
/// were told to close have not yet done so.
const PAUSE: Duration = Duration::from_millis(20);

/// Connections for which there is no place are told so, this many at once; more are just closed.
const REFUSED_AT_ONCE: usize = 64;

/// Serves an [`HttpApi`] on a socket until it is told to finish.
#[derive(Debug)]
pub struct Server {
    accepting: JoinHandle<()>,
    sweeping: JoinHandle<()>,
    connections: TaskTracker,
    seats: Arc<Seats>,
    /// Ends the accepting, at first.
    stop: CancellationToken,
    /// Ends the lanes, at last.
    end: CancellationToken,
}

impl Server {
    /// Begins to accept connections, within the bounds of the orchestrator's configuration. Must be
    /// called on a Tokio runtime.
    ///
    /// # Errors
    /// `INTERNAL` when the socket can't be used or no thread can be started.
    pub fn start(listener: TcpListener, api: HttpApi) -> Result<Self> {
        listener
            .set_nonblocking(true)
            .map_err(|error| no_server(&error))?;
        let listener =
            tokio::net::TcpListener::from_std(listener).map_err(|error| no_server(&error))?;
        let seats = Arc::new(Seats::new(Bounds::of(api.orchestrator().config())));
        let connections = TaskTracker::new();
        let stop = CancellationToken::new();
        let end = CancellationToken::new();
        let cores = thread::available_parallelism().map_or(1, usize::from);
        let door = Door {
            lanes: (0..cores)
                .map(|_| lane(end.clone()))
                .collect::<io::Result<_>>()
                .map_err(|error| no_server(&error))?,
            api,
            seats: Arc::clone(&seats),
            connections: connections.clone(),
            refused: Arc::new(Semaphore::new(REFUSED_AT_ONCE)),
            full: Seldom::default(),
            failed: Seldom::default(),
        };
        let accepting = tokio::spawn(door.accept(listener, stop.clone()));
        let sweeping = tokio::spawn(sweep(Arc::clone(&seats)));
        Ok(Server {
            accepting,
            sweeping,
            connections,
            seats,
            stop,
            end,
        })
    }

    /// Accepts no more, lets each connection end after the answers that are under way, and waits
    /// for that, but not for long.
    pub async fn finish(self) {
        self.stop.cancel();
        let _ = self.accepting.await;
        self.sweeping.abort();
        self.seats.finish();
        self.connections.close();
        let ended = tokio::time::timeout(FINISH_TIMEOUT, self.connections.wait());
        if ended.await.is_err() {
            tracing::debug!("connections were still open at the end");
        }
        self.end.cancel();
    }
}

fn no_server(error: &io::Error) -> Error {
    Error::internal(format!("the API can't be served: {error}"))
}

/// Starts a lane, which lives until `end`.
fn lane(end: CancellationToken) -> io::Result<Handle> {
    let mut builder = Builder::new_current_thread();
    // Before a lane sleeps it lets others run, if any wait for the core: meanwhile more comes in, and
    // each read and write carries more.
    builder.on_thread_park(thread::yield_now);
    let runtime = builder.enable_all().build()?;
    let handle = runtime.handle().clone();
    thread::Builder::new()
        .name("queen-lane".into())
        .spawn(move || {
            runtime.block_on(end.cancelled());
            runtime.shutdown_background();
        })?;
    Ok(handle)
}

async fn sweep(seats: Arc<Seats>) {
    let mut ticks = tokio::time::interval(SWEEP);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        seats.sweep();
    }
}

/// Where connections come in.
struct Door {
    lanes: Vec<Handle>,
    api: HttpApi,
    seats: Arc<Seats>,
    connections: TaskTracker,
    refused: Arc<Semaphore>,
    full: Seldom,
    failed: Seldom,
}

impl Door {
    async fn accept(self, listener: tokio::net::TcpListener, stop: CancellationToken) {
        let mut next = 0;
        loop {
            while self.seats.are_leaving_slowly() {
                tokio::time::sleep(PAUSE).await;
            }
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = stop.cancelled() => return,
            };
            match accepted.and_then(|(stream, from)| Ok((stream.into_std()?, from))) {
                Ok((stream, from)) => {
                    next = (next + 1) % self.lanes.len();
                    self.seat(stream, from, &self.lanes[next]);
                }
                Err(error) => {
                    // Out of descriptors, most likely: it passes when clients leave.
                    if self.failed.is_due() {
                        tracing::warn!(%error, "a connection was not accepted");
                    }
                    self.seats.make_room();
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }

    fn seat(&self, stream: StdStream, from: SocketAddr, lane: &Handle) {
        if let Some(place) = self.seats.take(from.ip()) {
            let serving = connection::serve(stream, self.api.clone(), place);
            self.connections.spawn_on(serving, lane);
            return;
        }
        if self.full.is_due() {
            tracing::warn!(%from, "as many connections are at work as there may be: refused");
        }
        if let Ok(permit) = Arc::clone(&self.refused).try_acquire_owned() {
            let refusing = async move {
                connection::refuse(stream).await;
                drop(permit);
            };
            self.connections.spawn_on(refusing, lane);
        }
    }
}
