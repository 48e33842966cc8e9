//! How fast each model's slots come free, as measured.

use std::time::Duration;

use crate::domain::ModelRef;
use crate::hashing::IdMap;

/// What the newest measurement counts for.
const NEWEST: f64 = 0.125;

/// How long a job of a model keeps its slot: an exponentially weighted mean, in seconds.
#[derive(Debug, Default)]
pub(super) struct Rates {
    held: IdMap<ModelRef, f64>,
}

impl Rates {
    pub(super) fn note(&mut self, model: &ModelRef, held: Duration) {
        let held = held.as_secs_f64();
        match self.held.get_mut(model) {
            Some(mean) => *mean += (held - *mean) * NEWEST,
            None => drop(self.held.insert(model.clone(), held)),
        }
    }

    /// How long it takes until so many jobs got a slot, one after the other; `None` while nothing
    /// is known.
    pub(super) fn until(&self, model: &ModelRef, jobs: usize, slots: u32) -> Option<Duration> {
        let mean = self.held.get(model).filter(|_| slots > 0)?;
        let seconds = mean * jobs as f64 / f64::from(slots);
        Duration::try_from_secs_f64(seconds).ok()
    }
}
