//! Deleting what has been kept for long enough.

use std::sync::Arc;
use std::time::Duration;

use super::driver::Driver;
use crate::domain::{JUMP_BELIEVED_AFTER, JobFilter, UnixMillis};
use crate::error::Result;
use crate::killpoint;

/// Jobs deleted in one step: few enough that nobody waits long for the writer.
const BATCH: usize = 500;

/// For how long no job may have come without a doubt about the clock.
const PLAUSIBLE_PAUSE: Duration = Duration::from_secs(24 * 3600);

impl Driver {
    /// Purges until told to stop.
    pub(super) async fn run_purge(self: Arc<Self>) {
        let retention = &self.config.retention;
        if !self.clock_is_plausible().await.unwrap_or(false) {
            // By then a jump that the queen was started in has been believed to be over.
            tokio::select! {
                () = tokio::time::sleep(JUMP_BELIEVED_AFTER * 2) => {}
                () = self.stop.cancelled() => return,
            }
        }
        loop {
            self.purge().await;
            tokio::select! {
                () = tokio::time::sleep(retention.interval) => {}
                () = self.stop.cancelled() => return,
            }
        }
    }

    /// Whether the clock shows a time soon after the newest job: a queen that was down for long, or was
    /// started while the clock had jumped, deletes nothing at once.
    async fn clock_is_plausible(&self) -> Result<bool> {
        let newest = self.store.jobs(&JobFilter::default(), 1, None).await?;
        let now = UnixMillis::now();
        Ok(newest.jobs.first().is_none_or(|newest| {
            let at = newest.submitted_at;
            now.since(at).max(at.since(now)) < PLAUSIBLE_PAUSE
        }))
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
