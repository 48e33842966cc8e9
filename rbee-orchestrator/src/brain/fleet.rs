//! Hives: starts, reports, losses.

use std::collections::HashSet;

use crate::domain::{
    Capabilities, Device, HiveId, HiveRecord, HiveSpec, HiveStatus, ModelRef, Now,
};
use crate::error::{Code, Error, Result};
use crate::scheduler::Hive;

use super::Brain;
use super::action::Action;
use super::event::SeenWorker;
use super::queue::Group;

impl Brain {
    /// Registers a hive, in place of an older one of that name. What is known of its process, its
    /// last report and its workers stays unless the place changed.
    pub fn add_hive(
        &mut self,
        now: Now,
        mut record: HiveRecord,
        out: &mut Vec<Action>,
    ) -> HiveRecord {
        let id = record.spec.id.clone();
        match self.hives.get_mut(&id) {
            Some(old) if old.record.spec.is_same_place(&record.spec) => {
                record.process = old.record.process.clone();
                record.capabilities = old.record.capabilities.clone();
                record.last_seen = old.record.last_seen;
                record.model_use = old.record.model_use.clone();
                old.record = record.clone();
                if self.forgive(&id) {
                    self.request_hive_start(now, &id, out);
                }
            }
            _ => {
                self.forget_hive_notes(&id);
                let hive = Hive::new(record.clone());
                if let Some(old) = self.hives.get(&id) {
                    self.names.forget(&id, old.models());
                }
                self.names.learn(&id, hive.models());
                self.hives.insert(id.clone(), hive);
                self.lose_workers_of(now, &id, "was registered at another place", out);
            }
        }
        self.pump_all(now, out);
        self.adopt_early_callers(now, out);
        record
    }

    /// Forgets a hive and its workers; what they run goes on to its end.
    ///
    /// # Errors
    /// `HIVE_NOT_FOUND`.
    pub fn remove_hive(&mut self, now: Now, id: &HiveId, out: &mut Vec<Action>) -> Result<Hive> {
        let Some(hive) = self.hives.remove(id) else {
            return Err(self.hive_not_found(id));
        };
        self.forget_hive_notes(id);
        self.names.forget(id, hive.models());
        let not_found = self.hive_not_found(id).param("node");
        let only_there = |group: &Group| group.key.constraints.hive.as_ref() == Some(id);
        for key in self.queue.keys(only_there) {
            self.no_place(now, &key, &not_found, out);
        }
        self.lose_workers_of(now, id, "was removed", out);
        self.pump_all(now, out);
        self.adopt_early_callers(now, out);
        Ok(hive)
    }

    fn lose_workers_of(&mut self, now: Now, id: &HiveId, why: &str, out: &mut Vec<Action>) {
        let error = Error::new(Code::WorkerFailed, format!("hive {id} {why}"));
        let lost = self.workers_of(id);
        // All are gone before anyone who waits is placed anew.
        for worker in &lost {
            self.forget(worker);
        }
        for worker in &lost {
            self.end_those_who_wait_for(now, worker, &error, out);
        }
    }

    /// Asks for a start unless one is under way.
    pub fn request_hive_start(&mut self, now: Now, id: &HiveId, out: &mut Vec<Action>) {
        let can_start = self
            .hives
            .get(id)
            .is_some_and(|hive| self.view(now).can_start(hive));
        if can_start && self.cancel_restart(id) {
            self.counters.hive_restarts += 1;
        }
        if can_start && let Some(hive) = self.hives.get_mut(id) {
            hive.status = HiveStatus::Starting;
            hive.misses = 0;
            hive.last_error = None;
            self.note_start(now, id);
            out.push(Action::StartHive { hive: id.clone() });
        }
    }

    /// What a start found out about the hive's process, to be remembered.
    pub fn set_hive_process(
        &mut self,
        id: &HiveId,
        process: Option<crate::domain::HiveProcess>,
    ) -> Option<HiveRecord> {
        let hive = self.hives.get_mut(id)?;
        hive.record.process = process;
        Some(hive.record.clone())
    }

    pub(super) fn hive_started(
        &mut self,
        now: Now,
        id: &HiveId,
        result: Result<()>,
        out: &mut Vec<Action>,
    ) {
        let slept = self.slept_through_start(id);
        let Some(hive) = self.hives.get_mut(id) else {
            return;
        };
        self.hive_notes.entry(id.clone()).or_default().installing = None;
        match result {
            Err(_) if slept && hive.status == HiveStatus::Starting && !hive.draining => {
                self.note_start(now, id);
                out.push(Action::StartHive { hive: id.clone() });
            }
            // Online comes with its first report: only then is it known what it has.
            Ok(()) => self.hive_notes.entry(id.clone()).or_default().runs = true,
            Err(error) => {
                hive.last_error = Some(error);
                self.restart_failed(now, id);
                self.hive_lost(now, id, HiveStatus::Error, out);
            }
        }
    }

