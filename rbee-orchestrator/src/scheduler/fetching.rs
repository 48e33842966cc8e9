//! Which hive fetches a model that none has.

use std::cmp::Reverse;

use super::placement::{allowed, devices, there_is};
use super::{ClusterView, FailedFetch, Hive, Placement, PlacementRequest};
use crate::domain::HiveStatus;
use crate::error::{Code, Error};

/// What to do for a model that no hive has where the request may run: have the hive with the most
/// room on its disk fetch it, wait while one does, start one that could. `None` where it can't or
/// may not be fetched.
///
/// A fetch that has just failed is not tried again, nor on another hive unless the hive was to
/// blame.
pub(super) fn place_fetch(
    request: &PlacementRequest<'_>,
    view: &ClusterView<'_>,
) -> Option<Placement> {
    let model = request.model;
    if !view.auto_download || !model.is_fetchable() {
        return None;
    }
    let suitable = || allowed(request, view).filter(|hive| devices(request, hive).next().is_some());
    if suitable().any(|hive| hive.model(model).is_some()) {
        return None;
    }
    if suitable().any(|hive| hive.fetch(model).is_some()) {
        return Some(Placement::Wait);
    }
    let failed = |hive: &Hive| hive.failed_fetch(model, view.now).is_some();
    let failures = suitable().filter_map(|hive| hive.failed_fetch(model, view.now));
    let failure = failures.min_by_key(|failure| is_of_hive(failure.error.code));
    if let Some(failure) = failure.filter(|failure| !is_of_hive(failure.error.code)) {
        return Some(Placement::Reject(told(failure, view)));
    }
    let open = || suitable().filter(|hive| !failed(hive));
    if let Some(hive) = roomiest(open().filter(|hive| view.can_spawn(hive))) {
        let hive = hive.id().clone();
        return Some(Placement::Provision { hive });
    }
    if open().any(|hive| hive.status == HiveStatus::Starting) {
        return Some(Placement::Wait);
    }
    if let Some(hive) = roomiest(open().filter(|hive| view.can_start(hive))) {
        return Some(Placement::StartHive(hive.id().clone()));
    }
    failure.map(|failure| Placement::Reject(told(failure, view)))
}

/// The hive with the most free disk, by its last report; the first of equals.
fn roomiest<'a>(hives: impl Iterator<Item = &'a Hive>) -> Option<&'a Hive> {
    hives.min_by_key(|hive| {
        let report = hive.capabilities();
        Reverse(report.and_then(|report| report.disk_free_bytes))
    })
}

/// Whether another hive may do better. What the hub refuses, it refuses to all.
fn is_of_hive(code: Code) -> bool {
    matches!(
        code,
        Code::InsufficientDisk
            | Code::HiveUnreachable
            | Code::NotImplemented
            | Code::SystemAtCapacity
            | Code::ShuttingDown
            | Code::Internal
    )
}

fn told(failure: &FailedFetch, view: &ClusterView<'_>) -> Error {
    let mut error = failure.error.clone();
    if error.code == Code::ModelNotFound {
        error.message = format!("{}; {}", error.message, there_is(view));
        return error.param("model");
    }
    error.retry_after(failure.until.since(view.now))
}
