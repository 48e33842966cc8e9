//! A worker's stream on its way to the client.

mod raw;
mod typed;

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use bytes::Bytes;

use super::attempt::blame;
use super::call::{Call, Payload};
use super::lease::Lease;
use super::{Flow, Journal, Privacy, Step};
use crate::brain::{Aftermath, Blame, Report};
use crate::domain::{Outcome, StopReason, Usage, WorkerProtocol};
use crate::error::{Code, Error};
use crate::http1::Connection;
use crate::killpoint;
use crate::relay::chunk::Choices;
use crate::relay::pool::{Answer, Pool};
use crate::relay::refusal::Refusal;
use crate::relay::said;
use crate::relay::sse::{Overflow, Splitter};
use crate::relay::tokens::Demand;
use crate::relay::translate::CompletionWriter;
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
    /// Of those, the pieces of text that a task's client was told.
    texts: u64,
    /// Whether the first token has come, so that silence is no longer the prompt's evaluation.
    begun: bool,
    /// Where the text goes that is kept as the job's result.
    journal: Option<Arc<Journal>>,
    max_text_bytes: usize,
    /// Bytes of an event that has not ended, since the last step forward.
    unmoved: usize,
    moved: bool,
    first_token: Option<Instant>,
    /// Whether the client has got a part of the answer.
    relayed: bool,
    stop: Option<(StopReason, Option<String>)>,
    /// Which choices of a raw stream have ended.
    choices: Choices,
    /// The event with which one ended, until it is known whether a part of it comes apart.
    last_event: Option<Bytes>,
    /// How the attempt ends, once that is known.
    outcome: Option<Outcome>,
    /// Why it fails, on its way to what may be kept of that.
    failing: Option<Pin<Box<dyn Future<Output = Error> + Send>>>,
    privacy: Privacy,
    call: Arc<Call>,
    /// Who is to blame if it does not complete.
    blame: Blame,
    /// Whether the worker fell silent, so that it needs a check before it gets more.
    suspect: bool,
}

impl Streaming {
    pub(super) fn new(lease: Lease, flow: &Flow, answer: Answer) -> Self {
        let (call, journal) = (&flow.call, flow.journal.get());
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
            splitter: Splitter::new(call.max_event_bytes).counted(call.answers.clone()),
            form,
            ready: VecDeque::new(),
            demand: call.demand,
            counted: StreamUsage::default(),
            usage: None,
            tokens: 0,
            texts: 0,
            begun: false,
            journal,
            max_text_bytes: call.max_response_bytes,
            unmoved: 0,
            moved: false,
            first_token: None,
            relayed: false,
            stop: None,
            choices: Choices::default(),
            last_event: None,
            outcome: None,
            failing: None,
            privacy: flow.parts.privacy,
            call: call.clone(),
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

    pub(super) fn lease(&self) -> &Lease {
        &self.lease
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
            if let Some(failing) = &mut self.failing {
                let error = ready!(failing.as_mut().poll(cx));
                return Poll::Ready(self.ended(Outcome::Failed(error)));
            }
            // The end comes first: the slot is free before the client has taken the last events.
            if let Some(outcome) = self.outcome.take() {
                self.release(pool, cx);
                if let Outcome::Failed(error) = outcome {
                    self.failing = Some(Box::pin(self.privacy.apply(self.call.clone(), error)));
                    continue;
                }
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
        let length = data.len();
        match self.splitter.push(data) {
            Err(overflow) => self.overflow(&overflow),
            Ok(block) if block.is_empty() => {
                self.unmoved += length;
                if self.unmoved >= PROGRESS_BYTES && !self.splitter.is_in_comment() {
                    self.moved = true;
                    self.unmoved = 0;
                }
            }
            Ok(block) => {
                self.unmoved = 0;
                self.take_events(block);
            }
        }
    }

    /// No worker is to blame, and another would send no other event.
    fn overflow(&mut self, overflow: &Overflow) {
        self.blame = Blame::Request;
        self.fail(match overflow {
            Overflow::TooLong => Error::new(
                Code::UpstreamInvalid,
                "the worker sent an event that is longer than limits.max_event_bytes, or, where that is \
                 not set, limits.max_response_bytes",
            ),
            Overflow::NoRoom => Error::new(
                Code::Overloaded,
                "the answers and large events that are being collected, or wait for their clients to \
                 take them, hold as much as they may; try again, or raise limits.max_answers_bytes of \
                 the queen's configuration",
            ),
        });
    }

    fn take_events(&mut self, block: Bytes) {
        match self.form {
            Form::Raw { wants_usage } => self.relay(block, wants_usage),
            _ => self.translate(&block),
        }
    }

    fn fail(&mut self, error: Error) {
        self.pass_last();
        self.source = None;
        self.outcome = Some(Outcome::Failed(error));
    }

    fn broke(&mut self, error: &io::Error) {
        if error.kind() == io::ErrorKind::InvalidData {
            let message = format!("the worker's answer can't be read: {error}");
            return self.fail(Error::new(Code::UpstreamInvalid, message));
        }
        // One answer of several may not have begun.
        if self.demand.answers <= 1 && self.has_all() && !self.splitter.has_part() {
            self.suspect = true;
            return self.complete();
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
            let last = self.splitter.take_part();
            match said::is_whole(&last) {
                // Nobody waits for the blank line behind the last event.
                true => self.take_events(last),
                false => return self.lost("it stopped inside an event"),
            }
        }
        if self.outcome.is_none() {
            match self.has_all() {
                true => self.complete(),
                false => self.lost("it stopped before its end"),
            }
        }
    }

    /// Whether the worker has said how its answer ended: not all of them send `[DONE]` after that.
    fn has_all(&self) -> bool {
        match self.form {
            Form::Raw { .. } => self.choices.have_ended(),
            _ => self.stop.is_some(),
        }
    }

    fn begin(&mut self) {
        self.begun = true;
        self.first_token.get_or_insert_with(Instant::now);
    }

    fn report(&mut self, outcome: Outcome) -> Report {
        let complete = matches!(outcome, Outcome::Complete);
        let journal = self.journal.as_ref().filter(|_| complete);
        let took = self.first_token.map(|at| at.elapsed());
        Report {
            usage: Some(self.usage()),
            result: journal.map(|journal| journal.text()),
            thinking: journal.and_then(|journal| journal.thinking()),
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
