//! What a job has told so far, for anyone who follows it from another connection.
//!
//! Readers share the text with the job itself, which needs it as its result: to follow costs no
//! copy, and a reader that is late gets more at once. None of them delays the job.

mod reader;
mod replay;
#[cfg(test)]
mod tests;

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;

use crate::domain::{Attempt, TaskEvent};
use crate::error::{Code, Error};

pub(crate) use reader::{Read, Reader};
pub(crate) use replay::replay;

/// Events beside the text that are kept for later readers; the oldest goes first.
const MAX_KEPT: usize = 64;

/// Text that all journals may hold, in bytes.
#[derive(Debug)]
pub(crate) struct TextBudget {
    used: AtomicU64,
    most: u64,
}

impl TextBudget {
    pub(crate) fn new(most: u64) -> Self {
        TextBudget {
            used: AtomicU64::new(0),
            most,
        }
    }

    fn take(&self, bytes: usize) -> bool {
        let bytes = bytes as u64;
        let before = self.used.fetch_add(bytes, Ordering::Relaxed);
        let fits = before + bytes <= self.most;
        if !fits {
            self.give_back(bytes);
        }
        fits
    }

    fn give_back(&self, bytes: u64) {
        self.used.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// See the module's documentation.
pub(crate) struct Journal {
    told: Mutex<Told>,
    budget: Arc<TextBudget>,
}

#[derive(Default)]
struct Told {
    /// What was told beside the text, each with its number and the attempt in which it was told.
    kept: VecDeque<(u64, Attempt, TaskEvent)>,
    next_number: u64,
    attempt: Attempt,
    /// The text of the newest attempt.
    text: String,
    /// What its model thought.
    thinking: String,
    /// The last events, once the ending is recorded.
    ending: Option<Vec<TaskEvent>>,
    /// Nothing more will be told here, though the job has not ended.
    closed: bool,
    /// Those who wait, each by its own number.
    readers: HashMap<u64, Waker>,
    next_reader: u64,
}

impl Told {
    fn keep(&mut self, event: TaskEvent) {
        if self.kept.len() == MAX_KEPT {
            self.kept.pop_front();
        }
        self.kept.push_back((self.next_number, self.attempt, event));
        self.next_number += 1;
        self.wake();
    }

    fn bytes(&self) -> usize {
        self.text.len() + self.thinking.len()
    }

    fn wake(&mut self) {
        self.readers.drain().for_each(|(_, waker)| waker.wake());
    }
}

impl Journal {
    pub(crate) fn new(budget: Arc<TextBudget>) -> Self {
        Journal {
            told: Mutex::default(),
            budget,
        }
    }

    fn told(&self) -> MutexGuard<'_, Told> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells an event that is neither text nor an ending.
    pub(crate) fn note(&self, event: TaskEvent) {
        self.told().keep(event);
    }

    /// Tells that an attempt has begun: the text of the one before is void.
    pub(crate) fn begin(&self, attempt: Attempt, started: TaskEvent) {
        let mut told = self.told();
        self.budget.give_back(told.bytes() as u64);
        told.text.clear();
        told.thinking.clear();
        told.attempt = attempt;
        told.keep(started);
    }

    /// Adds to the text.
    ///
    /// # Errors
    /// `NO_CAPACITY` when all journals together hold as much as they may.
    pub(crate) fn add(&self, text: &str) -> Result<(), Error> {
        self.add_to(text, |told| &mut told.text)
    }

    /// Adds to what the model thought.
    ///
    /// # Errors
    /// Those of [`Journal::add`].
    pub(crate) fn add_thinking(&self, text: &str) -> Result<(), Error> {
        self.add_to(text, |told| &mut told.thinking)
    }

    fn add_to(&self, text: &str, all: fn(&mut Told) -> &mut String) -> Result<(), Error> {
        if !self.budget.take(text.len()) {
            let most = self.budget.most;
            let message = format!(
                "the answers that are being written hold more than {most} bytes; ask again later, \
                 or raise replay.max_bytes"
            );
            return Err(Error::new(Code::NoCapacity, message));
        }
        let mut told = self.told();
        all(&mut told).push_str(text);
        told.wake();
        Ok(())
    }

    /// How much text there is, with what the model thought, in bytes.
    pub(crate) fn bytes(&self) -> usize {
        self.told().bytes()
    }

    /// The whole text so far.
    pub(crate) fn text(&self) -> String {
        self.told().text.clone()
    }

    /// What the model thought so far, if its worker tells that.
    pub(crate) fn thinking(&self) -> Option<String> {
        let told = self.told();
        (!told.thinking.is_empty()).then(|| told.thinking.clone())
    }

    /// Tells how the job ended. Only the first ending counts. The text, which only those who read it
    /// just now still keep, is no longer counted.
    pub(crate) fn end(&self, ending: Vec<TaskEvent>) {
        let mut told = self.told();
        if told.ending.is_none() {
            told.ending = Some(ending);
            self.budget.give_back(told.bytes() as u64);
        }
        told.wake();
    }

    /// Sends the readers away: the job goes on in another life of the queen.
    pub(crate) fn close(&self) {
        let mut told = self.told();
        told.closed = true;
        told.wake();
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        let told = self.told.get_mut().unwrap_or_else(PoisonError::into_inner);
        if told.ending.is_none() {
            self.budget.give_back(told.bytes() as u64);
        }
    }
}
