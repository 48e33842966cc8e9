//! A task as clients see it, written from its record without a copy of it: a list has hundreds.

use serde::ser::SerializeSeq;
use serde::{Serialize, Serializer};

use super::{Context, answer};
use crate::domain::{
    Attempt, HiveId, JobId, JobKind, JobPage, JobRecord, JobState, ModelRef, Priority, SessionId,
    StopReason, TenantId, UnixMillis, WorkerId,
};

/// What a task has in a list.
#[derive(Serialize)]
struct Listed<'a> {
    asynchronous: bool,
    attempts: Attempt,
    correlation_id: &'a str,
    ended_at: Option<UnixMillis>,
    error: Option<Failed<'a>>,
    hive_id: Option<&'a HiveId>,
    idempotency_key: Option<&'a str>,
    inference_ms: u64,
    job_id: JobId,
    kind: JobKind,
    model: &'a ModelRef,
    not_before: Option<UnixMillis>,
    placed_because: Option<&'a str>,
    priority: Priority,
    session_id: Option<&'a SessionId>,
    slot_ms: u64,
    started_at: Option<UnixMillis>,
    state: JobState,
    stop_reason: Option<StopReason>,
    submitted_at: UnixMillis,
    tenant_id: &'a TenantId,
    tokens_in: Option<u64>,
    tokens_out: Option<u64>,
    usage_estimated: Option<bool>,
    worker_id: Option<&'a WorkerId>,
}

/// What a task ended with.
#[derive(Serialize)]
struct Failed<'a> {
    code: &'a str,
    message: Option<&'a str>,
}

impl<'a> From<&'a JobRecord> for Listed<'a> {
    fn from(job: &'a JobRecord) -> Self {
        let placed = job.placed.as_ref();
        let error = job.error_code.as_deref().map(|code| Failed {
            code,
            message: job.error_message.as_deref(),
        });
        Listed {
            asynchronous: job.asynchronous,
            attempts: job.attempt,
            correlation_id: &job.correlation_id,
            ended_at: job.ended_at,
            error,
            hive_id: placed.and_then(|placed| placed.hive.as_ref()),
            idempotency_key: job.idempotency_key.as_deref(),
            inference_ms: job.times.inference_ms,
            job_id: job.id,
            kind: job.kind,
            model: &job.model,
            not_before: job.not_before,
            placed_because: placed.map(|placed| placed.why.as_str()),
            priority: job.priority,
            session_id: job.session.as_ref(),
            slot_ms: job.times.slot_ms,
            started_at: job.started_at,
            state: job.state,
            stop_reason: job.stop,
            submitted_at: job.submitted_at,
            tenant_id: &job.tenant,
            tokens_in: job.usage.map(|usage| usage.tokens_in),
            tokens_out: job.usage.map(|usage| usage.tokens_out),
            usage_estimated: job.usage.map(|usage| usage.estimated),
            worker_id: placed.map(|placed| &placed.worker),
        }
    }
}

/// A page of tasks, without their texts.
#[derive(Serialize)]
pub(super) struct List<'a> {
    next: Option<&'a str>,
    #[serde(serialize_with = "each")]
    tasks: &'a [JobRecord],
    #[serde(skip_serializing_if = "<[JobId]>::is_empty")]
    unreadable: &'a [JobId],
}

fn each<S: Serializer>(jobs: &[JobRecord], serializer: S) -> Result<S::Ok, S::Error> {
    let mut list = serializer.serialize_seq(Some(jobs.len()))?;
    for job in jobs {
        list.serialize_element(&Listed::from(job))?;
    }
    list.end()
}

impl<'a> From<&'a JobPage> for List<'a> {
    fn from(page: &'a JobPage) -> Self {
        List {
            next: page.next.as_deref(),
            tasks: &page.jobs,
            unreadable: &page.unreadable,
        }
    }
}

/// A task where it alone is asked for: with its text and what it waits for.
#[derive(Serialize)]
pub(super) struct Single<'a> {
    #[serde(flatten)]
    listed: Listed<'a>,
    estimated_wait_ms: Option<u64>,
    queue_position: Option<usize>,
    result: Option<&'a str>,
    thinking: Option<&'a str>,
    waits_for: Option<String>,
}

impl<'a> Single<'a> {
    pub(super) fn new(context: &Context<'_>, job: &'a JobRecord) -> Self {
        let place = context.orchestrator.queue_place(job.id);
        let wait = place.and_then(|place| place.wait);
        Single {
            listed: job.into(),
            estimated_wait_ms: wait.map(answer::millis),
            queue_position: place.map(|place| place.position),
            result: job.result.as_deref(),
            thinking: job.thinking.as_deref(),
            waits_for: context.orchestrator.waits_for(job.id),
        }
    }
}
