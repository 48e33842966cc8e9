//! Hives that get no new work: drained by a person, or out of reach.

use crate::domain::{HiveId, HiveStatus, Now};
use crate::error::{Error, Result};

use super::Brain;
use super::action::Action;

impl Brain {
    /// Gives a hive no new work. What runs there goes on to its end; with `stop` the hive is stopped
    /// then. Holds until [`Brain::resume_hive`], not over a restart of the queen.
    ///
    /// # Errors
    /// `HIVE_NOT_FOUND`; `INVALID_REQUEST` for a stop of a hive that someone else runs.
    pub fn drain_hive(
        &mut self,
        now: Now,
        id: &HiveId,
        stop: bool,
        out: &mut Vec<Action>,
    ) -> Result<()> {
        let Some(hive) = self.hives.get_mut(id) else {
            return Err(self.hive_not_found(id));
        };
        if stop && !hive.record.spec.is_managed() {
            let message = format!("hive {id} is run by someone else; the queen can't stop it");
            return Err(Error::invalid(message).param("stop"));
        }
        hive.draining = true;
        self.hive_notes
            .entry(id.clone())
            .or_default()
            .stops_when_idle = stop;
        self.cancel_restart(id);
        self.withhold_workers(id, true);
        self.pump_all(now, out);
        self.stop_if_drained(id, out);
        Ok(())
    }

    /// Gives a hive work again that was drained. One that was given up is started.
    ///
    /// # Errors
    /// `HIVE_NOT_FOUND`.
    pub fn resume_hive(&mut self, now: Now, id: &HiveId, out: &mut Vec<Action>) -> Result<()> {
        let Some(hive) = self.hives.get_mut(id) else {
            return Err(self.hive_not_found(id));
        };
        hive.draining = false;
        let online = hive.status == HiveStatus::Online;
        let gave_up = self.forgive(id);
        if let Some(notes) = self.hive_notes.get_mut(id) {
            notes.stops_when_idle = false;
        }
        if online {
            self.withhold_workers(id, false);
        }
        if gave_up {
            self.request_hive_start(now, id, out);
        }
        self.pump_all(now, out);
        Ok(())
    }

    /// Says of all workers of a hive whether they get new work.
    pub(super) fn withhold_workers(&mut self, id: &HiveId, withheld: bool) {
        for worker in self.workers_of(id) {
            if let Some(worker) = self.workers.get_mut(&worker) {
                worker.withheld = withheld;
            }
        }
    }

    /// Stops a hive that was drained for it, once nothing runs there.
    pub(super) fn stop_if_drained(&mut self, id: &HiveId, out: &mut Vec<Action>) {
        let stops = |notes: &&mut super::hive_notes::HiveNotes| notes.stops_when_idle;
        let is_idle = || {
            let mut workers = self.workers.iter();
            !workers.any(|worker| worker.leases > 0 && worker.spec.hive.as_ref() == Some(id))
        };
        if let Some(notes) = self.hive_notes.get_mut(id).filter(stops)
            && is_idle()
        {
            notes.stops_when_idle = false;
            out.push(Action::StopHive { hive: id.clone() });
        }
    }

    /// A hive that was drained has been stopped, or could not be.
    pub(super) fn hive_stopped(
        &mut self,
        now: Now,
        id: &HiveId,
        result: Result<()>,
        out: &mut Vec<Action>,
    ) {
        let Some(hive) = self.hives.get_mut(id) else {
            return;
        };
        hive.last_error = result.err();
        if hive.last_error.is_some() {
            return;
        }
        if let Some(notes) = self.hive_notes.get_mut(id) {
            notes.runs = false;
        }
        self.hive_lost(now, id, HiveStatus::Offline, out);
    }
}
