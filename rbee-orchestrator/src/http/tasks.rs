//! `/v2/tasks`.

use std::time::Duration;

use bytes::Bytes;
use http::header::LOCATION;
use http::{HeaderValue, Response, StatusCode};
use http_body::Body as HttpBody;
use serde::Deserialize;
use serde_json::{Value, json};

use super::body::Body;
use super::openai::event_stream;
use super::task_view::{List, Single};
use super::{Context, answer, options, read};
use crate::domain::{
    Constraints, EventId, HiveId, JobFilter, JobId, JobState, ModelRef, Priority, Sampling,
    SessionId, TaskInput, TaskRequest, TenantId,
};
use crate::error::{Code, Error, Result};
use crate::relay::openai::missing;
use crate::relay::translate::OneOrMany;

/// The body of a submission. A null is the same as absent.
#[derive(Deserialize)]
struct Submission {
    model: Option<String>,
    prompt: Option<String>,
    messages: Option<Vec<Value>>,
    max_tokens: Option<u32>,
    temperature: Option<f64>,
    top_p: Option<f64>,
    top_k: Option<u32>,
    seed: Option<u64>,
    stop: Option<OneOrMany>,
    priority: Option<String>,
    stream: Option<bool>,
    timeout_ms: Option<u64>,
    queue_timeout_ms: Option<u64>,
    node: Option<String>,
    backend: Option<String>,
    device: Option<u32>,
    tenant_id: Option<String>,
    session_id: Option<String>,
    idempotency_key: Option<String>,
}

