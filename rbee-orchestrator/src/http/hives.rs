//! `/v2/registry/beehives`. Older clients parse the body of `add` and `remove` on every status.

use std::collections::BTreeMap;

use bytes::Bytes;
use http::Response;
use http_body::Body as HttpBody;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::body::Body;
use super::hive_filter::HiveFilter;
use super::{Context, answer, read};
use crate::domain::{HiveId, HiveMode, HiveSpec, Mono, SshTarget, is_loopback};
use crate::error::{Error, Result};
use crate::relay::openai::missing;
use crate::scheduler::Hive;

/// `GET …/list`.
pub(super) fn list(context: &Context<'_>) -> Result<Response<Body>> {
    let filter = HiveFilter::of(context)?;
    let hives = context.orchestrator.hives();
    let wanted = hives.iter().filter(|hive| filter.wants(hive));
    let now = context.orchestrator.now().mono;
    let nodes: Vec<Value> = wanted.map(|hive| object(hive, now)).collect();
    Ok(answer::ok(&json!({"nodes": nodes})))
}

/// A hive as clients see it. The first ten fields are as older clients know them: texts are empty
/// and not null.
fn object(hive: &Hive, now: Mono) -> Value {
    let spec = &hive.record.spec;
    let ssh = spec.ssh.as_ref();
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    json!({
        "node_name": spec.id,
        "ssh_host": ssh.map_or("", |ssh| &ssh.host),
        "ssh_port": ssh.and_then(|ssh| ssh.port).unwrap_or(22),
        "ssh_user": ssh.and_then(|ssh| ssh.user.as_deref()).unwrap_or(""),
        "ssh_key_path": ssh.and_then(|ssh| ssh.key_path.as_deref()),
        "git_repo_url": text(&spec.git_repo_url),
        "git_branch": text(&spec.git_branch),
        "install_path": text(&spec.install_path),
        "last_connected_unix": hive.record.last_seen.map(|at| at.as_secs()),
        "status": hive.status,
        "hive_id": spec.id,
        "mode": spec.mode,
        "hostname": spec.hostname,
        "port": hive.record.process.as_ref().map(|process| process.port).or(spec.port),
        "managed": spec.is_managed(),
        "backends": spec.backends,
        "devices": spec.devices,
        "labels": spec.labels,
        "command": spec.command,
        "last_seen": hive.record.last_seen,
        "last_error": hive.last_error.as_ref().map(|error| {
            json!({"code": error.code.as_str(), "message": error.message})
        }),
        "capabilities": hive.capabilities(),
        "draining": hive.draining,
        "gave_up": hive.gave_up,
        "unsteady": hive.unsteady_until > now,
        "missed_checks": hive.misses,
    })
}

/// The body of `add`.
#[derive(Deserialize)]
struct Registration {
    hive_id: Option<String>,
    node_name: Option<String>,
    hostname: Option<String>,
    port: Option<u16>,
    mode: Option<HiveMode>,
    ssh_host: Option<String>,
    ssh_port: Option<u16>,
    ssh_user: Option<String>,
    ssh_key_path: Option<String>,
    install_path: Option<String>,
    backends: Option<Value>,
    devices: Option<Value>,
    labels: Option<BTreeMap<String, String>>,
    command: Option<String>,
    git_repo_url: Option<String>,
    git_branch: Option<String>,
}

/// The body of `remove`.
#[derive(Deserialize)]
struct Removal {
    node_name: Option<String>,
    hive_id: Option<String>,
    leave_running: Option<bool>,
}

/// The body of `drain` and `resume`.
#[derive(Deserialize)]
struct Service {
    node_name: Option<String>,
    hive_id: Option<String>,
    #[serde(default)]
    stop: bool,
}

