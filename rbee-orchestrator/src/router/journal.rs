//! What a job has told so far, for anyone who follows it from another connection.
//!
//! Readers share the text with the job itself, which needs it as its result: to follow costs no
//! copy, and a reader that is late gets more at once. None of them delays the job.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use crate::domain::{Attempt, EventId, JobRecord, JobState, Narration, TaskEvent};
use crate::error::{Code, Error};

/// Events beside the text that are kept for later readers; the oldest goes first.
const MAX_KEPT: usize = 64;

/// A reader gets at most so much text in one event, in bytes.
const MAX_PIECE: usize = 64 << 10;

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
    /// The last events, once the ending is recorded.
    ending: Option<Vec<TaskEvent>>,
    /// Nothing more will be told here, though the job has not ended.
    closed: bool,
    readers: Vec<Waker>,
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

    fn wake(&mut self) {
        self.readers.drain(..).for_each(Waker::wake);
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
        self.budget.give_back(told.text.len() as u64);
        told.text.clear();
        told.attempt = attempt;
        told.keep(started);
    }

    /// Adds to the text.
    ///
    /// # Errors
    /// `NO_CAPACITY` when all journals together hold as much as they may.
    pub(crate) fn add(&self, text: &str) -> Result<(), Error> {
        if !self.budget.take(text.len()) {
            let most = self.budget.most;
            let message = format!(
                "the answers that are being written hold more than {most} bytes; ask again later, \
                 or raise replay.max_bytes"
            );
            return Err(Error::new(Code::NoCapacity, message));
        }
        let mut told = self.told();
        told.text.push_str(text);
        told.wake();
        Ok(())
    }

    /// How much text there is, in bytes.
    pub(crate) fn text_len(&self) -> usize {
        self.told().text.len()
    }

    /// The whole text so far.
    pub(crate) fn text(&self) -> String {
        self.told().text.clone()
    }

    /// Tells how the job ended. Only the first ending counts.
    pub(crate) fn end(&self, ending: Vec<TaskEvent>) {
        let mut told = self.told();
        told.ending.get_or_insert(ending);
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
        self.budget.give_back(told.text.len() as u64);
    }
}

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
        let (next_number, at) = {
            let told = journal.told();
            let newest = told.attempt;
            let first_of = |attempt| {
                let mut kept = told.kept.iter();
                let found = kept.find(|(_, of, _)| *of == attempt);
                found.map_or(told.next_number, |(number, _, _)| *number)
            };
            match after {
                None => (0, EventId::default()),
                Some(after) if after.attempt == newest => {
                    let offset = floor_char_boundary(&told.text, after.offset);
                    let at = EventId {
                        attempt: newest,
                        offset,
                    };
                    (told.next_number, at)
                }
                Some(_) => (first_of(newest), EventId::default()),
            }
        };
        Reader {
            journal,
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
        if self.at.attempt == told.attempt && self.at.offset < told.text.len() {
            return Poll::Ready(self.next_piece(&told.text));
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
        told.readers.push(cx.waker().clone());
        Poll::Pending
    }

    fn next_kept(&mut self, told: &Told) -> Option<TaskEvent> {
        let mut kept = told.kept.iter();
        let (number, attempt, event) = kept.find(|(number, ..)| *number >= self.next_number)?;
        // What is told in the middle of a text comes after what stood before it, but for the text
        // of an attempt that is void.
        let is_behind = self.at.attempt == *attempt
            && *attempt == told.attempt
            && self.at.offset < told.text.len();
        if is_behind {
            return None;
        }
        self.next_number = number + 1;
        if *attempt > self.at.attempt {
            self.at = EventId {
                attempt: *attempt,
                offset: 0,
            };
            self.index = 0;
        }
        Some(event.clone())
    }

    fn next_piece(&mut self, text: &str) -> Read {
        let rest = &text[self.at.offset..];
        if self.caught_up && rest.len() > self.max_lag {
            let human = "This reader was too slow and is sent away: come back with Last-Event-ID";
            let narration = Narration {
                actor: "queen",
                action: "reader_too_slow",
                target: format!("{} bytes behind", rest.len()),
                human: human.into(),
            };
            return Read::TooSlow(self.at, TaskEvent::Narration(narration));
        }
        let end = floor_char_boundary(rest, MAX_PIECE);
        self.at.offset += end;
        let event = TaskEvent::Token {
            text: rest[..end].to_owned(),
            index: self.index,
        };
        self.index += 1;
        Read::Event(self.at, event)
    }
}

