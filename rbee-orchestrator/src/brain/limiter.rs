//! So many a minute: a bucket that time fills.

use std::time::Duration;

use crate::domain::Mono;

const MINUTE: Duration = Duration::from_secs(60);
const MINUTE_NS: i64 = MINUTE.as_nanos() as i64;

/// What is given out in any minute: at most so many. What was taken and not used is there for those
/// who come next; what was used beyond is owed by them, up to a minute's worth.
#[derive(Debug)]
pub(super) struct Limiter {
    most: u32,
    /// What is left, as the time that brings it: from a minute's worth owed to a minute's worth left.
    left_ns: i64,
    /// When that was.
    at: Mono,
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
    /// One that has given out nothing.
    pub(super) fn per_minute(most: u32) -> Self {
        Limiter {
            most,
            left_ns: MINUTE_NS,
            at: Mono::default(),
        }
    }

    pub(super) fn most(&self) -> u32 {
        self.most
    }

    pub(super) fn take(&mut self, now: Mono, wanted: u64) -> Result<(), Refusal> {
        if wanted > u64::from(self.most) {
            return Err(Refusal::Never);
        }
        let passed = i64::try_from(now.since(self.at).as_nanos()).unwrap_or(MINUTE_NS);
        self.left_ns = self.left_ns.saturating_add(passed).min(MINUTE_NS);
        self.at = now;
        let lacking = self.time_of(wanted) - self.left_ns;
        if lacking > 0 {
            return Err(Refusal::Wait(Duration::from_nanos(lacking.cast_unsigned())));
        }
        self.left_ns = -lacking;
        Ok(())
    }

    /// What was taken turned out to be more than was used, or less.
    pub(super) fn settle(&mut self, taken: u64, used: u64) {
        let back = self.time_of(taken).saturating_sub(self.time_of(used));
        let left = self.left_ns.saturating_add(back);
        self.left_ns = left.clamp(-MINUTE_NS, MINUTE_NS);
    }

    /// The time that brings so many.
    fn time_of(&self, count: u64) -> i64 {
        let most = u128::from(self.most.max(1));
        let ns = u128::from(count) * MINUTE.as_nanos() / most;
        i64::try_from(ns).unwrap_or(i64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Mono {
        Mono(MINUTE + Duration::from_secs(seconds))
    }

    fn wait(seconds: f64) -> Result<(), Refusal> {
        Err(Refusal::Wait(Duration::from_secs_f64(seconds)))
    }

    #[test]
    fn a_minutes_worth_is_given_out_and_then_as_much_as_time_brings() {
        let mut limiter = Limiter::per_minute(60);
        assert_eq!(limiter.take(at(0), 60), Ok(()));
        assert_eq!(limiter.take(at(0), 5), wait(5.0));
        assert_eq!(limiter.take(at(5), 5), Ok(()));
        assert_eq!(limiter.take(at(5), 61), Err(Refusal::Never));
    }

    #[test]
    fn what_was_not_used_is_there_for_the_next_and_what_was_used_beyond_is_owed() {
        let mut limiter = Limiter::per_minute(60);
        assert_eq!(limiter.take(at(0), 60), Ok(()));
        limiter.settle(60, 40);
        assert_eq!(limiter.take(at(0), 15), Ok(()));
        assert_eq!(limiter.take(at(0), 10), wait(5.0), "five are left");
        limiter.settle(15, 30);
        assert_eq!(limiter.take(at(0), 10), wait(20.0), "ten are owed");
        assert_eq!(limiter.take(at(20), 10), Ok(()));
    }

    #[test]
    fn a_debt_and_a_wish_that_are_more_than_a_minute_has_are_paid_one_after_the_other() {
        let mut limiter = Limiter::per_minute(60);
        assert_eq!(limiter.take(at(0), 60), Ok(()));
        limiter.settle(60, 1000);
        assert_eq!(limiter.take(at(0), 30), wait(90.0));
        assert_eq!(limiter.take(at(60), 30), wait(30.0));
        assert_eq!(limiter.take(at(90), 30), Ok(()));
    }

    #[test]
    fn nothing_a_minute_is_nothing() {
        let mut limiter = Limiter::per_minute(0);
        assert_eq!(limiter.take(at(0), 1), Err(Refusal::Never));
        limiter.settle(0, 10);
        assert_eq!(limiter.take(at(0), 0), Ok(()));
    }
}
