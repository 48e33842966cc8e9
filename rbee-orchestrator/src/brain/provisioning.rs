//! Provisioning: a model that no hive has comes to one, once for all who wait.

use std::time::Duration;

use crate::domain::{HiveId, HiveModel, ModelRef, Now};
use crate::error::{Code, Error, Result};
use crate::scheduler::{FailedFetch, Fetch, Hive};

use super::Brain;
use super::action::Action;
use super::queue::{GroupKey, Waits};

/// Between two narrations of how far a model is.
const TELL_AGAIN: Duration = Duration::from_secs(1);
/// Failures that are remembered of one hive: clients choose what is fetched.
const FAILURES_KEPT: usize = 256;

impl Brain {
    /// Has a hive fetch the model that a group waits for, unless it does so already. A policy's
    /// answer is a plan: one that makes no sense is not carried out.
    pub(super) fn provision(
        &mut self,
        now: Now,
        key: &GroupKey,
        id: &HiveId,
        out: &mut Vec<Action>,
    ) {
        let model = &key.model;
        let may_run_there = key.constraints.hive.as_ref().is_none_or(|only| only == id);
        let allowed = self.config.hives.auto_download && model.is_fetchable() && may_run_there;
        let Some(hive) = self.hives.get(id).filter(|_| allowed) else {
            return;
        };
        if hive.fetch(model).is_none() {
            if !self.view(now).can_fetch(hive)
                || hive.model_named(model).is_some()
                || hive.failed_fetch(model, now.mono).is_some()
            {
                return;
            }
            if let Some(hive) = self.hives.get_mut(id) {
                hive.fetches.push(Fetch::new(model.clone()));
            }
            out.push(Action::Provision {
                hive: id.clone(),
                model: model.clone(),
            });
        }
        self.wait_for_fetch(key, id, out);
    }

    /// Takes note of a fetch that an administrator ordered; its progress and end come as events, as
    /// with one of the brain's own.
    pub fn expect_fetch(&mut self, id: &HiveId, model: &ModelRef) {
        if let Some(hive) = self.hives.get_mut(id) {
            hive.failed_fetches.retain(|fetch| fetch.model != *model);
            if hive.fetch(model).is_none() {
                hive.fetches.push(Fetch::new(model.clone()));
            }
        }
    }

    pub(super) fn fetch_progress(
        &mut self,
        now: Now,
        id: &HiveId,
        model: &ModelRef,
        (bytes_downloaded, bytes_total): (u64, u64),
        out: &mut Vec<Action>,
    ) {
        let Some(fetch) = self.hives.get_mut(id).and_then(|hive| of(hive, model)) else {
            return;
        };
        fetch.bytes_downloaded = bytes_downloaded;
        fetch.bytes_total = bytes_total;
        if fetch.told.is_some_and(|told| told + TELL_AGAIN > now.mono) {
            return;
        }
        fetch.told = Some(now.mono);
        let waits = Waits::Fetch(id.clone());
        for key in self
            .queue
            .keys(|group| group.waits == waits && group.key.model == *model)
        {
            self.wait_for_fetch(&key, id, out);
        }
    }

    pub(super) fn fetched(
        &mut self,
        now: Now,
        id: &HiveId,
        model: &ModelRef,
        result: Result<Option<String>>,
        out: &mut Vec<Action>,
    ) {
        let retry_after = self.config.hives.retry_after;
        let Some(hive) = self.hives.get_mut(id) else {
            return;
        };
        let at = hive.fetches.iter().position(|fetch| fetch.model == *model);
        let Some(fetch) = at.map(|at| hive.fetches.swap_remove(at)) else {
            return;
        };
        let listed = hive.models().len();
        match result.and_then(|local_path| take_in(hive, &fetch, local_path)) {
            Ok(()) => {
                if let Some(there) = hive.model_named(model) {
                    let there = there.model_ref.clone();
                    hive.record.note_arrival(&there, now.wall);
                }
                self.names.learn(id, &hive.models()[listed..]);
                // It may have come under another name than those who wait knew.
                for key in self.queue.keys(|group| group.key.model == *model) {
                    if let Some(group) = self.queue.group_mut(&key) {
                        group.tentative = true;
                    }
                }
                self.pump_all(now, out);
            }
            Err(error) => {
                let failed = &mut hive.failed_fetches;
                failed.retain(|fetch| fetch.until > now.mono);
                if failed.len() == FAILURES_KEPT {
                    failed.remove(0);
                }
                failed.push(FailedFetch {
                    model: model.clone(),
                    until: now.mono + retry_after,
                    error: error
                        .rephrased(|why| format!("model {model} could not be fetched: {why}")),
                });
                self.pump_model(now, model, out);
                self.fetch_next(now, out);
            }
        }
    }

    /// Hives may have room for another fetch: for those who wait for that, in their order.
    fn fetch_next(&mut self, now: Now, out: &mut Vec<Action>) {
        for key in self.queue.keys(|group| group.waits == Waits::Turn) {
            let view = self.view(now);
            if !view.hives.values().any(|hive| view.can_fetch(hive)) {
                return;
            }
            self.pump_model(now, &key.model, out);
        }
    }

    /// How far a model is on its way to a hive, for those who can't wait for it.
    pub(super) fn how_far(&self, id: &HiveId, model: &ModelRef) -> String {
        let fetch = self.hives.get(id).and_then(|hive| hive.fetch(model));
        let progress = fetch.and_then(Fetch::progress);
        let progress = progress.map_or_else(String::new, |progress| format!(" ({progress})"));
        format!("its download to hive {id} goes on{progress}")
    }
}

fn of<'h>(hive: &'h mut Hive, model: &ModelRef) -> Option<&'h mut Fetch> {
    let mut fetches = hive.fetches.iter_mut();
    fetches.find(|fetch| fetch.model == *model)
}

/// Makes sure that a hive counts as having what it fetched. One that reports its models must have
/// named it; of another it is noted here.
fn take_in(hive: &mut Hive, fetch: &Fetch, local_path: Option<String>) -> Result<()> {
    let model = &fetch.model;
    if hive.model_named(model).is_some() {
        return Ok(());
    }
    let (id, tells) = (hive.id().clone(), hive.tells_models);
    match hive.record.capabilities.as_mut().filter(|_| !tells) {
        Some(report) => {
            report.models.push(HiveModel {
                model_ref: model.clone(),
                aliases: Vec::new(),
                size_bytes: fetch.bytes_total,
                vram_bytes: None,
                removable: true,
                local_path,
            });
            Ok(())
        }
        None => Err(Error::new(
            Code::DownloadFailed,
            format!(
                "hive {id} says that it has {model}, but does not list it under this name; \
                 GET /v2/models/list shows what it has"
            ),
        )),
    }
}
