//! Submitting, reading, listing and cancelling jobs.

use std::sync::Arc;

use bytes::Bytes;

use super::submission::{Draft, Wish};
use super::{Orchestrator, RawReply, TaskStream};
use crate::brain::{Counters, Event, QueuePlace};
use crate::domain::{
    JobFilter, JobId, JobKind, JobPage, JobRecord, ModelRef, RequestOptions, TaskRequest,
};
use crate::error::{Code, Error, Result};
use crate::killpoint;
use crate::relay::openai::{Input, RequestBody};
use crate::router::{Flow, Payload};
use crate::store::{Submission, Submitted};

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
    /// Submits a task that belongs to its caller. Its events come from the returned stream.
    ///
    /// With an idempotency key that the tenant has used for the same task, the stream is that first
    /// task's, which dropping it does not cancel.
    ///
    /// # Errors
    /// Why it is refused, where that is known at once: `INVALID_REQUEST`, `FORBIDDEN`,
    /// `MODEL_NOT_FOUND`, `QUOTA_EXCEEDED`, `RATE_LIMITED`, `SYSTEM_AT_CAPACITY`, `SHUTTING_DOWN`,
    /// …; `CONFLICT` when the idempotency key belongs to another task.
    pub async fn submit(&self, task: TaskRequest) -> Result<TaskStream> {
        let mut draft = self.draft_task(task, false)?;
        self.hold(&mut draft)?;
        if !draft.is_durable() {
            let flow = self.take_in(draft).await?;
            return Ok(TaskStream::new(flow, self.driver.clone()));
        }
        match self.take_in_durably(draft).await? {
            Taken::Attended(stream) => Ok(stream),
            Taken::Repeated(first) => {
                let events = self.events(first.id, None).await?;
                Ok(TaskStream::following(first.id, events))
            }
            Taken::Stored => Err(Error::internal("an interactive task ran unattended")),
        }
    }

    /// Submits a task that outlives its caller, and the queen: it is on disk when this returns.
    /// [`Orchestrator::events`] follows it. Goes on to its end when it is dropped.
    ///
    /// With an idempotency key that the tenant has used for the same task, the answer is that first
    /// task as it is now.
    ///
    /// # Errors
    /// Those of [`Orchestrator::submit`], and `STORE_FAILED`.
    pub async fn enqueue(&self, task: TaskRequest) -> Result<JobRecord> {
        let mut draft = self.draft_task(task, true)?;
        self.hold(&mut draft)?;
        let record = (*draft.record).clone();
        match self.take_in_durably(draft).await? {
            Taken::Stored | Taken::Attended(_) => Ok(record),
            Taken::Repeated(first) => Ok(*first),
        }
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
            mut options,
        } = request;
        // A key would find a job whose answer was not kept.
        options.idempotency_key = None;
        let draft = self.draft(Wish {
            kind,
            model: body.model.clone(),
            options,
            openai_only: kind != JobKind::Completion,
            payload: Payload::OpenAi { body, as_task },
            asynchronous: false,
        })?;
        let flow = self.take_in(draft).await?;
        Ok(RawReply::new(flow, self.driver.clone()))
    }

    /// Takes a job in that belongs to a connection: its record does not wait for the disk.
    async fn take_in(&self, draft: Draft) -> Result<Arc<Flow>> {
        let driver = &self.driver;
        driver.store.ready().await?;
        let flow = driver.new_flow(draft.call);
        driver.submit(&flow, draft.request, draft.record, draft.stored)?;
        match flow.refusal() {
            Some(error) => Err(error),
            None => Ok(flow),
        }
    }

    /// Takes a job in that is to be on disk before anybody is told of it. Once begun it goes on to
    /// its end: a key must not find a job that nobody runs.
    async fn take_in_durably(&self, draft: Draft) -> Result<Taken> {
        let this = self.clone();
        self.to_its_end(async move { this.store_and_confirm(draft).await })
            .await
    }

    async fn store_and_confirm(&self, draft: Draft) -> Result<Taken> {
        let driver = &self.driver;
        let record = &draft.record;
        let _alone = match &record.idempotency_key {
            Some(key) => Some(driver.lock_key(&record.tenant, key).await),
            None => None,
        };
        if let Some(first) = self.first_with_key(&draft).await? {
            return Ok(Taken::Repeated(first));
        }
        let id = draft.record.id;
        let asynchronous = draft.record.asynchronous;
        let key_lives = driver.config.retention.idempotency_keys;
        let submission = Submission {
            key_expires_at: draft.record.submitted_at + key_lives,
            record: *draft.record,
            request: draft.stored,
        };
        let flow = driver.new_flow(draft.call);
        driver.admit(flow.clone(), draft.request)?;
        let submitted = driver.store.submit(submission).await;
        if !matches!(submitted, Ok(Submitted::New)) {
            driver.withdraw(id);
        }
        match submitted? {
            Submitted::New => {
                killpoint::pass("submit-inserted");
                // Before it can run: a caller who has gone takes it along.
                let taken = match asynchronous {
                    true => {
                        driver.run_unattended(flow);
                        Taken::Stored
                    }
                    false => Taken::Attended(TaskStream::new(flow, driver.clone())),
                };
                driver.feed(Event::Confirm(id));
                Ok(taken)
            }
            Submitted::Repeated(first) => Ok(Taken::Repeated(first)),
            Submitted::OtherRequest(first) => Err(key_is_taken(first)),
        }
    }

    /// The job that a draft repeats. Looked up first, so that no limit refuses a repetition.
    async fn first_with_key(&self, draft: &Draft) -> Result<Option<Box<JobRecord>>> {
        let record = &draft.record;
        let Some(key) = &record.idempotency_key else {
            return Ok(None);
        };
        let store = &self.driver.store;
        let first = store
            .submission(&record.tenant, key, record.submitted_at)
            .await?;
        match first {
            Some(first) if first.request_hash != record.request_hash => Err(key_is_taken(first.id)),
            first => Ok(first.map(Box::new)),
        }
    }

    /// How often what happened since the start: retries, refused reports of older attempts, ….
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.driver.look(|brain, _| brain.counters())
    }

    /// Where a job stands in the queue, if it waits.
    #[must_use]
    pub fn queue_place(&self, job: JobId) -> Option<QueuePlace> {
        self.driver.look(|brain, _| brain.queue_place(job))
    }

    /// What a job waits for, in words, where it is more than a free slot: a machine that starts, a
    /// model that loads, or why there is no place for it now.
    #[must_use]
    pub fn waits_for(&self, job: JobId) -> Option<String> {
        self.driver
            .look(|brain, _| brain.waits_for(job).map(str::to_owned))
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
    /// closed. A job that has ended stays as it is. Returns the job as it was found.
    ///
    /// # Errors
    /// `TASK_NOT_FOUND`, `STORE_FAILED`.
    pub async fn cancel(&self, job: JobId) -> Result<JobRecord> {
        let record = self.task(job).await?;
        if !record.state.is_ended() {
            let error = Error::new(Code::Cancelled, "the task was cancelled");
            self.driver.feed(Event::Cancel { job, error });
        }
        Ok(record)
    }
}

/// What came of taking a job in durably.
enum Taken {
    /// It is on disk and goes on by itself.
    Stored,
    /// It is on disk and belongs to whoever holds this.
    Attended(TaskStream),
    /// It was submitted before.
    Repeated(Box<JobRecord>),
}

fn key_is_taken(first: JobId) -> Error {
    let message = format!(
        "an idempotency key is used once: this one belongs to task {first}, which asks for something \
         else; take a new key for each request"
    );
    Error::new(Code::Conflict, message)
        .param("idempotency_key")
        .detail("job_id", first.to_string())
}
