//! The wall clock, read so that a jump of it for a moment moves nothing.
//!
//! What is kept, and for how long, hangs on the wall clock, and a machine's may jump by days: a guest
//! is resumed, a time server is wrong, somebody mistypes a date. So it is believed as long as it moves with the
//! monotonic clock. A jump is believed when it has lasted; until then time goes on as before it.

use std::sync::atomic::AtomicI64;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::{LazyLock, Mutex, PoisonError};
#[cfg(not(target_os = "linux"))]
use std::time::Instant;
use std::time::{Duration, SystemTime};

use super::UnixMillis;

/// How long a clock jump must last before it is believed.
pub const JUMP_BELIEVED_AFTER: Duration = Duration::from_secs(600);

/// Steps up to this are no jumps: time servers correct clocks by them.
const TOLERANCE_MS: i64 = 60_000;

/// By how much a wall clock is ahead of the monotonic one.
#[derive(Debug)]
struct Belief {
    ahead_ms: i64,
    doubt: Option<Doubt>,
}

/// A jump that is not believed yet.
#[derive(Debug, Clone, Copy)]
struct Doubt {
    ahead_ms: i64,
    since_ms: i64,
}

impl Belief {
    /// What the time is, and by how much the clock has jumped if that was seen just now.
    fn read(&mut self, mono_ms: i64, wall_ms: i64) -> (i64, Option<i64>) {
        let ahead_ms = wall_ms.saturating_sub(mono_ms);
        let near = |other: i64| ahead_ms.saturating_sub(other).saturating_abs() <= TOLERANCE_MS;
        if near(self.ahead_ms) {
            self.ahead_ms = ahead_ms;
            self.doubt = None;
            return (wall_ms, None);
        }
        let lasts = self.doubt.filter(|doubt| near(doubt.ahead_ms));
        let since_ms = lasts.map_or(mono_ms, |doubt| doubt.since_ms);
        if i128::from(mono_ms - since_ms) >= JUMP_BELIEVED_AFTER.as_millis().cast_signed() {
            self.ahead_ms = ahead_ms;
            self.doubt = None;
            return (wall_ms, None);
        }
        let jump = lasts.is_none().then_some(ahead_ms - self.ahead_ms);
        self.doubt = Some(Doubt { ahead_ms, since_ms });
        (mono_ms + self.ahead_ms, jump)
    }
}

/// How long a look at the wall clock is good for, in ms of the monotonic one.
const LOOK_LASTS_MS: i64 = 10;

/// The last look: when, and by how much the believed time is ahead. The two need not be of the same look.
static LOOKED_AT_MS: AtomicI64 = AtomicI64::new(i64::MIN);
static AHEAD_MS: AtomicI64 = AtomicI64::new(0);

/// What the time is.
pub(super) fn now() -> UnixMillis {
    let mono_ms = mono_ms();
    if (0..LOOK_LASTS_MS).contains(&mono_ms.wrapping_sub(LOOKED_AT_MS.load(Acquire))) {
        return UnixMillis(mono_ms + AHEAD_MS.load(Relaxed));
    }
    let now_ms = look(mono_ms);
    AHEAD_MS.store(now_ms - mono_ms, Relaxed);
    LOOKED_AT_MS.store(mono_ms, Release);
    UnixMillis(now_ms)
}

fn look(mono_ms: i64) -> i64 {
    static BELIEF: LazyLock<Mutex<Belief>> = LazyLock::new(|| {
        Mutex::new(Belief {
            ahead_ms: system_ms() - self::mono_ms(),
            doubt: None,
        })
    });
    let mut belief = BELIEF.lock().unwrap_or_else(PoisonError::into_inner);
    let (now, jump) = belief.read(mono_ms, system_ms());
    drop(belief);
    if let Some(jump_ms) = jump {
        tracing::warn!(
            jump_s = jump_ms / 1000,
            "the machine's clock has jumped; it is believed when that has lasted for {} minutes",
            JUMP_BELIEVED_AFTER.as_secs() / 60
        );
    }
    now
}

/// A clock before 1970 is not set at all.
fn system_ms() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| millis(since.as_millis()))
}

fn millis(millis: u128) -> i64 {
    i64::try_from(millis).unwrap_or(i64::MAX)
}

/// Time that also passes while the machine is suspended, where there is such a clock.
#[cfg(target_os = "linux")]
fn mono_ms() -> i64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    time.tv_sec.saturating_mul(1000) + time.tv_nsec / 1_000_000
}

#[cfg(not(target_os = "linux"))]
fn mono_ms() -> i64 {
    static ORIGIN: LazyLock<Instant> = LazyLock::new(Instant::now);
    millis(ORIGIN.elapsed().as_millis())
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: i64 = 24 * 3600 * 1000;
    const HELD: i64 = JUMP_BELIEVED_AFTER.as_millis() as i64;

    fn belief() -> Belief {
        Belief {
            ahead_ms: 1_700_000_000_000,
            doubt: None,
        }
    }

    /// What is read at a monotonic time while the clock is off by so much.
    fn at(belief: &mut Belief, mono: i64, off: i64) -> i64 {
        belief.read(mono, 1_700_000_000_000 + mono + off).0 - 1_700_000_000_000
    }

    #[test]
    fn a_jump_for_a_moment_moves_nothing() {
        for jump in [8 * DAY, -8 * DAY, 30 * DAY, -30 * DAY] {
            let mut belief = belief();
            assert_eq!(at(&mut belief, 1000, 0), 1000);
            for mono in [2000, 3500, 5000] {
                assert_eq!(at(&mut belief, mono, jump), mono);
            }
            assert_eq!(at(&mut belief, 5001, 0), 5001);
            // The next jump must last anew.
            assert_eq!(at(&mut belief, 5002, jump), 5002);
            assert_eq!(at(&mut belief, 5002 + HELD - 1, jump), 5002 + HELD - 1);
        }
    }

    #[test]
    fn a_jump_that_lasts_is_believed_and_one_over_another_must_last_itself() {
        let mut belief = belief();
        assert_eq!(at(&mut belief, 0, 8 * DAY), 0);
        assert_eq!(at(&mut belief, HELD - 1, 8 * DAY), HELD - 1);
        assert_eq!(at(&mut belief, HELD, 3 * DAY), HELD, "that is another one");
        assert_eq!(at(&mut belief, 2 * HELD - 1, 3 * DAY), 2 * HELD - 1);
        assert_eq!(at(&mut belief, 2 * HELD, 3 * DAY), 2 * HELD + 3 * DAY);
        assert_eq!(at(&mut belief, 3 * HELD, 3 * DAY), 3 * HELD + 3 * DAY);
    }

    #[test]
    fn what_time_servers_correct_is_taken_at_once() {
        let mut belief = belief();
        for (mono, off) in [
            (0, 0),
            (10, 30_000),
            (20, 80_000),
            (30, 30_000),
            (40, -20_000),
        ] {
            assert_eq!(at(&mut belief, mono, off), mono + off);
        }
    }

    #[test]
    fn a_jump_is_told_once() {
        let mut belief = belief();
        let mut told = |mono, off| belief.read(mono, 1_700_000_000_000 + mono + off).1;
        assert_eq!(told(0, 0), None);
        assert_eq!(told(10, DAY), Some(DAY));
        assert_eq!(told(20, DAY), None);
        assert_eq!(told(30, 0), None);
        assert_eq!(told(40, -DAY), Some(-DAY));
    }
}
