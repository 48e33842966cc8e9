//! What a client asked for, and how a worker is asked for it.

use bytes::Bytes;

use crate::budget::Budget;
use crate::budget::Held;
use crate::domain::{JobId, JobKind, TaskRequest, UnixMillis, WorkerProtocol, WorkerSpec};
use crate::error::{Error, Result};
use crate::relay::openai::RequestBody;
use crate::relay::pool::authorize;
use crate::relay::rbee;
use crate::relay::tokens::Demand;
use crate::relay::translate::openai_request;

/// A head with all that may stand in it, as a rule.
const HEAD_BYTES: usize = 340;

/// A body up to this size goes out in one write with its head.
const ONE_WRITE_BYTES: usize = 32 << 10;

/// What the client sent.
#[derive(Debug)]
pub(crate) enum Payload {
    /// Read into types.
    Task(Box<TaskRequest>),
    /// Kept as bytes; the task is the same in types, where a worker might need it.
    OpenAi {
        body: RequestBody,
        as_task: Option<Box<TaskRequest>>,
    },
}

/// A request, with all that its calls to workers need.
#[derive(Debug)]
pub(crate) struct Call {
    pub(crate) job: JobId,
    pub(crate) kind: JobKind,
    pub(crate) payload: Payload,
    /// Whether nobody's connection carries it.
    pub(crate) asynchronous: bool,
    pub(crate) correlation_id: String,
    pub(crate) deadline: Option<UnixMillis>,
    /// Queens that have passed it on before this one.
    pub(crate) hops: u32,
    pub(crate) submitted_at: UnixMillis,
    /// What it takes of the memory that all requests may hold.
    pub(crate) held: Option<Held>,
    /// What the worker may count.
    pub(crate) demand: Demand,
    /// What all whole answers may hold.
    pub(crate) answers: Budget,
    pub(crate) max_response_bytes: usize,
    pub(crate) max_event_bytes: usize,
}

impl Payload {
    /// Whether the worker is to answer in pieces.
    pub(crate) fn streams(&self) -> bool {
        match self {
            Payload::Task(_) => true,
            Payload::OpenAi { body, .. } => body.stream,
        }
    }
}

impl Call {
    /// Whether the worker is to answer in pieces.
    pub(crate) fn streams(&self) -> bool {
        self.payload.streams()
    }

    /// Whether usage is asked for on its way to a worker, and was not by its client.
    pub(super) fn adds_usage(&self, worker: &WorkerSpec) -> bool {
        worker.protocol == WorkerProtocol::OpenAi
            && match &self.payload {
                Payload::Task(_) => true,
                Payload::OpenAi { body, .. } => body.lacks_options(),
            }
    }
}

/// Where the call goes and what it says; a second path is tried when the first is not there.
pub(super) fn outgoing(
    worker: &WorkerSpec,
    call: &Call,
    with_usage: bool,
) -> Result<(&'static [&'static str], Bytes)> {
    let served = worker
        .served_model
        .as_deref()
        .unwrap_or(worker.model.as_str());
    match (worker.protocol, &call.payload) {
        (WorkerProtocol::OpenAi, Payload::Task(task)) => {
            let (path, body) = openai_request(task, served, with_usage);
            let paths: &[&str] = match path {
                "/v1/completions" => &["/v1/completions"],
                _ => &["/v1/chat/completions"],
            };
            Ok((paths, body.into()))
        }
        (WorkerProtocol::OpenAi, Payload::OpenAi { body, .. }) => {
            let paths: &[&str] = match call.kind {
                JobKind::Chat => &["/v1/chat/completions"],
                JobKind::Embedding => &["/v1/embeddings"],
                JobKind::Completion | JobKind::Task => &["/v1/completions"],
            };
            Ok((paths, body.rewrite(served, with_usage)))
        }
        (WorkerProtocol::Rbee, Payload::Task(task))
        | (
            WorkerProtocol::Rbee,
            Payload::OpenAi {
                as_task: Some(task),
                ..
            },
        ) => Ok((&rbee::PATHS, rbee::request(task, call.job)?.into())),
        (WorkerProtocol::Rbee, Payload::OpenAi { as_task: None, .. }) => Err(Error::invalid(
            "the model's worker speaks the rbee protocol, which takes a single text prompt only",
        )),
    }
}

/// What goes to a worker for a path: a head with its body behind it, or, if that would take long to
/// copy, without. Every value in the head was checked to be able to stand in a header.
pub(super) fn request<'a>(
    worker: &WorkerSpec,
    call: &Call,
    path: &str,
    body: &'a [u8],
) -> (Vec<u8>, &'a [u8]) {
    let (with, rest) = match body.len() <= ONE_WRITE_BYTES {
        true => (body, &[][..]),
        false => (&[][..], body),
    };
    let mut request = Vec::with_capacity(HEAD_BYTES + with.len());
    write_head(&mut request, worker, call, path, body.len());
    request.extend_from_slice(with);
    (request, rest)
}

/// Piece by piece: to format them takes several times as long.
fn write_head(head: &mut Vec<u8>, worker: &WorkerSpec, call: &Call, path: &str, length: usize) {
    let mut add = |text: &str| head.extend_from_slice(text.as_bytes());
    add("POST ");
    add(path);
    add(" HTTP/1.1\r\nhost: ");
    match worker.host.contains(':') {
        true => {
            add("[");
            add(&worker.host);
            add("]");
        }
        false => add(&worker.host),
    }
    add(":");
    let mut digits = itoa::Buffer::new();
    add(digits.format(worker.port));
    add("\r\ncontent-type: application/json\r\ncontent-length: ");
    add(digits.format(length));
    add("\r\nx-rbee-hops: ");
    add(digits.format(call.hops.saturating_add(1)));
    let may_stand = |byte: u8| byte == b'\t' || (byte >= b' ' && byte != 0x7f);
    if call.correlation_id.bytes().all(may_stand) {
        add("\r\nx-correlation-id: ");
        add(&call.correlation_id);
    }
    if let Some(deadline) = call.deadline {
        add("\r\nx-request-deadline: ");
        add(&deadline.to_string());
    }
    head.extend_from_slice(b"\r\n");
    authorize(head, worker);
    head.extend_from_slice(b"\r\n");
}
