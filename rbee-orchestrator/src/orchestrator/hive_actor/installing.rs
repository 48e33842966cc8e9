//! A hive whose program is brought to its machine.

use std::convert::Infallible;
use std::time::Duration;

use super::HiveActor;
use crate::brain::Event;

/// Between two words on how far it is.
const TELL_AGAIN: Duration = Duration::from_secs(1);

impl HiveActor {
    /// Tells the brain how far the hive's program is, for as long as a start takes.
    pub(super) async fn tell_of_install(&self) -> Infallible {
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
