//! The call to a worker, and what its answer turns out to be.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{HeaderValue, StatusCode};

use super::call::{Call, Payload, outgoing, request};
use super::gathered::Gathered;
use super::privacy::Privacy;
use crate::brain::{Aftermath, Blame, Report};
use crate::domain::{Outcome, StopReason, Usage, WorkerProtocol, WorkerSpec};
use crate::error::{Code, Error, Result};
use crate::http1::{Connection, Head};
use crate::relay::answer::{NotAnswered, of_answer};
use crate::relay::pool::{Answer, NoAnswer, Pool};
use crate::relay::refusal::{self, Fault, Refusal};
use crate::relay::sse::{Splitter, events};
use crate::relay::translate::{CompletionWriter, Piece, read_event};
use crate::relay::usage::filled;

/// A whole answer, to be passed on.
#[derive(Debug)]
pub(crate) struct Whole {
    pub(crate) status: StatusCode,
    pub(crate) content_type: Option<HeaderValue>,
    pub(crate) retry_after: Option<HeaderValue>,
    pub(crate) body: Bytes,
    usage: Option<Usage>,
    /// What it says, where it is an error.
    refused: Option<Error>,
}

impl Whole {
    pub(super) fn report(&self, took: Duration) -> Report {
        let refused = self.refused.clone();
        let outcome = refused.map_or(Outcome::Complete, Outcome::Failed);
        Report {
            usage: self.usage,
            inference: took,
            ..Report::of(outcome)
        }
    }
}

/// What the worker's answer turned out to be.
pub(super) enum Opened {
    Stream(Answer),
    Whole(Whole),
}

/// An attempt that brought no answer.
#[derive(Debug)]
pub(super) struct Failure {
    error: Error,
    blame: Blame,
    suspect: bool,
}

impl Failure {
    pub(super) fn report(self) -> Report {
        let outcome = Outcome::Failed(self.error);
        Report {
            aftermath: if self.suspect {
                Aftermath::Suspect
            } else {
                Aftermath::Clean
            },
            blame: self.blame,
            ..Report::of(outcome)
        }
    }

    /// The worker did not do its part.
    fn of_worker(error: Error) -> Self {
        Failure {
            blame: Blame::Worker,
            ..Failure::from(error)
        }
    }

    /// The worker said no, and may have said when to come back.
    fn refused(refusal: Refusal, after: Option<Duration>) -> Self {
        let error = match after {
            Some(after) => refusal.error.retry_after(after),
            None => refusal.error,
        };
        Failure {
            blame: blame(refusal.fault, after),
            ..Failure::from(error)
        }
    }

    /// The worker answered what is no answer: it would do so again.
    fn answered(error: Error) -> Self {
        Failure {
            blame: Blame::Unclear,
            ..Failure::from(error)
        }
    }
}

impl From<NoAnswer> for Failure {
    fn from(none: NoAnswer) -> Self {
        Failure {
            blame: none.blame,
            suspect: none.suspect,
            ..Failure::from(none.error)
        }
    }
}

/// Who is to blame for a worker's error.
pub(super) fn blame(fault: Fault, after: Option<Duration>) -> Blame {
    match fault {
        Fault::Caller => Blame::Request,
        Fault::Load => Blame::Load(after),
        Fault::Unclear => Blame::Unclear,
    }
}

/// An error that another worker would give as well.
impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Failure {
            error,
            blame: Blame::Request,
            suspect: false,
        }
    }
}

/// Calls the worker and waits until it is known what its answer is. An error comes with what may be kept
/// of it.
pub(super) async fn open(
    pool: Arc<Pool>,
    worker: Arc<WorkerSpec>,
    call: Arc<Call>,
    privacy: Privacy,
) -> Result<Opened, Failure> {
    match answer(&pool, &worker, &call).await {
        Err(failure) => Err(Failure {
            error: privacy.apply(call, failure.error).await,
            ..failure
        }),
        Ok(Opened::Whole(mut whole)) => {
            if let Some(error) = whole.refused.take() {
                whole.refused = Some(privacy.apply(call, error).await);
            }
            Ok(Opened::Whole(whole))
        }
        opened => opened,
    }
}

