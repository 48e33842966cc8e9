//! One thing for the tests of a file that run at the same time, as a queen takes a second to start.

use std::sync::{Arc, Mutex, PoisonError, Weak};

/// Made by the first test that needs it, dropped with the last one that holds it: what is only
/// kept in a static is never dropped, and its processes would live on.
#[derive(Debug)]
pub struct Shared<T>(Mutex<Weak<T>>);

impl<T> Shared<T> {
    /// Nothing yet.
    #[must_use]
    pub const fn new() -> Self {
        Shared(Mutex::new(Weak::new()))
    }

    /// What others hold, or what `make` makes.
    pub fn get(&self, make: impl FnOnce() -> T) -> Arc<T> {
        let mut shared = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        shared.upgrade().unwrap_or_else(|| {
            let new = Arc::new(make());
            *shared = Arc::downgrade(&new);
            new
        })
    }
}

impl<T> Default for Shared<T> {
    fn default() -> Self {
        Shared::new()
    }
}
