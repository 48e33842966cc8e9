//! `/v2/workers`.

use bytes::Bytes;
use http::{Response, StatusCode};
use http_body::Body as HttpBody;
use serde::Deserialize;
use serde_json::{Value, json};

use super::body::Body;
use super::{Context, answer, read};
use crate::brain::{SpawnOrder, WorkerCallback};
use crate::domain::{
    Constraints, HiveId, ModelRef, Reach, Worker, WorkerId, WorkerProtocol, host_and_port,
};
use crate::error::{Code, Error, Result};
use crate::relay::openai::missing;

/// `GET …/list`.
pub(super) fn list(context: &Context<'_>) -> Response<Body> {
    let workers: Vec<Value> = context.orchestrator.workers().iter().map(object).collect();
    answer::ok(&json!({"workers": workers}))
}

fn object(worker: &Worker) -> Value {
    let spec = &worker.spec;
    let hive = spec.hive.as_ref().map_or("", HiveId::as_str);
    let host = match spec.host.contains(':') {
        true => format!("[{}]", spec.host),
        false => spec.host.clone(),
    };
    let url = match host.is_empty() {
        true => String::new(),
        false => format!("http://{host}:{}", spec.port),
    };
    json!({
        "worker_id": spec.id,
        "node": hive,
        "hive_id": hive,
        "model_ref": spec.model,
        "backend": spec.backend,
        "device": spec.device,
        "state": worker.state(),
        "url": url,
        "protocol": spec.protocol,
        "slots_total": spec.slots_total,
        "slots_available": worker.slots_free(),
        "vram_bytes": spec.vram_bytes,
        "last_used_at": worker.last_used_at,
        "breaker": breaker(worker),
        "withheld": worker.withheld,
        "adopted": worker.adopted,
    })
}

/// What it gets if jobs failed on it, and why.
fn breaker(worker: &Worker) -> Value {
    match &worker.breaker {
        Some(note) => json!(note),
        None => json!({"state": "closed"}),
    }
}

/// `GET …/health`.
pub(super) fn health(context: &Context<'_>) -> Result<Response<Body>> {
    let node = read::query(context, "node").map(HiveId::new).transpose()?;
    if let Some(node) = &node
        && !context
            .orchestrator
            .hives()
            .iter()
            .any(|hive| hive.id() == node)
    {
        return Err(Error::new(
            Code::HiveNotFound,
            format!("there is no hive {node}"),
        ));
    }
    let on_node = |worker: &&Worker| node.is_none() || worker.spec.hive == node;
    let workers: Vec<Value> = context
        .orchestrator
        .workers()
        .iter()
        .filter(on_node)
        .map(|worker| {
            json!({"worker_id": worker.spec.id, "state": worker.state(), "ready": worker.ready})
        })
        .collect();
    Ok(answer::ok(&json!({"status": "ok", "workers": workers})))
}

#[derive(Deserialize)]
struct Spawn {
    node: Option<String>,
    model: Option<String>,
    backend: Option<String>,
    device: Option<u32>,
}

