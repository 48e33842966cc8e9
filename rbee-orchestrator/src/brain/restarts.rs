//! Hives that end by themselves: started again after a pause that doubles, given up when that does
//! not help.

use crate::domain::{HiveId, HiveStatus, Mono, Now};
use crate::error::{Code, Error};

use super::Brain;
use super::action::Action;
use super::job::Due;
use super::jobs::humantime;

impl Brain {
    /// A hive's process has ended. One that the queen started is started again; who needs it does
    /// not wait for that the first time.
    pub(super) fn hive_ended(&mut self, now: Now, id: &HiveId) {
        let notes = self.hive_notes.entry(id.clone()).or_default();
        if std::mem::take(&mut notes.runs) {
            self.plan_restart(now, id);
        }
    }

    /// A start is asked for.
    pub(super) fn note_start(&mut self, now: Now, id: &HiveId) {
        let notes = self.hive_notes.entry(id.clone()).or_default();
        notes.start_begun = Some(now.mono);
    }

    /// Whether a start has ended while the queen stood still, so that its failure says nothing.
    pub(super) fn slept_through_start(&mut self, id: &HiveId) -> bool {
        let notes = self.hive_notes.get_mut(id);
        let begun = notes.and_then(|notes| notes.start_begun.take());
        begun.is_some_and(|begun| self.stood_still_since(begun))
    }

    /// A start failed. If it was to bring a hive back that had ended, that is tried again.
    pub(super) fn restart_failed(&mut self, now: Now, id: &HiveId) {
        if self.ended_lately(now, id) {
            self.plan_restart(now, id);
        }
    }

    /// Whether a hive that the queen starts again ended by itself, not long ago.
    pub(super) fn ended_lately(&self, now: Now, id: &HiveId) -> bool {
        let window = self.config.hives.restart_window;
        let is_recent = |end: &Mono| now.mono.since(*end) < window;
        let notes = self.hive_notes.get(id);
        notes.is_some_and(|notes| notes.ends.iter().any(is_recent))
    }

    fn plan_restart(&mut self, now: Now, id: &HiveId) {
        let config = &self.config.hives;
        let (Some(hive), Some(notes)) = (self.hives.get_mut(id), self.hive_notes.get_mut(id))
        else {
            return;
        };
        let process = hive.record.process.as_ref();
        let ours = process.is_some_and(|process| process.started_by_queen);
        let wanted = hive.record.spec.is_managed() && ours && !hive.draining && !self.draining;
        if !wanted || config.restart_limit == 0 || hive.gave_up {
            return;
        }
        let is_recent = |end: &Mono| now.mono.since(*end) < config.restart_window;
        notes.ends.retain(is_recent);
        let before = u32::try_from(notes.ends.len()).unwrap_or(u32::MAX);
        if before >= config.restart_limit {
            return self.give_up(id, before);
        }
        notes.ends.push(now.mono);
        let longest = config.restart_first.saturating_mul(1 << before.min(31));
        let due = now.mono + self.chance.up_to(longest.min(config.restart_max));
        if before > 0 {
            hive.retry_at = hive.retry_at.max(due);
        }
        let old = notes.restart_due.replace(due);
        old.map(|old| self.due.remove(&(old, Due::Restart(id.clone()))));
        self.schedule(due, Due::Restart(id.clone()));
    }

    fn give_up(&mut self, id: &HiveId, starts: u32) {
        let Some(hive) = self.hives.get_mut(id) else {
            return;
        };
        let within = humantime(self.config.hives.restart_window);
        let ended = || Error::new(Code::HiveUnreachable, "it ended");
        let error = hive.last_error.take().unwrap_or_else(ended);
        let times = match starts {
            1 => "1 start".to_owned(),
            starts => format!("{starts} starts"),
        };
        let told = |why: &str| {
            format!(
                "gave up after {times} within {within}: {why}; when that is mended, POST \
                 /v2/registry/beehives/resume or register it again"
            )
        };
        hive.last_error = Some(Error {
            code: Code::HiveUnreachable,
            ..error.rephrased(told)
        });
        hive.gave_up = true;
        hive.status = HiveStatus::Error;
        self.counters.hives_given_up += 1;
    }

    /// The pause before a start is over.
    pub(super) fn restart(&mut self, now: Now, id: &HiveId, out: &mut Vec<Action>) {
        // What held back those who need it does not hold back this.
        if let Some(hive) = self.hives.get_mut(id) {
            hive.retry_at = now.mono;
        }
        if !self.draining {
            self.request_hive_start(now, id, out);
        }
        self.cancel_restart(id);
    }

    /// A start begins; says whether it was planned because the hive had ended.
    pub(super) fn cancel_restart(&mut self, id: &HiveId) -> bool {
        let notes = self.hive_notes.get_mut(id);
        let due = notes.and_then(|notes| notes.restart_due.take());
        if let Some(due) = due {
            self.due.remove(&(due, Due::Restart(id.clone())));
        }
        due.is_some()
    }

    /// A person wants the hive: what it did before does not count any more. Says whether it had
    /// been given up.
    pub(super) fn forgive(&mut self, id: &HiveId) -> bool {
        self.end_probation(id);
        let notes = self.hive_notes.entry(id.clone()).or_default();
        notes.ends.clear();
        notes.losses.clear();
        let Some(hive) = self.hives.get_mut(id) else {
            return false;
        };
        hive.retry_at = Mono::default();
        std::mem::take(&mut hive.gave_up)
    }

    /// Forgets what was kept of a hive.
    pub(super) fn forget_hive_notes(&mut self, id: &HiveId) {
        self.cancel_restart(id);
        self.end_probation(id);
        self.hive_notes.remove(id);
    }
}
