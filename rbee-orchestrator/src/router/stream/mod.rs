//! A worker's stream on its way to the client.

mod raw;

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use bytes::Bytes;

use super::attempt::blame;
use super::call::{Call, Payload};
use super::lease::Lease;
use super::{Journal, Step};
use crate::brain::{Aftermath, Blame, Report};
use crate::domain::{Outcome, StopReason, TaskEvent, Usage, WorkerProtocol};
use crate::error::{Code, Error};
use crate::killpoint;
use crate::relay::connection::Connection;
use crate::relay::pool::{Answer, Pool};
use crate::relay::refusal::Refusal;
use crate::relay::sse::{self, Splitter};
use crate::relay::tokens::Demand;
use crate::relay::translate::{CompletionWriter, Piece, read_event};
use crate::relay::usage::{StreamUsage, filled};

/// So many bytes of an event are a step forward: fewer don't hold off the end of patience.
const PROGRESS_BYTES: usize = 1 << 10;

/// What the client gets of the stream.
enum Form {
    /// The worker's own bytes; its usage chunk only if the client wants it.
    Raw { wants_usage: bool },
    /// Events of a task.
    Task,
    /// OpenAI chunks made from an `rbee` worker's events.
    Completion {
        writer: CompletionWriter,
        wants_usage: bool,
    },
}

/// What a poll brought.
pub(super) enum Next {
    Step(Step),
    /// The stream is over; these steps are still to be told.
    Ended(Report, VecDeque<Step>),
}

pub(super) struct Streaming {
    lease: Lease,
    source: Option<Connection>,
    splitter: Splitter,
    form: Form,
    ready: VecDeque<Step>,
    demand: Demand,
    /// What the worker counted, chunk by chunk.
    counted: StreamUsage,
    /// What it counted in all.
    usage: Option<Usage>,
    tokens: u64,
    /// Whether the first text has come, so that silence is no longer the prompt's evaluation.
    begun: bool,
    /// Where the text goes that is kept as the job's result.
    journal: Option<Arc<Journal>>,
    max_text_bytes: usize,
    /// Bytes of an event that has not ended.
    unmoved: usize,
    moved: bool,
    first_token: Option<Instant>,
    /// Whether the client has got a part of the answer.
    relayed: bool,
    stop: Option<(StopReason, Option<String>)>,
    /// How the attempt ends, once that is known.
    outcome: Option<Outcome>,
    /// Who is to blame if it does not complete.
    blame: Blame,
    /// Whether the worker fell silent, so that it needs a check before it gets more.
    suspect: bool,
}

impl Streaming {
    pub(super) fn new(
        lease: Lease,
        call: &Arc<Call>,
        answer: Answer,
        journal: Option<&Arc<Journal>>,
    ) -> Self {
        let form = match (&call.payload, lease.worker.protocol) {
            (Payload::Task(_), _) => Form::Task,
            (Payload::OpenAi { body, .. }, WorkerProtocol::OpenAi) => Form::Raw {
                wants_usage: body.wants_usage,
            },
            (Payload::OpenAi { body, .. }, WorkerProtocol::Rbee) => {
                let model = lease.worker.model.as_str();
                let writer = CompletionWriter::new(call.job, model, call.submitted_at);
                Form::Completion {
                    writer,
                    wants_usage: body.wants_usage,
                }
            }
        };
        let journal = journal.filter(|_| matches!(form, Form::Task)).cloned();
        Streaming {
            lease,
            source: Some(answer.connection),
            splitter: Splitter::new(call.max_event_bytes),
            form,
            ready: VecDeque::new(),
            demand: call.demand,
            counted: StreamUsage::default(),
            usage: None,
            tokens: 0,
            begun: false,
            journal,
            max_text_bytes: call.max_response_bytes,
            unmoved: 0,
            moved: false,
            first_token: None,
            relayed: false,
            stop: None,
            outcome: None,
            blame: Blame::Unclear,
            suspect: false,
        }
    }

    pub(super) fn has_begun(&self) -> bool {
        self.begun
    }

    /// Gives the slot back before the stream's end.
    pub(super) fn give_back(mut self, outcome: &Outcome, blame: Blame, aftermath: Aftermath) {
        self.blame = blame;
        let report = self.report(outcome.clone());
        self.lease.end_early(Report {
            aftermath,
            ..report
        });
    }

    /// Whether the worker has got on since this was last asked: by a whole event, or by enough bytes
    /// of one.
    pub(super) fn has_moved(&mut self) -> bool {
        std::mem::take(&mut self.moved)
    }

    pub(super) fn into_lease(self) -> Lease {
        self.lease
    }

    /// What was used so far: the worker's own counts, or the tokens that were relayed.
    fn usage(&self) -> Usage {
        let counted = self.counted.total().or(self.usage);
        filled(counted, &self.demand, self.tokens)
    }

    pub(super) fn poll(&mut self, pool: &Pool, cx: &mut Context<'_>) -> Poll<Next> {
        loop {
            // The end comes first: the slot is free before the client has taken the last events.
            if let Some(outcome) = self.outcome.take() {
                self.release(pool, cx);
                return Poll::Ready(self.ended(outcome));
            }
            if let Some(step) = self.ready.pop_front() {
                self.relayed = true;
                killpoint::pass("mid-stream");
                return Poll::Ready(Next::Step(step));
            }
            let Some(source) = &mut self.source else {
                let error = Error::internal("a stream was read past its end");
                return Poll::Ready(self.ended(Outcome::Failed(error)));
            };
            match source.poll_data(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(None) => self.upstream_ended(),
                Poll::Ready(Some(Err(error))) => self.broke(&error),
                Poll::Ready(Some(Ok(data))) => self.take_in(data),
            }
        }
    }

