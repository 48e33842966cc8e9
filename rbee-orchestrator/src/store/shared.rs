//! A store by itself, or one that others hold too.

use std::sync::Arc;

use super::Store;

/// What [`crate::Builder::store`] takes: a store, or an `Arc<dyn Store>`.
pub trait IntoStore {
    /// The store, to be shared.
    fn into_store(self) -> Arc<dyn Store>;
}

impl<S: Store> IntoStore for S {
    fn into_store(self) -> Arc<dyn Store> {
        Arc::new(self)
    }
}

impl IntoStore for Arc<dyn Store> {
    fn into_store(self) -> Arc<dyn Store> {
        self
    }
}
