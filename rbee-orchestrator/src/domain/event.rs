//! What a task tells while it runs: the typed form of the events of `POST /v2/tasks`.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Attempt, JobId, ModelRef, UnixMillis, WorkerId};
use crate::error::{Error, Result};

/// Why generation stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum StopReason {
    /// The model ended its answer.
    #[serde(rename = "EOS")]
    Eos,
    /// `max_tokens` was reached.
    #[serde(rename = "MAX_TOKENS")]
    MaxTokens,
    /// One of `stop` was generated.
    #[serde(rename = "STOP_SEQUENCE")]
    StopSequence,
}

impl StopReason {
    /// Every reason.
    pub const ALL: [StopReason; 3] = [
        StopReason::Eos,
        StopReason::MaxTokens,
        StopReason::StopSequence,
    ];

    /// The reason's name on the wire.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            StopReason::Eos => "EOS",
            StopReason::MaxTokens => "MAX_TOKENS",
            StopReason::StopSequence => "STOP_SEQUENCE",
        }
    }

    /// Reads a name.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|reason| reason.as_str() == text)
    }
}

/// A place in a task's events, `{attempt}.{offset}` on the wire: behind so many bytes of the
/// attempt's text, and, where there are three numbers, of what its model thought. Attempt 0 is before
/// the first dispatch.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct EventId {
    /// Which dispatch.
    pub attempt: Attempt,
    /// Bytes of text before it, in UTF-8.
    pub offset: usize,
    /// Bytes of thinking before it, in UTF-8.
    pub thinking: usize,
}

impl fmt::Display for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.attempt, self.offset)?;
        match self.thinking {
            0 => Ok(()),
            thinking => write!(f, ".{thinking}"),
        }
    }
}

impl FromStr for EventId {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self> {
        let read = || {
            let (attempt, places) = text.split_once('.')?;
            let (offset, thinking) = places.split_once('.').unwrap_or((places, "0"));
            Some(EventId {
                attempt: attempt.parse().ok()?,
                offset: offset.parse().ok()?,
                thinking: thinking.parse().ok()?,
            })
        };
        let id = read();
        id.ok_or_else(|| {
            let shown: String = text.chars().take(80).collect();
            Error::invalid(format!(
                "{shown:?} is no event id: send the last `id:` that the stream gave, or none"
            ))
        })
    }
}

/// Progress that a person can read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Narration {
    /// Who acts: `queen`, or a hive's name.
    pub actor: &'static str,
    /// What is done, in a word: `start_hive`, `spawn`, `load`, `queue`.
    pub action: &'static str,
    /// To what: a hive, a worker, a model.
    pub target: String,
    /// The sentence.
    pub human: String,
}

/// One event of a task. The order is `Queued`? → `Started` → `Token`* → one of `End` and `Error`,
/// with `Narration`, `Thinking` and `Metrics` between.
#[derive(Debug, Clone)]
pub enum TaskEvent {
    /// It waits.
    Queued {
        /// Jobs before it, counted from 0.
        position: usize,
        /// How long it will wait, by how long such jobs took lately; `None` while nothing is known.
        wait: Option<Duration>,
    },
    /// Something happens that it waits for.
    Narration(Narration),
    /// A worker has it.
    Started {
        /// The resolved model.
        model: ModelRef,
        /// When it was dispatched.
        started_at: UnixMillis,
        /// Where.
        worker: WorkerId,
        /// Which dispatch this is, from 1.
        attempt: Attempt,
    },
    /// A piece of the answer, never a part of a character.
    Token {
        /// The text.
        text: String,
        /// Counts from 0 without gaps.
        index: u64,
    },
    /// A piece of what the model thinks before it answers, where its worker tells that apart. No part
    /// of the answer.
    Thinking {
        /// The text.
        text: String,
    },
    /// How fast it goes.
    Metrics {
        /// Tokens generated per second so far.
        tokens_per_sec: f64,
        /// Memory that the worker takes, in bytes; 0 when unknown.
        vram_bytes: u64,
    },
    /// It is complete. Nothing follows.
    End {
        /// Tokens generated.
        tokens_out: u64,
        /// Time from the first token to the last, in milliseconds.
        decode_time_ms: u64,
        /// Why it stopped.
        stop_reason: StopReason,
        /// The stop sequence that was met, if the worker said so.
        stop_sequence_matched: Option<String>,
    },
    /// It ended without completing. Nothing follows.
    Error {
        /// The job.
        job: JobId,
        /// What went wrong.
        error: Error,
    },
}

impl TaskEvent {
    /// Whether nothing follows.
    #[must_use]
    pub fn is_terminal(&self) -> bool {
        matches!(self, TaskEvent::End { .. } | TaskEvent::Error { .. })
    }
}