/// The last place up to `at` where a character begins.
pub(crate) fn floor_char_boundary(text: &str, at: usize) -> usize {
    let at = at.min(text.len());
    (0..=at)
        .rev()
        .find(|at| text.is_char_boundary(*at))
        .unwrap_or(0)
}

/// The events of a job that has ended, as far as its record tells them, after a place.
pub(crate) fn replay(job: &JobRecord, after: Option<EventId>) -> Vec<(EventId, TaskEvent)> {
    let attempt = job.attempt;
    let text = job.result.as_deref().unwrap_or_default();
    let start = after.filter(|after| after.attempt == attempt);
    let mut events = Vec::new();
    let mut at = EventId { attempt, offset: 0 };
    match start {
        Some(start) => at.offset = floor_char_boundary(text, start.offset),
        None => {
            if let (Some(placed), Some(started_at)) = (&job.placed, job.started_at) {
                let started = TaskEvent::Started {
                    model: job.model.clone(),
                    started_at,
                    worker: placed.worker.clone(),
                    attempt,
                };
                events.push((at, started));
            }
        }
    }
    let mut index = 0;
    while at.offset < text.len() {
        let rest = &text[at.offset..];
        let end = floor_char_boundary(rest, MAX_PIECE);
        at.offset += end;
        let text = rest[..end].to_owned();
        events.push((at, TaskEvent::Token { text, index }));
        index += 1;
    }
    events.push((at, ending(job)));
    events
}

