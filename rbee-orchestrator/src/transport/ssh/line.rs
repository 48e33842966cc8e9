//! One channel, with what libssh2 wants to be asked again.
//!
//! libssh2 sends one packet at a time on a session. A packet that the socket took only a part of
//! must be offered again by the very call that began it; until then every other call that sends is
//! put off. So a call that was put off is remembered here and made again, whatever else happens to
//! its channel. Calls that keep their packet on the stack (the end of a channel's output) can't be
//! made again: they are made only while the socket takes a whole packet.

use std::cell::Cell;
use std::io::{self, Read, Write};
use std::net::TcpStream;

use bytes::{Buf, Bytes};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use ssh2::{BlockDirections, Channel, ErrorCode, Session};

/// What one packet holds at most; libssh2 cuts there.
pub(super) const PACKET_BYTES: usize = 32_000;
/// Packets of one channel in a row, before it is the others' turn.
const PACKETS_A_TURN: usize = 8;

const EAGAIN: i32 = -37;
/// Errors of one channel, by libssh2's codes: an answer that did not come, open and request
/// failures, and uses that its state forbids. All others are the session's end.
const OF_ONE_CHANNEL: [i32; 9] = [-9, -21, -22, -23, -24, -25, -26, -27, -34];

/// How a call to libssh2 went.
#[derive(Debug)]
pub(super) enum Trouble {
    /// It wants to be called again.
    Later,
    /// This channel is of no use any more.
    Channel(String),
    /// The whole session is.
    Session(String),
}

impl Trouble {
    pub(super) fn of(error: &ssh2::Error) -> Self {
        match error.code() {
            ErrorCode::Session(EAGAIN) => Trouble::Later,
            ErrorCode::Session(code) if OF_ONE_CHANNEL.contains(&code) => {
                Trouble::Channel(error.message().to_owned())
            }
            _ => Trouble::Session(error.to_string()),
        }
    }
}

/// The session and its socket, for all that a turn does.
pub(super) struct Io {
    pub(super) session: Session,
    pub(super) socket: TcpStream,
    /// Something waits until the socket takes more.
    pub(super) wants_out: Cell<bool>,
}

impl Io {
    /// What a call came to; remembers when it waits for the socket to take more.
    pub(super) fn outcome<T>(&self, result: Result<T, ssh2::Error>) -> Result<T, Trouble> {
        result.map_err(|error| self.noted(Trouble::of(&error)))
    }

    /// The same for a channel's bytes, whose errors have lost libssh2's code on their way.
    fn outcome_of_bytes(&self, result: io::Result<usize>) -> Result<usize, Trouble> {
        result.map_err(|error| {
            let trouble = match error.kind() {
                io::ErrorKind::WouldBlock => Trouble::Later,
                _ => match ssh2::Error::last_session_error(&self.session) {
                    Some(error) => Trouble::of(&error),
                    None => Trouble::Session(error.to_string()),
                },
            };
            self.noted(trouble)
        })
    }

    fn noted(&self, trouble: Trouble) -> Trouble {
        if matches!(trouble, Trouble::Later) && self.is_blocked_outwards() {
            self.wants_out.set(true);
        }
        trouble
    }

    fn is_blocked_outwards(&self) -> bool {
        let blocked = self.session.block_directions();
        matches!(blocked, BlockDirections::Outbound | BlockDirections::Both)
    }

    /// Whether the socket takes a whole small packet now.
    fn is_writable(&self) -> bool {
        let mut sockets = [PollFd::new(&self.socket, PollFlags::OUT)];
        let at_once = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        let ready = poll(&mut sockets, Some(&at_once)).is_ok_and(|count| count > 0);
        if !ready {
            self.wants_out.set(true);
        }
        ready
    }
}

/// What a channel read.
pub(super) enum Received {
    Bytes(usize),
    /// Both of its outputs have ended.
    End,
    Nothing,
    /// It must be read again before anything comes.
    PutOff,
}

/// A channel.
pub(super) struct Line {
    pub(super) channel: Channel,
    /// A write was put off: the same bytes must be offered again.
    pub(super) write_again: bool,
    /// A read was put off while it told the other side that there is room: likewise.
    pub(super) read_again: bool,
    sent_end: bool,
    /// It counts against the sessions that the other side allows.
    is_command: bool,
}

