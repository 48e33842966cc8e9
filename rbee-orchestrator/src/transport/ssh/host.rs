//! One machine's pooled session: made when it is needed, made again when it has ended.

use std::collections::HashSet;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot, watch};

use super::backoff::Backoff;
use super::command::CommandOutput;
use super::connect::{self, Connected, Peer, Refused, Stage};
use super::driver::{Driver, Ending};
use super::order::{Notice, Order, Undone};
use super::stream::SshStream;
use super::wake::Wake;
use crate::config::SshOptions;
use crate::domain::SshTarget;
use crate::error::{Code, Error, Result};

/// Orders on their way to a session's thread.
const ORDERS: usize = 64;
/// Sessions that one request tries: the pooled one may end in the moment it is asked.
const TRIES: usize = 3;
/// A session that breaks sooner counts as a failed attempt.
const SHORT_LIFE: Duration = Duration::from_secs(5);

/// A machine that is reached over SSH.
#[derive(Debug)]
pub(super) struct Host {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    target: SshTarget,
    options: Arc<SshOptions>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    current: Option<Arc<Handle>>,
    /// Threads that have not ended.
    sessions: usize,
    /// Ports on which a connection has hung since it was asked for.
    hanging: HashSet<u16>,
    backoff: Backoff,
}

/// A session's thread, as others see it.
#[derive(Debug)]
struct Handle {
    /// `None` only while it is dropped.
    orders: Option<mpsc::Sender<Order>>,
    wake: Arc<Wake>,
    phase: watch::Receiver<Phase>,
}

#[derive(Debug, Clone)]
enum Phase {
    Connecting,
    Ready(Arc<Peer>),
    /// It takes no more orders.
    Retired,
    Ended(Arc<Refused>),
}

impl Host {
    pub(super) fn new(target: SshTarget, options: Arc<SshOptions>) -> Self {
        Host {
            shared: Arc::new(Shared {
                target,
                options,
                state: Mutex::default(),
            }),
        }
    }

    pub(super) fn name(&self) -> &str {
        &self.shared.target.host
    }

    pub(super) fn target(&self) -> &SshTarget {
        &self.shared.target
    }

    pub(super) fn options(&self) -> &Arc<SshOptions> {
        &self.shared.options
    }

    /// Makes a session if there is none; tells what its other end is.
    pub(super) async fn reach(&self) -> Result<Arc<Peer>, Refused> {
        self.session().await.map(|(_, peer)| peer)
    }

    /// Lets the next request try at once, whatever failed before.
    pub(super) fn forget_failures(&self) {
        self.shared.state().backoff = Backoff::default();
    }

    /// A connection to a port of the machine's loopback address.
    pub(super) async fn connect(&self, port: u16) -> io::Result<SshStream> {
        if self.shared.state().hanging.contains(&port) {
            return Err(self.hangs(port));
        }
        let limit = self.shared.options.open_timeout;
        let order = |reply| Order::Connect { port, reply };
        match tokio::time::timeout(limit, self.order(order)).await {
            Ok(connected) => connected,
            Err(_) => Err(self.hangs(port)),
        }
    }

    fn hangs(&self, port: u16) -> io::Error {
        let (name, limit) = (self.name(), self.shared.options.open_timeout);
        let why = match self.shared.state().is_connecting() {
            true => format!("no SSH session with {name} within {limit:?}"),
            false => format!(
                "port {port} on {name} took no connection within {limit:?}; is what listens there \
                 stopped?"
            ),
        };
        io::Error::new(io::ErrorKind::TimedOut, why)
    }

    /// A run of the machine's shell.
    pub(super) async fn run(&self, script: Bytes, limit: Duration) -> io::Result<CommandOutput> {
        let order = |reply| Order::Run {
            script: script.clone(),
            reply,
        };
        match tokio::time::timeout(limit, self.order(order)).await {
            Ok(ran) => ran,
            Err(_) => {
                let why = format!("a command on {} did not end within {limit:?}", self.name());
                Err(io::Error::new(io::ErrorKind::TimedOut, why))
            }
        }
    }

    async fn order<T>(
        &self,
        order: impl Fn(oneshot::Sender<Result<T, Undone>>) -> Order,
    ) -> io::Result<T> {
        for _ in 0..TRIES {
            let (handle, _) = self.session().await.map_err(io_error)?;
            match handle.carry_out(&order).await {
                Ok(done) => return Ok(done),
                Err(Undone::Again) => {}
                Err(Undone::Refused(error)) => return Err(error),
                Err(Undone::Broken(why)) => return Err(reset(&why)),
            }
        }
        Err(reset(&self.keeps_ending().error.message))
    }

    fn keeps_ending(&self) -> Refused {
        let name = self.name();
        let why = format!("SSH sessions with {name} keep ending; look into its sshd's log");
        Refused::new(Stage::Reach, unreachable(why))
    }

    /// The pooled session, once it is ready.
    async fn session(&self) -> Result<(Arc<Handle>, Arc<Peer>), Refused> {
        for _ in 0..TRIES {
            let handle = self.shared.current()?;
            let mut phase = handle.phase.clone();
            let settled = phase.wait_for(|phase| !matches!(phase, Phase::Connecting));
            let settled = settled.await.map(|phase| phase.clone());
            match settled {
                Ok(Phase::Ready(peer)) => return Ok((handle, peer)),
                Ok(Phase::Ended(why)) => return Err((*why).clone()),
                Ok(Phase::Retired | Phase::Connecting) => {}
                Err(_) => {
                    let error = Error::internal("a session's thread has ended without a word");
                    return Err(Refused::new(Stage::Reach, error));
                }
            }
        }
        Err(self.keeps_ending())
    }
}

