//! The thread of one session: it owns the session and all its channels, and waits in one place.
//!
//! libssh2 has one lock a session, so a call that blocked would stall every channel; here none
//! does. A turn gives each channel its share and never waits; between two turns the thread polls
//! the socket and the bell with which the async side says that there is something to do.

use std::collections::VecDeque;
use std::io;
use std::net::Shutdown;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use ssh2::Channel;
use tokio::sync::{mpsc, oneshot};

use super::command::{Command, CommandOutput};
use super::connect::Connected;
use super::line::{Io, Line, PACKET_BYTES, Received, Trouble};
use super::options::SshOptions;
use super::stream::{Pipe, SshStream};
use super::wake::Wake;

/// The longest time between two turns while something is under way.
const TICK: Duration = Duration::from_secs(1);
/// Orders that wait for a channel on the thread; more wait before they come here.
const MAX_WAITING: usize = 256;
/// The shortest time between two keep-alives.
const KEEP_ALIVE_MIN: Duration = Duration::from_millis(100);
/// How long the farewell to the other side may take, in milliseconds.
const FAREWELL_MS: u32 = 500;

/// What the async side wants of a session.
pub(super) enum Order {
    /// A connection to a port of the machine's loopback address.
    Connect {
        port: u16,
        reply: oneshot::Sender<Result<SshStream, Undone>>,
    },
    /// A run of the machine's shell, which reads this as its input.
    Run {
        script: Bytes,
        reply: oneshot::Sender<Result<CommandOutput, Undone>>,
    },
}

/// Why an order was not carried out.
#[derive(Debug)]
pub(super) enum Undone {
    /// Not begun; another session may.
    Again,
    /// The other side refuses it.
    Refused(io::Error),
    /// The session has ended in the middle of it.
    Broken(Arc<str>),
}

/// What others must know of a session at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Notice {
    /// It takes no more orders; what is under way goes on.
    Retired,
    /// A connection to a port neither begins nor fails.
    Hangs(u16),
    /// It does now, or will never.
    Resumes(u16),
}

impl Order {
    fn is_wanted(&self) -> bool {
        match self {
            Order::Connect { reply, .. } => !reply.is_closed(),
            Order::Run { reply, .. } => !reply.is_closed(),
        }
    }

    fn refuse(self, why: impl FnOnce() -> Undone) {
        match self {
            Order::Connect { reply, .. } => drop(reply.send(Err(why()))),
            Order::Run { reply, .. } => drop(reply.send(Err(why()))),
        }
    }
}

/// A tunnelled connection's channel.
struct Tunnel {
    line: Line,
    pipe: Arc<Pipe>,
    /// Taken from the pipe; offered until it is sent.
    chunk: Bytes,
    ended: bool,
    sent_end: bool,
}

/// A channel on its way out, with the bytes of a write that must be completed first.
pub(super) struct Closing {
    pub(super) line: Line,
    pub(super) chunk: Bytes,
}

/// The channel that is being opened: libssh2 opens one after the other.
struct Opening {
    order: Order,
    since: Instant,
    /// Answers to keep-alives when one was sent to see whether only this is slow.
    asked_at: Option<u64>,
    hangs: bool,
}

/// A session at work.
pub(super) struct Driver<'a> {
    io: Io,
    /// A channel without any program. It brings in what the socket has when no other channel
    /// reads, and carries the keep-alives.
    pump: Option<Line>,
    options: &'a SshOptions,
    wake: &'a Wake,
    shared_wake: Arc<Wake>,
    orders: mpsc::Receiver<Order>,
    waiting: VecDeque<Order>,
    opening: Option<Opening>,
    tunnels: Vec<Tunnel>,
    commands: Vec<Command>,
    closing: Vec<Closing>,
    notify: Box<dyn FnMut(Notice)>,
    retired: bool,
    orders_ended: bool,
    keep_alive: KeepAlive,
    scratch: Box<[u8]>,
}

/// Whether the other side is still there.
struct KeepAlive {
    due: Instant,
    unanswered: u32,
    answers: u64,
    under_way: bool,
}

