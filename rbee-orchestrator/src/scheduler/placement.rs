//! Where a new worker goes: feasibility first, then the device with the most free memory.

use std::collections::BTreeSet;
use std::time::Duration;

use super::fetching::place_fetch;
use super::{ClusterView, Hive, Placement, PlacementRequest};
use crate::domain::{Device, HiveStatus, ModelRef};
use crate::error::{Code, Error};

/// What to do for a model that no worker can take a request for now: wait for one that is busy or
/// loads, spawn one on the hive and device with the most free memory that fits it, start a hive
/// that could, have a hive fetch the model if none has it, or refuse. Policies share it.
///
/// A stopped hive counts with its stored report; one that never reported is started last. An
/// unknown need of memory counts as fitting.
#[must_use]
pub fn place_new_worker(request: &PlacementRequest<'_>, view: &ClusterView<'_>) -> Placement {
    if view.candidates(request).next().is_some() {
        return Placement::Wait;
    }
    if let Some(error) = wrong_protocol(request, view) {
        return Placement::Reject(error);
    }
    match place_worker(request, view, true) {
        Placement::Reject(error) => match silent(request, view) {
            Some(silent) => Placement::Reject(silent),
            None => place_fetch(request, view).unwrap_or(Placement::Reject(error)),
        },
        elsewhere => elsewhere,
    }
}

/// The same for one more worker, whether or not there are others with the model, and whether or
/// not its load has just failed there.
#[must_use]
pub fn place_another_worker(request: &PlacementRequest<'_>, view: &ClusterView<'_>) -> Placement {
    place_worker(request, view, false)
}

/// `mindful` leaves out the places where the load has just failed.
fn place_worker(
    request: &PlacementRequest<'_>,
    view: &ClusterView<'_>,
    mindful: bool,
) -> Placement {
    let allowed: Vec<&Hive> = allowed(request, view).collect();
    if allowed.is_empty()
        && let Some(error) = drained(request, view)
    {
        return Placement::Reject(error);
    }

    let with_model = || {
        allowed
            .iter()
            .copied()
            .filter(|hive| hive.model(request.model).is_some())
    };
    let online = with_model().filter(|hive| view.can_spawn(hive));
    if let Some((hive, device)) = roomiest(request, view, online, mindful) {
        return Placement::Spawn {
            hive: hive.id().clone(),
            backend: device.backend.clone(),
            devices: vec![device.index],
            evict: Vec::new(),
        };
    }
    if with_model().any(|hive| hive.status == HiveStatus::Starting) {
        return Placement::Wait;
    }
    let stopped = with_model().filter(|hive| view.can_start(hive));
    if let Some((hive, _)) = roomiest(request, view, stopped, mindful) {
        return Placement::StartHive(hive.id().clone());
    }
    let unreported = || allowed.iter().filter(|hive| hive.capabilities().is_none());
    if unreported().any(|hive| hive.status == HiveStatus::Starting) {
        return Placement::Wait;
    }
    if let Some(hive) = unreported().find(|hive| view.can_start(hive)) {
        return Placement::StartHive(hive.id().clone());
    }
    if with_model().any(|hive| view.is_unsteady(hive)) {
        return Placement::Wait;
    }
    Placement::Reject(why_not(request, view, &allowed, mindful))
}

/// The hive and device with the most free memory that the model fits.
fn roomiest<'a>(
    request: &PlacementRequest<'_>,
    view: &ClusterView<'_>,
    hives: impl Iterator<Item = &'a Hive>,
    mindful: bool,
) -> Option<(&'a Hive, &'a Device)> {
    let fits = |hive: &Hive, device: &Device| {
        let needed = hive
            .model(request.model)
            .and_then(|model| model.vram_bytes)
            .unwrap_or(0);
        let failed = hive.failed_load(request.model, device.index, view.now);
        view.has_room(hive, device, needed) && !(mindful && failed.is_some())
    };
    hives
        .flat_map(|hive| devices(request, hive).map(move |device| (hive, device)))
        .filter(|(hive, device)| fits(hive, device))
        .map(|(hive, device)| (view.free_bytes(hive.id(), device), hive, device))
        // The first of equals, so that the order of names decides.
        .reduce(|best, next| if next.0 > best.0 { next } else { best })
        .map(|(_, hive, device)| (hive, device))
}

