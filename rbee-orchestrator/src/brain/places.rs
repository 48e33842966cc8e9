//! What those who wait are told: their place, and how long it will take.

use std::collections::HashMap;
use std::time::Duration;

use crate::domain::{JobId, ModelRef, Now};

use super::Brain;
use super::action::Action;
use super::job::{Due, Phase};
use super::queue::GroupKey;

/// How often the jobs of a model are told their places, at most.
const TOLD_EVERY: Duration = Duration::from_secs(1);

/// How many jobs of a model are told when their places change: those who are far behind learn
/// little from it.
const TOLD_AT_MOST: usize = 1000;

/// What is said when nothing is known.
const RETRY_AFTER: Duration = Duration::from_secs(5);
const SHORTEST_RETRY_AFTER: Duration = Duration::from_secs(1);
const LONGEST_RETRY_AFTER: Duration = Duration::from_secs(600);

/// A waiting job's place in the queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueuePlace {
    /// Jobs before it.
    pub position: usize,
    /// How long it will wait, by the time that such jobs kept their slots lately; `None` while
    /// nothing is known.
    pub wait: Option<Duration>,
}

impl QueuePlace {
    /// What of it is worth telling again when it has changed.
    fn in_short(&self) -> (usize, Option<u64>) {
        (self.position, self.wait.map(|wait| wait.as_secs()))
    }
}

impl Brain {
    /// The place of a job that waits for a worker, or among those of its tenant that are held back;
    /// `None` for one that does not wait.
    #[must_use]
    pub fn queue_place(&self, job: JobId) -> Option<QueuePlace> {
        let waiting = self.jobs.get(&job)?;
        match waiting.phase {
            Phase::Waiting => {}
            Phase::Held => return self.place_held(waiting),
            _ => return None,
        }
        let line = self.queue.line(&waiting.key.model)?;
        let order = line.order(TOLD_AT_MOST);
        let at = order.iter().position(|(ahead, _)| *ahead == job);
        // Further behind, the last place of its class must do.
        let position = at.unwrap_or_else(|| line.last_place(waiting.class));
        Some(self.place_at(&waiting.key, position))
    }

    /// What a job waits for, in words, where it is more than a free slot.
    #[must_use]
    pub fn waits_for(&self, job: JobId) -> Option<&str> {
        let waiting = self.jobs.get(&job)?;
        if waiting.phase == Phase::Backoff {
            return Some("Waiting until an attempt that failed is tried again");
        }
        let group = self.queue.group(&waiting.key)?;
        let narration = group.narration.as_ref();
        let narration = narration.filter(|_| waiting.phase == Phase::Waiting);
        narration.map(|narration| narration.human.as_str())
    }

    fn place_at(&self, key: &GroupKey, position: usize) -> QueuePlace {
        let slots = self.slots(key);
        QueuePlace {
            position,
            wait: self.rates.until(&key.model, position + 1, slots),
        }
    }

    /// Slots of the workers that serve a group now.
    fn slots(&self, key: &GroupKey) -> u32 {
        let request = key.request();
        let workers = self.workers.with_model(&key.model);
        let serving = workers.filter(|w| w.ready && !w.draining && request.is_served_by(w));
        serving.map(|worker| worker.spec.slots_total).sum()
    }

    /// Tells a job that came to the queue its place there.
    pub(super) fn tell_place(&mut self, id: JobId, out: &mut Vec<Action>) {
        let Some(job) = self.jobs.get(&id) else {
            return;
        };
        let Some(line) = self.queue.line(&job.key.model) else {
            return;
        };
        let plain = line.is_plain(job.class) && !job.returned;
        let place = match plain || line.len() > TOLD_AT_MOST {
            // It came last, or is so far behind that more than that is not worth working out.
            true => Some(self.place_at(&job.key, line.last_place(job.class))),
            false => self.queue_place(id),
        };
        if let Some(place) = place {
            self.tell(id, place, out);
        }
    }

    pub(super) fn tell(&mut self, id: JobId, place: QueuePlace, out: &mut Vec<Action>) {
        if let Some(job) = self.jobs.get_mut(&id)
            && job.told != Some(place.in_short())
        {
            job.told = Some(place.in_short());
            out.push(Action::Queued {
                job: id,
                position: place.position,
                wait: place.wait,
            });
        }
    }

    /// Somebody came or went: those who wait for the model are told within a second.
    pub(super) fn line_moved(&mut self, now: Now, model: &ModelRef) {
        match (self.queue.line(model).is_some(), self.telling.get(model)) {
            (true, None) => {
                let at = now.mono + TOLD_EVERY;
                self.telling.insert(model.clone(), at);
                self.schedule(at, Due::Places(model.clone()));
            }
            (false, Some(at)) => {
                self.due.remove(&(*at, Due::Places(model.clone())));
                self.telling.remove(model);
            }
            _ => {}
        }
    }

    /// Tells those whose place in a line has changed.
    pub(super) fn tell_places(&mut self, model: &ModelRef, out: &mut Vec<Action>) {
        self.telling.remove(model);
        let Some(line) = self.queue.line(model) else {
            return;
        };
        let mut slots = HashMap::new();
        let mut places = Vec::new();
        for (position, (job, group)) in line.order(TOLD_AT_MOST).into_iter().enumerate() {
            let Some(key) = line.group_by_id(group).map(|group| &group.key) else {
                continue;
            };
            let slots = *slots.entry(group).or_insert_with(|| self.slots(key));
            let wait = self.rates.until(model, position + 1, slots);
            places.push((job, QueuePlace { position, wait }));
        }
        for (job, place) in places {
            self.tell(job, place, out);
        }
    }

    /// When somebody who finds no room in the queue may find some: when those are served who wait
    /// for his model now.
    pub(super) fn time_to_room(&self, key: &GroupKey) -> Duration {
        let ahead = self.queue.line(&key.model).map_or(0, |line| line.len());
        let slots = self.slots(key);
        let wait = self.rates.until(&key.model, ahead.max(1), slots);
        within_reason(wait)
    }
}

/// What a client is told of when to come back.
pub(super) fn within_reason(wait: Option<Duration>) -> Duration {
    let wait = wait.unwrap_or(RETRY_AFTER);
    wait.clamp(SHORTEST_RETRY_AFTER, LONGEST_RETRY_AFTER)
}