    fn ended(&mut self, outcome: Outcome) -> Next {
        let report = self.report(outcome);
        Next::Ended(report, std::mem::take(&mut self.ready))
    }

    fn take_in(&mut self, data: Bytes) {
        self.unmoved += data.len();
        let pushed = self.splitter.push(data);
        if self.unmoved >= PROGRESS_BYTES || pushed.as_ref().is_ok_and(|block| !block.is_empty()) {
            self.moved = true;
            self.unmoved = 0;
        }
        match pushed {
            Err(sse::TooLong) => self.fail(Error::new(
                Code::UpstreamInvalid,
                "the worker sent an event that is longer than limits.max_event_bytes",
            )),
            Ok(block) if block.is_empty() => {}
            Ok(block) => match self.form {
                Form::Raw { wants_usage } => self.relay(block, wants_usage),
                _ => self.translate(&block),
            },
        }
    }

    fn fail(&mut self, error: Error) {
        self.source = None;
        self.outcome = Some(Outcome::Failed(error));
    }

    fn broke(&mut self, error: &io::Error) {
        if error.kind() == io::ErrorKind::InvalidData {
            let message = format!("the worker's answer can't be read: {error}");
            return self.fail(Error::new(Code::UpstreamInvalid, message));
        }
        self.lost(&error.to_string());
    }

    /// The worker said no in place of its answer.
    fn refused(&mut self, refusal: Refusal) {
        self.blame = blame(refusal.fault, None);
        self.fail(refusal.error);
    }

    fn lost(&mut self, why: &str) {
        self.suspect = true;
        self.blame = Blame::Worker;
        let message = format!("the worker broke off its answer: {why}");
        self.fail(Error::new(Code::WorkerFailed, message));
    }

    fn upstream_ended(&mut self) {
        if self.splitter.has_part() {
            self.lost("it stopped inside an event");
        } else if matches!(self.form, Form::Raw { .. }) || self.stop.is_none() {
            self.lost("it stopped before its end");
        } else {
            self.complete();
        }
    }

    /// Reads whole events into pieces and writes them in the client's form.
    fn translate(&mut self, block: &[u8]) {
        let mut pieces = Vec::new();
        for event in sse::events(block) {
            if let Err(error) = read_event(self.lease.worker.protocol, event, &mut pieces) {
                self.put(pieces);
                return self.fail(error);
            }
        }
        self.put(pieces);
    }

    fn put(&mut self, pieces: Vec<Piece>) {
        for piece in pieces {
            match piece {
                Piece::Text(text) => self.put_text(text),
                Piece::Stop { reason, matched } => self.stop = Some((reason, matched)),
                Piece::Usage(usage) => self.usage = Some(usage),
                Piece::Failed(refusal) => return self.refused(refusal),
                Piece::Done if self.stop.is_some() => return self.complete(),
                Piece::Done => return self.lost("it stopped before its end"),
            }
        }
    }

    fn begin(&mut self) {
        self.begun = true;
        self.first_token.get_or_insert_with(Instant::now);
    }

    fn put_text(&mut self, text: String) {
        self.begin();
        if let Some(error) = self.keep(&text) {
            return self.fail(error);
        }
        let step = match &self.form {
            Form::Completion { writer, .. } => Step::Data(sse::encode(
                writer.chunk(&text, None).to_string().as_bytes(),
            )),
            _ => Step::Event(TaskEvent::Token {
                text,
                index: self.tokens,
            }),
        };
        self.tokens += 1;
        self.ready.push_back(step);
    }

    /// Keeps the text as a part of the result; says why it can't be.
    fn keep(&mut self, text: &str) -> Option<Error> {
        let journal = self.journal.as_ref()?;
        if journal.text_len() + text.len() > self.max_text_bytes {
            self.blame = Blame::Request;
            return Some(Error::new(
                Code::UpstreamInvalid,
                "the worker's answer is longer than limits.max_response_bytes",
            ));
        }
        let error = journal.add(text).err()?;
        // No worker is to blame, and another could say no more.
        self.blame = Blame::Request;
        Some(error)
    }

    /// The worker has said everything.
    fn complete(&mut self) {
        let usage = self.usage();
        let (reason, matched) = self.stop.clone().unwrap_or((StopReason::Eos, None));
        match &self.form {
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
            _ => {
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

    fn report(&mut self, outcome: Outcome) -> Report {
        let complete = matches!(outcome, Outcome::Complete);
        let journal = self.journal.as_ref().filter(|_| complete);
        let took = self.first_token.map(|at| at.elapsed());
        Report {
            usage: Some(self.usage()),
            result: journal.map(|journal| journal.text()),
            stop: self.stop.as_ref().map(|(reason, _)| *reason),
            inference: took.unwrap_or_default(),
            relayed: self.relayed,
            blame: self.blame,
            aftermath: if self.suspect {
                Aftermath::Suspect
            } else {
                Aftermath::Clean
            },
            ..Report::of(outcome)
        }
    }

    /// Keeps the connection if nothing more is to come on it; closes it otherwise.
    fn release(&mut self, pool: &Pool, cx: &mut Context<'_>) {
        let Some(mut source) = self.source.take() else {
            return;
        };
        let at_end = loop {
            match source.poll_data(cx) {
                Poll::Ready(Some(Ok(_))) => {}
                Poll::Ready(None) => break true,
                Poll::Ready(Some(Err(_))) | Poll::Pending => break false,
            }
        };
        if at_end && source.is_reusable() {
            pool.put(&self.lease.worker, source);
        }
    }
}
