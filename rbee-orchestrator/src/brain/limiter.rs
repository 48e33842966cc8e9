//! So many a minute: `governor` on a clock that the brain sets.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use governor::clock::Clock;
use governor::middleware::NoOpMiddleware;
use governor::nanos::Nanos;
use governor::state::{InMemoryState, NotKeyed};
use governor::{Quota, RateLimiter};

use crate::domain::Mono;

const MINUTE: Duration = Duration::from_secs(60);

/// The brain's own clock, as limiters read it: they stand still until it is set.
#[derive(Debug, Clone, Default)]
pub(super) struct BrainClock(Arc<AtomicU64>);

impl BrainClock {
    pub(super) fn set(&self, now: Mono) {
        let nanos = u64::try_from(now.0.as_nanos()).unwrap_or(u64::MAX);
        self.0.store(nanos, Ordering::Relaxed);
    }
}

impl Clock for BrainClock {
    type Instant = Nanos;

    fn now(&self) -> Nanos {
        Nanos::from(self.0.load(Ordering::Relaxed))
    }
}

type Cells = RateLimiter<NotKeyed, InMemoryState, BrainClock, NoOpMiddleware<Nanos>>;

/// What is given out in any minute: at most so many. What was taken and not used is kept for those
/// who come next; what was used beyond is owed by them.
#[derive(Debug)]
pub(super) struct Limiter {
    most: u32,
    clock: BrainClock,
    cells: Option<Cells>,
    /// Above zero what is to be used before the limiter is asked, below what is owed. Never more
    /// than a minute's worth either way.
    balance: i64,
}

/// Why nothing was given out.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// Not before this has passed.
    Wait(Duration),
    /// It is more than may be given out in a minute at all.
    Never,
}

impl Limiter {
    pub(super) fn per_minute(most: u32, clock: &BrainClock) -> Self {
        let quota = NonZeroU32::new(most).map(Quota::per_minute);
        Limiter {
            most,
            clock: clock.clone(),
            cells: quota.map(|quota| RateLimiter::direct_with_clock(quota, clock.clone())),
            balance: 0,
        }
    }

    pub(super) fn most(&self) -> u32 {
        self.most
    }

    pub(super) fn take(&mut self, wanted: u64) -> Result<(), Refusal> {
        let wanted = u32::try_from(wanted).map_err(|_| Refusal::Never)?;
        if wanted > self.most {
            return Err(Refusal::Never);
        }
        let credit = self.balance.clamp(0, i64::from(wanted)) as u32;
        let rest = wanted - credit;
        let debt = u32::try_from(-self.balance).unwrap_or(0);
        match debt.checked_add(rest).filter(|both| *both <= self.most) {
            Some(both) => self.draw(both).map_err(Refusal::Wait)?,
            None => {
                // Too much for one minute: what is owed first.
                let then = MINUTE.mul_f64(f64::from(rest) / f64::from(self.most.max(1)));
                self.draw(debt).map_err(|wait| Refusal::Wait(wait + then))?;
                self.balance = 0;
                self.draw(rest).map_err(Refusal::Wait)?;
            }
        }
        self.balance = self.balance.max(0) - i64::from(credit);
        Ok(())
    }

    /// What was taken turned out to be more than was used, or less.
    pub(super) fn settle(&mut self, taken: u64, used: u64) {
        let signed = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
        let most = i64::from(self.most);
        let left = signed(taken).saturating_sub(signed(used));
        self.balance = self.balance.saturating_add(left).clamp(-most, most);
        if let Ok(debt @ 1..) = u32::try_from(-self.balance)
            && self.draw(debt).is_ok()
        {
            self.balance = 0;
        }
    }

    /// Draws at most a minute's worth, or says how long to wait for it.
    fn draw(&self, count: u32) -> Result<(), Duration> {
        let (Some(count), Some(cells)) = (NonZeroU32::new(count), &self.cells) else {
            return Ok(());
        };
        match cells.check_n(count) {
            Ok(Ok(())) => Ok(()),
            Ok(Err(not_until)) => Err(not_until.wait_time_from(self.clock.now())),
            Err(_) => Err(MINUTE),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limiter(most: u32) -> (Limiter, BrainClock) {
        let clock = BrainClock::default();
        clock.set(Mono(MINUTE));
        (Limiter::per_minute(most, &clock), clock)
    }

    fn wait(seconds: f64) -> Result<(), Refusal> {
        Err(Refusal::Wait(Duration::from_secs_f64(seconds)))
    }

    #[test]
    fn a_minutes_worth_is_given_out_and_then_as_much_as_time_brings() {
        let (mut limiter, clock) = limiter(60);
        assert_eq!(limiter.take(60), Ok(()));
        assert_eq!(limiter.take(5), wait(5.0));
        clock.set(Mono(MINUTE + Duration::from_secs(5)));
        assert_eq!(limiter.take(5), Ok(()));
        assert_eq!(limiter.take(61), Err(Refusal::Never));
    }

    #[test]
    fn what_was_not_used_is_there_for_the_next_and_what_was_used_beyond_is_owed() {
        let (mut limiter, clock) = limiter(60);
        assert_eq!(limiter.take(60), Ok(()));
        limiter.settle(60, 40);
        assert_eq!(limiter.take(15), Ok(()));
        assert_eq!(limiter.take(10), wait(5.0), "five are left");
        limiter.settle(15, 30);
        assert_eq!(limiter.take(10), wait(20.0), "ten are owed");
        clock.set(Mono(MINUTE + Duration::from_secs(20)));
        assert_eq!(limiter.take(10), Ok(()));
    }

    #[test]
    fn a_debt_and_a_wish_that_are_more_than_a_minute_has_are_paid_one_after_the_other() {
        let (mut limiter, clock) = limiter(60);
        assert_eq!(limiter.take(60), Ok(()));
        limiter.settle(60, 1000);
        assert_eq!(limiter.take(30), wait(90.0));
        clock.set(Mono(MINUTE + Duration::from_secs(60)));
        assert_eq!(limiter.take(30), wait(30.0));
        clock.set(Mono(MINUTE + Duration::from_secs(90)));
        assert_eq!(limiter.take(30), Ok(()));
    }

    #[test]
    fn nothing_a_minute_is_nothing() {
        let (mut limiter, _) = limiter(0);
        assert_eq!(limiter.take(1), Err(Refusal::Never));
        limiter.settle(0, 10);
        assert_eq!(limiter.take(0), Ok(()));
    }
}
