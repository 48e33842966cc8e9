//! What was learnt of workers by asking them.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::domain::{WorkerId, WorkerSpec};
use crate::hashing::IdMap;

/// How long something is remembered: the engine at an address may be another some day.
const REMEMBERED: Duration = Duration::from_secs(60 * 60);

/// What is remembered of workers that refuse `stream_options`. None do where all engines are of today, so
/// that to ask costs no lock.
#[derive(Debug, Default)]
pub(crate) struct Habits {
    any: AtomicBool,
    refuse_options: Mutex<IdMap<WorkerId, Noted>>,
}

#[derive(Debug)]
struct Noted {
    port: u16,
    at: Instant,
}

impl Noted {
    fn holds(&self) -> bool {
        self.at.elapsed() < REMEMBERED
    }
}

impl Habits {
    fn all(&self) -> MutexGuard<'_, IdMap<WorkerId, Noted>> {
        let all = self.refuse_options.lock();
        all.unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a worker is known to refuse requests with `stream_options`.
    pub(crate) fn refuses_options(&self, worker: &WorkerSpec) -> bool {
        self.any.load(Ordering::Relaxed)
            && self
                .all()
                .get(&worker.id)
                .is_some_and(|noted| noted.port == worker.port && noted.holds())
    }

    /// A worker has refused a request with `stream_options` and served it without.
    pub(crate) fn note_refused_options(&self, worker: &WorkerSpec) {
        let noted = Noted {
            port: worker.port,
            at: Instant::now(),
        };
        let mut all = self.all();
        all.retain(|_, noted| noted.holds());
        all.insert(worker.id.clone(), noted);
        self.any.store(true, Ordering::Relaxed);
    }
}
