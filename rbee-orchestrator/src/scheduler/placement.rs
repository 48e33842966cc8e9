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
    let hives = Hives::new(request, view);
    place_worker(request, view, &hives, true)
        .or_else(|| silent(request, view).map(Placement::Reject))
        .or_else(|| place_fetch(request, view, &hives))
        .unwrap_or_else(|| Placement::Reject(why_not(request, view, &hives, true)))
}

/// The same for one more worker, whether or not there are others with the model, and whether or
/// not its load has just failed there.
#[must_use]
pub fn place_another_worker(request: &PlacementRequest<'_>, view: &ClusterView<'_>) -> Placement {
    let hives = Hives::new(request, view);
    place_worker(request, view, &hives, false)
        .unwrap_or_else(|| Placement::Reject(why_not(request, view, &hives, false)))
}

/// The hives that matter to a request. Looked for once: a fleet may have a hundred thousand models.
pub(super) struct Hives<'a> {
    /// Those that it allows.
    pub(super) allowed: Vec<&'a Hive>,
    /// Those of them that have the model.
    pub(super) with_model: Vec<&'a Hive>,
}

impl<'a> Hives<'a> {
    fn new(request: &PlacementRequest<'a>, view: &ClusterView<'a>) -> Self {
        let allowed: Vec<&Hive> = allowed(request, view).collect();
        let all = allowed.iter().copied();
        let with_model = all.filter(|hive| hive.model(request.model).is_some());
        Hives {
            with_model: with_model.collect(),
            allowed,
        }
    }
}

/// `mindful` leaves out the places where the load has just failed. `None` where there is no place.
fn place_worker(
    request: &PlacementRequest<'_>,
    view: &ClusterView<'_>,
    hives: &Hives<'_>,
    mindful: bool,
) -> Option<Placement> {
    let with_model = || hives.with_model.iter().copied();
    let goes = |hive: &&Hive| hive.is_removing(request.model);
    let online = with_model().filter(|hive| view.can_spawn(hive) && !goes(hive));
    if let Some((hive, device)) = roomiest(request, view, online, mindful) {
        return Some(Placement::Spawn {
            hive: hive.id().clone(),
            backend: device.backend.clone(),
            devices: vec![device.index],
            evict: Vec::new(),
        });
    }
    if with_model().any(|hive| hive.status == HiveStatus::Starting) {
        return Some(Placement::Wait);
    }
    let stopped = with_model().filter(|hive| view.can_start(hive));
    if let Some((hive, _)) = roomiest(request, view, stopped, mindful) {
        return Some(Placement::StartHive(hive.id().clone()));
    }
    let unreported = || {
        let hives = hives.allowed.iter();
        hives.filter(|hive| hive.capabilities().is_none())
    };
    if unreported().any(|hive| hive.status == HiveStatus::Starting) {
        return Some(Placement::Wait);
    }
    if let Some(hive) = unreported().find(|hive| view.can_start(hive)) {
        return Some(Placement::StartHive(hive.id().clone()));
    }
    let later = |hive: &Hive| view.is_unsteady(hive) || goes(&hive);
    with_model().any(later).then_some(Placement::Wait)
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
fn allowed<'a>(
    request: &PlacementRequest<'a>,
    view: &ClusterView<'a>,
) -> impl Iterator<Item = &'a Hive> + use<'a> {
    let only = request.constraints.hive.as_ref();
    let hives = view.hives.values().filter(|hive| !hive.draining);
    hives.filter(move |hive| only.is_none_or(|id| id == hive.id()))
}

impl PlacementRequest<'_> {
    /// Whether a hive has, by its last report, a device that the request allows.
    #[must_use]
    pub fn has_device_on(&self, hive: &Hive) -> bool {
        devices(self, hive).next().is_some()
    }
}

