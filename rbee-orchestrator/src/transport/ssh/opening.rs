//! How a session's thread opens channels: libssh2 opens one after the other.

use std::time::Instant;

use ssh2::Channel;

use super::command::Command;
use super::driver::Driver;
use super::line::{Line, Trouble};
use super::order::{Notice, Order, Undone};
use super::stream::SshStream;
use super::tunnel::Tunnel;

/// The channel that is being opened.
pub(super) struct Opening {
    order: Order,
    since: Instant,
    /// Answers to keep-alives when one was sent to see whether only this is slow.
    asked_at: Option<u64>,
    hangs: bool,
    /// Commands that were there when it was begun.
    commands: usize,
}

impl Opening {
    fn is_run(&self) -> bool {
        matches!(self.order, Order::Run { .. })
    }
}

impl Driver<'_> {
    /// Goes on with the channel that is being opened, or begins the next.
    pub(super) fn open(&mut self) -> Result<bool, String> {
        let Some(opening) = self.opening.take().or_else(|| self.next_to_open()) else {
            return Ok(false);
        };
        let session = &self.io.session;
        let attempt = match opening.order {
            Order::Connect { port, .. } => session.channel_direct_tcpip("127.0.0.1", port, None),
            Order::Run { .. } => session.channel_session(),
        };
        match self.io.outcome(attempt) {
            Err(Trouble::Later) => {
                let opening = self.put_off(opening);
                self.opening = Some(opening);
                return Ok(false);
            }
            Err(Trouble::Session(why)) => {
                // It is told with all the others.
                self.opening = Some(opening);
                return Err(why);
            }
            Ok(channel) => {
                self.resumes(&opening);
                self.opened(opening.order, channel);
            }
            Err(Trouble::Channel(_)) if opening.is_run() && opening.commands > 0 => {
                // It allows fewer sessions than OpenSSH usually does.
                self.max_commands = opening.commands;
                self.waiting.push_front(opening.order);
            }
            Err(Trouble::Channel(why)) => {
                self.resumes(&opening);
                let refusal = opening.order.refusal(&why);
                opening.order.refuse(Undone::Refused(refusal));
            }
        }
        Ok(true)
    }

    /// The other side counts a session until it is closed.
    fn open_commands(&self) -> usize {
        let closing = self.closing.iter().filter(|closing| closing.is_command());
        self.commands.len() + closing.count()
    }

    /// The first that waits and for which there is room.
    fn next_to_open(&mut self) -> Option<Opening> {
        let may_connect = self.tunnels.len() < self.options.max_streams;
        let may_run = self.open_commands() < self.max_commands;
        let next = self.waiting.iter().position(|order| match order {
            Order::Connect { .. } => may_connect,
            Order::Run { .. } => may_run,
        })?;
        Some(Opening {
            order: self.waiting.remove(next)?,
            since: Instant::now(),
            asked_at: None,
            hangs: false,
            commands: self.open_commands(),
        })
    }

    /// A connection that does not begin holds up all that wait behind it: they go to another
    /// session. But only if everything else on this one goes on: else it is the network that is
    /// slow.
    fn put_off(&mut self, mut opening: Opening) -> Opening {
        let is_slow = opening.since.elapsed() >= self.options.open_patience;
        if let Order::Connect { port, .. } = opening.order
            && is_slow
            && !opening.hangs
        {
            match opening.asked_at {
                None => {
                    opening.asked_at = Some(self.keep_alive.answers);
                    self.keep_alive.ask_now();
                }
                Some(answers) if self.keep_alive.answers > answers => {
                    opening.hangs = true;
                    (self.notify)(Notice::Hangs(port));
                    self.retire();
                }
                Some(_) => {}
            }
        }
        opening
    }

    fn resumes(&mut self, opening: &Opening) {
        if let Order::Connect { port, .. } = opening.order
            && opening.hangs
        {
            (self.notify)(Notice::Resumes(port));
        }
    }

    fn opened(&mut self, order: Order, channel: Channel) {
        let options = self.options;
        match order {
            Order::Connect { reply, .. } => {
                let (read, write) = (options.read_buffer_bytes, options.write_buffer_bytes);
                let (stream, pipe) = SshStream::new(read, write, self.wake);
                // When nobody takes the stream, its drop closes the channel.
                drop(reply.send(Ok(stream)));
                self.tunnels.push(Tunnel::new(channel, pipe));
            }
            Order::Run { script, reply } => {
                let line = Line::of_command(channel);
                let command = Command::new(line, script, options.max_output_bytes, reply);
                self.commands.push(command);
            }
        }
    }

    /// The session ends in the middle of it.
    pub(super) fn give_up_opening(&mut self, why: Undone) {
        if let Some(opening) = self.opening.take() {
            self.resumes(&opening);
            opening.order.refuse(why);
        }
    }
}