impl<'a> Driver<'a> {
    pub(super) fn new(
        connected: Connected,
        options: &'a SshOptions,
        wake: &'a Arc<Wake>,
        orders: mpsc::Receiver<Order>,
        notify: Box<dyn FnMut(Notice)>,
    ) -> Self {
        Driver {
            io: connected.io,
            pump: Some(connected.pump),
            options,
            wake,
            shared_wake: Arc::clone(wake),
            orders,
            waiting: VecDeque::new(),
            opening: None,
            tunnels: Vec::new(),
            commands: Vec::new(),
            closing: Vec::new(),
            notify,
            retired: false,
            orders_ended: false,
            keep_alive: KeepAlive {
                due: Instant::now() + options.keep_alive,
                unanswered: 0,
                answers: 0,
                under_way: false,
            },
            scratch: vec![0; PACKET_BYTES].into(),
        }
    }

    /// Works until nobody wants the session any more, or it breaks; says why it ended.
    pub(super) fn run(mut self, host: &str) -> Arc<str> {
        let broken = loop {
            self.wake.clear();
            match self.turn() {
                Ok(true) => {}
                Ok(false) if self.is_done() => break None,
                Ok(false) => {
                    if let Err(error) = self.wait() {
                        break Some(format!("its socket can't be waited for: {error}"));
                    }
                }
                Err(why) => break Some(why),
            }
        };
        let is_broken = broken.is_some();
        let why = broken.unwrap_or_else(|| "nobody needs it".into());
        let why: Arc<str> = format!("the SSH session with {host} ended: {why}").into();
        self.end(is_broken, &why);
        why
    }

    /// Gives everything its share without waiting; says whether anything moved.
    ///
    /// Reading comes last: any call may bring in bytes of any channel, and those must not lie there
    /// while the thread waits for the socket.
    fn turn(&mut self) -> Result<bool, String> {
        self.io.wants_out.set(false);
        self.take_orders();
        self.pump()?;
        // What the session was in the middle of sending: until it is sent all else is put off.
        let mut moved = self.tunnels(|tunnel, io, scratch| tunnel.again(io, scratch))?;
        moved |= self.tunnels(|tunnel, io, _| tunnel.write(io))?;
        moved |= self.commands(|command, io, scratch| command.turn(io, scratch))?;
        moved |= self.closings()?;
        moved |= self.open()?;
        self.keep_alive()?;
        moved |= self.tunnels(|tunnel, io, scratch| match tunnel.line.read_again {
            true => Ok(false),
            false => tunnel.read(io, scratch),
        })?;
        moved |= self.commands(|command, io, scratch| match command.line().read_again {
            true => Ok(false),
            false => command.listen(io, scratch),
        })?;
        Ok(moved)
    }

    fn take_orders(&mut self) {
        while self.waiting.len() < MAX_WAITING {
            match self.orders.try_recv() {
                Ok(order) => self.waiting.push_back(order),
                Err(mpsc::error::TryRecvError::Empty) => break,
                Err(mpsc::error::TryRecvError::Disconnected) => {
                    self.orders_ended = true;
                    break;
                }
            }
        }
        self.waiting.retain(Order::is_wanted);
        if self.retired {
            self.give_back_orders();
        }
    }

    fn give_back_orders(&mut self) {
        for order in self.waiting.drain(..) {
            order.refuse(|| Undone::Again);
        }
    }

    fn is_done(&self) -> bool {
        let idle = self.tunnels.is_empty() && self.commands.is_empty() && self.closing.is_empty();
        let finished = self.orders_ended || self.retired;
        idle && finished && self.opening.is_none() && self.waiting.is_empty()
    }

    /// Brings in all that the socket has.
    fn pump(&mut self) -> Result<(), String> {
        if let Some(line) = &mut self.pump {
            match self.io.outcome(line.channel.wait_eof()) {
                Err(Trouble::Later) => return Ok(()),
                Err(Trouble::Session(why)) => return Err(why),
                // The other side closes idle channels: what is under way goes on without.
                Ok(()) | Err(Trouble::Channel(_)) => {
                    self.pump = None;
                    self.retire();
                }
            }
        }
        for tunnel in self.tunnels.iter_mut().filter(|tunnel| !tunnel.ended) {
            if let Err(Trouble::Session(why)) = self.io.outcome(tunnel.line.channel.wait_eof()) {
                return Err(why);
            }
        }
        Ok(())
    }

