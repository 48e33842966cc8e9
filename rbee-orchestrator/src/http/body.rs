//! Bodies of answers: bytes, a relayed stream, or a task's events.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::Bytes;
use futures_core::Stream;
use http_body::{Body as HttpBody, Frame, SizeHint};
use tokio::time::{Instant, Sleep};

use super::answer::error_object;
use super::events;
use super::following::{DownloadBody, LogBody};
use crate::domain::JobId;
use crate::error::Error;
use crate::orchestrator::{LogLines, ModelDownload, RawReply, TaskEvents, TaskStream};
use crate::relay::sse;

/// A comment that keeps a connection alive.
const KEEP_ALIVE: &[u8] = b": keep-alive\n\n";

/// The body of an answer. Dropping it cancels the job that it comes from.
#[derive(Debug)]
pub struct Body(Kind);

#[derive(Debug)]
enum Kind {
    Full(Option<Bytes>),
    Raw(Box<RawBody>),
    Task(Box<TaskBody>),
    Events(Box<EventsBody>),
    Logs(Box<LogBody>),
    Download(Box<DownloadBody>),
}

impl Body {
    pub(super) fn full(bytes: Bytes) -> Self {
        Body(Kind::Full(Some(bytes).filter(|bytes| !bytes.is_empty())))
    }

    pub(super) fn raw(reply: RawReply, keep_alive: Duration, correlation_id: &str) -> Self {
        Body(Kind::Raw(Box::new(RawBody {
            reply,
            heart: Heart::new(keep_alive),
            correlation_id: correlation_id.to_owned(),
            phase: Phase::Flowing,
        })))
    }

    pub(super) fn task(stream: TaskStream, keep_alive: Duration) -> Self {
        Body(Kind::Task(Box::new(TaskBody {
            stream,
            heart: Heart::new(keep_alive),
            phase: Phase::Flowing,
            flushed: true,
        })))
    }

    pub(super) fn events(job: JobId, events: TaskEvents, keep_alive: Duration) -> Self {
        Body(Kind::Events(Box::new(EventsBody {
            job,
            events,
            heart: Heart::new(keep_alive),
            over: false,
        })))
    }

    pub(super) fn logs(lines: LogLines, keep_alive: Duration) -> Self {
        Body(Kind::Logs(Box::new(LogBody::new(lines, keep_alive))))
    }

    pub(super) fn download(download: ModelDownload, keep_alive: Duration) -> Self {
        let body = DownloadBody::new(download, keep_alive);
        Body(Kind::Download(Box::new(body)))
    }
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let next = match &mut self.0 {
            Kind::Full(bytes) => Poll::Ready(bytes.take()),
            Kind::Raw(raw) => raw.poll_next(cx),
            Kind::Task(task) => task.poll_next(cx),
            Kind::Events(events) => events.poll_next(cx),
            Kind::Logs(logs) => logs.poll_next(cx),
            Kind::Download(download) => download.poll_next(cx),
        };
        next.map(|bytes| bytes.map(|bytes| Ok(Frame::data(bytes))))
    }

    fn is_end_stream(&self) -> bool {
        matches!(self.0, Kind::Full(None))
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Kind::Full(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |b| b.len() as u64)),
            _ => SizeHint::default(),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// There may be more of the answer.
    Flowing,
    /// The last event has come; only the mark of the end is left.
    Closing,
    /// Everything was said.
    Over,
}

/// Beats while nothing else goes over the wire.
///
/// To note an event costs next to nothing: the timer is not set anew for it, but looks in four times
/// in an interval. So a comment may come a quarter of it late.
#[derive(Debug)]
pub(super) struct Heart {
    interval: Duration,
    beat: Option<Pin<Box<Sleep>>>,
    /// Whom the timer wakes.
    waker: Option<Waker>,
    /// How often it looked in since something went out.
    quiet: u32,
}

/// Looks in an interval.
const LOOKS: u32 = 4;

impl Heart {
    pub(super) fn new(interval: Duration) -> Self {
        Heart {
            interval,
            beat: None,
            waker: None,
            quiet: 1,
        }
    }

