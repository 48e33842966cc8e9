//! Reading: a pool of connections beside the writer's.

use std::sync::Arc;
use std::time::Duration;

use deadpool_sqlite::{Config, Hook, HookError, Pool, PoolConfig, Runtime};
use rusqlite::Connection;
use tokio::runtime::Handle;
use tokio::sync::Semaphore;

use super::failure::{Faults, closed};
use crate::error::{Error, Result};

/// Reads that run at once; more wait for a connection. A read is short, and each connection holds
/// a thread and a page cache.
const CONNECTIONS: usize = 4;

/// Lists that are read at once, at most: the other connections are for those who look one thing up.
const LISTS: usize = 2;

/// How many lists are read at once on a machine with so many cores: half of these are for others.
fn lists(cores: usize) -> usize {
    (cores / 2).clamp(1, LISTS)
}

/// A pool of connections that can't write.
pub(super) struct Reads {
    pool: Pool,
    lists: Semaphore,
    /// The pool closes connections on the runtime, wherever it is dropped.
    runtime: Handle,
    faults: Arc<Faults>,
}

impl Reads {
    /// A pool for a database that exists. Must be called on a Tokio runtime.
    pub(super) fn new(faults: Arc<Faults>, busy_timeout: Duration) -> Result<Self> {
        let mut config = Config::new(faults.path());
        config.pool = Some(PoolConfig::new(CONNECTIONS));
        let Ok(builder) = config.builder(Runtime::Tokio1);
        let prepare = Hook::async_fn(move |connection, _| {
            Box::pin(async move {
                let prepared = connection.interact(move |db| prepare(db, busy_timeout));
                let prepared = prepared
                    .await
                    .map_err(|e| HookError::message(e.to_string()))?;
                prepared.map_err(HookError::Backend)
            })
        });
        let pool = builder.post_create(prepare).build();
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Ok(Reads {
            pool: pool.map_err(|error| Error::internal(format!("no pool: {error}")))?,
            lists: Semaphore::new(lists(cores)),
            runtime: Handle::current(),
            faults,
        })
    }

    /// Runs a step on a connection of the pool.
    pub(super) async fn read<T: Send + 'static>(
        &self,
        step: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T> {
        use deadpool_sqlite::PoolError;
        let connection = self.pool.get().await.map_err(|error| match error {
            PoolError::Closed => closed(),
            PoolError::Backend(error) => self.faults.failed("read", &error),
            error => Error::new(crate::Code::StoreFailed, format!("no connection: {error}")),
        })?;
        let read = connection.interact(move |db| step(db)).await;
        let read = read.map_err(|error| Error::internal(format!("a read broke off: {error}")))?;
        read.map_err(|error| self.faults.failed("read", &error))
    }

    /// The same for a step that reads much: it waits for others of its kind.
    pub(super) async fn read_much<T: Send + 'static>(
        &self,
        step: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T> {
        let _turn = self.lists.acquire().await.map_err(|_| closed())?;
        self.read(step).await
    }

    /// Closes the connections that nobody uses and lets no one take one any more.
    pub(super) fn close(&self) {
        let _guard = self.runtime.enter();
        self.pool.close();
    }
}

impl Drop for Reads {
    fn drop(&mut self) {
        self.close();
    }
}

fn prepare(db: &Connection, busy_timeout: Duration) -> rusqlite::Result<()> {
    db.busy_timeout(busy_timeout)?;
    db.pragma_update(None, "query_only", true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_leave_half_of_the_cores_and_of_the_connections_to_others() {
        assert_eq!([1, 2, 3, 4, 64].map(lists), [1, 1, 1, 2, 2]);
        const { assert!(LISTS < CONNECTIONS) };
    }
}