/// The hives that the request allows.
pub(super) fn allowed<'a>(
    request: &PlacementRequest<'a>,
    view: &ClusterView<'a>,
) -> impl Iterator<Item = &'a Hive> + use<'a> {
    let only = request.constraints.hive.as_ref();
    let hives = view.hives.values().filter(|hive| !hive.draining);
    hives.filter(move |hive| only.is_none_or(|id| id == hive.id()))
}

/// The devices of a hive that the request allows.
pub(super) fn devices<'a>(
    request: &PlacementRequest<'_>,
    hive: &'a Hive,
) -> impl Iterator<Item = &'a Device> + use<'a> {
    let backend = request.constraints.backend.clone();
    let index = request.constraints.device;
    let all = hive
        .capabilities()
        .map_or(&[][..], |c| c.devices.as_slice());
    all.iter().filter(move |device| {
        backend.as_ref().is_none_or(|b| *b == device.backend)
            && index.is_none_or(|i| i == device.index)
    })
}

/// An error if the model runs where it may, but only on workers that do not speak OpenAI's
/// protocol: what a hive spawns next would not speak it either.
fn wrong_protocol(request: &PlacementRequest<'_>, view: &ClusterView<'_>) -> Option<Error> {
    let model = request.model;
    let mut workers = view.workers.with_model(model);
    let runs = workers.any(|worker| worker.is_worth_waiting_for() && request.is_allowed_on(worker));
    (request.openai_only && runs).then(|| {
        Error::invalid(format!(
            "model {model} is served only by workers of the rbee protocol, which take a plain \
             prompt: send `prompt` to /v2/tasks or /v1/completions"
        ))
        .param("model")
    })
}

/// An error if nothing has the model but workers that do not answer.
fn silent(request: &PlacementRequest<'_>, view: &ClusterView<'_>) -> Option<Error> {
    const SOON: Duration = Duration::from_secs(5);
    let mut hives = view.hives.values();
    if hives.any(|hive| hive.model(request.model).is_some()) {
        return None;
    }
    let mut workers = view.workers.with_model(request.model);
    let worker = workers.find(|worker| !worker.draining && request.is_served_by(worker))?;
    let (id, host, port) = (&worker.spec.id, &worker.spec.host, worker.spec.port);
    let error = Error::new(
        Code::NoCapacity,
        format!("worker {id} at {host}:{port} does not answer its health check"),
    );
    Some(error.retry_after(SOON))
}

fn why_not(
    request: &PlacementRequest<'_>,
    view: &ClusterView<'_>,
    allowed: &[&Hive],
    mindful: bool,
) -> Error {
    let with_model = || {
        let hives = allowed.iter().copied();
        hives.filter(|hive| hive.model(request.model).is_some())
    };
    let Some(first) = with_model().next() else {
        let unknown = allowed.iter().find(|hive| hive.capabilities().is_none());
        let broken = unknown.and_then(|hive| unreachable(hive, view));
        let mut all = view.hives.values();
        let elsewhere = all.any(|hive| hive.draining && hive.model(request.model).is_some());
        let drained = || drained(request, view).filter(|_| elsewhere);
        return broken
            .or_else(drained)
            .unwrap_or_else(|| not_found(request.model, view));
    };
    let mut suitable = with_model().filter(|hive| devices(request, hive).next().is_some());
    if suitable.clone().next().is_none() {
        return no_device(request, first);
    }
    let failed = suitable.clone();
    suitable
        .find_map(|hive| unreachable(hive, view))
        .or_else(|| just_failed(request, view, failed).filter(|_| mindful))
        .unwrap_or_else(|| no_room(request, view, allowed))
}

/// Why the load failed that would be tried, if it has just been.
fn just_failed<'a>(
    request: &PlacementRequest<'_>,
    view: &ClusterView<'_>,
    mut hives: impl Iterator<Item = &'a Hive>,
) -> Option<Error> {
    let load = hives.find_map(|hive| {
        devices(request, hive)
            .find_map(|device| hive.failed_load(request.model, device.index, view.now))
    })?;
    let after = load.until.since(view.now);
    Some(load.error.clone().retry_after(after))
}

