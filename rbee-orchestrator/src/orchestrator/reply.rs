//! What a submitter holds: the stream of a task's events, or the raw answer of an OpenAI request.
//! Dropping it cancels the job.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_core::Stream;
use http::{HeaderValue, StatusCode};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::TaskEvents;
use super::driver::Driver;
use crate::brain::Event;
use crate::domain::{JobId, TaskEvent};
use crate::error::{Code, Error, Result};
use crate::router::{Flow, Step, Whole, client_gone};

/// A submitted job that somebody holds on to.
struct Held {
    flow: Arc<Flow>,
    driver: Arc<Driver>,
}

impl Held {
    /// Does the job's next piece of work. A lease that came back with it is taken in here and now,
    /// so that no other thread must be woken for it.
    fn poll_step(&self, cx: &mut Context<'_>) -> Poll<Step> {
        let step = self.flow.poll_step(cx);
        self.driver.catch_up();
        step
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if self.flow.abandon() {
            let event = Event::Cancel {
                job: self.flow.id(),
                error: client_gone(),
            };
            // Sent, not told: this may run under any lock.
            self.driver.inbox.send(event);
        }
    }
}

/// A task's events, in the order of [`TaskEvent`], ending with exactly one terminal event.
///
/// The work is done by whoever polls it, unless it is [spawned](TaskStream::spawn). Dropping it cancels
/// the task and closes the worker's connection at once.
#[must_use = "a task runs only while its stream is polled"]
pub struct TaskStream {
    job: JobId,
    source: Source,
    ended: bool,
}

enum Source {
    /// The task is this stream's.
    Own(Held),
    /// Something else does the work, for as long as the guard is held if there is one: the library's own
    /// task, or whoever submitted the same before.
    Followed {
        events: TaskEvents,
        _guard: Option<DropGuard>,
    },
}

impl std::fmt::Debug for TaskStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TaskStream")
            .field("job", &self.job())
            .finish_non_exhaustive()
    }
}

impl TaskStream {
    pub(super) fn new(flow: Arc<Flow>, driver: Arc<Driver>) -> Self {
        flow.hand_out();
        TaskStream {
            job: flow.id(),
            source: Source::Own(Held { flow, driver }),
            ended: false,
        }
    }

    pub(super) fn following(job: JobId, events: TaskEvents) -> Self {
        TaskStream {
            job,
            source: Source::Followed {
                events,
                _guard: None,
            },
            ended: false,
        }
    }

    /// The task's id.
    #[must_use]
    pub fn job(&self) -> JobId {
        self.job
    }

    /// Waits, after the terminal event, until the ending has been recorded, so that
    /// [`crate::Orchestrator::task`] tells it. Cancel safe.
    pub async fn settled(&self) {
        poll_fn(|cx| self.poll_settled(cx)).await;
    }

    /// [`TaskStream::settled`], for a caller that polls.
    pub fn poll_settled(&self, cx: &mut Context<'_>) -> Poll<()> {
        match &self.source {
            Source::Own(held) => held.flow.poll_settled(cx),
            // It is told of the end only when that has been recorded.
            Source::Followed { .. } => Poll::Ready(()),
        }
    }

    fn poll_event(&mut self, cx: &mut Context<'_>) -> Poll<Option<TaskEvent>> {
        let held = match &mut self.source {
            Source::Own(held) => held,
            Source::Followed { events, .. } => {
                let next = std::task::ready!(Pin::new(&mut *events).poll_next(cx));
                let cut_off = || TaskEvent::Error {
                    job: self.job,
                    error: Error::new(
                        Code::Interrupted,
                        "the task goes on without this stream, which was too slow or ends with the \
                         queen: follow GET /v2/tasks/{id}/events",
                    ),
                };
                return Poll::Ready(match next {
                    Some((_, event)) => Some(event),
                    None => (!events.is_complete()).then(cut_off),
                });
            }
        };
        loop {
            let step = std::task::ready!(held.poll_step(cx));
            return Poll::Ready(match step {
                Step::Notice(notice) => Some(notice.into()),
                Step::Started(event) | Step::Event(event) => Some(event),
                Step::Failed(error) => Some(TaskEvent::Error {
                    job: self.job,
                    error,
                }),
                Step::StreamBegins | Step::Data(_) | Step::Whole(_) => continue,
                Step::End => None,
            });
        }
    }

    /// The same stream, whose work goes on whether or not it is polled: what is not read of it is kept
    /// with the task. Dropping it cancels the task all the same.
    pub fn spawn(mut self) -> Self {
        let Source::Own(held) = &self.source else {
            return self;
        };
        let (job, driver) = (self.job, held.driver.clone());
        let events = TaskEvents::live(held.flow.journal(), None, usize::MAX);
        let dropped = CancellationToken::new();
        let guard = dropped.clone().drop_guard();
        driver.spawn(async move {
            tokio::select! {
                () = dropped.cancelled() => {}
                _ = self.finished() => {}
            }
        });
        TaskStream {
            job,
            source: Source::Followed {
                events,
                _guard: Some(guard),
            },
            ended: false,
        }
    }