async fn answer(pool: &Pool, worker: &Arc<WorkerSpec>, call: &Call) -> Result<Opened, Failure> {
    let adds_usage = call.adds_usage(worker);
    let mut with_usage = !(adds_usage && pool.habits.refuses_options(worker));
    let mut refused_options = false;
    loop {
        let answer = ask(pool, worker, call, with_usage).await?;
        if answer.head.status.is_success() {
            if refused_options {
                pool.habits.note_refused_options(worker);
            }
            return answered(pool, worker, call, answer).await;
        }
        let Answer { head, connection } = answer;
        let body = collect_error(pool, worker, connection).await?;
        refused_options = adds_usage && with_usage && refusal::names_stream_options(&body);
        if !refused_options {
            return refused(call, head, body);
        }
        // It may take no fields that it does not know: once more without what the queen has added.
        with_usage = false;
    }
}

async fn ask(
    pool: &Pool,
    worker: &Arc<WorkerSpec>,
    call: &Call,
    with_usage: bool,
) -> Result<Answer, Failure> {
    let (paths, body) = outgoing(worker, call, with_usage)?;
    let answer = send(pool, worker, call, paths[0], &body).await?;
    match answer.head.status {
        StatusCode::NOT_FOUND if paths.len() > 1 => send(pool, worker, call, paths[1], &body).await,
        _ => Ok(answer),
    }
}

async fn answered(
    pool: &Pool,
    worker: &WorkerSpec,
    call: &Call,
    answer: Answer,
) -> Result<Opened, Failure> {
    let raw = matches!(call.payload, Payload::OpenAi { .. });
    if raw && !call.streams() && worker.protocol == WorkerProtocol::OpenAi {
        return whole(pool, worker, call, answer).await;
    }
    if !is_of_kind(&answer.head, b"text/event-stream") {
        return Err(no_stream(pool, worker, answer).await);
    }
    if raw && !call.streams() {
        return whole_completion(pool, worker, call, answer).await;
    }
    Ok(Opened::Stream(answer))
}

async fn send(
    pool: &Pool,
    worker: &Arc<WorkerSpec>,
    call: &Call,
    path: &'static str,
    body: &Bytes,
) -> Result<Answer, Failure> {
    let (head, body) = request(worker, call, path, body);
    Ok(pool.send(worker, &head, body).await?)
}

/// Reads an answer to its end and keeps the connection.
async fn collect(
    pool: &Pool,
    worker: &WorkerSpec,
    call: &Call,
    mut connection: Connection,
) -> Result<Bytes, Failure> {
    let mut gathered = Gathered::new(call, connection.told_length());
    gathered.fits(worker, gathered.told)?;
    loop {
        let next = std::future::poll_fn(|cx| connection.poll_data(cx)).await;
        match next {
            None => break,
            Some(Ok(data)) => gathered.add(worker, data)?,
            Some(Err(error)) if error.kind() == io::ErrorKind::InvalidData => {
                let message = format!("worker {} sent what is not HTTP: {error}", worker.id);
                let error = Error::new(Code::UpstreamInvalid, message);
                return Err(Failure::of_worker(error));
            }
            Some(Err(error)) => return Err(broke_off(worker, &error.to_string())),
        }
    }
    if connection.is_reusable() {
        pool.put(worker, connection);
    }
    Ok(gathered.whole())
}

/// Reads an error answer, and gives one up that has no end: a part longer than what is kept of it tells
/// that it is one.
async fn collect_error(
    pool: &Pool,
    worker: &WorkerSpec,
    mut connection: Connection,
) -> Result<Bytes, Failure> {
    let mut body = BytesMut::new();
    while body.len() <= refusal::LONGEST_BODY {
        match std::future::poll_fn(|cx| connection.poll_data(cx)).await {
            Some(Ok(data)) => body.extend_from_slice(&data),
            Some(Err(error)) => return Err(broke_off(worker, &error.to_string())),
            None => {
                if connection.is_reusable() {
                    pool.put(worker, connection);
                }
                return Ok(body.freeze());
            }
        }
    }
    Ok(body.freeze())
}

fn broke_off(worker: &WorkerSpec, why: &str) -> Failure {
    let message = format!("worker {} broke off its answer: {why}", worker.id);
    Failure {
        suspect: true,
        ..Failure::of_worker(Error::new(Code::WorkerFailed, message))
    }
}