/// The devices of a hive that the request allows.
fn devices<'a>(
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
    let mut workers = view.workers.with_model(request.model);
    let worker = workers.find(|worker| !worker.draining && request.is_served_by(worker))?;
    let mut hives = view.hives.values();
    if hives.any(|hive| hive.model(request.model).is_some()) {
        return None;
    }
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
    hives: &Hives<'_>,
    mindful: bool,
) -> Error {
    if let Some(error) = impossible(request, view) {
        return error;
    }
    let allowed = &hives.allowed;
    let Some(first) = hives.with_model.first() else {
        let unknown = allowed.iter().find(|hive| hive.capabilities().is_none());
        let broken = unknown.and_then(|hive| unreachable(hive, view));
        let mut all = view.hives.values();
        let elsewhere = all.any(|hive| hive.draining && hive.model(request.model).is_some());
        let drained = || drained(request, view).filter(|_| elsewhere || allowed.is_empty());
        return broken
            .or_else(drained)
            .unwrap_or_else(|| not_found(request.model, view));
    };
    let with_model = hives.with_model.iter().copied();
    let mut suitable = with_model.filter(|hive| request.has_device_on(hive));
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
pub(super) fn unreachable(hive: &Hive, view: &ClusterView<'_>) -> Option<Error> {
    const SOON: Duration = Duration::from_secs(1);
    let error = hive.last_error.as_ref()?;
    if hive.status == HiveStatus::Online {
        return None;
    }
    let told = |why: &str| format!("hive {} is not available: {why}", hive.id());
    let error = Error {
        code: Code::HiveUnreachable,
        ..error.clone().rephrased(told)
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
    /// A fleet may have a hundred thousand, and every mistyped name asks.
    const LOOKED_AT: usize = 5000;
    let models = view
        .hives
        .values()
        .filter_map(Hive::capabilities)
        .flat_map(|c| &c.models);
    let on_disk = models.map(|model| match model.aliases.first() {
        Some(alias) => alias.as_str(),
        None => model.model_ref.as_str(),
    });
    let running = view
        .workers
        .iter()
        .filter(|worker| worker.spec.hive.is_none());
    let running = running.map(|worker| worker.spec.model.as_str());
    let known: BTreeSet<&str> = on_disk.take(LOOKED_AT).chain(running).collect();
    let shown = || Vec::from_iter(known.iter().copied().take(SHOWN)).join(", ");
    match known.len() {
        0 => "there is no model yet: put one into a hive's models folder".to_owned(),
        n if n > SHOWN => format!("there are {}, … (GET /v1/models lists all)", shown()),
        _ => format!("there is {}", shown()),
    }
}

/// An error if no machine that there is has such a device: asking again is of no use.
fn impossible(request: &PlacementRequest<'_>, view: &ClusterView<'_>) -> Option<Error> {
    let wanted = request.constraints;
    let param = match (&wanted.backend, wanted.device) {
        (Some(_), _) => "backend",
        (None, Some(_)) => "device",
        (None, None) => return None,
    };
    let only = wanted.hive.as_ref();
    let asked = || {
        let hives = view.hives.values();
        hives.filter(move |hive| only.is_none_or(|id| id == hive.id()))
    };
    let may_have = |hive: &Hive| hive.capabilities().is_none() || request.has_device_on(hive);
    let mut workers = view.workers.iter();
    if asked().next().is_none()
        || asked().any(may_have)
        || workers.any(|worker| request.is_allowed_on(worker))
    {
        return None;
    }
    let message = format!(
        "no hive{} has {}; there is {}",
        only.map_or(String::new(), |id| format!(" {id}")),
        asked_device(request),
        devices_of(asked())
    );
    Some(Error::invalid(message).param(param))
}

fn no_device(request: &PlacementRequest<'_>, hive: &Hive) -> Error {
    let wanted = asked_device(request);
    let message = format!(
        "no hive with the model has {wanted}; there is {}",
        devices_of([hive].into_iter())
    );
    Error::new(Code::NoCapacity, message)
}

/// The device that a request asks for, in words.
fn asked_device(request: &PlacementRequest<'_>) -> String {
    let wanted = request.constraints;
    let backend = wanted.backend.as_deref().unwrap_or("any backend");
    match wanted.device {
        Some(index) => format!("device {index} of {backend}"),
        None => format!("a device of {backend}"),
    }
}

/// The devices of hives, in words; of a large fleet the first.
fn devices_of<'a>(hives: impl Iterator<Item = &'a Hive>) -> String {
    const SHOWN: usize = 20;
    let devices = hives.flat_map(|hive| {
        let report = hive.capabilities();
        let devices = report.map_or(&[][..], |report| report.devices.as_slice());
        devices
            .iter()
            .map(move |device| format!("{} {} on {}", device.backend, device.index, hive.id()))
    });
    let mut shown: Vec<String> = devices.take(SHOWN + 1).collect();
    match shown.len() {
        0 => "none".to_owned(),
        n if n > SHOWN => {
            shown[SHOWN] = "…".to_owned();
            shown.join(", ")
        }
        _ => shown.join(", "),
    }
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
