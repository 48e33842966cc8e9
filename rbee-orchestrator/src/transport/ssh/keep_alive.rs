//! Whether a session's other side is still there.

use std::time::{Duration, Instant};

use super::line::{Io, Line, Trouble};
use crate::config::SshOptions;

/// The shortest time between two keep-alives.
const SHORTEST: Duration = Duration::from_millis(100);

/// Asks a silent other side for an answer, again and again. What counts is how often it was asked
/// in vain and not how long it was silent: a queen that was suspended has not asked.
pub(super) struct KeepAlive {
    period: Duration,
    misses: u32,
    due: Instant,
    unanswered: u32,
    /// How often it has answered.
    pub(super) answers: u64,
    under_way: bool,
}

impl KeepAlive {
    pub(super) fn new(options: &SshOptions) -> Self {
        let period = options.keep_alive.max(SHORTEST);
        KeepAlive {
            period,
            misses: options.keep_alive_misses.max(1),
            due: Instant::now() + period,
            unanswered: 0,
            answers: 0,
            under_way: false,
        }
    }

    /// Something came from the other side.
    pub(super) fn heard(&mut self) {
        self.unanswered = 0;
        self.due = Instant::now() + self.period;
    }

    /// Asks without waiting for its time.
    pub(super) fn ask_now(&mut self) {
        self.under_way = true;
    }

    pub(super) fn until_due(&self) -> Duration {
        self.due.saturating_duration_since(Instant::now())
    }

    /// Asks when it is time.
    pub(super) fn turn(&mut self, pump: &mut Line, io: &Io) -> Result<(), String> {
        if self.until_due().is_zero() {
            if self.unanswered >= self.misses {
                let KeepAlive { misses, period, .. } = self;
                return Err(format!(
                    "{misses} keep-alives, {period:?} apart, got no answer"
                ));
            }
            self.unanswered += 1;
            self.under_way = true;
            self.due = Instant::now() + self.period;
        }
        if !self.under_way {
            return Ok(());
        }
        // Any request that is answered would do. libssh2's own keep-alive leaves each answer in a
        // list that it searches at every read. The variable is refused: no server knows it.
        let asked = pump.channel.setenv("RBEE_KEEP_ALIVE", "1");
        match io.outcome(asked) {
            Err(Trouble::Session(why)) => return Err(why),
            Err(Trouble::Later) => {}
            Ok(()) | Err(Trouble::Channel(_)) => {
                self.under_way = false;
                self.answers += 1;
            }
        }
        Ok(())
    }
}
