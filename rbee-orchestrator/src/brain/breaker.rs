//! A circuit breaker: a worker that fails again and again is left alone for a while, then tried
//! with a few attempts.

use crate::config::BreakerConfig;
use crate::domain::Mono;

use super::window::Window;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Breaker {
    state: State,
    /// Counts the changes of state: what began before the last one says nothing about this one.
    epoch: u32,
    failures_in_a_row: u32,
    /// Attempts and failures.
    window: Window,
    /// How often it has opened without a success in between.
    opened_in_a_row: u32,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum State {
    #[default]
    Closed,
    Open {
        until: Mono,
    },
    HalfOpen {
        probes: u32,
    },
}

/// What an attempt gets when it begins, and brings back when it ends.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Ticket(u32);

/// What an attempt says about its worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    Success,
    Failure,
    /// An error in place of an answer: no proof against it.
    Refusal,
    /// Nothing.
    Neutral,
}

impl Breaker {
    /// Failures since the last success or change of state.
    pub(super) fn failures_in_a_row(&self) -> u32 {
        self.failures_in_a_row
    }

    /// How many more attempts may begin now; `None` for any number.
    pub(super) fn admits(&self, config: &BreakerConfig) -> Option<u32> {
        match self.state {
            State::Closed => None,
            State::Open { .. } => Some(0),
            State::HalfOpen { probes } => Some(config.probes.max(1).saturating_sub(probes)),
        }
    }

    /// An attempt begins.
    pub(super) fn begin(&mut self) -> Ticket {
        if let State::HalfOpen { probes } = &mut self.state {
            *probes += 1;
        }
        Ticket(self.epoch)
    }

    /// An attempt has ended. Returns until when the breaker is open, if it opened just now.
    pub(super) fn end(
        &mut self,
        now: Mono,
        config: &BreakerConfig,
        ticket: Ticket,
        verdict: Verdict,
    ) -> Option<Mono> {
        if ticket.0 != self.epoch {
            return None;
        }
        if let State::HalfOpen { probes } = &mut self.state {
            *probes = probes.saturating_sub(1);
        }
        match (self.state, verdict) {
            (State::Open { .. }, _) | (_, Verdict::Refusal | Verdict::Neutral) => None,
            (State::Closed, Verdict::Success) => {
                self.failures_in_a_row = 0;
                self.window.add(now, config.window, [1, 0]);
                None
            }
            (State::Closed, Verdict::Failure) => {
                self.failures_in_a_row += 1;
                self.window.add(now, config.window, [1, 1]);
                self.is_too_much(now, config)
                    .then(|| self.open(now, config))
            }
            (State::HalfOpen { .. }, Verdict::Success) => {
                self.opened_in_a_row = 0;
                self.turn(State::Closed);
                None
            }
            (State::HalfOpen { .. }, Verdict::Failure) => Some(self.open(now, config)),
        }
    }

    /// Lets a few attempts try, once it has been open for long enough.
    pub(super) fn half_open(&mut self, now: Mono) {
        if matches!(self.state, State::Open { until } if until <= now) {
            self.turn(State::HalfOpen { probes: 0 });
        }
    }

    fn is_too_much(&mut self, now: Mono, config: &BreakerConfig) -> bool {
        let [attempts, failures] = self.window.sums(now, config.window);
        let enough = attempts >= u64::from(config.min_attempts.max(1));
        self.failures_in_a_row >= config.failures.max(1)
            || (enough && failures as f64 >= config.ratio * attempts as f64)
    }

    fn open(&mut self, now: Mono, config: &BreakerConfig) -> Mono {
        let until = now + config.open_time(self.opened_in_a_row);
        self.opened_in_a_row = self.opened_in_a_row.saturating_add(1);
        self.turn(State::Open { until });
        until
    }

    fn turn(&mut self, state: State) {
        self.state = state;
        self.epoch = self.epoch.wrapping_add(1);
        self.failures_in_a_row = 0;
        self.window = Window::default();
    }
}

#[cfg(test)]
mod tests;
