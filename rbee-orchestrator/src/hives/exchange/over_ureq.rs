//! One request to a hive and its whole answer: `ureq` on a thread that may block, its connection
//! through the hive's transport.

use std::fmt;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http::{Request, Uri};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;
use ureq::Agent;
use ureq::config::Config;
use ureq::unversioned::resolver::{ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::{
    Buffers, ConnectionDetails, Connector, LazyBuffers, NextTimeout, Transport,
};

use super::{Answer, Failure};
use crate::transport::{HiveStream, HiveTransport};

/// A larger answer is refused.
const LARGEST_ANSWER_BYTES: u64 = 16 << 20;
/// Of a call's two buffers. They are zeroed for each call, and checks of hives are short and many.
const BUFFER_BYTES: usize = 16 << 10;
/// What the caller waits beyond the time-out before it gives up on the blocking thread.
const MARGIN: Duration = Duration::from_millis(500);

/// Sends one request on a connection of its own and reads the answer.
///
/// The time-out bounds all of it, and the thread with it. Dropped midway, the connection is closed
/// and the thread is free at once.
pub(in crate::hives) async fn exchange(
    transport: Arc<dyn HiveTransport>,
    port: u16,
    request: Request<Option<Vec<u8>>>,
    timeout: Duration,
) -> Result<Answer, Failure> {
    let given_up = CancellationToken::new();
    let _on_drop = given_up.clone().drop_guard();
    let bridge = Bridge {
        transport,
        port,
        runtime: Handle::current(),
        given_up,
    };
    let call = tokio::task::spawn_blocking(move || blocking_exchange(bridge, request, timeout));
    match tokio::time::timeout(timeout.saturating_add(MARGIN), call).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(stopped)) => Err(Failure::Broken(io::Error::other(stopped))),
        Err(_) => Err(Failure::TimedOut),
    }
}

fn blocking_exchange(
    bridge: Bridge,
    request: Request<Option<Vec<u8>>>,
    timeout: Duration,
) -> Result<Answer, Failure> {
    let config = Config::builder()
        .timeout_global(Some(timeout))
        // The environment's proxy is not on the way to one's own hives.
        .proxy(None)
        .http_status_as_error(false)
        .max_redirects(0)
        .max_redirects_will_error(false)
        .max_idle_connections(0)
        .input_buffer_size(BUFFER_BYTES)
        .output_buffer_size(BUFFER_BYTES)
        .user_agent(concat!("queen-rbee/", env!("CARGO_PKG_VERSION")))
        .build();
    let agent = Agent::with_parts(config, bridge, NoResolver);
    let (head, body) = request.into_parts();
    let answer = match body {
        None => agent.run(Request::from_parts(head, ())),
        Some(body) => agent.run(Request::from_parts(head, body)),
    };
    let mut answer = answer.map_err(failure)?;
    let status = answer.status();
    let body = answer.body_mut().with_config().limit(LARGEST_ANSWER_BYTES);
    let body = body.read_to_vec().map_err(failure)?;
    Ok(Answer { status, body })
}

fn failure(error: ureq::Error) -> Failure {
    match error {
        ureq::Error::Timeout(_) => Failure::TimedOut,
        ureq::Error::Io(error) => Failure::Broken(error),
        ureq::Error::BodyExceedsLimit(limit) => {
            Failure::Garbage(format!("an answer of more than {limit} bytes"))
        }
        other => Failure::Garbage(other.to_string()),
    }
}

/// Opens ureq's connections through a hive's transport.
struct Bridge {
    transport: Arc<dyn HiveTransport>,
    port: u16,
    runtime: Handle,
    given_up: CancellationToken,
}

impl fmt::Debug for Bridge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bridge")
            .field("port", &self.port)
            .finish_non_exhaustive()
    }
}

impl Connector for Bridge {
    type Out = Connection;

    fn connect(
        &self,
        details: &ConnectionDetails<'_>,
        _chained: Option<()>,
    ) -> Result<Option<Connection>, ureq::Error> {
        let connected = self.transport.connect(self.port);
        let stream = bounded(&self.runtime, &self.given_up, details.timeout, connected)?;
        let config = details.config;
        Ok(Some(Connection {
            stream: Mutex::new(stream),
            buffers: LazyBuffers::new(config.input_buffer_size(), config.output_buffer_size()),
            runtime: self.runtime.clone(),
            given_up: self.given_up.clone(),
        }))
    }
}

/// One connection, read and written with ureq's time-outs.
struct Connection {
    /// In a mutex only because ureq wants `Sync`; it is never locked.
    stream: Mutex<Box<dyn HiveStream>>,
    buffers: LazyBuffers,
    runtime: Handle,
    given_up: CancellationToken,
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").finish_non_exhaustive()
    }
}

impl Transport for Connection {
    fn buffers(&mut self) -> &mut dyn Buffers {
        &mut self.buffers
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), ureq::Error> {
        let stream = unlocked(&mut self.stream);
        let output = &self.buffers.output()[..amount];
        let written = async {
            stream.write_all(output).await?;
            stream.flush().await
        };
        bounded(&self.runtime, &self.given_up, timeout.for_write(), written)
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, ureq::Error> {
        let stream = unlocked(&mut self.stream);
        let read = stream.read(self.buffers.input_append_buf());
        let amount = bounded(&self.runtime, &self.given_up, timeout.for_read(), read)?;
        self.buffers.input_appended(amount);
        Ok(amount > 0)
    }

    fn is_open(&mut self) -> bool {
        // One exchange a connection: there is no pool that could ask.
        false
    }
}

fn unlocked(stream: &mut Mutex<Box<dyn HiveStream>>) -> &mut Box<dyn HiveStream> {
    stream
        .get_mut()
        .unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// Waits on this thread for what the runtime does, until the time is up or nobody wants it.
fn bounded<T>(
    runtime: &Handle,
    given_up: &CancellationToken,
    timeout: NextTimeout,
    work: impl Future<Output = io::Result<T>>,
) -> Result<T, ureq::Error> {
    runtime.block_on(async {
        let work = pin!(work);
        tokio::select! {
            // First, so that no timer of a runtime that has gone is touched.
            biased;
            () = given_up.cancelled() => Err(io::Error::from(io::ErrorKind::Interrupted).into()),
            done = tokio::time::timeout(*timeout.after, work) => match done {
                Ok(done) => done.map_err(ureq::Error::Io),
                Err(_) => Err(ureq::Error::Timeout(timeout.reason)),
            },
        }
    })
}

/// Looks no name up: the transport knows the way.
#[derive(Debug)]
struct NoResolver;

impl Resolver for NoResolver {
    fn resolve(
        &self,
        _uri: &Uri,
        _config: &Config,
        _timeout: NextTimeout,
    ) -> Result<ResolvedSocketAddrs, ureq::Error> {
        let mut addresses = self.empty();
        addresses.push(SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)));
        Ok(addresses)
    }
}
