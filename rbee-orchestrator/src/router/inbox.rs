//! Events from where the brain must not be called: leases that come back, clients that leave.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use tokio::sync::Notify;

use crate::brain::Event;

/// Waits for the next decision, which takes all of it in. It never holds more than one event for
/// each slot and one for each client that left.
#[derive(Default)]
pub(crate) struct Inbox {
    events: Mutex<Vec<Event>>,
    /// Tells without the lock whether there is anything.
    filled: AtomicBool,
    arrived: Notify,
}

impl Inbox {
    /// Adds an event for somebody else to take in.
    pub(crate) fn send(&self, event: Event) {
        self.leave(event);
        self.arrived.notify_one();
    }

    /// Adds an event and wakes nobody: the caller sees to it that a decision follows.
    pub(super) fn leave(&self, event: Event) {
        let mut events = self.events.lock().unwrap_or_else(PoisonError::into_inner);
        events.push(event);
        self.filled.store(true, Ordering::Release);
    }

    /// Whether nothing is there.
    pub(crate) fn is_empty(&self) -> bool {
        !self.filled.load(Ordering::Acquire)
    }

    /// Takes all that is there, and leaves an empty list in its place.
    pub(crate) fn take(&self, taken: &mut Vec<Event>) {
        debug_assert!(taken.is_empty(), "what was taken before is dealt with");
        if !self.is_empty() {
            let mut events = self.events.lock().unwrap_or_else(PoisonError::into_inner);
            self.filled.store(false, Ordering::Release);
            std::mem::swap(&mut *events, taken);
        }
    }

    /// Waits until something was sent. Cancel safe.
    pub(crate) async fn arrived(&self) {
        self.arrived.notified().await;
    }
}
