//! OpenAI's endpoints. Source: OpenAI's API reference.

use std::task::Poll;

use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderMap, HeaderName, HeaderValue, Response};
use http_body::Body as HttpBody;
use serde_json::{Value, json};
use uuid::Uuid;

use super::body::Body;
use super::{Context, answer, options, read};
use crate::domain::JobKind;
use crate::error::{Code, Error, Result};
use crate::orchestrator::{ModelInfo, OpenAiRequest, RawHead, RawReply};

// Made once: a name in text is checked and hashed anew each time.
static JOB_ID: HeaderName = HeaderName::from_static("x-job-id");

/// `POST /v1/chat/completions`, `/v1/completions`, `/v1/embeddings`.
pub(super) async fn submit<B>(
    context: &mut Context<'_>,
    kind: JobKind,
    body: B,
) -> Result<Response<Body>>
where
    B: HttpBody<Data = Bytes> + Unpin,
    B::Error: std::fmt::Display,
{
    let options = options::from_headers(context)?;
    let body = read::bytes(context, body).await?;
    // As long as they are kept, so is the server's read buffer, which they are parts of.
    context.headers = HeaderMap::new();
    let request = OpenAiRequest::read(kind, body, options)?;
    let streams = request.streams();
    let mut reply = context.orchestrator.submit_raw(request).await?;
    let job = reply.job();
    let head = match streams {
        true => head_in_time(context, &mut reply).await,
        false => Some(reply.head().await),
    };
    let mut response = match head {
        None => stream(context, reply),
        Some(Ok(RawHead { body: None, .. })) => stream(context, reply),
        Some(Ok(head)) => whole(head),
        Some(Err(error)) => answer::error(&error, true, context.correlation_id),
    };
    let mut id = Uuid::encode_buffer();
    let id = HeaderValue::from_str(job.0.hyphenated().encode_lower(&mut id));
    let id = id.expect("a UUID is ASCII");
    response.headers_mut().insert(&JOB_ID, id);
    Ok(response)
}

/// The worker's head, if it comes before the stream's own head must go out.
async fn head_in_time(context: &Context<'_>, reply: &mut RawReply) -> Option<Result<RawHead>> {
    let patience = context.orchestrator.config().timeouts.stream_status;
    let head = std::future::poll_fn(|cx| match reply.poll_head(cx) {
        Poll::Ready(head) => Poll::Ready(head),
        Poll::Pending => Poll::Pending,
    });
    tokio::time::timeout(patience, head).await.ok()
}

fn stream(context: &Context<'_>, reply: RawReply) -> Response<Body> {
    let keep_alive = context.orchestrator.config().timeouts.keep_alive;
    event_stream(Body::raw(reply, keep_alive, context.correlation_id))
}

/// 200 with a stream of events.
pub(super) fn event_stream(body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    // nginx and others would hold events back until a buffer is full.
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}

fn whole(head: RawHead) -> Response<Body> {
    let json = || HeaderValue::from_static("application/json");
    let kind = head.content_type.unwrap_or_else(json);
    let mut response = answer::whole(head.status, kind, head.body.unwrap_or_default());
    let headers = response.headers_mut();
    if let Some(after) = head.retry_after {
        headers.insert(RETRY_AFTER, after);
    } else if matches!(head.status.as_u16(), 429 | 503) {
        headers.insert(RETRY_AFTER, HeaderValue::from_static("1"));
    }
    response
}

/// `GET /v1/models`.
pub(super) async fn models(context: &Context<'_>) -> Result<Response<Body>> {
    let models = context.orchestrator.models(None).await?;
    let mut listed: Vec<Value> = models
        .iter()
        .map(|model| object(model, shown_name(model)))
        .collect();
    listed.dedup();
    Ok(answer::ok(&json!({"object": "list", "data": listed})))
}

/// `GET /v1/models/{id}`: by its shown name, any alias, or its reference.
pub(super) async fn model(context: &Context<'_>) -> Result<Response<Body>> {
    let asked = percent_encoding::percent_decode_str(context.id).decode_utf8_lossy();
    let models = context.orchestrator.models(None).await?;
    let is_meant = |model: &&ModelInfo| {
        let reference = model.model_ref.as_str();
        reference == asked
            || reference.strip_prefix("hf:") == Some(&*asked)
            || model.aliases.iter().any(|alias| *alias == *asked)
    };
    let Some(model) = models.iter().find(is_meant) else {
        let known: Vec<&str> = models.iter().map(shown_name).collect();
        let message = format!("there is no model {asked:?}; there is {}", known.join(", "));
        return Err(Error::new(Code::ModelNotFound, message).param("model"));
    };
    Ok(answer::ok(&object(model, &asked)))
}

/// The name that a person would type.
fn shown_name(model: &ModelInfo) -> &str {
    model
        .aliases
        .first()
        .map_or(model.model_ref.as_str(), String::as_str)
}

fn object(model: &ModelInfo, name: &str) -> Value {
    json!({
        "id": name,
        "object": "model",
        "created": 0,
        "owned_by": "rbee",
        "model_ref": model.model_ref,
        "aliases": model.aliases,
    })
}
