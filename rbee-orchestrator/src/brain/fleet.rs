//! Hives: starts, reports, losses.

use crate::domain::{Capabilities, HiveId, HiveRecord, HiveStatus, Now};
use crate::error::{Code, Error, Result};
use crate::scheduler::Hive;

use super::Brain;
use super::event::{Action, SeenWorker};

impl Brain {
    /// Registers a hive, in place of an older one of that name. What is known of its process and
    /// its last report stays unless the place changed.
    pub fn add_hive(&mut self, mut record: HiveRecord) -> HiveRecord {
        let id = record.spec.id.clone();
        if let Some(old) = self
            .hives
            .get(&id)
            .filter(|old| same_place(&old.record, &record))
        {
            record.process = old.record.process.clone();
            record.capabilities = old.record.capabilities.clone();
            record.last_seen = old.record.last_seen;
            let mut hive = old.clone();
            hive.record = record.clone();
            self.hives.insert(id, hive);
        } else {
            self.hives.insert(id, Hive::new(record.clone()));
        }
        self.names.learn(self.hives.values());
        record
    }

    /// Forgets a hive and its workers; what they run goes on to its end.
    ///
    /// # Errors
    /// `HIVE_NOT_FOUND`.
    pub fn remove_hive(&mut self, now: Now, id: &HiveId, out: &mut Vec<Action>) -> Result<Hive> {
        let hive = self
            .hives
            .remove(id)
            .ok_or_else(|| self.hive_not_found(id))?;
        let of_hive = self
            .workers
            .iter()
            .filter(|w| w.spec.hive.as_ref() == Some(id));
        for worker in of_hive.map(|w| w.spec.id.clone()).collect::<Vec<_>>() {
            let error = Error::new(Code::WorkerFailed, format!("hive {id} was removed"));
            self.worker_failed(now, &worker, &error, out);
        }
        self.names.learn(self.hives.values());
        self.pump_all(now, out);
        Ok(hive)
    }

    /// Asks for a start unless one is under way.
    pub fn request_hive_start(&mut self, now: Now, id: &HiveId, out: &mut Vec<Action>) {
        let can_start = self
            .hives
            .get(id)
            .is_some_and(|hive| self.view(now).can_start(hive));
        if can_start && let Some(hive) = self.hives.get_mut(id) {
            hive.status = HiveStatus::Starting;
            hive.misses = 0;
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

    /// A hive was stopped on purpose.
    pub fn hive_stopped(&mut self, now: Now, id: &HiveId, out: &mut Vec<Action>) {
        if let Some(hive) = self.hives.get_mut(id) {
            hive.status = HiveStatus::Offline;
            hive.record.process = None;
        }
        self.pump_all(now, out);
    }

    pub(super) fn hive_started(
        &mut self,
        now: Now,
        id: &HiveId,
        result: Result<()>,
        out: &mut Vec<Action>,
    ) {
        let retry_after = self.config.hives.retry_after;
        let Some(hive) = self.hives.get_mut(id) else {
            return;
        };
        // Online comes with its first report: only then is it known what it has.
        if let Err(error) = result {
            hive.status = HiveStatus::Error;
            hive.last_error = Some(error);
            hive.retry_at = now.mono + retry_after;
            self.pump_all(now, out);
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
        hive.last_error = None;
        hive.record.last_seen = Some(now.wall);
        hive.full_devices.retain(|(_, until)| *until > now.mono);
        let mut news = !was_online;
        if capabilities.is_some() && hive.record.capabilities != capabilities {
            news = true;
            hive.record.capabilities = capabilities;
            self.names.learn(self.hives.values());
        } else if hive.record.capabilities.is_none() {
            // A hive that can't tell what it has: what its registration claims must do.
            hive.record.capabilities = Some(Capabilities {
                backends: hive.record.spec.backends.clone(),
                ..Capabilities::default()
            });
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
        hive.last_error = Some(error);
        let lost = gone || hive.misses >= offline_after;
        if !lost || hive.status == HiveStatus::Offline {
            return;
        }
        hive.status = HiveStatus::Offline;
        let of_hive = self
            .workers
            .iter()
            .filter(|w| w.spec.hive.as_ref() == Some(id));
        for worker in of_hive.map(|w| w.spec.id.clone()).collect::<Vec<_>>() {
            self.doubt(&worker, out);
        }
        self.pump_all(now, out);
    }
}

/// Whether two records mean the same process, so that what is known of it holds on.
fn same_place(old: &HiveRecord, new: &HiveRecord) -> bool {
    let place = |record: &HiveRecord| {
        (
            record.spec.mode,
            record.spec.hostname.clone(),
            record.spec.port,
            record.spec.ssh.clone(),
        )
    };
    place(old) == place(new)
}