    /// Reads on to the end and waits until it has been recorded; the text that has come since. Dropped
    /// midway it cancels the task.
    ///
    /// # Errors
    /// Why the task did not complete.
    pub async fn collect(mut self) -> Result<String> {
        let mut text = String::new();
        let mut failed = None;
        while let Some(event) = self.next().await {
            match event {
                TaskEvent::Token { text: more, .. } => text.push_str(&more),
                // What an attempt has said that is tried again is void.
                TaskEvent::Started { .. } => text.clear(),
                TaskEvent::Error { error, .. } => failed = Some(error),
                _ => {}
            }
        }
        self.settled().await;
        failed.map_or(Ok(text), Err)
    }

    /// Reads on to the end and waits until it has been recorded, for a caller who wants the result
    /// and not its pieces. Cancel safe.
    ///
    /// # Errors
    /// Why the task did not complete.
    pub async fn finished(&mut self) -> Result<()> {
        let mut failed = None;
        while let Some(event) = self.next().await {
            if let TaskEvent::Error { error, .. } = event {
                failed = Some(error);
            }
        }
        self.settled().await;
        failed.map_or(Ok(()), Err)
    }

    /// The next event; `None` after the terminal one. Cancel safe.
    pub async fn next(&mut self) -> Option<TaskEvent> {
        poll_fn(|cx| Pin::new(&mut *self).poll_next(cx)).await
    }
}

impl Stream for TaskStream {
    type Item = TaskEvent;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<TaskEvent>> {
        if self.ended {
            return Poll::Ready(None);
        }
        let next = std::task::ready!(self.poll_event(cx));
        self.ended = !matches!(&next, Some(event) if !matches!(event, TaskEvent::Error { .. }));
        Poll::Ready(next)
    }
}

/// The head of a raw answer.
#[derive(Debug)]
pub struct RawHead {
    /// The worker's status.
    pub status: StatusCode,
    /// The worker's content type.
    pub content_type: Option<HeaderValue>,
    /// The worker's `Retry-After`.
    pub retry_after: Option<HeaderValue>,
    /// The whole body, unless it is a stream.
    pub body: Option<Bytes>,
}

/// The raw answer to an OpenAI request: a head, then, if it streams, whole server-sent events as
/// the worker wrote them.
///
/// The work is done by whoever polls it. Dropping it cancels the job and closes the worker's
/// connection at once.
#[must_use = "a request runs only while its reply is polled"]
pub struct RawReply {
    held: Held,
}

impl std::fmt::Debug for RawReply {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RawReply")
            .field("job", &self.job())
            .finish_non_exhaustive()
    }
}

impl RawReply {
    pub(super) fn new(flow: Arc<Flow>, driver: Arc<Driver>) -> Self {
        flow.hand_out();
        RawReply {
            held: Held { flow, driver },
        }
    }

    /// The job's id.
    #[must_use]
    pub fn job(&self) -> JobId {
        self.held.flow.id()
    }

    /// Waits for the head: until a worker is found and answers. Cancel safe.
    ///
    /// # Errors
    /// Why there is no answer.
    pub async fn head(&mut self) -> Result<RawHead> {
        poll_fn(|cx| self.poll_head(cx)).await
    }

    /// [`RawReply::head`], for a caller that polls.
    ///
    /// # Errors
    /// Those of [`RawReply::head`].
    pub fn poll_head(&mut self, cx: &mut Context<'_>) -> Poll<Result<RawHead>> {
        loop {
            let Poll::Ready(step) = self.held.poll_step(cx) else {
                return Poll::Pending;
            };
            return Poll::Ready(match step {
                Step::Notice(_) | Step::Started(_) => continue,
                Step::StreamBegins => Ok(RawHead {
                    status: StatusCode::OK,
                    content_type: Some(HeaderValue::from_static("text/event-stream")),
                    retry_after: None,
                    body: None,
                }),
                Step::Whole(whole) => Ok(RawHead {
                    status: whole.status,
                    content_type: whole.content_type,
                    retry_after: whole.retry_after,
                    body: Some(whole.body),
                }),
                Step::Failed(error) => Err(error),
                Step::Data(_) | Step::Event(_) | Step::End => {
                    Err(Error::internal("a stream ended before its head"))
                }
            });
        }
    }

    /// The next whole events of a stream; `None` after the last. May be called without
    /// [`RawReply::head`] having been waited for.
    pub fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes>>> {
        loop {
            let Poll::Ready(step) = self.held.poll_step(cx) else {
                return Poll::Pending;
            };
            return Poll::Ready(match step {
                Step::Notice(_) | Step::Started(_) | Step::StreamBegins | Step::Event(_) => {
                    continue;
                }
                Step::Data(data) => Some(Ok(data)),
                Step::Whole(whole) => Some(Err(whole_as_error(&whole))),
                Step::Failed(error) => Some(Err(error)),
                Step::End => None,
            });
        }
    }
}

/// A worker's refusal that came after the stream's head had gone out.
fn whole_as_error(whole: &Whole) -> Error {
    crate::relay::refusal::read(whole.status, &whole.body).error
}