    fn tunnels(
        &mut self,
        step: impl Fn(&mut Tunnel, &Io, &mut [u8]) -> Result<bool, Trouble>,
    ) -> Result<bool, String> {
        let mut moved = false;
        let mut index = 0;
        while index < self.tunnels.len() {
            let tunnel = &mut self.tunnels[index];
            let stepped = match tunnel.pipe.is_dropped() {
                true => Err(Trouble::Channel("its user has gone".into())),
                false => step(tunnel, &self.io, &mut self.scratch),
            };
            match stepped {
                Ok(did) => moved |= did,
                Err(Trouble::Later) => {}
                Err(Trouble::Session(why)) => return Err(why),
                Err(Trouble::Channel(why)) => {
                    moved = true;
                    let tunnel = self.tunnels.swap_remove(index);
                    tunnel
                        .pipe
                        .fail(io::ErrorKind::ConnectionReset, &why.into());
                    self.closing.push(Closing {
                        line: tunnel.line,
                        chunk: tunnel.chunk,
                    });
                    continue;
                }
            }
            index += 1;
        }
        Ok(moved)
    }

    fn commands(
        &mut self,
        step: impl Fn(&mut Command, &Io, &mut [u8]) -> Result<bool, Trouble>,
    ) -> Result<bool, String> {
        let mut moved = false;
        let mut index = 0;
        while index < self.commands.len() {
            let command = &mut self.commands[index];
            match step(command, &self.io, &mut self.scratch) {
                Ok(did) => moved |= did,
                Err(Trouble::Later) => {}
                Err(Trouble::Session(why)) => return Err(why),
                Err(Trouble::Channel(why)) => command.fail(&why),
            }
            if command.is_over() {
                moved = true;
                self.closing.push(self.commands.swap_remove(index).close());
                continue;
            }
            index += 1;
        }
        Ok(moved)
    }

    fn closings(&mut self) -> Result<bool, String> {
        let mut moved = false;
        let mut index = 0;
        while index < self.closing.len() {
            let Closing { line, chunk } = &mut self.closing[index];
            match line.close(&self.io, chunk, &mut self.scratch) {
                Err(Trouble::Later) => index += 1,
                Err(Trouble::Session(why)) => return Err(why),
                Ok(()) | Err(Trouble::Channel(_)) => {
                    moved = true;
                    self.closing.swap_remove(index);
                }
            }
        }
        Ok(moved)
    }

    /// Opens channels for what waits, one after the other.
    fn open(&mut self) -> Result<bool, String> {
        let Some(mut opening) = self.opening.take().or_else(|| self.next_to_open()) else {
            return Ok(false);
        };
        let attempt = match opening.order {
            Order::Connect { port, .. } => {
                self.io
                    .session
                    .channel_direct_tcpip("127.0.0.1", port, None)
            }
            Order::Run { .. } => self.io.session.channel_session(),
        };
        let result = self.io.outcome(attempt);
        if opening.hangs && !matches!(result, Err(Trouble::Later)) {
            self.resumes(&opening.order);
        }
        match result {
            Ok(channel) => self.opened(opening.order, channel),
            Err(Trouble::Later) => {
                self.put_off(opening);
                return Ok(false);
            }
            Err(Trouble::Session(why)) => {
                // It is told with all the others.
                opening.hangs = false;
                self.opening = Some(opening);
                return Err(why);
            }
            Err(Trouble::Channel(why)) => {
                let refusal = refusal(&opening.order, &why);
                opening.order.refuse(|| Undone::Refused(refusal));
            }
        }
        Ok(true)
    }

    fn next_to_open(&mut self) -> Option<Opening> {
        let may_connect = self.tunnels.len() < self.options.max_streams;
        let on_their_way_out = self.closing.iter().filter(|c| c.line.is_command).count();
        let may_run = self.commands.len() + on_their_way_out < self.options.max_commands;
        let may_begin = |order: &Order| match order {
            Order::Connect { .. } => may_connect,
            Order::Run { .. } => may_run,
        };
        let next = self.waiting.iter().position(may_begin)?;
        Some(Opening {
            order: self.waiting.remove(next)?,
            since: Instant::now(),
            asked_at: None,
            hangs: false,
        })
    }

