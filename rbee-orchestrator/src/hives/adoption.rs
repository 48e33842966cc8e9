//! Hives that run already: recognised and taken, or replaced.

use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::Instant;

use super::client::Recognition;
use super::lifecycle::{HiveHandle, POLL, found};
use crate::domain::HiveProcess;
use crate::error::Result;

/// How long a hive that an earlier life of the queen started, and that still runs, may be silent
/// before it is replaced.
const SILENCE: Duration = Duration::from_secs(10);
/// How often it is asked at least.
const ATTEMPTS: usize = 3;
/// How long a silent hive may take to end before it is killed: it is not expected to react.
const SILENT_GRACE: Duration = Duration::from_secs(5);

impl HiveHandle {
    /// The hive that runs already and takes the token, if there is one.
    pub(super) async fn adopt(&self) -> Result<Option<HiveProcess>> {
        let stored = self.process();
        let mut ports = Vec::from_iter(stored.as_ref().map(|process| process.port));
        if let Some((process, is_stored)) = self.known_process(stored).await? {
            match self.recognise_patiently(&process).await? {
                Recognition::Accepted => return Ok(Some(process)),
                // One that is not stored, and refuses the token, is another queen's.
                reason
                    if process.started_by_queen && (is_stored || reason == Recognition::Silent) =>
                {
                    self.replace(&process, &reason).await?;
                }
                _ => {}
            }
        }
        if !ports.contains(&self.options().port) {
            ports.push(self.options().port);
        }
        ports.retain(|port| !self.is_claimed_by_another(*port));
        for port in ports {
            match self.client_at(port).recognise().await {
                Recognition::Accepted => {
                    tracing::info!(hive = %self.id(), port, "a running hive was found and adopted");
                    return Ok(Some(found(port)));
                }
                Recognition::Silent => {}
                reason => tracing::info!(
                    hive = %self.id(), port, ?reason, "the hive's port is taken; the next is used"
                ),
            }
        }
        Ok(None)
    }

    /// The hive's process that runs, and whether the store knew it.
    async fn known_process(
        &self,
        stored: Option<HiveProcess>,
    ) -> Result<Option<(HiveProcess, bool)>> {
        if let Some(process) = stored.filter(|process| process.pid.is_some())
            && self.transport().is_running(&process).await?
        {
            return Ok(Some((process, true)));
        }
        let left = self.transport().left_running(&self.command()).await?;
        Ok(left.map(|process| (process, false)))
    }

    /// A hive whose process runs may just be starting, or be stalled for a moment; and a queen that
    /// stood still must not take that for its silence.
    ///
    /// # Errors
    /// When its machine can't be asked: that says nothing of the hive.
    async fn recognise_patiently(&self, process: &HiveProcess) -> Result<Recognition> {
        let options = self.options();
        let longest = options.timeouts.health + POLL;
        let mut patience = SILENCE.min(options.start_timeout);
        let mut attempts = 0;
        loop {
            let begun = Instant::now();
            let found = self.client_at(process.port).recognise().await;
            if found != Recognition::Silent || !self.transport().is_running(process).await? {
                return Ok(found);
            }
            attempts += 1;
            if patience.is_zero() && attempts >= ATTEMPTS {
                return Ok(found);
            }
            tokio::time::sleep(POLL).await;
            patience = patience.saturating_sub(begun.elapsed().min(longest));
        }
    }

    /// The process of a start that was dropped midway, where the machine remembers it. It may still
    /// be silent; what refuses the token is another queen's.
    pub(super) async fn half_started(&self) -> Result<Option<HiveProcess>> {
        if !self.starting.load(Ordering::Relaxed) {
            return Ok(None);
        }
        let left = self.transport().left_running(&self.command()).await?;
        self.starting.store(false, Ordering::Relaxed);
        let Some(process) = left else {
            return Ok(None);
        };
        let found = self.client_at(process.port).recognise().await;
        let is_ours = matches!(found, Recognition::Accepted | Recognition::Silent);
        Ok(is_ours.then_some(process))
    }

    /// Stops a process that a queen started and that this one can't use.
    async fn replace(&self, process: &HiveProcess, reason: &Recognition) -> Result<()> {
        tracing::warn!(
            hive = %self.id(), pid = process.pid, port = process.port, ?reason,
            "the hive that runs can't be used and is replaced"
        );
        let grace = match reason {
            Recognition::Silent => SILENT_GRACE.min(self.options().stop_grace),
            _ => self.options().stop_grace,
        };
        self.transport().stop(process, grace).await?;
        self.remember(None);
        Ok(())
    }
}
