//! A hive that is started, and its program brought to its machine.

use std::convert::Infallible;
use std::time::Duration;

use super::HiveActor;
use crate::brain::Event;
use crate::domain::HiveProcess;
use crate::error::Result;

/// Between two words on how far it is.
const TELL_AGAIN: Duration = Duration::from_secs(1);

impl HiveActor {
    pub(super) async fn ensure_running(&self) -> Result<HiveProcess> {
        let begun = self.driver.clock.now().mono;
        match self.try_to_start().await {
            // Its time passed while nobody looked, which says nothing of the hive.
            Err(_) if self.driver.stood_still_since(begun) => self.try_to_start().await,
            started => started,
        }
    }

    async fn try_to_start(&self) -> Result<HiveProcess> {
        tokio::select! {
            biased;
            started = self.handle.ensure_running() => started,
            never = self.tell_of_install() => match never {},
        }
    }

    /// Tells the brain how far the hive's program is, for as long as a start takes.
    async fn tell_of_install(&self) -> Infallible {
        let mut installing = self.handle.installing();
        while installing.changed().await.is_ok() {
            let percent = *installing.borrow_and_update();
            self.driver.feed(Event::HiveInstalling {
                hive: self.handle.id().clone(),
                percent,
            });
            tokio::time::sleep(TELL_AGAIN).await;
        }
        std::future::pending().await
    }
}
