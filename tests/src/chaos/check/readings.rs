//! What each reader of a task's events saw.

use super::super::log::{
    Class, Closed, Connection, EventId, Evidence, Reading, Seen, Task, What, Wish,
};
use super::{Findings, Rule};
use crate::words;
use std::collections::HashMap;

pub(super) fn check(evidence: &Evidence, findings: &mut Findings) {
    let wishes = evidence.wishes.iter();
    let wishes: HashMap<&str, &Wish> = wishes.map(|wish| (wish.name.as_str(), wish)).collect();
    let tasks = evidence.tasks.iter();
    let tasks: HashMap<&str, &Task> = tasks.map(|task| (task.job_id.as_str(), task)).collect();
    for reading in &evidence.readings {
        let wish = wishes.get(reading.name.as_str());
        let Some(wish) = wish else {
            findings.hold(Rule::Sense, false, || format!("nobody wished {reading:?}"));
            continue;
        };
        let mut reader = Reader::new(reading, wish);
        for connection in &reading.connections {
            reader.connection(connection, findings);
        }
        reader.verdict(tasks.get(reading.job_id.as_str()).copied(), findings);
    }
}

/// Follows a reading, and knows what the reader has.
struct Reader<'e> {
    reading: &'e Reading,
    wish: &'e Wish,
    attempt: u64,
    text: String,
    /// The number of the next token on this connection, once it is known
    index: Option<u64>,
    ending: Option<(What, u64)>,
}

impl<'e> Reader<'e> {
    fn new(reading: &'e Reading, wish: &'e Wish) -> Self {
        Reader {
            reading,
            wish,
            attempt: 0,
            text: String::new(),
            index: None,
            ending: None,
        }
    }

    fn told(&self, what: impl std::fmt::Display) -> String {
        let (id, name) = (&self.reading.job_id, &self.reading.name);
        format!("a reader of {id} ({name}) {what}")
    }

    fn connection(&mut self, connection: &Connection, findings: &mut Findings) {
        if connection.after.is_none() {
            // From the beginning, as if nothing had been read.
            self.attempt = 0;
            self.text.clear();
        }
        self.index = None;
        let mut ended = false;
        for seen in &connection.events {
            findings.hold(Rule::Order, !ended, || {
                self.told(format!("got {seen:?} after the ending"))
            });
            ended |= seen.what.is_ending();
            self.event(seen, findings);
        }
        self.is_the_workers_text(findings);
        match &connection.closed {
            Closed::Whole => {
                findings.hold(Rule::OneEnding, ended, || {
                    self.told("got [DONE] without an ending")
                });
            }
            Closed::Wrong(what) => {
                findings.hold(Rule::Sense, false, || self.told(format!("got {what}")));
            }
            Closed::Broken | Closed::Left => {}
        }
    }

    fn event(&mut self, seen: &Seen, findings: &mut Findings) {
        match &seen.what {
            What::Started { attempt } => self.started(*attempt, findings),
            What::Token { text, index } => self.token(seen.id, text, *index, findings),
            What::End { tokens_out } => {
                findings.hold(Rule::RightText, *tokens_out == self.wish.words, || {
                    self.told(format!("was told of {tokens_out} tokens"))
                });
                self.ended(&seen.what, findings);
            }
            What::Error { .. } => self.ended(&seen.what, findings),
            What::Other => {}
        }
    }

    fn started(&mut self, attempt: u64, findings: &mut Findings) {
        findings.hold(Rule::Order, attempt > self.attempt, || {
            let before = self.attempt;
            self.told(format!("saw attempt {attempt} start after {before}"))
        });
        self.is_the_workers_text(findings);
        self.attempt = attempt;
        self.text.clear();
        self.index = Some(0);
    }

    /// Whether all text of this attempt is of one computation. Were an attempt's number given out
    /// twice, a reader who came back would get the one's end behind the other's beginning.
    fn is_the_workers_text(&self, findings: &mut Findings) {
        if self.text.is_empty() {
            return;
        }
        let whole = words::generation(&self.text)
            .map(|generation| words::text(&self.wish.name, generation, self.wish.words));
        let is_part = whole
            .as_ref()
            .is_some_and(|all| all.starts_with(&self.text));
        findings.hold(Rule::RightText, is_part, || {
            let attempt = self.attempt;
            self.told(format!(
                "read {:?} in attempt {attempt} and not {whole:?}",
                self.text
            ))
        });
    }

    fn token(&mut self, id: Option<EventId>, text: &str, index: u64, findings: &mut Findings) {
        let expected = self.index.unwrap_or(index);
        findings.hold(Rule::TextOnce, index == expected, || {
            self.told(format!("got token {index} in place of {expected}"))
        });
        self.index = Some(index + 1);
        let comes = EventId {
            attempt: self.attempt,
            offset: self.text.len() + text.len(),
        };
        if self.reading.followed {
            findings.hold(Rule::TextOnce, id == Some(comes), || {
                let id = id.map(|id| id.to_string());
                self.told(format!("got {text:?} as {id:?}, should be {comes}"))
            });
        }
        self.text += text;
    }

    fn ended(&mut self, ending: &What, findings: &mut Findings) {
        if let Some((before, attempt)) = &self.ending {
            let same = before == ending && *attempt == self.attempt;
            findings.hold(Rule::OneEnding, same, || {
                self.told(format!("saw {before:?} and then {ending:?}"))
            });
        }
        self.ending = Some((ending.clone(), self.attempt));
    }

    /// Holds all that was read against what the task is in the end.
    fn verdict(&self, task: Option<&Task>, findings: &mut Findings) {
        let Some(task) = task else {
            return; // either an interactive one, which may be missing, or told as lost already
        };
        if self.wish.class == Class::Stream && task.code() == "INTERRUPTED" {
            return; // what its client saw may not have been on the disk yet
        }
        findings.hold(Rule::OneEnding, self.attempt <= task.attempts, || {
            let (seen, had) = (self.attempt, task.attempts);
            self.told(format!("saw attempt {seen} of a task that had {had}"))
        });
        match &self.ending {
            Some((What::End { .. }, attempt)) => self.completed(task, *attempt, findings),
            Some((What::Error { code }, _)) => self.failed(task, code, findings),
            _ => {
                let left = self.reading.connections.last();
                let may_lack = !self.reading.followed
                    || left.is_some_and(|connection| connection.closed == Closed::Left);
                findings.hold(Rule::EverythingEnds, may_lack, || {
                    self.told("never saw it end")
                });
            }
        }
    }

    fn completed(&self, task: &Task, attempt: u64, findings: &mut Findings) {
        let stands = task.state == "complete" && task.attempts == attempt;
        findings.hold(Rule::OneEnding, stands, || {
            let (state, attempts) = (&task.state, task.attempts);
            self.told(format!(
                "saw attempt {attempt} end; now it is {state}, attempt {attempts}"
            ))
        });
        if stands {
            let result = task.result.as_deref();
            findings.hold(Rule::RightText, result == Some(&self.text), || {
                self.told(format!("read {:?}, the result is {result:?}", self.text))
            });
        }
    }

    fn failed(&self, task: &Task, code: &str, findings: &mut Findings) {
        let stands = match code {
            "CANCELLED" => task.state == "cancelled",
            _ => task.state == "failed" && task.code() == code,
        };
        findings.hold(Rule::OneEnding, stands, || {
            let (state, now) = (&task.state, task.code());
            self.told(format!("saw {code}; now it is {state} {now}"))
        });
    }
}