/// How a job ended, as its record tells it.
fn ending(job: &JobRecord) -> TaskEvent {
    match (job.state, job.stop) {
        (JobState::Complete, stop) => TaskEvent::End {
            tokens_out: job.usage.map_or(0, |usage| usage.tokens_out),
            decode_time_ms: job.times.inference_ms,
            stop_reason: stop.unwrap_or(crate::domain::StopReason::Eos),
            stop_sequence_matched: None,
        },
        _ => {
            let code = job.error_code.as_deref().and_then(Code::parse);
            let message = job.error_message.clone().unwrap_or_default();
            TaskEvent::Error {
                job: job.id,
                error: Error::new(code.unwrap_or(Code::Internal), message),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{JobId, ModelRef, StopReason, UnixMillis, WorkerId};

    fn started(attempt: Attempt) -> TaskEvent {
        TaskEvent::Started {
            model: ModelRef::new("file:m").unwrap(),
            started_at: UnixMillis(0),
            worker: WorkerId::new("w").unwrap(),
            attempt,
        }
    }

    fn end() -> TaskEvent {
        TaskEvent::End {
            tokens_out: 1,
            decode_time_ms: 0,
            stop_reason: StopReason::Eos,
            stop_sequence_matched: None,
        }
    }

    fn journal() -> Arc<Journal> {
        Arc::new(Journal::new(Arc::new(TextBudget::new(1 << 20))))
    }

    /// All that a reader gets now, in short.
    fn read(reader: &mut Reader) -> Vec<String> {
        let mut cx = Context::from_waker(Waker::noop());
        let mut got = Vec::new();
        while let Poll::Ready(read) = reader.poll_read(&mut cx) {
            let (id, event) = match read {
                Read::Event(id, event) => (id, event),
                Read::TooSlow(id, _) => {
                    got.push(format!("{id} too slow"));
                    break;
                }
                Read::End => {
                    got.push("over".into());
                    break;
                }
                Read::Closed => {
                    got.push("closed".into());
                    break;
                }
            };
            got.push(match event {
                TaskEvent::Started { attempt, .. } => format!("{id} started {attempt}"),
                TaskEvent::Token { text, index } => format!("{id} {index} {text}"),
                TaskEvent::End { .. } => format!("{id} end"),
                TaskEvent::Error { .. } => format!("{id} error"),
                _ => format!("{id} note"),
            });
        }
        got
    }

    fn reader(journal: &Arc<Journal>, after: Option<&str>) -> Reader {
        let after = after.map(|text| text.parse().unwrap());
        Reader::new(journal.clone(), after, 16)
    }

    #[test]
    fn readers_get_the_same_text_whenever_they_come() {
        let journal = journal();
        let mut early = reader(&journal, None);
        journal.note(TaskEvent::Queued {
            position: 0,
            wait: None,
        });
        assert_eq!(read(&mut early), ["0.0 note"]);
        journal.begin(1, started(1));
        journal.add("Hé").unwrap();
        assert_eq!(read(&mut early), ["1.0 started 1", "1.3 0 Hé"]);
        journal.add("llo").unwrap();
        assert_eq!(read(&mut early), ["1.6 1 llo"]);
        let all = ["0.0 note", "1.0 started 1", "1.6 0 Héllo"];
        assert_eq!(read(&mut reader(&journal, None)), all);
        journal.end(vec![end()]);
        assert_eq!(read(&mut early), ["1.6 end", "over"]);
    }

    #[test]
    fn a_reader_goes_on_where_it_was_and_never_inside_a_character() {
        let journal = journal();
        journal.begin(1, started(1));
        journal.add("aéb").unwrap();
        assert_eq!(read(&mut reader(&journal, Some("1.1"))), ["1.4 0 éb"]);
        assert_eq!(read(&mut reader(&journal, Some("1.2"))), ["1.4 0 éb"]);
        assert!(read(&mut reader(&journal, Some("1.4"))).is_empty());
        assert!(read(&mut reader(&journal, Some("1.99"))).is_empty());
    }

    #[test]
    fn a_new_attempt_makes_earlier_text_void() {
        let journal = journal();
        journal.begin(1, started(1));
        journal.add("void").unwrap();
        let mut on = reader(&journal, None);
        assert_eq!(read(&mut on), ["1.0 started 1", "1.4 0 void"]);
        journal.begin(2, started(2));
        journal.add("new").unwrap();
        assert_eq!(read(&mut on), ["2.0 started 2", "2.3 0 new"]);
        let from_old = read(&mut reader(&journal, Some("1.2")));
        assert_eq!(from_old, ["2.0 started 2", "2.3 0 new"]);
        let from_start = read(&mut reader(&journal, None));
        assert_eq!(from_start, ["1.0 started 1", "2.0 started 2", "2.3 0 new"]);
    }

    #[test]
    fn a_reader_that_falls_behind_is_sent_away_and_a_late_one_is_not() {
        let journal = journal();
        journal.begin(1, started(1));
        let mut on = reader(&journal, None);
        read(&mut on);
        journal.add(&"x".repeat(17)).unwrap();
        assert_eq!(read(&mut on), ["1.0 too slow"]);
        let back = read(&mut reader(&journal, Some("1.0")));
        assert_eq!(back, [format!("1.17 0 {}", "x".repeat(17))]);
    }

    #[test]
    fn text_is_bounded_in_all_and_given_back() {
        let budget = Arc::new(TextBudget::new(10));
        let first = Journal::new(budget.clone());
        let second = Journal::new(budget.clone());
        first.add("123456").unwrap();
        assert_eq!(second.add("12345").unwrap_err().code, Code::NoCapacity);
        first.begin(2, started(2));
        second.add("12345").unwrap();
        drop(second);
        assert!(budget.take(10));
    }

    #[test]
    fn a_record_replays_as_the_events_were() {
        let mut job = crate::store::testing::ended_job();
        job.state = JobState::Complete;
        job.attempt = 3;
        job.result = Some("Once é".into());
        let shown = |after: Option<&str>| {
            let after = after.map(|text| text.parse().unwrap());
            let events = replay(&job, after).into_iter();
            let events = events.map(|(id, event)| match event {
                TaskEvent::Token { text, .. } => format!("{id} {text}"),
                TaskEvent::Started { .. } => format!("{id} started"),
                _ => format!("{id} end"),
            });
            events.collect::<Vec<_>>()
        };
        let all = ["3.0 started", "3.7 Once é", "3.7 end"];
        assert_eq!(shown(None), all);
        assert_eq!(shown(Some("2.5")), all);
        assert_eq!(shown(Some("3.5")), ["3.7 é", "3.7 end"]);
        assert_eq!(shown(Some("3.7")), ["3.7 end"]);
        let failed = crate::store::testing::ended_job();
        let events = replay(&failed, None);
        assert!(matches!(events.last(), Some((_, TaskEvent::Error { .. }))));
        assert_eq!(failed.id, JobId::parse(&failed.id.to_string()).unwrap());
    }
}
