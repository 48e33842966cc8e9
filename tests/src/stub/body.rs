//! The bodies of the stub's answers: tokens on time, or whatever fault was asked for.

use super::engine::Engine;
use super::form::{CANCELLED, Frame};
use super::journal::What;
use crate::token::{push_num, push_token};
use crate::words;
use bytes::Bytes;
use hyper::HeaderMap;
use hyper::body::{Body, Frame as BodyFrame, SizeHint};
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, oneshot};
use tokio::time::{Instant, Sleep};

/// Counts a request as in flight for as long as it lives, and as a disconnect unless finished.
pub(super) struct Flight {
    engine: Arc<Engine>,
    pub(super) slot: Option<OwnedSemaphorePermit>,
    /// The request's correlation id, if anyone reads about it
    correlation_id: String,
    /// The name under which it can be cancelled
    pub(super) job_id: Option<String>,
    pub(super) finished: bool,
}

impl Flight {
    pub(super) fn new(engine: &Arc<Engine>, headers: &HeaderMap) -> Self {
        let correlation_id = engine.journal.as_ref().map(|journal| {
            let id = headers.get("x-correlation-id");
            let id = id.and_then(|id| id.to_str().ok()).unwrap_or_default();
            journal.note(What::Arrived, id);
            id.to_owned()
        });
        let counters = &engine.counters;
        counters.requests.fetch_add(1, Relaxed);
        let now = counters.in_flight.fetch_add(1, Relaxed) + 1;
        counters.max_in_flight.fetch_max(now, Relaxed);
        Flight {
            engine: engine.clone(),
            slot: None,
            correlation_id: correlation_id.unwrap_or_default(),
            job_id: None,
            finished: false,
        }
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        let counters = &self.engine.counters;
        counters.in_flight.fetch_sub(1, Relaxed);
        let to = if self.finished {
            &counters.finished
        } else {
            &counters.disconnects
        };
        to.fetch_add(1, Relaxed);
        if let Some(journal) = &self.engine.journal {
            let what = match self.finished {
                true => What::Finished,
                false => What::Closed,
            };
            journal.note(what, &self.correlation_id);
        }
        if let Some(job_id) = &self.job_id {
            self.engine.forget(job_id);
        }
    }
}

/// How a body ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ending {
    Whole,
    Half,
    Stall,
    Break,
    Die,
}

impl Ending {
    /// What to do once everything before it is on the wire, if the body does not just end.
    fn strike(self) -> Poll<Option<Result<BodyFrame<Bytes>, io::Error>>> {
        match self {
            Ending::Whole | Ending::Half => Poll::Ready(None),
            // Nobody wakes it: only the client's going away ends this.
            Ending::Stall => Poll::Pending,
            Ending::Break => {
                let broken = io::Error::new(io::ErrorKind::ConnectionAborted, "asked for");
                Poll::Ready(Some(Err(broken)))
            }
            Ending::Die => std::process::exit(9),
        }
    }
}

/// The SSE body: token i is due at start + ttft + i * itl, whatever happened to those before.
pub(super) struct Stream {
    /// Dropped before the flight, which then forgets the job
    pub(super) cancelled: Option<oneshot::Receiver<()>>,
    pub(super) flight: Flight,
    pub(super) frame: Frame,
    pub(super) pace: Pace,
    /// What the tokens are, if not numbers
    pub(super) words: Option<Words>,
    /// Tokens before the ending
    pub(super) tokens: u64,
    pub(super) ending: Ending,
    at: u64,
    over: bool,
    flushed: bool,
}

/// An answer that follows from its prompt; see `rbee_tests::words`.
pub(super) struct Words {
    pub(super) prompt: String,
    pub(super) generation: u64,
}

impl Words {
    pub(super) fn text(&self, n: u64) -> String {
        words::text(&self.prompt, self.generation, n)
    }

    fn word(&self, i: u64) -> String {
        words::word(&self.prompt, self.generation, i)
    }
}

/// When the tokens of a stream are due.
pub(super) struct Pace {
    due: Instant,
    itl: Duration,
    sleep: Option<Pin<Box<Sleep>>>,
    /// Each token in a write of its own, even without a wait between them
    flush_each: bool,
}

impl Pace {
    pub(super) fn new(first: Instant, itl: Duration, flush_each: bool) -> Self {
        let sleep = (first > Instant::now()).then(|| Box::pin(tokio::time::sleep_until(first)));
        Pace {
            due: first,
            itl,
            sleep,
            flush_each,
        }
    }

    fn next(&mut self) {
        if self.itl.is_zero() {
            return;
        }
        self.due += self.itl;
        match &mut self.sleep {
            Some(sleep) => sleep.as_mut().reset(self.due),
            none => *none = Some(Box::pin(tokio::time::sleep_until(self.due))),
        }
    }
}

