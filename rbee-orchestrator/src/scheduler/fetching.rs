//! Which hive fetches a model that none has.

use std::cmp::Reverse;

use super::placement::{Hives, there_is, unreachable};
use super::{ClusterView, FailedFetch, Hive, Placement, PlacementRequest};
use crate::domain::HiveStatus;
use crate::error::{Code, Error};

/// Hives that a model is asked of before the source counts as the one to blame.
const HIVES_TRIED: usize = 2;

/// What to do for a model that no hive has where the request may run: have the hive with the most
/// room on its disk fetch it, wait while one does or has too many others to fetch, start one that
/// could. `None` where it can't or may not be fetched.
///
/// A fetch that has just failed is not tried again, nor on another hive unless the hive was to
/// blame, or may have been.
pub(super) fn place_fetch(
    request: &PlacementRequest<'_>,
    view: &ClusterView<'_>,
    hives: &Hives<'_>,
) -> Option<Placement> {
    let model = request.model;
    if !view.auto_download || !model.is_fetchable() {
        return None;
    }
    let mut with_model = hives.with_model.iter();
    if with_model.any(|hive| request.has_device_on(hive) && !hive.gave_up) {
        return None;
    }
    let allowed = || hives.allowed.iter().copied();
    let suitable = || allowed().filter(|hive| request.has_device_on(hive));
    let fetching = suitable().filter(|hive| hive.fetch(model).is_some());
    if let Some(goes_on) = fetching.filter_map(|hive| go_on(hive, view)).next() {
        return Some(goes_on);
    }
    let failures = || suitable().filter_map(|hive| hive.failed_fetch(model, view.now));
    if let Some(failure) = blame_of_source(failures()) {
        return Some(Placement::Reject(told(failure, view)));
    }
    let open = || {
        let failed = |hive: &Hive| hive.failed_fetch(model, view.now).is_some();
        suitable().filter(move |hive| !failed(hive) && hive.fetch(model).is_none())
    };
    if let Some(hive) = roomiest(open().filter(|hive| view.can_fetch(hive))) {
        let hive = hive.id().clone();
        return Some(Placement::Provision { hive });
    }
    let later = |hive: &Hive| {
        hive.status == HiveStatus::Starting || view.is_unsteady(hive) || view.can_spawn(hive)
    };
    if open().any(later) {
        return Some(Placement::Wait);
    }
    if let Some(hive) = roomiest(open().filter(|hive| view.can_start(hive))) {
        return Some(Placement::StartHive(hive.id().clone()));
    }
    let failure = failures().next().map(|failure| told(failure, view));
    let error = failure.or_else(|| suitable().find_map(|hive| unreachable(hive, view)));
    error.map(Placement::Reject)
}

/// What to do while a hive has a fetch: wait, or start the hive that has gone meanwhile. `None` where
/// it does not come back for now.
fn go_on(hive: &Hive, view: &ClusterView<'_>) -> Option<Placement> {
    match hive.status {
        HiveStatus::Online | HiveStatus::Starting => Some(Placement::Wait),
        _ if view.can_start(hive) => Some(Placement::StartHive(hive.id().clone())),
        _ => None,
    }
}

/// The failure that another hive would meet as well.
fn blame_of_source<'a>(
    mut failures: impl Iterator<Item = &'a FailedFetch>,
) -> Option<&'a FailedFetch> {
    let mut unclear = 0;
    let of_source = |failure: &&FailedFetch| match failure.error.code {
        code if is_of_hive(code) => false,
        // The source, or the hive's way to it.
        Code::DownloadFailed | Code::Timeout => {
            unclear += 1;
            unclear >= HIVES_TRIED
        }
        _ => true,
    };
    failures.find(of_source)
}

/// The hive with the most free disk, by its last report; the first of equals.
fn roomiest<'a>(hives: impl Iterator<Item = &'a Hive>) -> Option<&'a Hive> {
    hives.min_by_key(|hive| {
        let report = hive.capabilities();
        Reverse(report.and_then(|report| report.disk_free_bytes))
    })
}

/// Whether another hive will do better. What the hub refuses, it refuses to all.
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