    /// A comment, when nothing has gone out for the interval.
    pub(super) fn poll_beat(&mut self, cx: &mut Context<'_>) -> Poll<Bytes> {
        let pause = self.interval / LOOKS;
        let beat = self
            .beat
            .get_or_insert_with(|| Box::pin(tokio::time::sleep(pause)));
        loop {
            let wakes_us = |waker: &Waker| waker.will_wake(cx.waker());
            if !beat.is_elapsed() && self.waker.as_ref().is_some_and(wakes_us) {
                return Poll::Pending;
            }
            self.waker = Some(cx.waker().clone());
            ready!(beat.as_mut().poll(cx));
            self.waker = None;
            beat.as_mut().reset(Instant::now() + pause);
            self.quiet += 1;
            // The first look after an event may come at once.
            if self.quiet > LOOKS {
                self.quiet = 1;
                return Poll::Ready(Bytes::from_static(KEEP_ALIVE));
            }
        }
    }

    /// Something went out.
    pub(super) fn note(&mut self) {
        self.quiet = 0;
    }
}

/// A worker's own events, with what the queen has to say when there are none.
#[derive(Debug)]
struct RawBody {
    reply: RawReply,
    heart: Heart,
    correlation_id: String,
    phase: Phase,
}

impl RawBody {
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        match self.phase {
            Phase::Over => return Poll::Ready(None),
            Phase::Closing => {
                self.phase = Phase::Over;
                return Poll::Ready(Some(Bytes::from_static(sse::DONE)));
            }
            Phase::Flowing => {}
        }
        let next = match self.reply.poll_data(cx) {
            Poll::Ready(Some(Ok(data))) => Some(data),
            Poll::Ready(Some(Err(error))) => {
                self.phase = Phase::Closing;
                Some(self.error_event(&error))
            }
            Poll::Ready(None) => {
                self.phase = Phase::Over;
                None
            }
            Poll::Pending => return self.heart.poll_beat(cx).map(Some),
        };
        self.heart.note();
        Poll::Ready(next)
    }

    fn error_event(&self, error: &Error) -> Bytes {
        let object = error_object(error, true, &self.correlation_id);
        sse::encode(serde_json::json!({"error": object}).to_string().as_bytes())
    }
}

/// A task's events.
#[derive(Debug)]
struct TaskBody {
    stream: TaskStream,
    heart: Heart,
    phase: Phase,
    /// Whether what was given out last has been written: each event is one write.
    flushed: bool,
}

impl TaskBody {
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        if !std::mem::replace(&mut self.flushed, true) {
            // Pending once: the server writes out what it has.
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let next = self.poll_event(cx);
        self.flushed = next.is_pending();
        next
    }

    fn poll_event(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        match self.phase {
            Phase::Over => return Poll::Ready(None),
            Phase::Closing => {
                // After the last byte the task's record tells the ending.
                if self.stream.poll_settled(cx).is_pending() {
                    return self.heart.poll_beat(cx).map(Some);
                }
                self.phase = Phase::Over;
                return Poll::Ready(Some(Bytes::from_static(sse::DONE)));
            }
            Phase::Flowing => {}
        }
        let job = self.stream.job();
        let next = match Pin::new(&mut self.stream).poll_next(cx) {
            Poll::Ready(Some(event)) => {
                if event.is_terminal() {
                    self.phase = Phase::Closing;
                }
                Some(events::encode(job, &event))
            }
            Poll::Ready(None) => {
                self.phase = Phase::Over;
                None
            }
            Poll::Pending => return self.heart.poll_beat(cx).map(Some),
        };
        self.heart.note();
        Poll::Ready(next)
    }
}

/// A task's events, with their ids, for one of those who follow it.
#[derive(Debug)]
struct EventsBody {
    job: JobId,
    events: TaskEvents,
    heart: Heart,
    over: bool,
}

impl EventsBody {
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        if self.over {
            return Poll::Ready(None);
        }
        match Pin::new(&mut self.events).poll_next(cx) {
            Poll::Ready(Some((id, event))) => {
                self.heart.note();
                Poll::Ready(Some(events::encode_with_id(self.job, id, &event)))
            }
            Poll::Ready(None) => {
                self.over = true;
                // Without the mark of the end its reader knows that there is more to come for.
                let complete = self.events.is_complete();
                Poll::Ready(complete.then(|| Bytes::from_static(sse::DONE)))
            }
            Poll::Pending => self.heart.poll_beat(cx).map(Some),
        }
    }
}