impl Stream {
    pub(super) fn new(flight: Flight, frame: Frame, pace: Pace, tokens: u64) -> Self {
        Stream {
            cancelled: None,
            flight,
            frame,
            pace,
            words: None,
            tokens,
            ending: Ending::Whole,
            at: 0,
            over: false,
            flushed: false,
        }
    }

    /// Goes on for `tokens` tokens, each on the wire before the next, and ends so.
    pub(super) fn end_with(&mut self, tokens: u64, ending: Ending) {
        self.tokens = tokens;
        self.ending = ending;
        self.pace.flush_each = true;
    }

    fn finish(&mut self, last: Vec<u8>) -> Poll<Option<Result<BodyFrame<Bytes>, io::Error>>> {
        self.over = true;
        self.flight.finished = true;
        Poll::Ready(Some(Ok(BodyFrame::data(last.into()))))
    }

    fn token(&mut self) -> Vec<u8> {
        let frame = &self.frame;
        let mut out = Vec::with_capacity(frame.before.len() + frame.after.len() + 48);
        out.extend_from_slice(frame.before.as_bytes());
        if frame.numbered {
            push_num(&mut out, self.at);
            out.extend_from_slice(br#","t":""#);
        }
        match &self.words {
            Some(words) => out.extend_from_slice(words.word(self.at).as_bytes()),
            None => push_token(&mut out, self.at),
        }
        out.extend_from_slice(frame.after.as_bytes());
        out
    }
}

impl Body for Stream {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<BodyFrame<Bytes>, io::Error>>> {
        let this = &mut *self;
        if this.over {
            return Poll::Ready(None);
        }
        if let Some(start) = this.frame.start.take() {
            return Poll::Ready(Some(Ok(BodyFrame::data(start.into()))));
        }
        if let Some(cancelled) = &mut this.cancelled
            && let Poll::Ready(how) = Pin::new(cancelled).poll(cx)
        {
            this.cancelled = None;
            if how.is_ok() {
                return this.finish(CANCELLED.into());
            }
        }
        if let Some(sleep) = &mut this.pace.sleep {
            ready!(sleep.as_mut().poll(cx));
        }
        if this.pace.flush_each && !this.flushed {
            this.flushed = true; // pending once: hyper writes out what it has
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        if this.at == this.tokens {
            return match this.ending {
                Ending::Whole => {
                    let end = std::mem::take(&mut this.frame.end);
                    this.finish(end.into())
                }
                Ending::Half => {
                    let mut half = this.token();
                    half.truncate(half.len() / 2);
                    this.finish(half)
                }
                other => other.strike(),
            };
        }
        this.flushed = false;
        let out = this.token();
        this.at += 1;
        this.flight.engine.counters.tokens.fetch_add(1, Relaxed);
        if this.at < this.tokens {
            this.pace.next();
        }
        Poll::Ready(Some(Ok(BodyFrame::data(out.into()))))
    }

    fn is_end_stream(&self) -> bool {
        self.over
    }
}

/// An answer that is there as a whole; it keeps its flight until hyper has taken it.
pub(super) struct Whole {
    data: Option<Bytes>,
    declared: u64,
    ending: Ending,
    flight: Flight,
    flushed: bool,
}

impl Whole {
    pub(super) fn new(flight: Flight, data: Bytes) -> Self {
        Whole {
            declared: data.len() as u64,
            data: Some(data),
            ending: Ending::Whole,
            flight,
            flushed: false,
        }
    }

    /// Keeps the first half of the data only, and ends so.
    pub(super) fn end_with(&mut self, ending: Ending) {
        self.ending = ending;
        if let Some(data) = &mut self.data {
            data.truncate(data.len() / 2);
            if ending == Ending::Half {
                self.declared = data.len() as u64;
            }
        }
    }

    /// Declares the data, and sends none of it.
    pub(super) fn withhold(&mut self) {
        self.data = None;
        self.ending = Ending::Stall;
    }
}

impl Body for Whole {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<BodyFrame<Bytes>, io::Error>>> {
        if let Some(data) = self.data.take() {
            self.flight.finished = matches!(self.ending, Ending::Whole | Ending::Half);
            return Poll::Ready(Some(Ok(BodyFrame::data(data))));
        }
        if !self.flushed {
            self.flushed = true;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        self.ending.strike()
    }

    fn is_end_stream(&self) -> bool {
        self.data.is_none() && matches!(self.ending, Ending::Whole | Ending::Half)
    }

    fn size_hint(&self) -> SizeHint {
        // hyper asks before the first frame, for the Content-Length.
        SizeHint::with_exact(self.declared)
    }
}
