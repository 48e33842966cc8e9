//! A job: one request from its admission to its one ending.

use serde::{Deserialize, Serialize};

use super::{HiveId, JobId, ModelRef, SessionId, StopReason, TenantId, UnixMillis, WorkerId};
use crate::error::Error;

/// Which endpoint a job came through.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JobKind {
    /// `/v2/tasks`.
    Task,
    /// `/v1/chat/completions`.
    Chat,
    /// `/v1/completions`.
    Completion,
    /// `/v1/embeddings`.
    Embedding,
}

/// Queue class.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum Priority {
    /// Somebody waits for it.
    #[default]
    Interactive,
    /// Nobody waits; it runs when there is room.
    Batch,
}

/// Where a job may run.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(default)]
pub struct Constraints {
    /// Only on this hive.
    pub hive: Option<HiveId>,
    /// Only on devices of this kind.
    pub backend: Option<String>,
    /// Only on the device with this number.
    pub device: Option<u32>,
}

/// Counts the dispatches of a job, from 1; a fencing token: what an older attempt reports is void.
pub type Attempt = u32;

/// Where an attempt runs and why it was put there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlacedOn {
    /// The worker.
    pub worker: WorkerId,
    /// Its hive, unless none owns it.
    pub hive: Option<HiveId>,
    /// The model that it serves: what the job's name for a model turned out to mean.
    pub model: ModelRef,
    /// The scheduler's reason, in words.
    pub why: String,
}

/// What a job used.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Tokens of the prompt.
    pub tokens_in: u64,
    /// Tokens generated.
    pub tokens_out: u64,
    /// Whether the counts are the queen's own estimate, since the worker gave none.
    pub estimated: bool,
}

/// How long a job kept what it ran on, over all its attempts but those that a crash cut off.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Times {
    /// From each dispatch's first token to its end, in milliseconds.
    pub inference_ms: u64,
    /// A slot was taken, in milliseconds.
    pub slot_ms: u64,
}

/// A digest of what a job asks for (SHA-256): tells two requests apart without keeping either.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct RequestHash(pub [u8; 32]);

/// A job's state on the wire and in the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum JobState {
    /// Waits for a worker.
    Queued,
    /// A worker has it.
    Running,
    /// Ended well.
    Complete,
    /// Ended with an error.
    Failed,
    /// Ended because nobody wanted it any more.
    Cancelled,
}

impl JobState {
    /// Every state, in the order a job can meet them.
    pub const ALL: [JobState; 5] = [
        JobState::Queued,
        JobState::Running,
        JobState::Complete,
        JobState::Failed,
        JobState::Cancelled,
    ];

    /// The state's name on the wire.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            JobState::Queued => "queued",
            JobState::Running => "running",
            JobState::Complete => "complete",
            JobState::Failed => "failed",
            JobState::Cancelled => "cancelled",
        }
    }

    /// Reads a name.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.as_str() == text)
    }

    /// Whether nothing can follow.
    #[must_use]
    pub fn is_ended(self) -> bool {
        !matches!(self, JobState::Queued | JobState::Running)
    }
}

/// How a job ended.
#[derive(Debug, Clone)]
pub enum Outcome {
    /// With a whole answer.
    Complete,
    /// With an error.
    Failed(Error),
    /// Given up: by its client, or by somebody's call.
    Cancelled(Error),
}

impl Outcome {
    /// The state that a job with this outcome is in.
    #[must_use]
    pub fn state(&self) -> JobState {
        match self {
            Outcome::Complete => JobState::Complete,
            Outcome::Failed(_) => JobState::Failed,
            Outcome::Cancelled(_) => JobState::Cancelled,
        }
    }

    /// What went wrong, unless nothing did.
    #[must_use]
    pub fn error(&self) -> Option<&Error> {
        match self {
            Outcome::Complete => None,
            Outcome::Failed(error) | Outcome::Cancelled(error) => Some(error),
        }
    }
}

/// A job's one ending.
#[derive(Debug, Clone)]
pub struct Ending {
    /// How it ended.
    pub outcome: Outcome,
    /// What it used; `None` if it never ran.
    pub usage: Option<Usage>,
    /// How long it kept what it ran on.
    pub times: Times,
    /// The text, where it is kept (tasks; not OpenAI requests).
    pub result: Option<String>,
    /// What the model thought before it, where its worker told that apart.
    pub thinking: Option<String>,
    /// Why generation stopped, for complete tasks.
    pub stop: Option<StopReason>,
    /// When.
    pub at: UnixMillis,
}

impl Ending {
    /// An ending that says how and when, and nothing of what was used or made.
    #[must_use]
    pub fn new(outcome: Outcome, at: UnixMillis) -> Self {
        Ending {
            outcome,
            usage: None,
            times: Times::default(),
            result: None,
            thinking: None,
            stop: None,
            at,
        }
    }
}