    /// A connection that does not begin holds up all that wait behind it: they go elsewhere. But
    /// only if everything else goes on, or it is the network that is slow.
    fn put_off(&mut self, mut opening: Opening) {
        if let Order::Connect { port, .. } = opening.order
            && !opening.hangs
            && opening.since.elapsed() >= self.options.open_patience
        {
            match opening.asked_at {
                None => {
                    opening.asked_at = Some(self.keep_alive.answers);
                    self.keep_alive.under_way = true;
                }
                Some(answers) if self.keep_alive.answers > answers => {
                    opening.hangs = true;
                    (self.notify)(Notice::Hangs(port));
                    self.retire();
                }
                Some(_) => {}
            }
        }
        self.opening = Some(opening);
    }

    fn resumes(&mut self, order: &Order) {
        if let Order::Connect { port, .. } = order {
            (self.notify)(Notice::Resumes(*port));
        }
    }

    fn opened(&mut self, order: Order, channel: Channel) {
        match order {
            Order::Connect { reply, .. } => {
                let (read, write) = (
                    self.options.read_buffer_bytes,
                    self.options.write_buffer_bytes,
                );
                let (stream, pipe) = SshStream::new(read, write, &self.shared_wake);
                // When nobody takes the stream, its drop closes the channel.
                drop(reply.send(Ok(stream)));
                self.tunnels.push(Tunnel {
                    line: Line::new(channel),
                    pipe,
                    chunk: Bytes::new(),
                    ended: false,
                    sent_end: false,
                });
            }
            Order::Run { script, reply } => {
                let bound = self.options.max_output_bytes;
                self.commands.push(Command::new(
                    Line::of_command(channel),
                    script,
                    bound,
                    reply,
                ));
            }
        }
    }

    /// Takes no more orders; what is under way goes on.
    fn retire(&mut self) {
        if !self.retired {
            self.retired = true;
            (self.notify)(Notice::Retired);
            self.orders.close();
        }
        self.give_back_orders();
    }

    fn keep_alive(&mut self) -> Result<(), String> {
        let Some(pump) = &mut self.pump else {
            return Ok(());
        };
        let alive = &mut self.keep_alive;
        if Instant::now() >= alive.due {
            if alive.unanswered >= self.options.keep_alive_misses {
                let (misses, period) = (alive.unanswered, self.options.keep_alive);
                return Err(format!(
                    "{misses} keep-alives in a row, {period:?} apart, got no answer"
                ));
            }
            alive.unanswered += 1;
            alive.under_way = true;
            alive.due = Instant::now() + self.options.keep_alive.max(KEEP_ALIVE_MIN);
        }
        if alive.under_way {
            // Any request that is answered would do. libssh2's own keep-alive leaves each answer
            // in a list that it searches at every read. The variable is refused: no server knows
            // it.
            let asked = pump.channel.setenv("RBEE_KEEP_ALIVE", "1");
            match self.io.outcome(asked) {
                Err(Trouble::Session(why)) => return Err(why),
                Err(Trouble::Later) => {}
                Ok(()) | Err(Trouble::Channel(_)) => {
                    alive.under_way = false;
                    alive.answers += 1;
                }
            }
        }
        Ok(())
    }

