//! From a queen's request to a running engine.

use std::sync::Arc;

use axum::http::StatusCode;
use serde::Deserialize;
use tracing::Instrument;
use uuid::Uuid;

use super::launch::Launch;
use super::{Plan, Worker, supervise};
use crate::devices::{Device, devices};
use crate::engine::Values;
use crate::error::{ApiError, Result};
use crate::hive::Hive;
use crate::models::Model;
use crate::rules::{MAX_SLOTS, Rules};

const MOST_ARGS: usize = 64;
const LONGEST_ARG: usize = 4096;

/// Body of `POST /v1/workers/spawn`; a null is the same as absent.
#[derive(Debug, Deserialize)]
pub(crate) struct SpawnRequest {
    model_ref: String,
    backend: Option<String>,
    device: Option<u32>,
    devices: Option<Vec<u32>>,
    model_path: Option<String>,
    worker_id: Option<String>,
    slots: Option<u32>,
    args: Option<Vec<String>>,
}

/// Starts an engine and gives its worker, which loads its model in the background.
pub(crate) async fn spawn(hive: &Hive, request: SpawnRequest) -> Result<Arc<Worker>> {
    let rules = hive.rules();
    let slots = check(&request, rules.slots)?;
    let id = match &request.worker_id {
        Some(id) if !id.is_empty() => id.clone(),
        _ => Uuid::now_v7().to_string(),
    };
    let reading = hive.clone();
    let read = tokio::task::spawn_blocking(move || {
        let path = request.model_path.as_deref().unwrap_or_default();
        let model = reading.catalog.find(&request.model_ref, path)?;
        Ok::<_, ApiError>((model, devices(), request))
    });
    let (model, devices, request) = read
        .await
        .map_err(|error| ApiError::internal(error.to_string()))??;

    let device = choose_device(&request, &devices)?;
    let engine = rules.engines.for_file(&model.path)?;
    let args = request.args.as_deref().unwrap_or_default();
    check_args(args, engine.allowed_args(&rules.allowed_args))?;
    let model_ref = match request.model_ref.contains(':') {
        true => request.model_ref.clone(),
        false => model.model_ref.clone(),
    };
    let host = &hive.settings.worker_host;
    let port = hive.free_port()?;
    let launch = Launch {
        values: Values {
            model_path: model.path.to_string_lossy().into_owned(),
            model_ref: model_ref.clone(),
            host: host.bind.to_owned(),
            port,
            api_key: None,
            slots,
            context: model.context(rules.context),
            backend: device.backend.clone(),
            device_ordinal: ordinal(device, &devices),
        },
        extra_args: request.args.unwrap_or_default(),
        engine,
    };
    let plan = plan(&rules, &launch, &model, model_ref, device, slots);
    let worker = Worker::new(id, plan, port, slots);
    start(hive, &worker, launch, device)?;
    Ok(worker)
}

fn start(hive: &Hive, worker: &Arc<Worker>, launch: Launch, device: &Device) -> Result<()> {
    // A hive that shuts down from here on waits for this worker too.
    let _unfinished = hive.tasks.token();
    hive.registry.admit(worker, device)?;
    match launch.start(hive, worker, worker.now().port) {
        Ok(process) => {
            let life = supervise::load_and_serve(hive.clone(), worker.clone(), launch, process);
            // It lives longer than the call that it came from.
            let span = tracing::info_span!(parent: None, "worker", id = worker.id);
            hive.tasks.spawn(life.instrument(span));
            Ok(())
        }
        Err(error) => {
            hive.registry.remove(worker);
            Err(error)
        }
    }
}

fn plan(
    rules: &Rules,
    launch: &Launch,
    model: &Model,
    model_ref: String,
    device: &Device,
    slots: u32,
) -> Plan {
    let engine = &launch.engine;
    Plan {
        model_ref,
        model_path: model.path.clone(),
        model_bytes: model.size_bytes,
        backend: device.backend.clone(),
        device: device.index,
        engine: engine.name.clone(),
        protocol: engine.protocol(),
        health: engine.health().to_owned(),
        llama_api: engine.has_llama_api(),
        serves_model_ref: engine.serves_model_ref(),
        vram_bytes: model.memory(slots, rules.context),
    }
}