/// Everything that is stored about a job.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct JobRecord {
    /// Its identity, which sorts by submission.
    pub id: JobId,
    /// Which endpoint it came through.
    pub kind: JobKind,
    /// The resolved model; until the first dispatch, what its name most likely means.
    pub model: ModelRef,
    /// Queue class.
    pub priority: Priority,
    /// Whether it outlives the connection that submitted it.
    pub asynchronous: bool,
    /// Who it is for.
    pub tenant: TenantId,
    /// The conversation it belongs to.
    pub session: Option<SessionId>,
    /// The key under which a repeated submission finds it.
    pub idempotency_key: Option<String>,
    /// Digest of what it asks for, where a key may ask whether it is the same.
    pub request_hash: Option<RequestHash>,
    /// Random id of the queen's process that holds it.
    pub owner: uuid::Uuid,
    /// Its state.
    pub state: JobState,
    /// Dispatches so far.
    pub attempt: Attempt,
    /// Those of them that failed by their workers' fault.
    pub failures: u32,
    /// Where the newest attempt ran.
    pub placed: Option<PlacedOn>,
    /// When it was submitted.
    pub submitted_at: UnixMillis,
    /// When the newest attempt was dispatched.
    pub started_at: Option<UnixMillis>,
    /// When it may be dispatched again, after a failed attempt.
    pub not_before: Option<UnixMillis>,
    /// When it ended.
    pub ended_at: Option<UnixMillis>,
    /// What it used.
    pub usage: Option<Usage>,
    /// How long it kept what it ran on.
    pub times: Times,
    /// Why generation stopped, for complete tasks.
    pub stop: Option<StopReason>,
    /// Code of the error it ended with.
    pub error_code: Option<String>,
    /// Message of the error it ended with.
    pub error_message: Option<String>,
    /// Its text when complete, where it is kept.
    pub result: Option<String>,
    /// What its model thought before it; only with a text.
    pub thinking: Option<String>,
    /// The id that ties it to log lines.
    pub correlation_id: String,
}

impl JobRecord {
    /// A job that was just submitted: interactive, for the tenant of those who name none, and with
    /// nothing that may be left out.
    #[must_use]
    pub fn queued(id: JobId, kind: JobKind, model: ModelRef, at: UnixMillis) -> Self {
        JobRecord {
            id,
            kind,
            model,
            priority: Priority::Interactive,
            asynchronous: false,
            tenant: TenantId::default(),
            session: None,
            idempotency_key: None,
            request_hash: None,
            owner: uuid::Uuid::nil(),
            state: JobState::Queued,
            attempt: 0,
            failures: 0,
            placed: None,
            submitted_at: at,
            started_at: None,
            not_before: None,
            ended_at: None,
            usage: None,
            times: Times::default(),
            stop: None,
            error_code: None,
            error_message: None,
            result: None,
            thinking: None,
            correlation_id: String::new(),
        }
    }

    /// Notes a dispatch. Says whether it counted: only a queued job is dispatched, by its next
    /// attempt.
    pub fn claim(&mut self, attempt: Attempt, placed: PlacedOn, at: UnixMillis) -> bool {
        let wins = self.state == JobState::Queued && attempt == self.attempt + 1;
        if wins {
            self.state = JobState::Running;
            self.attempt = attempt;
            self.model = placed.model.clone();
            self.placed = Some(placed);
            self.not_before = None;
            self.started_at = Some(at);
        }
        wins
    }

    /// Notes that its running attempt is void and that it waits again, not to be dispatched before
    /// then. Says whether it counted: only the newest attempt of a running job is given up.
    pub fn requeue(
        &mut self,
        attempt: Attempt,
        failed: bool,
        not_before: Option<UnixMillis>,
    ) -> bool {
        let wins = self.state == JobState::Running && attempt == self.attempt;
        if wins {
            self.state = JobState::Queued;
            self.failures += u32::from(failed);
            self.not_before = not_before;
        }
        wins
    }

    /// Notes the ending. Says whether it counted: only the first ending does, and only from the
    /// newest attempt.
    pub fn finish(&mut self, attempt: Attempt, ending: Ending) -> bool {
        let wins = !self.state.is_ended() && attempt == self.attempt;
        if wins {
            self.state = ending.outcome.state();
            self.ended_at = Some(ending.at);
            self.usage = ending.usage;
            self.times = ending.times;
            self.stop = ending.stop;
            self.not_before = None;
            self.result = ending.result;
            self.thinking = ending.thinking;
            if let Some(error) = ending.outcome.error() {
                self.error_code = Some(error.code.as_str().to_owned());
                self.error_message = Some(error.kept().to_owned());
            }
        }
        wins
    }
}

/// What lists have of a job's error, in characters.
pub const LISTED_ERROR_CHARS: usize = 300;

/// Which jobs to list; an absent field matches all.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct JobFilter {
    /// In this state.
    pub state: Option<JobState>,
    /// Of this model.
    pub model: Option<ModelRef>,
    /// Of this tenant.
    pub tenant: Option<TenantId>,
}

/// A page of jobs, newest first: without their results, and with no more than the beginning of their errors.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct JobPage {
    /// The jobs.
    pub jobs: Vec<JobRecord>,
    /// Where the next page begins; `None` on the last.
    pub next: Option<String>,
    /// Jobs that belong here and can't be read, with the reason in the log.
    pub unreadable: Vec<JobId>,
}
