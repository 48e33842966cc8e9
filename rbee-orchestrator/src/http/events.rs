//! A task's events on the wire.

use bytes::Bytes;
use serde::Serialize;

use super::answer;
use crate::domain::{
    Attempt, EventId, JobId, ModelRef, StopReason, TaskEvent, UnixMillis, WorkerId,
};
use crate::relay::sse;

#[derive(Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum WireEvent<'a> {
    Queued {
        job_id: JobId,
        position: usize,
        #[serde(skip_serializing_if = "Option::is_none")]
        estimated_wait_ms: Option<u64>,
    },
    Narration {
        actor: &'a str,
        action: &'a str,
        target: &'a str,
        human: &'a str,
        job_id: JobId,
    },
    Started {
        job_id: JobId,
        model: &'a ModelRef,
        started_at: UnixMillis,
        worker_id: &'a WorkerId,
        attempt: Attempt,
    },
    Token {
        t: &'a str,
        i: u64,
    },
    Thinking {
        t: &'a str,
    },
    Metrics {
        tokens_per_sec: f64,
        vram_bytes: u64,
    },
    End {
        tokens_out: u64,
        decode_time_ms: u64,
        stop_reason: StopReason,
        stop_sequence_matched: Option<&'a str>,
    },
    Error {
        code: &'a str,
        message: &'a str,
        #[serde(skip_serializing_if = "Option::is_none")]
        retry_after_ms: Option<u64>,
    },
}

fn json(job_id: JobId, event: &TaskEvent) -> Vec<u8> {
    let wire = match event {
        TaskEvent::Queued { position, wait } => WireEvent::Queued {
            job_id,
            position: *position,
            estimated_wait_ms: wait.map(answer::millis),
        },
        TaskEvent::Narration(told) => WireEvent::Narration {
            actor: told.actor,
            action: told.action,
            target: &told.target,
            human: &told.human,
            job_id,
        },
        TaskEvent::Started {
            model,
            started_at,
            worker,
            attempt,
        } => WireEvent::Started {
            job_id,
            model,
            started_at: *started_at,
            worker_id: worker,
            attempt: *attempt,
        },
        TaskEvent::Token { text, index } => WireEvent::Token { t: text, i: *index },
        TaskEvent::Thinking { text } => WireEvent::Thinking { t: text },
        TaskEvent::Metrics {
            tokens_per_sec,
            vram_bytes,
        } => WireEvent::Metrics {
            tokens_per_sec: (tokens_per_sec * 10.0).round() / 10.0,
            vram_bytes: *vram_bytes,
        },
        TaskEvent::End {
            tokens_out,
            decode_time_ms,
            stop_reason,
            stop_sequence_matched,
        } => WireEvent::End {
            tokens_out: *tokens_out,
            decode_time_ms: *decode_time_ms,
            stop_reason: *stop_reason,
            stop_sequence_matched: stop_sequence_matched.as_deref(),
        },
        TaskEvent::Error { error, .. } => WireEvent::Error {
            code: error.code.as_str(),
            message: &error.message,
            retry_after_ms: error.retry_after.map(answer::millis),
        },
    };
    serde_json::to_vec(&wire).expect("an event is plain data")
}

/// One event as a server-sent event.
pub(super) fn encode(job_id: JobId, event: &TaskEvent) -> Bytes {
    sse::encode(&json(job_id, event))
}

/// The same with its id, for those who may come back to it.
pub(super) fn encode_with_id(job_id: JobId, id: EventId, event: &TaskEvent) -> Bytes {
    let mut out = format!("id: {id}\n").into_bytes();
    out.extend_from_slice(&encode(job_id, event));
    out.into()
}
