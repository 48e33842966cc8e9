//! A queen that stood still herself – suspended, or starved of processor time – must not take the
//! silence for her fleet's.

use std::time::Duration;

use crate::domain::{Mono, Now, WorkerId};

use super::Brain;
use super::event::Event;
use super::job::Due;
use super::workers::Notes;

/// How often [`Event::Pulse`] must come.
pub const PULSE: Duration = Duration::from_millis(500);
/// A gap that a busy machine does not make.
const STALL: Duration = Duration::from_secs(2);

impl Brain {
    /// Notices a gap between two events. Without pulses there may be one of any length.
    pub(super) fn mind_the_gap(&mut self, now: Now, event: &Event) {
        let Some(last) = self.awake_at else {
            self.awake_at = matches!(event, Event::Pulse).then_some(now.mono);
            return;
        };
        self.awake_at = Some(now.mono);
        let gap = now.mono.since(last);
        if gap > STALL {
            self.counters.stalls += 1;
            self.stalled_until = now.mono;
            self.put_workers_deadlines_off(gap);
        }
    }

    /// Whether the queen stood still since, so that an answer may wait unread.
    #[must_use]
    pub fn stood_still_since(&self, begun: Mono) -> bool {
        begun < self.stalled_until
    }

    /// Gives workers the time to show themselves that she did not look. What a job may take is a
    /// promise to its client, and is not put off.
    fn put_workers_deadlines_off(&mut self, gap: Duration) {
        type Kind = (fn(&mut Notes) -> &mut Option<Mono>, fn(WorkerId) -> Due);
        let kinds: [Kind; 3] = [
            (|notes| &mut notes.load_due, Due::Load),
            (|notes| &mut notes.suspect_due, Due::Suspect),
            (|notes| &mut notes.abandoned_due, Due::Abandoned),
        ];
        for (id, notes) in &mut self.worker_notes {
            for (of, due) in kinds {
                if let Some(at) = of(notes) {
                    self.due.remove(&(*at, due(id.clone())));
                    *at = *at + gap;
                    self.due.insert((*at, due(id.clone())));
                }
            }
        }
    }
}
