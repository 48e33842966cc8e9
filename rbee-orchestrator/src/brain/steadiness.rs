//! Hives that are lost and come back again and again: they must be steady for a while before they
//! get new workers.

use std::time::Duration;

use crate::domain::{HiveId, HiveStatus, Mono, Now};
use crate::error::{Code, Error};

use super::Brain;
use super::action::Action;
use super::job::Due;
use super::jobs::humantime;

/// Losses that lie further back do not count.
const WINDOW: Duration = Duration::from_secs(300);
/// So many losses in the window are too many.
const LOSSES: usize = 2;
/// How long a hive must be steady; doubles with each further loss.
const STEADY_FIRST: Duration = Duration::from_secs(15);
const STEADY_MAX: Duration = Duration::from_secs(300);

impl Brain {
    /// A hive that answered is out of reach, and has not ended as far as is known.
    pub(super) fn note_loss(&mut self, now: Now, id: &HiveId) {
        self.end_probation(id);
        let notes = self.hive_notes.entry(id.clone()).or_default();
        notes.losses.retain(|loss| now.mono.since(*loss) < WINDOW);
        notes.losses.push(now.mono);
    }

    /// A hive has come back.
    pub(super) fn note_return(&mut self, now: Now, id: &HiveId) {
        let (Some(hive), Some(notes)) = (self.hives.get_mut(id), self.hive_notes.get_mut(id))
        else {
            return;
        };
        notes.losses.retain(|loss| now.mono.since(*loss) < WINDOW);
        let losses = notes.losses.len();
        if losses < LOSSES {
            return;
        }
        self.counters.hive_flaps += 1;
        let doublings = (losses - LOSSES).min(16);
        let steady = STEADY_FIRST.saturating_mul(1 << doublings).min(STEADY_MAX);
        hive.unsteady_until = now.mono + steady;
        let message = format!(
            "was lost {losses} times within {} and must be steady for {} before it gets new workers",
            humantime(WINDOW),
            humantime(steady),
        );
        hive.last_error = Some(Error::new(Code::HiveUnreachable, message));
        notes.steady_due = Some(hive.unsteady_until);
        self.schedule(now.mono + steady, Due::Steady(id.clone()));
    }

    /// A hive was steady for long enough.
    pub(super) fn became_steady(&mut self, now: Now, id: &HiveId, out: &mut Vec<Action>) {
        self.end_probation(id);
        if let Some(hive) = self.hives.get_mut(id)
            && hive.status == HiveStatus::Online
        {
            hive.last_error = None;
        }
        self.pump_all(now, out);
    }

    /// Ends a hive's time of probation.
    pub(super) fn end_probation(&mut self, id: &HiveId) {
        let notes = self.hive_notes.get_mut(id);
        let Some(due) = notes.and_then(|notes| notes.steady_due.take()) else {
            return;
        };
        self.due.remove(&(due, Due::Steady(id.clone())));
        if let Some(hive) = self.hives.get_mut(id) {
            hive.unsteady_until = Mono::default();
        }
    }
}
