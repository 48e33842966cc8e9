//! From a request to a job: what is recorded of it, what is kept of it, what the brain is told.

use std::borrow::Cow;
use std::time::Duration;

use sha2::{Digest as _, Sha256};

use super::Orchestrator;
use crate::brain::JobRequest;
use crate::budget::SMALL;
use crate::domain::{
    JobId, JobKind, JobRecord, ModelRef, RequestHash, RequestOptions, TaskInput, TaskRequest,
    UnixMillis,
};
use crate::error::{Error, Result};
use crate::relay::tokens::{self, Demand};
use crate::router::{Call, Payload};

const LONGEST_KEY: usize = 255;

/// A job that has not been taken in.
pub(super) struct Draft {
    pub(super) record: Box<JobRecord>,
    pub(super) call: Call,
    pub(super) request: Box<JobRequest>,
    /// What is kept of it, where that is wanted.
    pub(super) stored: Option<Vec<u8>>,
}

/// What a draft is made of.
pub(super) struct Wish {
    pub(super) kind: JobKind,
    pub(super) model: String,
    pub(super) options: RequestOptions,
    pub(super) openai_only: bool,
    pub(super) payload: Payload,
    pub(super) asynchronous: bool,
}

impl Orchestrator {
    /// Reads a wish into a job.
    ///
    /// # Errors
    /// `INVALID_REQUEST`.
    pub(super) fn draft(&self, wish: Wish) -> Result<Draft> {
        let driver = &self.driver;
        let Wish {
            kind,
            model,
            options,
            openai_only,
            payload,
            asynchronous,
        } = wish;
        driver.reach.check_model(&model)?;
        let timeouts = &driver.config.timeouts;
        let total_timeout = bounded(options.total_timeout, timeouts.total, timeouts.total_max)?;
        let flowing_timeout = match options.total_timeout {
            // What flows is ended by silence.
            None if payload.streams() => timeouts.total_max.max(total_timeout),
            _ => total_timeout,
        };
        if let Some(key) = &options.idempotency_key {
            check_key(key)?;
        }
        let (id, at) = (JobId::mint(), UnixMillis::now());
        let text = text_of(&payload)?;
        let bytes = text.len() as u64;
        let kept = asynchronous || driver.config.privacy.store_prompts;
        let stored = kept.then(|| text.into_owned());
        if asynchronous && let Some(stored) = &stored {
            read_back(stored)?;
        }
        let request_hash = match (&payload, &options.idempotency_key) {
            (Payload::Task(task), Some(_)) => Some(hash(task)?),
            _ => None,
        };
        let limits = &driver.config.limits;
        let correlation_id = options.correlation_id.unwrap_or_else(|| id.to_string());
        let demand = demand(&payload);
        let record = JobRecord {
            priority: options.priority,
            asynchronous,
            tenant: options.tenant.clone(),
            session: options.session.clone(),
            idempotency_key: options.idempotency_key,
            request_hash,
            owner: driver.owner,
            correlation_id: correlation_id.clone(),
            ..JobRecord::queued(id, kind, ModelRef::from_name(&model)?, at)
        };
        let call = Call {
            job: id,
            kind,
            payload,
            asynchronous,
            correlation_id,
            deadline: options.deadline,
            hops: options.hops,
            submitted_at: at,
            held: None,
            demand,
            answers: driver.answers.clone(),
            max_response_bytes: limits.max_response_bytes,
            max_event_bytes: limits.max_event_bytes.unwrap_or(limits.max_response_bytes),
        };
        let default_queue_timeout = match asynchronous {
            true => Duration::MAX,
            false => driver.config.queue.timeout,
        };
        let request = JobRequest {
            id,
            kind,
            model,
            constraints: options.constraints,
            openai_only,
            priority: options.priority,
            tenant: options.tenant,
            session: options.session,
            total_timeout,
            flowing_timeout,
            queue_timeout: options.queue_timeout.unwrap_or(default_queue_timeout),
            deadline: options.deadline,
            asynchronous,
            attempts: 0,
            failures: 0,
            submitted_at: at,
            not_before: None,
            bytes,
            tokens: demand.most(),
        };
        Ok(Draft {
            record: Box::new(record),
            call,
            request: Box::new(request),
            stored,
        })
    }

    /// Reads a task into a job.
    pub(super) fn draft_task(&self, task: TaskRequest, asynchronous: bool) -> Result<Draft> {
        let task = task.check()?;
        self.draft(Wish {
            kind: JobKind::Task,
            model: task.model.clone(),
            options: task.options.clone(),
            openai_only: matches!(task.input, TaskInput::Messages(_)),
            payload: Payload::Task(Box::new(task)),
            asynchronous,
        })
    }