impl Drop for Host {
    /// The thread holds what is shared, so it would wait for orders for ever.
    fn drop(&mut self) {
        let last = self.shared.state().current.take();
        drop(last);
    }
}

impl Handle {
    fn is_usable(&self) -> bool {
        matches!(*self.phase.borrow(), Phase::Connecting | Phase::Ready(_))
    }

    async fn carry_out<T>(
        &self,
        order: impl Fn(oneshot::Sender<Result<T, Undone>>) -> Order,
    ) -> Result<T, Undone> {
        let (reply, answer) = oneshot::channel();
        let orders = self.orders.as_ref().ok_or(Undone::Again)?;
        if orders.send(order(reply)).await.is_err() {
            return Err(Undone::Again);
        }
        // Now that it is sent, and again when nobody waits for the answer any more.
        self.wake.ring();
        let _rings = RingOnDrop(&self.wake);
        let lost = || Undone::Broken("its thread has gone".into());
        answer.await.unwrap_or_else(|_| Err(lost()))
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.orders = None;
        self.wake.ring();
    }
}

struct RingOnDrop<'a>(&'a Wake);

impl Drop for RingOnDrop<'_> {
    fn drop(&mut self) {
        self.0.ring();
    }
}

fn io_error(refused: Refused) -> io::Error {
    io::Error::new(io::ErrorKind::NotConnected, refused.error)
}

fn reset(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionReset, why.to_owned())
}

impl State {
    fn is_connecting(&self) -> bool {
        let phase = self.current.as_ref().map(|handle| handle.phase.borrow());
        phase.is_some_and(|phase| matches!(*phase, Phase::Connecting))
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn current(self: &Arc<Self>) -> Result<Arc<Handle>, Refused> {
        let mut state = self.state();
        if let Some(handle) = state.current.as_ref().filter(|handle| handle.is_usable()) {
            return Ok(Arc::clone(handle));
        }
        state.backoff.check()?;
        if state.sessions >= self.options.max_sessions {
            let (host, most) = (&self.target.host, self.options.max_sessions);
            let why = format!(
                "{host} has {most} sessions on which connections hang; is what listens there \
                 stopped?"
            );
            return Err(Refused::new(Stage::Reach, unreachable(why)));
        }
        let handle = Arc::new(self.start()?);
        state.sessions += 1;
        state.current = Some(Arc::clone(&handle));
        Ok(handle)
    }

    /// Starts a session's thread, which connects first.
    fn start(self: &Arc<Self>) -> Result<Handle, Refused> {
        let failed = |error: io::Error| {
            let why = format!("no thread for an SSH session can be started: {error}");
            Refused::new(Stage::Reach, Error::internal(why))
        };
        let wake = Arc::new(Wake::new().map_err(failed)?);
        let (orders, ordered) = mpsc::channel(ORDERS);
        let (phases, phase) = watch::channel(Phase::Connecting);
        let thread = SessionThread {
            shared: Arc::clone(self),
            wake: Arc::clone(&wake),
            phases: Arc::new(phases),
        };
        std::thread::Builder::new()
            // A thread's name can't hold one, and whoever embeds this may register any.
            .name(format!("ssh {}", self.target.host.replace('\0', "")))
            .spawn(move || thread.run(ordered))
            .map_err(failed)?;
        Ok(Handle {
            orders: Some(orders),
            wake,
            phase,
        })
    }
}

struct SessionThread {
    shared: Arc<Shared>,
    wake: Arc<Wake>,
    phases: Arc<watch::Sender<Phase>>,
}

impl SessionThread {
    fn run(self, orders: mpsc::Receiver<Order>) {
        let (host, options) = (&self.shared.target.host, &self.shared.options);
        let refused = match connect::connect(&self.shared.target, options) {
            Ok(connected) => {
                tracing::info!(host, address = connected.peer.address, "SSH session made");
                let made = Instant::now();
                let ending = self.drive(connected, orders);
                tracing::info!(host, why = %ending.why, "SSH session ended");
                let refused = Refused::new(Stage::Reach, unreachable(ending.why.to_string()));
                let mut state = self.shared.state();
                match ending.is_broken && made.elapsed() < SHORT_LIFE {
                    true => state.backoff.failed(&refused, options),
                    false => state.backoff = Backoff::default(),
                }
                drop(state);
                refused
            }
            Err(refused) => {
                tracing::warn!(host, error = %refused.error.in_full(), "no SSH session");
                self.shared.state().backoff.failed(&refused, options);
                refused
            }
        };
        self.phases.send_replace(Phase::Ended(Arc::new(refused)));
    }

    fn drive(&self, connected: Connected, orders: mpsc::Receiver<Order>) -> Ending {
        self.phases
            .send_replace(Phase::Ready(Arc::new(connected.peer.clone())));
        let (shared, phases) = (Arc::clone(&self.shared), Arc::clone(&self.phases));
        let notify = move |notice| match notice {
            Notice::Retired => drop(phases.send_replace(Phase::Retired)),
            Notice::Hangs(port) => drop(shared.state().hanging.insert(port)),
            Notice::Resumes(port) => drop(shared.state().hanging.remove(&port)),
        };
        let options = &self.shared.options;
        let driver = Driver::new(connected, options, &self.wake, orders, Box::new(notify));
        driver.run(&self.shared.target.host)
    }
}

impl Drop for SessionThread {
    fn drop(&mut self) {
        self.shared.state().sessions -= 1;
    }
}

fn unreachable(message: String) -> Error {
    Error::new(Code::HiveUnreachable, message)
}
