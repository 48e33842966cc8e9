//! A tunnelled connection, as the session's thread drives it.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use ssh2::Channel;

use super::line::{Closing, Io, Line, PACKET_BYTES, Received, Trouble};
use super::stream::{Outbound, Pipe};

/// Its channel, and the pipe to who uses it.
pub(super) struct Tunnel {
    line: Line,
    pipe: Arc<Pipe>,
    /// Taken from the pipe; offered until it is sent.
    chunk: Bytes,
    ended: bool,
}

impl Tunnel {
    pub(super) fn new(channel: Channel, pipe: Arc<Pipe>) -> Self {
        Tunnel {
            line: Line::new(channel),
            pipe,
            chunk: Bytes::new(),
            ended: false,
        }
    }

    /// Makes the calls again that were put off; says whether anything moved.
    pub(super) fn again(&mut self, io: &Io, scratch: &mut [u8]) -> Result<bool, Trouble> {
        let wrote = self.line.write_again && self.send(io)?;
        if !self.line.read_again {
            return Ok(wrote);
        }
        let read = self.take_in(io, scratch)?;
        Ok(wrote || (read && !self.line.read_again))
    }

    /// Sends what its user has written.
    pub(super) fn write(&mut self, io: &Io) -> Result<bool, Trouble> {
        if self.line.write_again {
            return Ok(false);
        }
        if self.chunk.is_empty() {
            match self.pipe.next(PACKET_BYTES) {
                Outbound::Nothing => return Ok(false),
                Outbound::Bytes(bytes) => self.chunk = bytes,
                Outbound::End => {
                    self.line.send_end(io)?;
                    self.pipe.sent_end();
                    return Ok(true);
                }
                Outbound::Dropped => {
                    return Err(Trouble::Channel("its user has gone".into()));
                }
            }
        } else if self.pipe.is_dropped() {
            return Err(Trouble::Channel("its user has gone".into()));
        }
        self.send(io)
    }

    fn send(&mut self, io: &Io) -> Result<bool, Trouble> {
        let sent = self.line.write(io, &mut self.chunk)?;
        if sent > 0 {
            self.pipe.sent(sent);
        }
        Ok(sent > 0)
    }

    /// Takes in what its user has room for.
    pub(super) fn read(&mut self, io: &Io, scratch: &mut [u8]) -> Result<bool, Trouble> {
        match self.ended || self.line.read_again {
            true => Ok(false),
            false => self.take_in(io, scratch),
        }
    }

    fn take_in(&mut self, io: &Io, scratch: &mut [u8]) -> Result<bool, Trouble> {
        let pipe = &self.pipe;
        let room = |most: usize| pipe.room().min(most);
        match self.line.read(io, 0, scratch, room)? {
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

    /// Whether it can still bring in what the socket has.
    pub(super) fn is_open(&self) -> bool {
        !self.ended
    }

    /// Brings in all that the socket has.
    pub(super) fn pump(&mut self, io: &Io) -> Result<(), Trouble> {
        self.line.pump(io)
    }

    pub(super) fn fail(&self, why: &Arc<str>) {
        self.pipe.fail(io::ErrorKind::ConnectionReset, why);
    }

    pub(super) fn close(self, why: &Arc<str>) -> Closing {
        self.fail(why);
        Closing {
            line: self.line,
            chunk: self.chunk,
        }
    }
}
