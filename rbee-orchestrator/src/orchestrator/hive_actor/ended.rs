//! A hive that is stopped, or has ended by itself.

use super::HiveActor;
use crate::brain::Event;
use crate::error::{Code, Error};
use crate::hives::Stopped;

/// Lines of a dead hive's output that are told.
const LAST_LINES: usize = 3;

impl HiveActor {
    /// Stops it, since it was drained for that.
    pub(super) async fn stop(&mut self) {
        let hive = self.handle.id().clone();
        let result = match self.handle.stop().await {
            Ok(Stopped::NotOurs) => Err(Error::new(
                Code::Conflict,
                format!("hive {hive} was drained and not stopped: the queen did not start it"),
            )),
            Ok(Stopped::Ended | Stopped::WasNotRunning) => Ok(()),
            Err(error) => Err(error),
        };
        match &result {
            Ok(()) => {
                tracing::info!(%hive, "the hive was drained and is stopped");
                self.watched = !self.managed;
                let record = self
                    .driver
                    .decide(|brain, _, _| brain.set_hive_process(&hive, None));
                self.store(record).await;
            }
            Err(error) => tracing::warn!(%hive, %error, "the hive was drained and not stopped"),
        }
        self.driver.feed(Event::HiveStopped { hive, result });
    }

    /// Why a hive that has ended did so, as far as its output tells.
    pub(super) async fn last_words(&self, error: Error) -> Error {
        let lines = self.handle.logs(LAST_LINES).await.unwrap_or_default();
        if lines.is_empty() {
            return error;
        }
        let hive = self.handle.id();
        let output = lines.join(" | ");
        let message = format!("hive {hive} has ended; its last output: {output}");
        error.rephrased(|_| message.clone())
    }
}
