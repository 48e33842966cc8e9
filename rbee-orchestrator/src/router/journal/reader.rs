//! A place in a journal.

use std::sync::Arc;
use std::task::{Context, Poll};

use super::replay::{floor_char_boundary, piece};
use super::{Journal, Told};
use crate::domain::{EventId, Narration, TaskEvent};

/// What a reader gets.
#[derive(Debug)]
pub(crate) enum Read {
    /// An event, with the place behind it.
    Event(EventId, TaskEvent),
    /// It has fallen too far behind: it is sent away, and may come back to where it was.
    TooSlow(EventId, TaskEvent),
    /// Nothing follows, and nothing was lost.
    End,
    /// Nothing follows here; the job goes on.
    Closed,
}

/// A place in a journal.
pub(crate) struct Reader {
    journal: Arc<Journal>,
    number: u64,
    next_number: u64,
    at: EventId,
    /// Counts this reader's pieces of text in this attempt.
    index: u64,
    /// Whether it once had all there was: only then it can fall behind.
    caught_up: bool,
    max_lag: usize,
    /// How many of the last events it has got.
    last_events: usize,
}

impl Reader {
    /// Begins after an event, or at the beginning.
    pub(crate) fn new(journal: Arc<Journal>, after: Option<EventId>, max_lag: usize) -> Self {
        let (number, next_number, at) = {
            let mut told = journal.told();
            told.next_reader += 1;
            let number = told.next_reader;
            let newest = told.attempt;
            let first_of = |attempt| {
                let mut kept = told.kept.iter();
                let found = kept.find(|(_, of, _)| *of == attempt);
                found.map_or(told.next_number, |(number, _, _)| *number)
            };
            let (next_number, at) = match after {
                None => (0, EventId::default()),
                Some(after) if after.attempt == newest => {
                    let at = EventId {
                        attempt: newest,
                        offset: floor_char_boundary(&told.text, after.offset),
                        thinking: floor_char_boundary(&told.thinking, after.thinking),
                    };
                    (told.next_number, at)
                }
                Some(_) => (first_of(newest), EventId::default()),
            };
            (number, next_number, at)
        };
        Reader {
            journal,
            number,
            next_number,
            at,
            index: 0,
            caught_up: false,
            max_lag,
            last_events: 0,
        }
    }

    /// What comes next. Cancel safe.
    pub(crate) fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<Read> {
        let journal = self.journal.clone();
        let mut told = journal.told();
        if let Some(event) = self.next_kept(&told) {
            return Poll::Ready(Read::Event(self.at, event));
        }
        if self.is_behind(&told) {
            return Poll::Ready(self.next_piece(&told));
        }
        self.caught_up = true;
        if let Some(ending) = &told.ending {
            let next = ending.get(self.last_events).cloned();
            self.last_events += 1;
            return Poll::Ready(next.map_or(Read::End, |event| Read::Event(self.at, event)));
        }
        if told.closed {
            return Poll::Ready(Read::Closed);
        }
        told.readers.insert(self.number, cx.waker().clone());
        Poll::Pending
    }

    fn next_kept(&mut self, told: &Told) -> Option<TaskEvent> {
        let mut kept = told.kept.iter();
        let (number, attempt, event) = kept.find(|(number, ..)| *number >= self.next_number)?;
        // What is told in the middle of a text comes after what stood before it, but for the text
        // of an attempt that is void.
        if *attempt == told.attempt && self.is_behind(told) {
            return None;
        }
        self.next_number = number + 1;
        if *attempt > self.at.attempt {
            self.at = EventId {
                attempt: *attempt,
                ..EventId::default()
            };
            self.index = 0;
        }
        Some(event.clone())
    }

    /// Whether there is more of the attempt that it reads.
    fn is_behind(&self, told: &Told) -> bool {
        self.at.attempt == told.attempt
            && (self.at.offset < told.text.len() || self.at.thinking < told.thinking.len())
    }

    /// The next piece: whoever comes late gets all of the thinking first.
    fn next_piece(&mut self, told: &Told) -> Read {
        let thought = &told.thinking[self.at.thinking..];
        let text = &told.text[self.at.offset..];
        let behind = thought.len() + text.len();
        if self.caught_up && behind > self.max_lag {
            let human = "This reader was too slow and is sent away: come back with Last-Event-ID";
            let narration = Narration {
                actor: "queen",
                action: "reader_too_slow",
                target: format!("{behind} bytes behind"),
                human: human.into(),
            };
            return Read::TooSlow(self.at, TaskEvent::Narration(narration));
        }
        let event = match thought.is_empty() {
            false => {
                let text = piece(thought, &mut self.at.thinking);
                TaskEvent::Thinking { text }
            }
            true => {
                let text = piece(text, &mut self.at.offset);
                self.index += 1;
                TaskEvent::Token {
                    text,
                    index: self.index - 1,
                }
            }
        };
        Read::Event(self.at, event)
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.journal.told().readers.remove(&self.number);
    }
}