/// `POST …/spawn`.
pub(super) async fn spawn<B>(context: &Context<'_>, body: B) -> Result<Response<Body>>
where
    B: HttpBody<Data = Bytes> + Unpin,
    B::Error: std::fmt::Display,
{
    let asked: Spawn = read::json(context, body).await?;
    let order = SpawnOrder {
        model: asked.model.ok_or_else(|| missing("model"))?,
        constraints: Constraints {
            hive: asked
                .node
                .map(HiveId::new)
                .transpose()
                .map_err(|error| error.param("node"))?,
            backend: asked.backend,
            device: asked.device,
        },
    };
    let (worker, hive) = context.orchestrator.spawn_worker(&order).await?;
    let body = json!({"worker_id": worker, "hive_id": hive, "state": "loading"});
    Ok(answer::json(StatusCode::ACCEPTED, &body))
}

#[derive(Deserialize)]
struct Shutdown {
    worker_id: Option<String>,
    force: Option<bool>,
}

/// `POST …/shutdown`.
pub(super) async fn shutdown<B>(context: &Context<'_>, body: B) -> Result<Response<Body>>
where
    B: HttpBody<Data = Bytes> + Unpin,
    B::Error: std::fmt::Display,
{
    let asked: Shutdown = read::json(context, body).await?;
    let id = WorkerId::new(asked.worker_id.ok_or_else(|| missing("worker_id"))?)?;
    let force = asked.force.unwrap_or(false);
    context.orchestrator.shutdown_worker(&id, force).await?;
    let how = if force {
        "is being stopped"
    } else {
        "stops when its work is done"
    };
    Ok(success(&format!("worker {id} {how}")))
}

/// A callback, or a registration.
#[derive(Deserialize)]
struct Announcement {
    worker_id: Option<String>,
    url: Option<String>,
    model_ref: Option<String>,
    served_model: Option<String>,
    backend: Option<String>,
    device: Option<u32>,
    hive_id: Option<String>,
    node_name: Option<String>,
    slots_total: Option<u32>,
    vram_bytes: Option<u64>,
    protocol: Option<WorkerProtocol>,
    api_key: Option<String>,
}

impl Announcement {
    fn read(self, reach: &Reach, minted: Option<WorkerId>) -> Result<WorkerCallback> {
        let id = match (self.worker_id, minted) {
            (Some(id), _) => WorkerId::new(id)?,
            (None, Some(minted)) => minted,
            (None, None) => return Err(missing("worker_id")),
        };
        let url = self.url.ok_or_else(|| missing("url"))?;
        let (host, port) = host_and_port(&url).ok_or_else(|| {
            Error::invalid(format!("url {url:?} must be of the form http://host:port")).param("url")
        })?;
        reach
            .check_host(&host)
            .map_err(|error| error.param("url"))?;
        let filled = |text: &String| !text.is_empty();
        let hive = self
            .hive_id
            .filter(filled)
            .or(self.node_name.filter(filled));
        Ok(WorkerCallback {
            id,
            hive: hive.map(HiveId::new).transpose()?,
            model: ModelRef::from_name(&self.model_ref.ok_or_else(|| missing("model_ref"))?)?,
            served_model: self.served_model.filter(filled),
            backend: self.backend.unwrap_or_default(),
            device: self.device,
            host,
            port,
            protocol: self.protocol,
            slots_total: self.slots_total,
            vram_bytes: self.vram_bytes,
            speaks_for: Vec::new(),
            authorization: None,
        })
    }
}

/// `POST …/ready`.
pub(super) async fn ready<B>(context: &Context<'_>, body: B) -> Result<Response<Body>>
where
    B: HttpBody<Data = Bytes> + Unpin,
    B::Error: std::fmt::Display,
{
    let said: Announcement = read::json(context, body).await?;
    let api_key = said.api_key.clone();
    let mut call = said.read(&context.orchestrator.config().reach(), None)?;
    call.speaks_for.clone_from(&context.speaks_for);
    let id = call.id.clone();
    let is_hint = call.speaks_for.is_empty();
    context
        .orchestrator
        .worker_ready(call, api_key.as_deref())?;
    let message = if is_hint {
        format!("worker {id} is looked for: only its hive's token makes it ready at once")
    } else {
        format!("worker {id} is ready")
    };
    Ok(success(&message))
}

/// `POST …/register`.
pub(super) async fn register<B>(context: &Context<'_>, body: B) -> Result<Response<Body>>
where
    B: HttpBody<Data = Bytes> + Unpin,
    B::Error: std::fmt::Display,
{
    const MOST_SLOTS: u32 = 65_536;
    let said: Announcement = read::json(context, body).await?;
    let reach = context.orchestrator.config().reach();
    let mut call = said.read(&reach, Some(WorkerId::mint()))?;
    let name = call.model.served_name();
    call.served_model.get_or_insert_with(|| name.to_owned());
    if !call
        .slots_total
        .is_none_or(|slots| (1..=MOST_SLOTS).contains(&slots))
    {
        let message = format!("slots_total must be from 1 to {MOST_SLOTS}");
        return Err(Error::invalid(message).param("slots_total"));
    }
    context.orchestrator.register_other(&call).await?;
    let message = format!("worker {} is registered and used once it answers", call.id);
    Ok(answer::ok(
        &json!({"success": true, "message": message, "worker_id": call.id}),
    ))
}

#[derive(Deserialize)]
struct Failed {
    worker_id: Option<String>,
    exit_code: Option<i32>,
    reason: Option<String>,
}

/// `POST …/failed`.
pub(super) async fn failed<B>(context: &Context<'_>, body: B) -> Result<Response<Body>>
where
    B: HttpBody<Data = Bytes> + Unpin,
    B::Error: std::fmt::Display,
{
    let said: Failed = read::json(context, body).await?;
    let id = WorkerId::new(said.worker_id.ok_or_else(|| missing("worker_id"))?)?;
    let reason = said
        .reason
        .unwrap_or_else(|| "its hive does not say why".to_owned());
    if !context.orchestrator.may_speak_for(&context.speaks_for, &id) {
        context.orchestrator.doubt_worker(&id);
        let message = format!("worker {id} is being checked: only its hive's token takes it out");
        return Ok(success(&message));
    }
    let message = match said.exit_code {
        Some(code) => format!("worker {id} exited with code {code}: {reason}"),
        None => format!("worker {id} failed: {reason}"),
    };
    context
        .orchestrator
        .worker_failed(id.clone(), Error::new(Code::WorkerFailed, message));
    Ok(success(&format!("worker {id} is out of the registry")))
}

fn success(message: &str) -> Response<Body> {
    answer::ok(&json!({"success": true, "message": message}))
}