/// `POST /v2/tasks`.
pub(super) async fn submit<B>(context: &Context<'_>, body: B) -> Result<Response<Body>>
where
    B: HttpBody<Data = Bytes> + Unpin,
    B::Error: std::fmt::Display,
{
    let asked: Submission = read::json(context, body).await?;
    let streams = asked.stream.unwrap_or(true);
    let task = task(context, asked)?;
    if task.options.priority == Priority::Batch || options::prefers_async(&context.headers) {
        return accept(context, task).await;
    }
    let stream = context.orchestrator.submit(task).await?;
    let job = stream.job();
    let mut response = match streams {
        true => {
            let keep_alive = context.orchestrator.config().timeouts.keep_alive;
            event_stream(Body::task(stream, keep_alive))
        }
        false => finished(context, stream).await?,
    };
    response
        .headers_mut()
        .insert("x-job-id", header(&job.to_string()));
    Ok(response)
}

fn header(text: &str) -> HeaderValue {
    HeaderValue::from_str(text).expect("ids and our own paths are ASCII")
}

/// 202: the task is on disk, and goes on without its submitter.
async fn accept(context: &Context<'_>, task: TaskRequest) -> Result<Response<Body>> {
    let record = context.orchestrator.enqueue(task).await?;
    let job = record.id;
    let place = context.orchestrator.queue_place(job);
    let body = json!({
        "job_id": job,
        "status": record.state,
        // One that a worker has already has none before it.
        "queue_position": place.map_or(0, |place| place.position),
        "estimated_wait_ms": place.and_then(|place| place.wait).map(answer::millis),
        "events_url": format!("/v2/tasks/{job}/events"),
    });
    let mut response = answer::json(StatusCode::ACCEPTED, &body);
    let headers = response.headers_mut();
    headers.insert(LOCATION, header(&format!("/v2/tasks/{job}")));
    headers.insert("x-job-id", header(&job.to_string()));
    if options::prefers_async(&context.headers) {
        headers.insert("preference-applied", header("respond-async"));
    }
    Ok(response)
}

fn task(context: &Context<'_>, asked: Submission) -> Result<TaskRequest> {
    let model = asked.model.ok_or_else(|| missing("model"))?;
    ModelRef::check_name(&model)?;
    let input = match (asked.prompt, asked.messages) {
        (Some(prompt), None) => TaskInput::Prompt(prompt),
        (None, Some(messages)) => TaskInput::Messages(messages),
        (None, None) => {
            return Err(Error::invalid("the request needs a prompt or messages").param("prompt"));
        }
        (Some(_), Some(_)) => {
            return Err(
                Error::invalid("the request has a prompt and messages; send one of them")
                    .param("messages"),
            );
        }
    };
    let mut options = options::from_headers(context)?;
    if let Some(name) = asked.priority {
        options.priority = options::priority(&name)?;
    }
    if let Some(tenant) = asked.tenant_id {
        options.tenant = TenantId::new(tenant)?;
    }
    if let Some(session) = asked.session_id {
        options.session = Some(SessionId::new(session)?);
    }
    if let Some(ms) = asked.timeout_ms {
        options.total_timeout = Some(Duration::from_millis(ms));
    }
    if let Some(key) = asked.idempotency_key {
        options.idempotency_key = Some(key);
    }
    options.queue_timeout = asked.queue_timeout_ms.map(Duration::from_millis);
    options.constraints = Constraints {
        hive: asked
            .node
            .map(HiveId::new)
            .transpose()
            .map_err(|error| error.param("node"))?,
        backend: asked.backend,
        device: asked.device,
    };
    let sampling = Sampling {
        max_tokens: asked.max_tokens,
        temperature: asked.temperature,
        top_p: asked.top_p,
        top_k: asked.top_k,
        seed: asked.seed,
        stop: asked.stop.map(Vec::from).unwrap_or_default(),
    };
    Ok(TaskRequest {
        model,
        input,
        sampling,
        options,
    })
}

/// Waits for the end and answers with the finished task, or with its error's status.
async fn finished(
    context: &Context<'_>,
    mut stream: crate::orchestrator::TaskStream,
) -> Result<Response<Body>> {
    if let Err(error) = stream.finished().await {
        return Ok(answer::error(&error, false, context.correlation_id));
    }
    let record = context.orchestrator.task(stream.job()).await?;
    Ok(answer::ok(&Single::new(context, &record)))
}

fn job_id(context: &Context<'_>) -> Result<JobId> {
    JobId::parse(context.id).ok_or_else(|| {
        let shown: String = context.id.chars().take(80).collect();
        Error::new(Code::TaskNotFound, format!("there is no task {shown:?}"))
    })
}

/// `GET /v2/tasks/{id}`.
pub(super) async fn get(context: &Context<'_>) -> Result<Response<Body>> {
    let record = context.orchestrator.task(job_id(context)?).await?;
    Ok(answer::ok(&Single::new(context, &record)))
}

/// `DELETE /v2/tasks/{id}`, `POST /v2/tasks/{id}/cancel`.
pub(super) async fn cancel(context: &Context<'_>) -> Result<Response<Body>> {
    let record = context.orchestrator.cancel(job_id(context)?).await?;
    let (status, state) = match record.state.is_ended() {
        true => (StatusCode::OK, record.state.as_str()),
        false => (StatusCode::ACCEPTED, "cancelling"),
    };
    Ok(answer::json(
        status,
        &json!({"job_id": record.id, "state": state}),
    ))
}

/// `GET /v2/tasks/{id}/events`.
pub(super) async fn events(context: &Context<'_>) -> Result<Response<Body>> {
    let job = job_id(context)?;
    let after = context.headers.get("last-event-id");
    let after = after.map(|id| id.to_str().unwrap_or_default().trim());
    let after = after.filter(|id| !id.is_empty()).map(str::parse);
    let after: Option<EventId> = after
        .transpose()
        .map_err(|error: Error| error.param("last-event-id"))?;
    let events = context.orchestrator.events(job, after).await?;
    let keep_alive = context.orchestrator.config().timeouts.keep_alive;
    Ok(event_stream(Body::events(job, events, keep_alive)))
}

/// `GET /v2/tasks`.
pub(super) async fn list(context: &Context<'_>) -> Result<Response<Body>> {
    const DEFAULT: usize = 50;
    const MOST: usize = 500;
    let limit = match read::query(context, "limit") {
        None => DEFAULT,
        Some(text) => text
            .parse()
            .ok()
            .filter(|limit| (1..=MOST).contains(limit))
            .ok_or_else(|| {
                Error::invalid(format!("limit must be from 1 to {MOST}")).param("limit")
            })?,
    };
    let state = read::query(context, "state").map(|name| {
        JobState::parse(&name).ok_or_else(|| {
            let known = JobState::ALL.map(JobState::as_str).join(", ");
            Error::invalid(format!("state {name:?} is none of {known}")).param("state")
        })
    });
    let model = read::query(context, "model").map(|name| context.orchestrator.resolve(&name));
    let filter = JobFilter {
        state: state.transpose()?,
        model: model.transpose()?,
        tenant: read::query(context, "tenant")
            .map(TenantId::new)
            .transpose()?,
    };
    let after = read::query(context, "after");
    let page = context
        .orchestrator
        .tasks(&filter, limit, after.as_deref())
        .await?;
    Ok(answer::ok(&List::from(&page)))
}
