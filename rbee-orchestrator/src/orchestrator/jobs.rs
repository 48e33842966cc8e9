//! Submitting, reading and listing jobs.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::{Orchestrator, RawReply, TaskStream};
use crate::brain::{Event, JobRequest};
use crate::domain::{
    JobFilter, JobId, JobKind, JobPage, JobRecord, JobState, ModelRef, RequestOptions, TaskInput,
    TaskRequest, Times, UnixMillis,
};
use crate::error::{Code, Error, Result};
use crate::relay::openai::{Input, RequestBody};
use crate::router::{Call, Flow, Payload};
use crate::store::JobChange;

/// An OpenAI request: its body as received, read only as far as it must be.
#[derive(Debug)]
pub struct OpenAiRequest {
    kind: JobKind,
    body: RequestBody,
    as_task: Option<Box<TaskRequest>>,
    /// What the headers say.
    pub options: RequestOptions,
}

impl OpenAiRequest {
    /// Reads the body of `POST /v1/chat/completions`, `/v1/completions` or `/v1/embeddings`.
    ///
    /// # Errors
    /// `INVALID_REQUEST`, naming the field.
    pub fn read(kind: JobKind, body: Bytes, options: RequestOptions) -> Result<Self> {
        let input = match kind {
            JobKind::Chat => Input::Messages,
            JobKind::Embedding => Input::Texts,
            JobKind::Completion | JobKind::Task => Input::Prompt,
        };
        let body = RequestBody::read(body, input)?;
        let as_task = match kind {
            JobKind::Completion => crate::relay::translate::completion_as_task(&body),
            _ => None,
        };
        Ok(OpenAiRequest {
            kind,
            body,
            as_task: as_task.map(Box::new),
            options,
        })
    }

    /// Whether the answer is to come as a stream.
    #[must_use]
    pub fn streams(&self) -> bool {
        self.body.stream
    }
}

impl Orchestrator {
    /// Submits a task. Its events come from the returned stream.
    ///
    /// # Errors
    /// Why it is refused, where that is known at once: `INVALID_REQUEST`, `MODEL_NOT_FOUND`,
    /// `SYSTEM_AT_CAPACITY`, `SHUTTING_DOWN`, ….
    pub async fn submit(&self, task: TaskRequest) -> Result<TaskStream> {
        let task = task.check()?;
        let openai_only = matches!(task.input, TaskInput::Messages(_));
        let (model, options) = (task.model.clone(), task.options.clone());
        let payload = Payload::Task(Box::new(task));
        let flow = self
            .start(JobKind::Task, model, options, openai_only, payload)
            .await?;
        Ok(TaskStream::new(flow, self.driver.clone()))
    }

    /// Submits an OpenAI request; its bytes go through to a worker.
    ///
    /// # Errors
    /// Those of [`Orchestrator::submit`].
    pub async fn submit_raw(&self, request: OpenAiRequest) -> Result<RawReply> {
        let OpenAiRequest {
            kind,
            body,
            as_task,
            options,
        } = request;
        let openai_only = kind != JobKind::Completion;
        let model = body.model.clone();
        let payload = Payload::OpenAi { body, as_task };
        let flow = self
            .start(kind, model, options, openai_only, payload)
            .await?;
        Ok(RawReply::new(flow, self.driver.clone()))
    }

    async fn start(
        &self,
        kind: JobKind,
        model: String,
        options: RequestOptions,
        openai_only: bool,
        payload: Payload,
    ) -> Result<Arc<Flow>> {
        let driver = &self.driver;
        let timeouts = &driver.config.timeouts;
        let total_timeout = bounded(options.total_timeout, timeouts.total, timeouts.total_max)?;
        driver.store.ready().await?;
        let (id, at) = (JobId::mint(), UnixMillis::now());
        let correlation_id = options.correlation_id.unwrap_or_else(|| id.to_string());
        let record = JobRecord {
            id,
            kind,
            model: ModelRef::from_name(&model)?,
            priority: options.priority,
            tenant: options.tenant.clone(),
            session: options.session.clone(),
            asynchronous: false,
            idempotency_key: None,
            request_hash: None,
            owner: driver.owner,
            state: JobState::Queued,
            attempt: 0,
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
            correlation_id: correlation_id.clone(),
        };
        driver.store.record(JobChange::Submitted {
            record: Box::new(record),
            request: None,
        });
        let call = Call {
            job: id,
            kind,
            payload,
            correlation_id,
            deadline: options.deadline,
            submitted_at: at,
            hive_authorization: Some(self.hive_authorization.clone()),
            max_response_bytes: driver.config.limits.max_response_bytes,
            max_event_bytes: driver.config.limits.max_event_bytes,
        };
        let flow = Arc::new(Flow::new(call, driver.pool.clone()));
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
            queue_timeout: options.queue_timeout.unwrap_or(driver.config.queue.timeout),
            deadline: options.deadline,
            asynchronous: false,
            attempts: 0,
            submitted_at: at,
            not_before: None,
            bytes: 0,
            tokens: 0,
        };
        driver.take_in(flow.clone(), Event::Submit(Box::new(request)));
        match flow.refusal() {
            Some(error) => Err(error),
            None => Ok(flow),
        }
    }

    /// The model that a name means now.
    ///
    /// # Errors
    /// `INVALID_REQUEST` for a name that no model may have.
    pub fn resolve(&self, name: &str) -> Result<ModelRef> {
        self.driver.look(|brain, _| brain.resolve(name))
    }

    /// One job as recorded.
    ///
    /// # Errors
    /// `TASK_NOT_FOUND`, `STORE_FAILED`.
    pub async fn task(&self, id: JobId) -> Result<JobRecord> {
        let unknown = || Error::new(Code::TaskNotFound, format!("there is no task {id}"));
        self.driver.store.job(id).await?.ok_or_else(unknown)
    }

    /// Jobs, newest first, at most `limit`, going on after the cursor of the page before.
    ///
    /// # Errors
    /// `INVALID_REQUEST` for a cursor that is none, `STORE_FAILED`.
    pub async fn tasks(
        &self,
        filter: &JobFilter,
        limit: usize,
        after: Option<&str>,
    ) -> Result<JobPage> {
        self.driver.store.jobs(filter, limit, after).await
    }

    /// Ends a job: one that waits at once, one that runs as soon as its worker's connection is
    /// closed. A job that has ended stays as it is.
    pub fn cancel(&self, job: JobId) {
        let error = Error::new(Code::Cancelled, "the task was cancelled");
        self.driver.feed(Event::Cancel { job, error });
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
