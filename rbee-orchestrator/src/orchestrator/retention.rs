//! Deleting what has been kept for long enough.

use std::sync::Arc;

use super::driver::Driver;
use crate::domain::UnixMillis;
use crate::killpoint;

/// Jobs deleted in one step: few enough that nobody waits long for the writer.
const BATCH: usize = 500;

impl Driver {
    /// Purges until told to stop.
    pub(super) async fn run_purge(self: Arc<Self>) {
        let retention = &self.config.retention;
        loop {
            self.purge().await;
            tokio::select! {
                () = tokio::time::sleep(retention.interval) => {}
                () = self.stop.cancelled() => return,
            }
        }
    }

    async fn purge(&self) {
        let now = UnixMillis::now();
        let ended_before = now.before(self.config.retention.jobs);
        while !self.stop.is_cancelled() {
            match self.store.purge(ended_before, now, BATCH).await {
                Ok(0) => return,
                Ok(count) => {
                    killpoint::pass("purging");
                    tracing::debug!(count, "purged jobs and keys");
                }
                Err(error) => return tracing::warn!(%error, "nothing can be purged now"),
            }
        }
    }
}
