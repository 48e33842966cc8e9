//! No place: what becomes of those for whom there is none now. A client who waits gets an answer at
//! once. A job that outlives its connection was acknowledged: it waits in its line, with its place there,
//! for as long as it takes, and a look that finds no place is no attempt of it.

use std::time::Duration;

use crate::domain::{JobId, ModelRef, Narration, Now};
use crate::error::{Code, Error};

use super::Brain;
use super::action::Action;
use super::job::Due;
use super::queue::{Group, GroupKey, Waits};

/// When those who wait are placed anew although nothing has changed in the fleet: what was remembered of
/// a failure may have been forgotten meanwhile. Nearer and further times that an error tells are not
/// taken at their word.
const LOOK_AFTER: Duration = Duration::from_secs(15);
const SOONEST_LOOK: Duration = Duration::from_secs(1);
const LATEST_LOOK: Duration = Duration::from_secs(60);

/// Whether an error may pass by itself: a model or device that nobody has can come back with its machine.
fn may_pass(error: &Error) -> bool {
    let is_away =
        error.code == Code::ModelNotFound || matches!(error.param, Some("backend" | "device"));
    is_away || !(400..500).contains(&error.code.status())
}

impl Brain {
    /// There is no place for a group, for this reason.
    pub(super) fn no_place(
        &mut self,
        now: Now,
        key: &GroupKey,
        error: &Error,
        out: &mut Vec<Action>,
    ) {
        let may_pass = may_pass(error);
        let group = self.queue.group(key);
        let impatient = group.filter(|group| !(group.patient && may_pass));
        let jobs: Vec<JobId> = impatient.into_iter().flat_map(Group::jobs).collect();
        for id in jobs {
            let asynchronous = |id| {
                self.jobs
                    .get(id)
                    .is_some_and(|job| job.request.asynchronous)
            };
            // When the queen goes down, the next life finds a place for it.
            if !(asynchronous(&id) && (may_pass || self.draining)) {
                self.end_in_vain(now, id, error.clone(), out);
            }
        }
        let Some(group) = self.queue.group_mut(key) else {
            return;
        };
        group.patient = true;
        if self.draining {
            return;
        }
        let narration = Narration {
            actor: "queen",
            action: "no_place",
            target: key.model.to_string(),
            human: format!("Waiting for a place: {}", error.message),
        };
        self.tell_group(key, Waits::Place(Box::new(error.clone())), narration, out);
        self.look_later(now, &key.model, error.retry_after);
    }

    fn look_later(&mut self, now: Now, model: &ModelRef, after: Option<Duration>) {
        let after = after.unwrap_or(LOOK_AFTER);
        let at = now.mono + after.clamp(SOONEST_LOOK, LATEST_LOOK);
        if self.looks.insert(model.clone()) {
            self.schedule(at, Due::Look(model.clone()));
        }
    }

    /// Looks for a place for those who wait for one.
    pub(super) fn look(&mut self, now: Now, model: &ModelRef, out: &mut Vec<Action>) {
        self.looks.remove(model);
        self.pump_model(now, model, out);
    }
}
