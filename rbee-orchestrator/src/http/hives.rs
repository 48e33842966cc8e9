//! `/v2/registry/beehives`. Older clients parse the body of `add` and `remove` on every status.

use bytes::Bytes;
use http::Response;
use http_body::Body as HttpBody;
use serde::Deserialize;
use serde_json::{Value, json};

use super::body::Body;
use super::hive_filter::HiveFilter;
use super::registration::{self, Registration, fill_in_hostname};
use super::{Context, answer, read};
use crate::domain::{HiveId, Mono};
use crate::error::{Code, Error, Result};
use crate::relay::openai::missing;
use crate::scheduler::Hive;
use crate::transport::report::{Item, Report, Status};

/// How much of a name an answer repeats.
const LONGEST_ECHO: usize = 128;

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
        "tunnel": spec.tunnel,
        "install": spec.install,
        "port": hive.record.process.as_ref().map(|process| process.port).or(spec.port),
        "managed": spec.is_managed(),
        "backends": spec.backends,
        "devices": spec.devices,
        "labels": spec.labels,
        "command": spec.command,
        "last_seen": hive.record.last_seen,
        "last_error": hive.last_error.as_ref().map(|error| {
            json!({"code": error.code.as_str(), "message": error.in_full()})
        }),
        "capabilities": hive.capabilities(),
        "draining": hive.draining,
        "gave_up": hive.gave_up,
        "unsteady": hive.unsteady_until > now,
        "missed_checks": hive.misses,
    })
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
    let mut report = None;
    let added = async {
        let mut asked: Registration = read::json(context, body).await?;
        name = given_name(&asked.node_name, &asked.hive_id);
        let look = asked.preflight.unwrap_or(true);
        fill_in_hostname(context, &mut asked).await?;
        let spec = registration::spec(asked)?;
        let reach = context.orchestrator.config().reach();
        reach
            .check_host(&spec.hostname)
            .map_err(|error| error.param("hostname"))?;
        if let Some(ssh) = &spec.ssh {
            reach
                .check_host(&ssh.host)
                .map_err(|error| error.param("ssh_host"))?;
        }
        if spec.ssh.is_none() || !look {
            return context.orchestrator.add_hive(spec).await;
        }
        let looked = context.orchestrator.inspect_and_add_hive(spec).await?;
        let looked = report.insert(looked);
        looked
            .failure()
            .map_or(Ok(()), |failed| Err(refusal(failed)))
    };
    let added = added.await;
    let message = added.map(|()| format!("hive {name} is registered"));
    match report {
        Some(report) => told_with(context, &name, message, with_report(&report)),
        None => told(context, &name, message),
    }
}

/// What stands in the way, with what to do about it.
fn refusal(failed: &Item) -> Error {
    let Item {
        name,
        message,
        cure,
        ..
    } = failed;
    let cure = cure.as_deref().unwrap_or_default();
    Error::new(Code::PreflightFailed, format!("{message} ({cure})")).detail("check", *name)
}

fn with_report(report: &Report) -> Value {
    let to_see_to = report
        .items
        .iter()
        .filter(|item| item.status == Status::Warning);
    let warning = |item: &Item| match &item.cure {
        Some(cure) => format!("{}: {}; {cure}", item.name, item.message),
        None => format!("{}: {}", item.name, item.message),
    };
    let warnings: Vec<String> = to_see_to.map(warning).collect();
    json!({"preflight": report, "warnings": warnings})
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

/// The name that answers repeat; of one that is too long for any hive, its beginning.
fn given_name(node_name: &Option<String>, hive_id: &Option<String>) -> String {
    let name = node_name.as_deref().or(hive_id.as_deref());
    name.unwrap_or_default()
        .chars()
        .take(LONGEST_ECHO)
        .collect()
}

fn told(context: &Context<'_>, name: &str, result: Result<String>) -> Response<Body> {
    told_with(context, name, result, json!({}))
}

fn told_with(
    context: &Context<'_>,
    name: &str,
    result: Result<String>,
    mut body: Value,
) -> Response<Body> {
    body["node_name"] = name.into();
    body["success"] = result.is_ok().into();
    match result {
        Ok(message) => {
            body["message"] = message.into();
            answer::ok(&body)
        }
        Err(error) => {
            let error = error.for_administrators();
            body["message"] = error.message.clone().into();
            answer::error_with(&error, context.correlation_id, body)
        }
    }
}