impl Line {
    /// A tunnelled connection.
    pub(super) fn new(channel: Channel) -> Self {
        Line {
            channel,
            write_again: false,
            read_again: false,
            sent_end: false,
            is_command: false,
        }
    }

    /// A session.
    pub(super) fn of_command(channel: Channel) -> Self {
        Line {
            is_command: true,
            ..Line::new(channel)
        }
    }

    /// Sends of these bytes what the other side and the socket take; says how many.
    pub(super) fn write(&mut self, io: &Io, bytes: &mut Bytes) -> Result<usize, Trouble> {
        let mut sent = 0;
        for _ in 0..PACKETS_A_TURN {
            // Without room at the other side nothing is begun; its word comes with what is read.
            let has_room = self.write_again || self.channel.write_window().remaining > 0;
            if bytes.is_empty() || !has_room {
                break;
            }
            match io.outcome_of_bytes(self.channel.write(bytes)) {
                Ok(count) => {
                    self.write_again = false;
                    bytes.advance(count);
                    sent += count;
                    if count == 0 {
                        break;
                    }
                }
                Err(Trouble::Later) => {
                    self.write_again = self.channel.write_window().remaining > 0;
                    break;
                }
                Err(trouble) => return Err(trouble),
            }
        }
        Ok(sent)
    }

    /// Reads from one of its outputs (0, or 1 for errors) into the buffer, as much as there is room
    /// for, which is asked with the buffer's length. Touches the socket only if there is something
    /// to read, or to be read again.
    pub(super) fn read(
        &mut self,
        io: &Io,
        output: i32,
        buffer: &mut [u8],
        room: impl FnOnce(usize) -> usize,
    ) -> Result<Received, Trouble> {
        let has_bytes = self.channel.read_window().available > 0;
        if !has_bytes && !self.read_again {
            return Ok(match self.channel.eof() {
                true => Received::End,
                false => Received::Nothing,
            });
        }
        let room = room(buffer.len());
        if room == 0 {
            return Ok(Received::Nothing);
        }
        let buffer = &mut buffer[..room];
        match io.outcome_of_bytes(self.channel.stream(output).read(buffer)) {
            Ok(count) => {
                self.read_again = false;
                Ok(match count {
                    0 => Received::Nothing,
                    _ => Received::Bytes(count),
                })
            }
            Err(Trouble::Later) => {
                self.read_again = io.is_blocked_outwards();
                Ok(match self.read_again {
                    true => Received::PutOff,
                    false => Received::Nothing,
                })
            }
            Err(trouble) => Err(trouble),
        }
    }

    /// Tells the other side that no more bytes come.
    pub(super) fn send_end(&mut self, io: &Io) -> Result<(), Trouble> {
        if self.sent_end {
            return Ok(());
        }
        if !io.is_writable() {
            return Err(Trouble::Later);
        }
        io.outcome(self.channel.send_eof())?;
        self.sent_end = true;
        Ok(())
    }

    /// Brings in all that the socket has, for all channels; done only when this one has ended.
    pub(super) fn pump(&mut self, io: &Io) -> Result<(), Trouble> {
        io.outcome(self.channel.wait_eof())
    }

    /// Waits for the other side's own close, with which a command's status has come.
    pub(super) fn wait_close(&mut self, io: &Io) -> Result<(), Trouble> {
        io.outcome(self.channel.wait_close())
    }

    /// Closes it in both directions. `bytes` are those of a write that was put off.
    fn close(&mut self, io: &Io, bytes: &mut Bytes, scratch: &mut [u8]) -> Result<(), Trouble> {
        if self.write_again {
            let mut packet = bytes.clone();
            let sent = self.write(io, &mut packet)?;
            bytes.advance(sent);
            if self.write_again {
                return Err(Trouble::Later);
            }
        }
        if self.read_again {
            self.read(io, 0, scratch, |most| most)?;
            if self.read_again {
                return Err(Trouble::Later);
            }
        }
        self.send_end(io)?;
        io.outcome(self.channel.close())
    }
}

/// A channel on its way out, with the bytes of a write that must be completed first.
pub(super) struct Closing {
    pub(super) line: Line,
    pub(super) chunk: Bytes,
}

impl Closing {
    pub(super) fn turn(&mut self, io: &Io, scratch: &mut [u8]) -> Result<(), Trouble> {
        self.line.close(io, &mut self.chunk, scratch)
    }

    pub(super) fn is_command(&self) -> bool {
        self.line.is_command
    }
}