/// An error if every hive that the request allows is being drained.
fn drained(request: &PlacementRequest<'_>, view: &ClusterView<'_>) -> Option<Error> {
    let only = request.constraints.hive.as_ref();
    let mut hives = view.hives.values();
    let hive = hives.find(|hive| hive.draining && only.is_none_or(|only| only == hive.id()))?;
    let message = format!(
        "hive {} is drained and takes no new work (POST /v2/registry/beehives/resume ends that)",
        hive.id()
    );
    Some(Error::new(Code::NoCapacity, message))
}

/// Why a hive can't be asked, unless it can.
fn unreachable(hive: &Hive, view: &ClusterView<'_>) -> Option<Error> {
    const SOON: Duration = Duration::from_secs(1);
    let error = hive.last_error.as_ref()?;
    if hive.status == HiveStatus::Online {
        return None;
    }
    let error = Error {
        message: format!("hive {} is not available: {}", hive.id(), error.message),
        code: Code::HiveUnreachable,
        ..error.clone()
    };
    Some(error.retry_after(hive.retry_at.since(view.now).max(SOON)))
}

fn not_found(model: &ModelRef, view: &ClusterView<'_>) -> Error {
    let there_is = there_is(view);
    let hint = match model.is_fetchable() && !view.auto_download {
        true => "; a hive fetches it on POST /v2/models/download",
        false => "",
    };
    Error::new(
        Code::ModelNotFound,
        format!("no hive has model {model}; {there_is}{hint}"),
    )
    .param("model")
}

/// What models there are, for whoever asked for another.
pub(super) fn there_is(view: &ClusterView<'_>) -> String {
    const SHOWN: usize = 20;
    let models = view
        .hives
        .values()
        .filter_map(Hive::capabilities)
        .flat_map(|c| &c.models);
    let on_disk = models.map(|m| match m.aliases.first() {
        Some(alias) => alias.clone(),
        None => m.model_ref.to_string(),
    });
    let running = view
        .workers
        .iter()
        .filter(|worker| worker.spec.hive.is_none());
    let known: BTreeSet<String> = on_disk
        .chain(running.map(|worker| worker.spec.model.to_string()))
        .collect();
    match known.len() {
        0 => "there is no model yet: put one into a hive's models folder".to_owned(),
        n if n > SHOWN => {
            let first: Vec<&str> = known.iter().take(SHOWN).map(String::as_str).collect();
            format!("there are {}, … ({n} in all)", first.join(", "))
        }
        _ => format!(
            "there is {}",
            Vec::from_iter(known.iter().map(String::as_str)).join(", ")
        ),
    }
}

fn no_device(request: &PlacementRequest<'_>, hive: &Hive) -> Error {
    let backend = request
        .constraints
        .backend
        .as_deref()
        .unwrap_or("any backend");
    let device = match request.constraints.device {
        Some(index) => format!("device {index}"),
        None => "a device".to_owned(),
    };
    let devices = hive
        .capabilities()
        .map_or(&[][..], |c| c.devices.as_slice());
    let known: Vec<String> = devices
        .iter()
        .map(|d| format!("{} {}", d.backend, d.index))
        .collect();
    Error::new(
        Code::NoCapacity,
        format!(
            "no hive with the model has {device} of {backend}; {} has {}",
            hive.id(),
            known.join(", ")
        ),
    )
}

fn no_room(request: &PlacementRequest<'_>, view: &ClusterView<'_>, allowed: &[&Hive]) -> Error {
    let model = request.model;
    let need = allowed
        .iter()
        .find_map(|hive| hive.model(model)?.vram_bytes)
        .unwrap_or(0);
    let usable = |hive: &Hive, device: &Device| !hive.is_full(device.index, view.now);
    let all = allowed.iter().flat_map(|hive| {
        let devices = devices(request, hive).filter(move |device| usable(hive, device));
        devices.map(|device| view.free_bytes(hive.id(), device))
    });
    let most = all.max().unwrap_or(0);
    let mib = |bytes: u64| bytes.div_ceil(1 << 20);
    Error::new(
        Code::InsufficientVram,
        format!(
            "model {model} needs {} MiB and the roomiest device has {} MiB free; shut a worker \
             down (POST /v2/workers/shutdown) or use a smaller model",
            mib(need),
            mib(most)
        ),
    )
    .detail("needed_bytes", need)
    .detail("free_bytes", most)
}
