//! How long a flow may stand still. Time is counted in checks: while the queen herself stands still
//! there are none, so what waits unread in a socket then is not held against its worker.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use super::{Awaiting, Flow, Stage, State};
use crate::brain::Blame;
use crate::domain::Outcome;
use crate::error::{Code, Error};

/// Counts the checks of patience: a look at the clock for each token would cost more.
#[derive(Debug, Default)]
pub(crate) struct Ticks(AtomicU32);

impl Ticks {
    pub(super) fn now(&self) -> u32 {
        self.0.load(Ordering::Relaxed)
    }

    /// Lets one period pass.
    pub(crate) fn advance(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// See the module.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Patience {
    pub(crate) first_token: Option<Duration>,
    pub(crate) between_tokens: Duration,
    pub(crate) client_stall: Duration,
}

impl Patience {
    /// How often to look: a quarter of the shortest, within reason.
    pub(crate) fn period(&self) -> Duration {
        let shortest = self.between_tokens.min(self.client_stall);
        let shortest = self
            .first_token
            .map_or(shortest, |first| first.min(shortest));
        (shortest / 4).clamp(Duration::from_millis(10), Duration::from_secs(1))
    }
}

impl Flow {
    /// Cuts an attempt off when its worker has stood still for too long; says why the job is to be
    /// cancelled when its client has. To be called once after each tick.
    pub(crate) fn check_patience(&self, patience: &Patience) -> Option<Error> {
        let mut state = self.lock();
        let ticks = self.parts.ticks.now();
        let since = |tick: u32| patience.period() * ticks.wrapping_sub(tick);
        let idle = since(state.since);
        match state.awaiting {
            _ if matches!(state.stage, Stage::Over) => None,
            Awaiting::Client => (idle > patience.client_stall).then(|| {
                let message = "the client took no byte for too long and was given up";
                Error::new(Code::Cancelled, message)
            }),
            Awaiting::Worker => {
                let took = since(state.dispatched_tick);
                if let Some(error) = state.is_too_slow(idle, took, patience) {
                    state.give_back(&Outcome::Failed(error), Blame::Worker);
                }
                None
            }
        }
    }
}

impl State {
    /// Why its worker has had enough time, if it has.
    fn is_too_slow(&self, idle: Duration, took: Duration, patience: &Patience) -> Option<Error> {
        let begun = match &self.stage {
            Stage::Streaming(stream) => stream.has_begun(),
            Stage::Opening { .. } => false,
            Stage::Waiting | Stage::Recording(_) | Stage::Assigned(_) | Stage::Over => {
                return None;
            }
        };
        let timeout = |message| Some(Error::new(Code::Timeout, message));
        match patience.first_token {
            Some(first) if !begun && took > first => timeout(format!(
                "the worker sent no token within {} s (timeouts.first_token)",
                first.as_secs_f64()
            )),
            _ if begun && idle > patience.between_tokens => timeout(format!(
                "the worker sent nothing for {} s in the middle of its answer \
                 (timeouts.between_tokens)",
                patience.between_tokens.as_secs_f64()
            )),
            _ => None,
        }
    }
}