    /// Waits for the socket, the bell or the next thing that is due.
    fn wait(&mut self) -> io::Result<()> {
        let mut flags = PollFlags::empty();
        if self.pump.is_some() || self.tunnels.iter().any(|tunnel| !tunnel.ended) {
            flags |= PollFlags::IN;
        }
        if self.io.wants_out.get() {
            flags |= PollFlags::OUT;
        }
        let mut waited = [
            PollFd::new(&self.io.socket, flags),
            PollFd::new(self.wake, PollFlags::IN),
        ];
        match poll(&mut waited, Some(&timespec(self.patience()))) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let [socket, bell] = waited.map(|fd| fd.revents());
        if socket.contains(PollFlags::IN) {
            self.keep_alive.unanswered = 0;
            self.keep_alive.due = Instant::now() + self.options.keep_alive.max(KEEP_ALIVE_MIN);
        } else if flags.is_empty() && !socket.is_empty() {
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        if bell.contains(PollFlags::IN) {
            self.wake.drain();
        }
        Ok(())
    }

    fn patience(&self) -> Duration {
        let busy = self.io.wants_out.get()
            || self.opening.is_some()
            || !self.closing.is_empty()
            || self.pump.is_none();
        let until_keep_alive = self
            .keep_alive
            .due
            .saturating_duration_since(Instant::now());
        match busy {
            true => until_keep_alive.min(TICK).min(self.options.open_patience),
            false => until_keep_alive,
        }
    }

    /// Tells everybody, and lets libssh2 free everything: it does not while it would have to wait.
    fn end(mut self, is_broken: bool, why: &Arc<str>) {
        // First: whoever is told, and asks again at once, must get a new session.
        self.retire();
        while let Ok(order) = self.orders.try_recv() {
            self.waiting.push_back(order);
        }
        self.give_back_orders();
        if let Some(opening) = self.opening.take() {
            if opening.hangs {
                self.resumes(&opening.order);
            }
            opening.order.refuse(|| Undone::Broken(Arc::clone(why)));
        }
        for tunnel in &self.tunnels {
            tunnel.pipe.fail(io::ErrorKind::ConnectionReset, why);
        }
        for command in &mut self.commands {
            command.fail_session(why);
        }
        let session = &self.io.session;
        // Blocking, or libssh2 would rather leak a channel than wait for its close.
        session.set_blocking(true);
        session.set_timeout(FAREWELL_MS);
        if !is_broken {
            let _ = session.disconnect(None, "the queen is done here", None);
        }
        // Now every call fails at once; the rest is for one that finds a packet half sent.
        let _ = self.io.socket.shutdown(Shutdown::Both);
        session.set_timeout(1);
    }
}

impl Tunnel {
    /// Makes the calls again that were put off.
    fn again(&mut self, io: &Io, scratch: &mut [u8]) -> Result<bool, Trouble> {
        let wrote = self.line.write_again && self.write(io)?;
        let put_off = self.line.read_again;
        let read = put_off && self.read(io, scratch)? && !self.line.read_again;
        Ok(wrote || read)
    }

    fn write(&mut self, io: &Io) -> Result<bool, Trouble> {
        if self.chunk.is_empty() {
            self.chunk = self.pipe.take(PACKET_BYTES);
        }
        if !self.chunk.is_empty() {
            let sent = self.line.write(io, &mut self.chunk)?;
            if sent > 0 {
                self.pipe.sent(sent);
            }
            return Ok(sent > 0);
        }
        if !self.sent_end && self.pipe.wants_end() {
            self.line.send_end(io)?;
            self.sent_end = true;
            self.pipe.sent_end();
            return Ok(true);
        }
        Ok(false)
    }

    fn read(&mut self, io: &Io, scratch: &mut [u8]) -> Result<bool, Trouble> {
        if self.ended {
            return Ok(false);
        }
        let room = self.pipe.room().min(scratch.len());
        match self.line.read(io, 0, &mut scratch[..room])? {
            Received::Bytes(count) => {
                self.pipe.received(&scratch[..count]);
                Ok(true)
            }
            Received::End => {
                self.ended = true;
                self.pipe.received_end();
                Ok(true)
            }
            Received::Nothing => Ok(false),
            Received::PutOff => Ok(true),
        }
    }
}

/// What a refused channel means to who asked for it.
fn refusal(order: &Order, why: &str) -> io::Error {
    match order {
        Order::Connect { port, .. } if why.contains("connect failed") => io::Error::new(
            io::ErrorKind::ConnectionRefused,
            format!("nothing listens on port {port} there"),
        ),
        Order::Connect { .. } if why.contains("prohibited") => io::Error::new(
            io::ErrorKind::PermissionDenied,
            "sshd does not allow tunnels; set AllowTcpForwarding yes in its sshd_config",
        ),
        Order::Connect { .. } => io::Error::other(why.to_owned()),
        Order::Run { .. } => io::Error::other(format!(
            "sshd refuses another session ({why}); raise MaxSessions in its sshd_config"
        )),
    }
}

fn timespec(duration: Duration) -> Timespec {
    Timespec {
        tv_sec: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(duration.subsec_nanos()),
    }
}