/// What can be told wrong without looking at the machine; gives the number of slots.
fn check(request: &SpawnRequest, default_slots: u32) -> Result<u32> {
    if let Some(id) = request.worker_id.as_deref().filter(|id| !id.is_empty()) {
        check_id(id)?;
    }
    let slots = request.slots.unwrap_or(default_slots);
    if !(1..=MAX_SLOTS).contains(&slots) {
        return Err(ApiError::invalid(format!(
            "slots is {slots}, must be 1 to {MAX_SLOTS}"
        )));
    }
    let args = request.args.as_deref().unwrap_or_default();
    let is_bad = |arg: &String| arg.len() > LONGEST_ARG || arg.contains('\0');
    if args.len() > MOST_ARGS || args.iter().any(is_bad) {
        return Err(ApiError::invalid(format!(
            "args may hold {MOST_ARGS} texts of {LONGEST_ARG} bytes without NUL characters"
        )));
    }
    if request
        .devices
        .as_ref()
        .is_some_and(|devices| devices.len() > 1)
    {
        return Err(ApiError::not_implemented(
            "this hive puts a worker on one device; name one in devices",
        ));
    }
    Ok(slots)
}

/// An engine's arguments can name files to read and addresses to send them to: only those pass that the hive's
/// administrator allows, each with the value behind it.
fn check_args(args: &[String], allowed: &[String]) -> Result<()> {
    let mut is_value = false;
    for arg in args {
        let flag = arg.split('=').next().unwrap_or_default();
        let is_allowed = allowed.iter().any(|allowed| allowed == flag);
        // A negative number is a value.
        let is_flag = arg.starts_with('-') && arg.parse::<f64>().is_err();
        if !is_allowed && (is_flag || !is_value) {
            let shown: String = arg.chars().take(80).collect();
            return Err(ApiError::new(
                StatusCode::FORBIDDEN,
                "FORBIDDEN",
                format!(
                    "args may not hold {shown:?}: only what allowed_args of the hive's \
                     configuration names is added to an engine's command"
                ),
            ));
        }
        is_value = is_allowed && !arg.contains('=');
    }
    Ok(())
}

fn check_id(id: &str) -> Result<()> {
    let is_allowed = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    let is_good = id.len() <= 256 && !id.starts_with(['.', '-']) && id.chars().all(is_allowed);
    if is_good {
        return Ok(());
    }
    let shown: String = id.chars().take(80).collect();
    Err(ApiError::invalid(format!(
        "worker_id {shown:?} must be 1 to 256 of A-Z a-z 0-9 . _ - and begin with none of . -"
    )))
}

/// The device asked for; else the one with the most free memory of the backend asked for; else
/// of the first device's backend.
fn choose_device<'d>(request: &SpawnRequest, devices: &'d [Device]) -> Result<&'d Device> {
    let backend = request.backend.as_deref().filter(|name| !name.is_empty());
    let several = request.devices.as_deref().unwrap_or_default();
    let index = several.first().copied().or(request.device);
    let wanted = |device: &&Device| {
        backend.is_none_or(|name| device.backend.eq_ignore_ascii_case(name))
            && index.is_none_or(|index| device.index == index)
    };
    let first = devices.iter().find(wanted);
    let best = first.and_then(|first| {
        let alike = devices.iter().filter(wanted);
        let alike = alike.filter(|device| device.backend == first.backend);
        alike.max_by_key(|device| device.vram_free_bytes)
    });
    best.ok_or_else(|| {
        let index = index.map_or("any".to_owned(), |index| index.to_string());
        let names = devices.iter().map(|d| format!("{} {}", d.backend, d.index));
        ApiError::invalid(format!(
            "no device {} {index} on this machine; there is {}",
            backend.unwrap_or("of any backend"),
            names.collect::<Vec<_>>().join(", ")
        ))
    })
}

fn ordinal(device: &Device, devices: &[Device]) -> u32 {
    let before = devices
        .iter()
        .take_while(|other| other.index != device.index);
    before
        .filter(|other| other.backend == device.backend)
        .count() as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_allowed_arguments_pass_each_with_its_value() {
        let words = |text: &str| -> Vec<String> { text.split(' ').map(str::to_owned).collect() };
        let allowed = words("--cache-ram -b");
        for good in ["--cache-ram 512", "--cache-ram=512 -b 64", "--cache-ram -1"] {
            assert!(check_args(&words(good), &allowed).is_ok(), "{good}");
        }
        for bad in [
            "--log-file x",
            "--log-file=x",
            "512",
            "-b 64 65",
            "-b --log-file",
            "--cache-ram=1 x",
        ] {
            assert!(check_args(&words(bad), &allowed).is_err(), "{bad}");
        }
        assert!(check_args(&words("-b 64"), &[]).is_err());
        assert!(check_args(&[], &[]).is_ok());
    }

    #[test]
    fn ids_that_could_be_paths_or_flags_are_refused() {
        for good in ["w", "w-1.a_B", &"x".repeat(256)] {
            assert!(check_id(good).is_ok(), "{good}");
        }
        for bad in [
            ".",
            "..",
            ".a",
            "-a",
            "a/b",
            "a b",
            "a\n",
            "ä",
            &"x".repeat(257),
        ] {
            assert!(check_id(bad).is_err(), "{bad}");
        }
    }
}
