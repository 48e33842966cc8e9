//! Following a task's events from anywhere, and from any place in them.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_core::Stream;

use super::Orchestrator;
use crate::domain::{EventId, JobId, TaskEvent};
use crate::error::{Code, Error, Result};
use crate::router::{Journal, Read, Reader, replay};

/// The events of a task, each with the place behind it. Any number may follow one task; none
/// delays it, and dropping one changes nothing for it.
///
/// A reader that takes nothing while more than `replay.max_lag_bytes` of text come is sent away:
/// its last event is a narration that says so, and [`TaskEvents::is_complete`] is false. It may come
/// back to the place of its last event; no text is lost.
#[derive(Debug)]
#[must_use = "events come only when it is polled"]
pub struct TaskEvents {
    source: Source,
    complete: bool,
}

enum Source {
    Live(Reader),
    Ended(std::vec::IntoIter<(EventId, TaskEvent)>),
    Nothing,
}

impl std::fmt::Debug for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Source::Live(_) => "Live",
            Source::Ended(_) => "Ended",
            Source::Nothing => "Nothing",
        })
    }
}

impl TaskEvents {
    /// Follows a task that goes on; may lag behind by so many bytes of text.
    pub(super) fn live(journal: Arc<Journal>, after: Option<EventId>, max_lag: usize) -> Self {
        TaskEvents {
            source: Source::Live(Reader::new(journal, after, max_lag)),
            complete: false,
        }
    }

    /// Whether all was told, to the terminal event; known when the stream has ended.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.complete
    }

    /// The next event; `None` when nothing follows here. Cancel safe.
    pub async fn next(&mut self) -> Option<(EventId, TaskEvent)> {
        poll_fn(|cx| Pin::new(&mut *self).poll_next(cx)).await
    }
}

impl Stream for TaskEvents {
    type Item = (EventId, TaskEvent);

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        match &mut self.source {
            Source::Nothing => Poll::Ready(None),
            Source::Ended(events) => {
                let next = events.next();
                self.complete |= next.is_none();
                Poll::Ready(next)
            }
            Source::Live(reader) => {
                let read = std::task::ready!(reader.poll_read(cx));
                if !matches!(read, Read::Event(..)) {
                    self.source = Source::Nothing;
                }
                Poll::Ready(match read {
                    Read::Event(at, event) | Read::TooSlow(at, event) => Some((at, event)),
                    Read::End => {
                        self.complete = true;
                        None
                    }
                    Read::Closed => None,
                })
            }
        }
    }
}

impl Orchestrator {
    /// Follows a task's events from the beginning of its newest attempt, or after an event.
    ///
    /// Of a task that has ended, what is kept is told again. Of an OpenAI request only its states
    /// are told.
    ///
    /// # Errors
    /// `TASK_NOT_FOUND`, `STORE_FAILED`.
    pub async fn events(&self, job: JobId, after: Option<EventId>) -> Result<TaskEvents> {
        let source = match self.driver.journal(job) {
            Some(journal) => {
                let max_lag = self.driver.config.replay.max_lag_bytes;
                return Ok(TaskEvents::live(journal, after, max_lag));
            }
            None => {
                let record = self.task(job).await?;
                if !record.state.is_ended() {
                    let message = format!(
                        "task {job} is between two lives of the queen, or its ending could not be \
                         stored yet; ask again"
                    );
                    return Err(Error::new(Code::NoCapacity, message));
                }
                Source::Ended(replay(&record, after).into_iter())
            }
        };
        Ok(TaskEvents {
            source,
            complete: false,
        })
    }
}