/// `POST …/add`.
pub(super) async fn add<B>(context: &Context<'_>, body: B) -> Response<Body>
where
    B: HttpBody<Data = Bytes> + Unpin,
    B::Error: std::fmt::Display,
{
    let mut name = String::new();
    let added = async {
        let asked: Registration = read::json(context, body).await?;
        name = given_name(&asked.node_name, &asked.hive_id);
        let spec = spec(asked)?;
        context.orchestrator.add_hive(spec).await
    };
    let added = added.await;
    told(
        context,
        &name,
        added.map(|()| format!("hive {name} is registered")),
    )
}

/// `POST …/remove`.
pub(super) async fn remove<B>(context: &Context<'_>, body: B) -> Response<Body>
where
    B: HttpBody<Data = Bytes> + Unpin,
    B::Error: std::fmt::Display,
{
    let mut name = String::new();
    let removed = async {
        let asked: Removal = read::json(context, body).await?;
        name = given_name(&asked.node_name, &asked.hive_id);
        if name.is_empty() {
            return Err(missing("node_name"));
        }
        let id = HiveId::new(&name)?;
        context
            .orchestrator
            .remove_hive(&id, asked.leave_running.unwrap_or(false))
            .await
    };
    let removed = removed.await;
    told(
        context,
        &name,
        removed.map(|()| format!("hive {name} is removed")),
    )
}

/// `POST …/drain`, `POST …/resume`.
pub(super) async fn set_service<B>(
    context: &Context<'_>,
    body: B,
    resumes: bool,
) -> Result<Response<Body>>
where
    B: HttpBody<Data = Bytes> + Unpin,
    B::Error: std::fmt::Display,
{
    let asked: Service = read::json(context, body).await?;
    let name = given_name(&asked.node_name, &asked.hive_id);
    if name.is_empty() {
        return Err(missing("node_name"));
    }
    let id = HiveId::new(&name)?;
    let message = match resumes {
        true => context.orchestrator.resume_hive(&id).map(|()| "is resumed"),
        false => context
            .orchestrator
            .drain_hive(&id, asked.stop)
            .map(|()| "is drained"),
    };
    let message = message.map(|what| format!("hive {name} {what}"));
    Ok(told(context, &name, message))
}

fn given_name(node_name: &Option<String>, hive_id: &Option<String>) -> String {
    node_name
        .as_ref()
        .or(hive_id.as_ref())
        .cloned()
        .unwrap_or_default()
}

fn told(context: &Context<'_>, name: &str, result: Result<String>) -> Response<Body> {
    match result {
        Ok(message) => answer::ok(&json!({"success": true, "message": message, "node_name": name})),
        Err(error) => {
            let body = json!({"success": false, "message": error.message, "node_name": name});
            answer::error_with(&error, context.correlation_id, body)
        }
    }
}

fn spec(asked: Registration) -> Result<HiveSpec> {
    let name = asked
        .node_name
        .or(asked.hive_id)
        .ok_or_else(|| missing("node_name"))?;
    let id = HiveId::new(name).map_err(|error| error.param("node_name"))?;
    let filled = |text: Option<String>| text.filter(|text| !text.is_empty());
    let ssh_host = filled(asked.ssh_host);
    let hostname = filled(asked.hostname);
    let is_far = |host: &String| !is_loopback(host);
    let network = ssh_host.is_some() || hostname.as_ref().is_some_and(is_far);
    let mode = match (network, asked.mode) {
        (true, _) => HiveMode::Network,
        (false, Some(HiveMode::Network)) if hostname.is_some() => HiveMode::Network,
        (false, Some(HiveMode::Network)) => {
            return Err(
                Error::invalid("a network hive needs a hostname or an ssh_host").param("hostname"),
            );
        }
        (false, _) => HiveMode::Local,
    };
    if mode == HiveMode::Network && ssh_host.is_none() && asked.port.is_none() {
        return Err(Error::invalid("a hive that someone else runs needs its port").param("port"));
    }
    let ssh = ssh_host.map(|host| SshTarget {
        host,
        port: asked.ssh_port,
        user: filled(asked.ssh_user),
        key_path: filled(asked.ssh_key_path),
    });
    let host = hostname.or_else(|| ssh.as_ref().map(|ssh| ssh.host.clone()));
    Ok(HiveSpec {
        id,
        mode,
        hostname: host.unwrap_or_else(|| "127.0.0.1".to_owned()),
        port: asked.port,
        ssh,
        install_path: filled(asked.install_path),
        backends: either("backends", asked.backends)?,
        devices: either("devices", asked.devices)?,
        labels: asked.labels.unwrap_or_default(),
        command: filled(asked.command),
        git_repo_url: filled(asked.git_repo_url),
        git_branch: filled(asked.git_branch),
    })
}

/// A JSON value, or the same as a JSON text, as older clients send it.
fn either<T: DeserializeOwned + Default>(field: &'static str, value: Option<Value>) -> Result<T> {
    let read = match value {
        None | Some(Value::Null) => return Ok(T::default()),
        Some(Value::String(text)) if text.trim().is_empty() => return Ok(T::default()),
        Some(Value::String(text)) => serde_json::from_str(&text),
        Some(value) => serde_json::from_value(value),
    };
    read.map_err(|error| Error::invalid(format!("{field}: {error}")).param(field))
}
