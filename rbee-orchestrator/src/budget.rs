//! Memory for the bodies of requests, and for whole answers: what each holds is counted against one
//! bound.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;

use crate::error::{Code, Error};

/// A request's body up to this size is not counted: there are bounds of connections, and of what
/// waits.
pub(crate) const SMALL: usize = 8 << 10;

/// How many bytes such may hold in all. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Budget {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    used: AtomicUsize,
    most: usize,
}

impl Budget {
    pub(crate) fn new(most: usize) -> Self {
        let used = AtomicUsize::new(0);
        Budget {
            inner: Arc::new(Inner { used, most }),
        }
    }

    /// Holds so many bytes for a task that outlives its connection, if there is room: a quarter is left
    /// to those who wait for an answer.
    pub(crate) fn hold_for_later(&self, bytes: usize) -> Option<Held> {
        let held = self.hold(bytes)?;
        let used = self.inner.used.load(Ordering::Relaxed);
        (used <= self.inner.most / 4 * 3).then_some(held)
    }

    /// Holds so many bytes, if there is room.
    pub(crate) fn hold(&self, bytes: usize) -> Option<Held> {
        let mut held = Held {
            budget: self.clone(),
            bytes: 0,
        };
        held.grow(bytes).then_some(held)
    }

    /// What is told when there is no room.
    pub(crate) fn is_full(&self) -> Error {
        let message = format!(
            "the requests that are open hold as much as they may, {} bytes; try again, or raise \
             limits.max_bodies_bytes of the queen's configuration",
            self.inner.most
        );
        Error::new(Code::Overloaded, message)
    }

    /// Holds so many bytes that are there in any case.
    pub(crate) fn hold_anyway(&self, bytes: usize) -> Held {
        self.inner.used.fetch_add(bytes, Ordering::Relaxed);
        Held {
            budget: self.clone(),
            bytes,
        }
    }
}

/// Bytes that are held, until this is dropped.
#[derive(Debug)]
pub(crate) struct Held {
    budget: Budget,
    bytes: usize,
}

impl Held {
    /// Holds `bytes` in all, if there is room; what is held stays so otherwise.
    pub(crate) fn grow(&mut self, bytes: usize) -> bool {
        let more = bytes.saturating_sub(self.bytes);
        let Inner { used, most } = &*self.budget.inner;
        let grown = used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| {
            used.checked_add(more).filter(|used| used <= most)
        });
        if grown.is_ok() {
            self.bytes += more;
        }
        grown.is_ok()
    }
}

/// Bytes that are counted until nobody has them any more.
struct Counted {
    bytes: Bytes,
    _held: Held,
}

impl AsRef<[u8]> for Counted {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Held {
    /// Goes with these bytes from now on.
    pub(crate) fn keep(self, bytes: Bytes) -> Bytes {
        Bytes::from_owner(Counted { bytes, _held: self })
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let used = &self.budget.inner.used;
        used.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tasks_for_later_leave_a_quarter_to_those_who_wait() {
        let budget = Budget::new(100);
        let later = budget.hold_for_later(75).expect("there is room");
        assert!(budget.hold_for_later(1).is_none());
        let now = budget.hold(25).expect("that much is left");
        drop(later);
        assert!(budget.hold_for_later(51).is_none());
        assert!(budget.hold_for_later(50).is_some());
        drop(now);
    }

    #[test]
    fn what_is_held_counts_until_it_is_dropped() {
        let budget = Budget::new(10);
        let mut first = budget.hold(4).expect("there is room");
        assert!(!first.grow(11) && first.grow(8) && first.grow(3));
        assert!(budget.hold(3).is_none());
        let second = budget.hold(2).expect("there is room");
        let over = budget.hold_anyway(100);
        assert!(budget.hold(1).is_none() && budget.hold(0).is_none());
        drop((second, over));
        assert!(budget.hold(2).is_some());
        drop(first);
        assert!(budget.hold(10).is_some() && budget.hold(usize::MAX).is_none());
    }
}
