//! What clients write down of what they sent and saw: all that the checker believes, beside what
//! the API says at the end.

use crate::harness::Event;
use serde::Deserialize;
use serde_json::Value;
use std::ops::Range;

/// How a task was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Class {
    /// `Prefer: respond-async`
    Async,
    /// `"priority": "batch"`
    Batch,
    /// In the answer to its POST
    Stream,
}

impl Class {
    /// Whether it outlives its connection.
    pub(super) fn is_durable(self) -> bool {
        self != Class::Stream
    }
}

/// One task that a client wanted, however often it had to ask.
#[derive(Debug, Clone)]
pub(super) struct Wish {
    /// Its prompt and its correlation id, which no other has
    pub(super) name: String,
    pub(super) class: Class,
    pub(super) tenant: &'static str,
    pub(super) key: Option<String>,
    /// Words that the answer has
    pub(super) words: u64,
    /// The job ids that acknowledgements named
    pub(super) acks: Vec<Ack>,
    /// The states that cancelling was answered with; `None` for a 202
    pub(super) cancels: Vec<Option<String>>,
    /// Whether a call for cancelling it went out
    pub(super) tried_to_cancel: bool,
    /// When the answer to its POST was over, if that streamed, on the clock of [`crate::clock`]
    pub(super) over_ns: Option<u64>,
}

impl Wish {
    /// Whether it was open at a time of these, as far as its client knows.
    pub(super) fn was_open_in(&self, times: &[Range<u64>]) -> bool {
        let from = self.acks.first().map_or(0, |ack| ack.at_ns);
        let until = self.over_ns.unwrap_or(u64::MAX);
        times
            .iter()
            .any(|time| time.start <= until && from <= time.end)
    }
}

/// A 202.
#[derive(Debug, Clone)]
pub(super) struct Ack {
    pub(super) job_id: String,
    /// When it was read, on the clock of [`crate::clock`]
    pub(super) at_ns: u64,
}

/// One reader's view of a task's events, over all of its connections.
#[derive(Debug, Clone)]
pub(super) struct Reading {
    pub(super) job_id: String,
    /// The wish's name
    pub(super) name: String,
    /// Over `/events`, where it can be resumed, and not in the answer to the POST
    pub(super) followed: bool,
    pub(super) connections: Vec<Connection>,
}

/// What came over one connection.
#[derive(Debug, Clone)]
pub(super) struct Connection {
    /// The `Last-Event-ID` that it began with
    pub(super) after: Option<EventId>,
    pub(super) events: Vec<Seen>,
    pub(super) closed: Closed,
}

/// How a connection ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Closed {
    /// With `[DONE]`
    Whole,
    /// The queen died
    Broken,
    /// The reader left
    Left,
    /// With an answer that is none
    Wrong(String),
}

/// `{attempt}.{offset}`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct EventId {
    pub(super) attempt: u64,
    pub(super) offset: usize,
}

impl EventId {
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (attempt, offset) = text.split_once('.')?;
        Some(EventId {
            attempt: attempt.parse().ok()?,
            offset: offset.parse().ok()?,
        })
    }
}

impl std::fmt::Display for EventId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.attempt, self.offset)
    }
}

/// An event and the id it came under.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) id: Option<EventId>,
    pub(super) what: What,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum What {
    Started {
        attempt: u64,
    },
    Token {
        text: String,
        index: u64,
    },
    End {
        tokens_out: u64,
    },
    Error {
        code: String,
    },
    /// Nothing that the text or the ending depends on
    Other,
}

impl What {
    /// Reads an event; nothing for `[DONE]`.
    pub(super) fn read(event: &Event) -> Option<Self> {
        let json = match event {
            Event::Json(json) => json,
            Event::Comment(_) => return Some(What::Other),
            Event::Done => return None,
        };
        let number = |key: &str| json[key].as_u64().unwrap_or(u64::MAX);
        let text = |key: &str| json[key].as_str().unwrap_or_default().to_owned();
        Some(match json["type"].as_str().unwrap_or_default() {
            "started" => What::Started {
                attempt: number("attempt"),
            },
            "token" => What::Token {
                text: text("t"),
                index: number("i"),
            },
            "end" => What::End {
                tokens_out: number("tokens_out"),
            },
            "error" => What::Error { code: text("code") },
            _ => What::Other,
        })
    }

    pub(super) fn is_ending(&self) -> bool {
        matches!(self, What::End { .. } | What::Error { .. })
    }
}

/// A task as the API tells it.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Task {
    pub(super) job_id: String,
    pub(super) state: String,
    pub(super) model: String,
    pub(super) tenant_id: String,
    pub(super) idempotency_key: Option<String>,
    pub(super) correlation_id: String,
    pub(super) attempts: u64,
    pub(super) tokens_in: Option<u64>,
    pub(super) tokens_out: Option<u64>,
    pub(super) inference_ms: Option<u64>,
    pub(super) slot_ms: Option<u64>,
    pub(super) result: Option<String>,
    pub(super) error: Option<TaskError>,
}

/// What a task ended with.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct TaskError {
    pub(super) code: String,
}

impl Task {
    pub(super) fn read(json: &Value) -> anyhow::Result<Self> {
        use anyhow::Context;
        Task::deserialize(json).with_context(|| format!("a task: {json}"))
    }

    pub(super) fn is_ended(&self) -> bool {
        matches!(self.state.as_str(), "complete" | "failed" | "cancelled")
    }

    /// The code that it ended with, if any.
    pub(super) fn code(&self) -> &str {
        self.error.as_ref().map_or("", |error| &error.code)
    }
}

/// What a tenant used of a model.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct UsageRow {
    pub(super) tenant_id: String,
    pub(super) model: String,
    pub(super) jobs: u64,
    pub(super) tokens_in: u64,
    pub(super) tokens_out: u64,
    pub(super) inference_ms: u64,
    pub(super) slot_ms: u64,
}

/// Everything there is to judge by.
#[derive(Debug, Clone, Default)]
pub(super) struct Evidence {
    pub(super) wishes: Vec<Wish>,
    pub(super) readings: Vec<Reading>,
    /// What clients could not make sense of
    pub(super) complaints: Vec<String>,
    /// Every task of the clients' tenants, as it is in the end
    pub(super) tasks: Vec<Task>,
    pub(super) usage: Vec<UsageRow>,
    /// When the only worker was away
    pub(super) away_ns: Vec<Range<u64>>,
}