    /// Counts what a task's request holds in memory, until the task ends.
    ///
    /// # Errors
    /// `OVERLOADED`.
    pub(super) fn hold(&self, draft: &mut Draft) -> Result<()> {
        let bytes = usize::try_from(draft.request.bytes).unwrap_or(usize::MAX);
        if bytes > SMALL {
            let bodies = &self.driver.bodies;
            let held = if draft.call.asynchronous {
                bodies.hold_for_later(bytes)
            } else {
                bodies.hold(bytes)
            };
            draft.call.held = Some(held.ok_or_else(|| bodies.is_full())?);
        }
        Ok(())
    }

    /// Reads what an earlier life kept back into a job.
    pub(super) fn draft_again(&self, record: &JobRecord, stored: &[u8]) -> Result<Draft> {
        let mut task = read_back(stored)?;
        // It was let in under the bound of its day.
        let most = self.driver.config.timeouts.total_max;
        task.options.total_timeout = task.options.total_timeout.map(|asked| asked.min(most));
        let mut draft = self.draft_task(task, true)?;
        let waited = UnixMillis::now().since(record.submitted_at);
        if record.attempt == 0 {
            let left = draft.request.queue_timeout.saturating_sub(waited);
            draft.request.queue_timeout = left;
        }
        draft.request.id = record.id;
        draft.request.attempts = record.attempt;
        draft.request.failures = record.failures;
        draft.request.submitted_at = record.submitted_at;
        draft.request.not_before = record.not_before;
        draft.call.job = record.id;
        draft.call.held = Some(self.driver.bodies.hold_anyway(stored.len()));
        draft.call.submitted_at = record.submitted_at;
        draft.call.correlation_id.clone_from(&record.correlation_id);
        Ok(draft)
    }
}

impl Draft {
    /// Whether it must be on disk before it is acknowledged.
    pub(super) fn is_durable(&self) -> bool {
        self.record.asynchronous || self.record.idempotency_key.is_some()
    }
}

/// What a request asks for, as it is kept where that is wanted.
fn text_of(payload: &Payload) -> Result<Cow<'_, [u8]>> {
    Ok(match payload {
        Payload::OpenAi { body, .. } => Cow::Borrowed(body.bytes()),
        Payload::Task(task) => Cow::Owned(written(task)?),
    })
}

/// Reads what is kept of a task. What can't be read back is not acknowledged: kept, it stands within another
/// value, and readers go only so deep.
fn read_back(stored: &[u8]) -> Result<TaskRequest> {
    serde_json::from_slice(stored).map_err(|error| {
        Error::invalid(format!(
            "the task could not be read back after a restart: {error}; send it with less nesting"
        ))
    })
}

/// Tells a task from others that are submitted under the same key. What is said of this attempt to
/// submit it, and not of the task, does not.
fn hash(task: &TaskRequest) -> Result<RequestHash> {
    let mut task = task.clone();
    task.options = RequestOptions {
        idempotency_key: None,
        correlation_id: None,
        deadline: None,
        total_timeout: None,
        queue_timeout: None,
        hops: 0,
        ..task.options
    };
    Ok(RequestHash(Sha256::digest(written(&task)?).into()))
}

fn written(task: &TaskRequest) -> Result<Vec<u8>> {
    serde_json::to_vec(task)
        .map_err(|error| Error::internal(format!("a task can't be written: {error}")))
}

/// How many tokens the request may use.
fn demand(payload: &Payload) -> Demand {
    match payload {
        Payload::OpenAi { body, .. } => body.demand,
        Payload::Task(task) => {
            let input = match &task.input {
                TaskInput::Prompt(prompt) => tokens::of_text(prompt.len() as u64),
                TaskInput::Messages(messages) => tokens::of_values(messages),
            };
            Demand::one(input, task.sampling.max_tokens.map(u64::from))
        }
    }
}

/// A time-out as asked for, if it is one that may be asked for.
fn bounded(asked: Option<Duration>, default: Duration, most: Duration) -> Result<Duration> {
    let timeout = asked.unwrap_or(default);
    if timeout.is_zero() {
        return Err(Error::invalid("timeout_ms must be at least 1").param("timeout_ms"));
    }
    if timeout > most {
        let message = format!("timeout_ms may be at most {}", most.as_millis());
        return Err(Error::invalid(message).param("timeout_ms"));
    }
    Ok(timeout)
}

fn check_key(key: &str) -> Result<()> {
    let fits = (1..=LONGEST_KEY).contains(&key.len()) && key.bytes().all(|b| b.is_ascii_graphic());
    if fits {
        return Ok(());
    }
    let message = format!(
        "idempotency_key must be 1 to {LONGEST_KEY} visible ASCII characters without blanks"
    );
    Err(Error::invalid(message).param("idempotency_key"))
}