async fn whole(
    pool: &Pool,
    worker: &WorkerSpec,
    call: &Call,
    answer: Answer,
) -> Result<Opened, Failure> {
    let Answer { head, connection } = answer;
    let body = collect(pool, worker, call, connection).await?;
    let usage = of_answer(&body, &call.demand).map_err(|none| match none {
        NotAnswered::Refused(refusal) => Failure::refused(refusal, None),
        NotAnswered::Unreadable(error) => {
            let message = format!(
                "worker {} answered with what is not JSON: {error}",
                worker.id
            );
            Failure::answered(Error::new(Code::UpstreamInvalid, message))
        }
    })?;
    Ok(Opened::Whole(Whole {
        status: head.status,
        content_type: head.content_type,
        retry_after: head.retry_after,
        body,
        usage: Some(usage),
        refused: None,
    }))
}

/// An `rbee` worker's stream, read to its end and written as one completion.
async fn whole_completion(
    pool: &Pool,
    worker: &WorkerSpec,
    call: &Call,
    answer: Answer,
) -> Result<Opened, Failure> {
    let connection = answer.connection;
    let body = collect(pool, worker, call, connection).await?;
    let mut pieces = Vec::new();
    let mut splitter = Splitter::new(call.max_response_bytes);
    for event in events(&splitter.push(body).unwrap_or_default()) {
        read_event(worker.protocol, event, &mut pieces).map_err(Failure::answered)?;
    }
    let (mut text, mut count, mut stop, mut usage) = (String::new(), 0, None, None);
    for piece in pieces {
        match piece {
            Piece::Text(more) => {
                text.push_str(&more);
                count += 1;
            }
            Piece::Thinking(_) | Piece::Other => count += 1,
            Piece::Stop { reason, .. } => stop = Some(reason),
            Piece::Usage(counted) => usage = Some(counted),
            Piece::Failed(refusal) => return Err(Failure::refused(refusal, None)),
            Piece::Done => {}
        }
    }
    let stop: StopReason = stop.ok_or_else(|| broke_off(worker, "there was no end"))?;
    let usage = filled(usage, &call.demand, count);
    let writer = CompletionWriter::new(call.job, worker.model.as_str(), call.submitted_at);
    Ok(Opened::Whole(Whole {
        status: StatusCode::OK,
        content_type: Some(HeaderValue::from_static("application/json")),
        retry_after: None,
        body: writer.whole(&text, stop, usage).to_string().into(),
        usage: Some(usage),
        refused: None,
    }))
}

/// The worker said no. Its 4xx is the client's to read, but for 429, which like 503 says that it has
/// too much to do, and for what is too long, for which OpenAI's clients know one code.
fn refused(call: &Call, head: Head, body: Bytes) -> Result<Opened, Failure> {
    let retry_after = head.retry_after;
    let refusal = refusal::read(head.status, &body);
    let is_callers = refusal.fault == Fault::Caller && !refusal.error.is_too_long();
    let for_client = head.status.is_client_error() && is_callers;
    let is_whole = body.len() <= refusal::LONGEST_BODY;
    if for_client && is_whole && matches!(call.payload, Payload::OpenAi { .. }) {
        return Ok(Opened::Whole(Whole {
            status: head.status,
            content_type: head.content_type,
            retry_after,
            body,
            usage: None,
            refused: Some(refusal.error),
        }));
    }
    let seconds = retry_after.and_then(|value| value.to_str().ok()?.parse().ok());
    Err(Failure::refused(refusal, seconds.map(Duration::from_secs)))
}

fn is_of_kind(head: &Head, kind: &[u8]) -> bool {
    let told = head.content_type.as_ref();
    let told = told.map_or(&b""[..], HeaderValue::as_bytes);
    told.to_ascii_lowercase().starts_with(kind)
}

/// The worker answered something else, which may be an error in its words.
async fn no_stream(pool: &Pool, worker: &WorkerSpec, answer: Answer) -> Failure {
    let Answer { head, connection } = answer;
    if is_of_kind(&head, b"application/json")
        && let Ok(body) = collect_error(pool, worker, connection).await
    {
        let value = serde_json::from_slice(&body).ok();
        if let Some(refusal) = value.and_then(|value| refusal::in_answer(&value)) {
            return Failure::refused(refusal, None);
        }
    }
    let kind = head.content_type.as_ref();
    let kind = String::from_utf8_lossy(kind.map_or(b"", HeaderValue::as_bytes)).into_owned();
    let message = format!(
        "worker {} answered with {kind:?} where an event stream was asked for",
        worker.id
    );
    Failure::answered(Error::new(Code::UpstreamInvalid, message))
}
