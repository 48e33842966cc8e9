//! The thread of one session: it owns the session and all its channels, and waits in one place.
//!
//! libssh2 has one lock a session, so a call that blocked would stall every channel; here none
//! does. A turn gives each channel its share and never waits; between two turns the thread polls
//! the socket and the bell with which the async side says that there is something to do.

use std::collections::VecDeque;
use std::io;
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use tokio::sync::mpsc;

use super::command::Command;
use super::connect::Connected;
use super::keep_alive::KeepAlive;
use super::line::{Closing, Io, Line, PACKET_BYTES, Trouble};
use super::opening::Opening;
use super::order::{Notice, Order, Undone};
use super::tunnel::Tunnel;
use super::wake::Wake;
use crate::config::SshOptions;

/// The longest time between two turns while something is under way.
const TICK: Duration = Duration::from_secs(1);
/// Orders that wait for a channel on the thread; more wait before they come here.
const MAX_WAITING: usize = 256;
/// How long the farewell to the other side may take, in milliseconds.
const FAREWELL_MS: u32 = 500;

/// How a session ended.
pub(super) struct Ending {
    /// It was still needed.
    pub(super) is_broken: bool,
    pub(super) why: Arc<str>,
}

/// A session at work.
pub(super) struct Driver<'a> {
    pub(super) io: Io,
    /// A channel without any program. It brings in what the socket has when no other channel
    /// reads, and carries the keep-alives.
    pump: Option<Line>,
    pub(super) options: &'a SshOptions,
    pub(super) wake: &'a Arc<Wake>,
    orders: mpsc::Receiver<Order>,
    pub(super) waiting: VecDeque<Order>,
    pub(super) opening: Option<Opening>,
    pub(super) tunnels: Vec<Tunnel>,
    pub(super) commands: Vec<Command>,
    pub(super) closing: Vec<Closing>,
    pub(super) notify: Box<dyn FnMut(Notice)>,
    pub(super) keep_alive: KeepAlive,
    /// How many commands the other side takes at once, as far as is known.
    pub(super) max_commands: usize,
    retired: bool,
    orders_ended: bool,
    /// Something came in since the last wait.
    heard: bool,
    scratch: Box<[u8]>,
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
            orders,
            waiting: VecDeque::new(),
            opening: None,
            tunnels: Vec::new(),
            commands: Vec::new(),
            closing: Vec::new(),
            notify,
            keep_alive: KeepAlive::new(options),
            max_commands: options.max_commands.max(1),
            retired: false,
            orders_ended: false,
            heard: false,
            scratch: vec![0; PACKET_BYTES].into(),
        }
    }

    /// Works until nobody wants the session any more, or it breaks; says why it ended.
    pub(super) fn run(mut self, host: &str) -> Ending {
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
        Ending { is_broken, why }
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
        let mut moved = self.tunnels(Tunnel::again)?;
        moved |= self.tunnels(|tunnel, io, _| tunnel.write(io))?;
        moved |= self.commands(Command::turn)?;
        moved |= self.closings()?;
        moved |= self.open()?;
        if let Some(pump) = &mut self.pump {
            self.keep_alive.turn(pump, &self.io)?;
        }
        moved |= self.tunnels(Tunnel::read)?;
        moved |= self.commands(Command::listen)?;
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
            order.refuse(Undone::Again);
        }
    }

    /// Takes no more orders; what is under way goes on.
    pub(super) fn retire(&mut self) {
        if !self.retired {
            self.retired = true;
            (self.notify)(Notice::Retired);
            self.orders.close();
        }
        self.give_back_orders();
    }

    /// Channels on their way out end with the session.
    fn is_done(&self) -> bool {
        let is_idle = self.tunnels.is_empty() && self.commands.is_empty();
        let is_unwanted = self.orders_ended || self.retired;
        is_idle && is_unwanted && self.opening.is_none() && self.waiting.is_empty()
    }

    /// Brings in all that the socket has.
    fn pump(&mut self) -> Result<(), String> {
        if let Some(pump) = &mut self.pump {
            match pump.pump(&self.io) {
                Err(Trouble::Later) => return Ok(()),
                Err(Trouble::Session(why)) => return Err(why),
                // The other side closes idle channels: what is under way goes on without.
                Ok(()) | Err(Trouble::Channel(_)) => {
                    self.pump = None;
                    self.retire();
                }
            }
        }
        for tunnel in self.tunnels.iter_mut().filter(|tunnel| tunnel.is_open()) {
            if let Err(Trouble::Session(why)) = tunnel.pump(&self.io) {
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
            match step(&mut self.tunnels[index], &self.io, &mut self.scratch) {
                Ok(did) => moved |= did,
                Err(Trouble::Later) => {}
                Err(Trouble::Session(why)) => return Err(why),
                Err(Trouble::Channel(why)) => {
                    moved = true;
                    let closing = self.tunnels.swap_remove(index).close(&why.into());
                    self.closing.push(closing);
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
            match self.closing[index].turn(&self.io, &mut self.scratch) {
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

    /// Waits for the socket, the bell or the next thing that is due.
    fn wait(&mut self) -> io::Result<()> {
        if std::mem::take(&mut self.heard) {
            acknowledge(&self.io.socket);
        }
        let mut flags = PollFlags::empty();
        if self.pump.is_some() || self.tunnels.iter().any(Tunnel::is_open) {
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
            self.heard = true;
            self.keep_alive.heard();
        } else if flags.is_empty() && !socket.is_empty() {
            // Nobody would read the end.
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        if bell.contains(PollFlags::IN) {
            self.wake.drain();
        }
        Ok(())
    }

    fn patience(&self) -> Duration {
        let is_busy = self.io.wants_out.get()
            || self.opening.is_some()
            || !self.closing.is_empty()
            || self.pump.is_none();
        let until_due = match self.pump {
            Some(_) => self.keep_alive.until_due(),
            None => TICK,
        };
        match is_busy {
            true => until_due.min(TICK).min(self.options.open_patience),
            false => until_due,
        }
    }

    /// Tells everybody, and lets libssh2 free everything: it does not while it would have to wait.
    fn end(mut self, is_broken: bool, why: &Arc<str>) {
        // First: whoever is told, and asks again at once, must get a new session.
        self.retire();
        while let Ok(order) = self.orders.try_recv() {
            order.refuse(Undone::Again);
        }
        self.give_up_opening(Undone::Broken(Arc::clone(why)));
        for tunnel in &self.tunnels {
            tunnel.fail(why);
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

/// Acknowledges what has come in now. sshd leaves Nagle's algorithm on, so with a delayed ACK each
/// token would wait up to 40 ms for the one before it.
fn acknowledge(socket: &TcpStream) {
    #[cfg(target_os = "linux")]
    let _ = rustix::net::sockopt::set_tcp_quickack(socket, true);
    #[cfg(not(target_os = "linux"))]
    let _ = socket;
}

fn timespec(duration: Duration) -> Timespec {
    Timespec {
        tv_sec: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(duration.subsec_nanos()),
    }
}