    pub(super) fn hive_report(
        &mut self,
        now: Now,
        id: &HiveId,
        capabilities: Option<Capabilities>,
        workers: Vec<SeenWorker>,
        out: &mut Vec<Action>,
    ) {
        let Some(hive) = self.hives.get_mut(id) else {
            return;
        };
        let was_online = hive.status == HiveStatus::Online;
        hive.status = HiveStatus::Online;
        hive.misses = 0;
        hive.gave_up = false;
        if hive.unsteady_until <= now.mono {
            hive.last_error = None;
        }
        hive.record.last_seen = Some(now.wall);
        hive.full_devices.retain(|(_, until)| *until > now.mono);
        hive.failed_loads.retain(|load| load.until > now.mono);
        hive.failed_fetches.retain(|fetch| fetch.until > now.mono);
        hive.tells_models = capabilities.is_some();
        let mut news = !was_online;
        if capabilities.is_some() && hive.record.capabilities != capabilities {
            news = true;
            // Free memory changes with most reports, and says nothing of names.
            let old = std::mem::replace(&mut hive.record.capabilities, capabilities);
            let old = old.map_or_else(Vec::new, |report| report.models);
            if old != hive.models() {
                forget_use_of_absent_models(hive);
                self.names.forget(id, &old);
                self.names.learn(id, hive.models());
            }
        } else if hive.record.capabilities.is_none() {
            // A hive that can't tell what it has: what its registration claims must do.
            hive.record.capabilities = Some(Capabilities {
                backends: hive.record.spec.backends.clone(),
                devices: claimed_devices(&hive.record.spec),
                ..Capabilities::default()
            });
        }
        let draining = self.hives.get(id).is_some_and(|hive| hive.draining);
        let notes = self.hive_notes.entry(id.clone()).or_default();
        (notes.runs, notes.in_doubt) = (true, false);
        self.cancel_restart(id);
        if !was_online {
            self.note_return(now, id);
            self.withhold_workers(id, draining);
        }
        self.reconcile(now, id, workers, out);
        if news {
            self.pump_all(now, out);
        }
    }

    pub(super) fn hive_missed(
        &mut self,
        now: Now,
        id: &HiveId,
        error: Error,
        gone: bool,
        out: &mut Vec<Action>,
    ) {
        let offline_after = self.config.hives.offline_after;
        let Some(hive) = self.hives.get_mut(id) else {
            return;
        };
        hive.misses = hive.misses.saturating_add(1);
        if hive.status != HiveStatus::Error {
            hive.last_error = Some(error);
        }
        let lost = gone || hive.misses >= offline_after;
        let status = hive.status;
        match gone {
            true => self.hive_ended(now, id),
            false if lost && status == HiveStatus::Online => self.note_loss(now, id),
            false => {}
        }
        match status {
            HiveStatus::Online if lost => self.hive_lost(now, id, HiveStatus::Offline, out),
            // It started and never told what it has: that is a start that failed.
            HiveStatus::Starting if lost => self.hive_lost(now, id, HiveStatus::Error, out),
            _ => {}
        }
    }

    /// A hive could not be reached with an order. Whether it runs is looked at by starting it
    /// anew, which takes what runs; when that did not help a moment ago, it counts as failed.
    pub(super) fn hive_refused_connection(
        &mut self,
        now: Now,
        id: &HiveId,
        error: Error,
        out: &mut Vec<Action>,
    ) {
        let Some(hive) = self.hives.get_mut(id) else {
            return;
        };
        let again = hive.unreached_until > now.mono;
        hive.unreached_until = now.mono + self.config.hives.retry_after;
        hive.last_error = Some(error);
        let status = match again {
            true => HiveStatus::Error,
            false => HiveStatus::Offline,
        };
        // One that dies of each order must not be started without end.
        self.hive_ended(now, id);
        self.hive_lost(now, id, status, out);
    }

    /// A hive does not vouch for its workers any more, and can't be asked for new ones.
    pub(super) fn hive_lost(
        &mut self,
        now: Now,
        id: &HiveId,
        status: HiveStatus,
        out: &mut Vec<Action>,
    ) {
        let Some(hive) = self.hives.get_mut(id) else {
            return;
        };
        hive.status = match hive.gave_up {
            true => HiveStatus::Error,
            false => status,
        };
        if status == HiveStatus::Error {
            let soonest = now.mono + self.config.hives.retry_after;
            hive.retry_at = hive.retry_at.max(soonest);
        }
        self.withhold_workers(id, true);
        for worker in self.workers_of(id) {
            self.doubt(&worker, out);
        }
        self.pump_all(now, out);
    }
}

fn forget_use_of_absent_models(hive: &mut Hive) {
    let report = hive.record.capabilities.iter();
    let there: HashSet<&ModelRef> = report
        .flat_map(|report| &report.models)
        .map(|model| &model.model_ref)
        .collect();
    hive.record
        .model_use
        .retain(|model, _| there.contains(model));
}

/// The devices that a registration claims, for a hive that can't report its own.
fn claimed_devices(spec: &HiveSpec) -> Vec<Device> {
    const MOST_OF_A_KIND: u32 = 64;
    let of_kind = |(backend, count): (&String, &u32)| {
        let backend = backend.clone();
        (0..(*count).min(MOST_OF_A_KIND)).map(move |index| Device {
            index,
            backend: backend.clone(),
            name: String::new(),
            vram_total_bytes: 0,
            vram_free_bytes: 0,
        })
    };
    spec.devices.iter().flat_map(of_kind).collect()
}
