//! A run of the machine's shell, as the session's thread drives it.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::oneshot;

use super::line::{Closing, Io, Line, Received, Trouble};
use super::order::Undone;

/// What every login shell understands; all that matters stands in the shell's input, where it is
/// read by the same rules on every machine and seen by nobody.
const SHELL: &str = "exec /bin/sh -s";

/// What a run came to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CommandOutput {
    /// Its exit status; `None` when a signal ended it.
    pub status: Option<i32>,
    /// What it wrote.
    pub stdout: Vec<u8>,
    /// What it wrote as errors.
    pub stderr: Vec<u8>,
}

enum Stage {
    Starting,
    Talking,
    /// All was said; the status comes with the other side's close.
    Ending,
    Over,
}

/// One run.
pub(super) struct Command {
    line: Line,
    stage: Stage,
    input: Bytes,
    output: CommandOutput,
    /// What it may still write.
    room: usize,
    reply: Option<oneshot::Sender<Result<CommandOutput, Undone>>>,
}

impl Command {
    pub(super) fn new(
        line: Line,
        input: Bytes,
        max_output_bytes: usize,
        reply: oneshot::Sender<Result<CommandOutput, Undone>>,
    ) -> Self {
        Command {
            line,
            stage: Stage::Starting,
            input,
            output: CommandOutput::default(),
            room: max_output_bytes,
            reply: Some(reply),
        }
    }

    /// Does what can be done now, but for listening; says whether anything moved.
    pub(super) fn turn(&mut self, io: &Io, scratch: &mut [u8]) -> Result<bool, Trouble> {
        let is_wanted = self.reply.as_ref().is_some_and(|reply| !reply.is_closed());
        match self.stage {
            // A request that was begun must be sent whole.
            Stage::Starting => {
                io.outcome(self.line.channel.exec(SHELL))?;
                self.stage = Stage::Talking;
                Ok(true)
            }
            _ if !is_wanted => {
                self.stage = Stage::Over;
                Ok(true)
            }
            Stage::Talking => {
                let put_off = self.line.read_again;
                let heard = put_off && self.take_in(io, scratch)? && !self.line.read_again;
                Ok(self.tell(io)? || heard)
            }
            Stage::Ending => {
                self.line.wait_close(io)?;
                self.finish();
                Ok(true)
            }
            Stage::Over => Ok(false),
        }
    }

    /// Hands it its input, which ends with the channel.
    fn tell(&mut self, io: &Io) -> Result<bool, Trouble> {
        Ok(self.line.write(io, &mut self.input)? > 0)
    }

    /// Takes what it says.
    pub(super) fn listen(&mut self, io: &Io, scratch: &mut [u8]) -> Result<bool, Trouble> {
        match matches!(self.stage, Stage::Talking) && !self.line.read_again {
            true => self.take_in(io, scratch),
            false => Ok(false),
        }
    }

    fn take_in(&mut self, io: &Io, scratch: &mut [u8]) -> Result<bool, Trouble> {
        let mut moved = false;
        for number in [0, 1] {
            match self.line.read(io, number, scratch, |most| most)? {
                Received::Nothing => {}
                Received::PutOff => return Ok(true),
                Received::Bytes(count) => {
                    moved = true;
                    let Some(room) = self.room.checked_sub(count) else {
                        return Err(Trouble::Channel("it writes more than is expected".into()));
                    };
                    self.room = room;
                    let kept = match number {
                        0 => &mut self.output.stdout,
                        _ => &mut self.output.stderr,
                    };
                    kept.extend_from_slice(&scratch[..count]);
                }
                Received::End => {
                    self.stage = Stage::Ending;
                    return Ok(true);
                }
            }
        }
        Ok(moved)
    }

    fn finish(&mut self) {
        let channel = &self.line.channel;
        let killed = channel.exit_signal().is_ok_and(|s| s.exit_signal.is_some());
        let status = channel.exit_status().ok().filter(|_| !killed);
        self.stage = Stage::Over;
        if let Some(reply) = self.reply.take() {
            let output = std::mem::take(&mut self.output);
            drop(reply.send(Ok(CommandOutput { status, ..output })));
        }
    }

    /// It can't go on.
    pub(super) fn fail(&mut self, why: &str) {
        let error = io::Error::other(why.to_owned());
        self.end(Undone::Refused(error));
    }

    /// Its session has ended.
    pub(super) fn fail_session(&mut self, why: &Arc<str>) {
        self.end(Undone::Broken(Arc::clone(why)));
    }

    fn end(&mut self, why: Undone) {
        self.stage = Stage::Over;
        if let Some(reply) = self.reply.take() {
            drop(reply.send(Err(why)));
        }
    }

    pub(super) fn is_over(&self) -> bool {
        matches!(self.stage, Stage::Over)
    }

    pub(super) fn close(self) -> Closing {
        Closing {
            line: self.line,
            chunk: self.input,
        }
    }
}
