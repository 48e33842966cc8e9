//! Streams that are read into pieces and written in their client's form: a task's events, or chunks made
//! of an `rbee` worker's events.

use bytes::Bytes;

use super::{Form, Streaming};
use crate::brain::Blame;
use crate::domain::{Outcome, StopReason, TaskEvent};
use crate::error::{Code, Error};
use crate::relay::sse;
use crate::relay::translate::{Piece, read_event};
use crate::router::{Journal, Step};

impl Streaming {
    /// Reads whole events into pieces and writes them in the client's form.
    pub(super) fn translate(&mut self, block: &[u8]) {
        let mut pieces = Vec::new();
        for event in sse::events(block) {
            match read_event(self.lease.worker.protocol, event, &mut pieces) {
                Ok(says_something) => self.moved |= says_something,
                Err(error) => {
                    self.put(pieces);
                    return self.fail(error);
                }
            }
        }
        self.put(pieces);
    }

    fn put(&mut self, pieces: Vec<Piece>) {
        for piece in pieces {
            match piece {
                Piece::Text(text) => self.put_text(text),
                Piece::Thinking(text) => self.put_thinking(text),
                Piece::Other => {
                    self.begin();
                    self.tokens += 1;
                }
                Piece::Stop { reason, matched } => self.stop = Some((reason, matched)),
                Piece::Usage(usage) => self.usage = Some(usage),
                Piece::Failed(refusal) => return self.refused(refusal),
                Piece::Done if self.has_all() => return self.complete(),
                Piece::Done => return self.lost("it stopped before its end"),
            }
        }
    }

    fn put_text(&mut self, text: String) {
        self.begin();
        if let Some(error) = self.keep(&text, Journal::add) {
            return self.fail(error);
        }
        let step = match &self.form {
            Form::Completion { writer, .. } => Step::Data(sse::encode(
                writer.chunk(&text, None).to_string().as_bytes(),
            )),
            _ => Step::Event(TaskEvent::Token {
                text,
                index: self.texts,
            }),
        };
        self.tokens += 1;
        self.texts += 1;
        self.ready.push_back(step);
    }

    fn put_thinking(&mut self, text: String) {
        self.begin();
        if let Some(error) = self.keep(&text, Journal::add_thinking) {
            return self.fail(error);
        }
        self.tokens += 1;
        // A completion of OpenAI's has no place for it.
        if let Form::Task = self.form {
            let event = TaskEvent::Thinking { text };
            self.ready.push_back(Step::Event(event));
        }
    }

    /// Keeps a text beside the result or as a part of it; says why it can't be.
    fn keep(&mut self, text: &str, add: fn(&Journal, &str) -> Result<(), Error>) -> Option<Error> {
        let journal = self.journal.as_ref()?;
        if journal.bytes() + text.len() > self.max_text_bytes {
            self.blame = Blame::Request;
            return Some(Error::new(
                Code::UpstreamInvalid,
                "the worker's answer is longer than limits.max_response_bytes",
            ));
        }
        let error = add(journal, text).err()?;
        // No worker is to blame, and another could say no more.
        self.blame = Blame::Request;
        Some(error)
    }

    /// The worker has said everything.
    pub(super) fn complete(&mut self) {
        let usage = self.usage();
        let (reason, matched) = self.stop.clone().unwrap_or((StopReason::Eos, None));
        match &self.form {
            Form::Raw { .. } => {
                self.pass_last();
                let done = Bytes::from_static(sse::DONE);
                self.ready.push_back(Step::Data(done));
            }
            Form::Completion {
                writer,
                wants_usage,
            } => {
                let mut last = vec![writer.chunk("", Some(reason))];
                last.extend(wants_usage.then(|| writer.usage(usage)));
                let events = last
                    .iter()
                    .map(|chunk| sse::encode(chunk.to_string().as_bytes()));
                let done = Bytes::from_static(sse::DONE);
                self.ready.extend(events.chain([done]).map(Step::Data));
            }
            Form::Task => {
                let decoding = self
                    .first_token
                    .map_or_else(Default::default, |at| at.elapsed());
                let seconds = decoding.as_secs_f64();
                let intervals = usage.tokens_out.saturating_sub(1) as f64;
                let tokens_per_sec = if seconds > 0.0 {
                    intervals / seconds
                } else {
                    0.0
                };
                let vram_bytes = self.lease.worker.vram_bytes;
                let end = TaskEvent::End {
                    tokens_out: usage.tokens_out,
                    decode_time_ms: u64::try_from(decoding.as_millis()).unwrap_or(u64::MAX),
                    stop_reason: reason,
                    stop_sequence_matched: matched,
                };
                let metrics = TaskEvent::Metrics {
                    tokens_per_sec,
                    vram_bytes,
                };
                self.ready.extend([Step::Event(metrics), Step::Event(end)]);
            }
        }
        self.outcome = Some(Outcome::Complete);
    }
}
