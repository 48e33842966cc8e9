//! Two clocks: one that only moves forward, for time-outs, and the wall's, for what people read.

mod wall;

use std::fmt;
use std::ops::Add;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use time::format_description::well_known::Rfc3339;
use time::{OffsetDateTime, UtcOffset};

pub use wall::JUMP_BELIEVED_AFTER;

/// Monotonic time: how long ago the process (or a simulation) began.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mono(pub Duration);

impl Mono {
    /// Time passed since `earlier`; zero if that lies ahead.
    #[must_use]
    pub fn since(self, earlier: Mono) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}

impl Add<Duration> for Mono {
    type Output = Mono;
    fn add(self, rhs: Duration) -> Mono {
        Mono(self.0.saturating_add(rhs))
    }
}

/// Wall-clock time in milliseconds since 1970-01-01 UTC; RFC 3339 on the wire.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UnixMillis(pub i64);

impl UnixMillis {
    /// The system's clock. A jump by more than a minute is believed when it has lasted for
    /// [`JUMP_BELIEVED_AFTER`]; until then time goes on as before it, in the whole process.
    #[must_use]
    pub fn now() -> Self {
        wall::now()
    }

    /// Reads an RFC 3339 time; `None` if it is not one, or lies in no year from 0 to 9999 of UTC:
    /// it could not be written as one.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let at = OffsetDateTime::parse(text, &Rfc3339).ok()?;
        let at = at.checked_to_offset(UtcOffset::UTC)?;
        if !(0..=9999).contains(&at.year()) {
            return None;
        }
        Some(UnixMillis((at.unix_timestamp_nanos() / 1_000_000) as i64))
    }

    /// Time passed since `earlier`; zero if that lies ahead.
    #[must_use]
    pub fn since(self, earlier: UnixMillis) -> Duration {
        Duration::from_millis(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }

    /// So long before.
    #[must_use]
    pub fn before(self, time: Duration) -> Self {
        let millis = i64::try_from(time.as_millis()).unwrap_or(i64::MAX);
        UnixMillis(self.0.saturating_sub(millis))
    }

    /// Days since 1970-01-01, UTC.
    #[must_use]
    pub fn day(self) -> i64 {
        self.0.div_euclid(24 * 60 * 60 * 1000)
    }

    /// The midnight at which a day begins, UTC.
    #[must_use]
    pub fn of_day(day: i64) -> Self {
        UnixMillis(day.saturating_mul(24 * 60 * 60 * 1000))
    }

    /// The date in UTC, as ISO 8601 writes it.
    #[must_use]
    pub fn date(self) -> String {
        let text = self.to_string();
        text.split('T').next().unwrap_or_default().to_owned()
    }

    /// Whole seconds since 1970.
    #[must_use]
    pub fn as_secs(self) -> i64 {
        self.0.div_euclid(1000)
    }
}

impl Add<Duration> for UnixMillis {
    type Output = UnixMillis;
    fn add(self, rhs: Duration) -> UnixMillis {
        let millis = i64::try_from(rhs.as_millis()).unwrap_or(i64::MAX);
        UnixMillis(self.0.saturating_add(millis))
    }
}

impl fmt::Display for UnixMillis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let at = OffsetDateTime::from_unix_timestamp_nanos(i128::from(self.0) * 1_000_000)
            .unwrap_or(OffsetDateTime::UNIX_EPOCH);
        f.write_str(&at.format(&Rfc3339).map_err(|_| fmt::Error)?)
    }
}

impl Serialize for UnixMillis {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for UnixMillis {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        UnixMillis::parse(&text)
            .ok_or_else(|| serde::de::Error::custom(format!("{text:?} is not an RFC 3339 time")))
    }
}

/// The time as both clocks show it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Now {
    /// For time-outs.
    pub mono: Mono,
    /// For absolute deadlines and what people read.
    pub wall: UnixMillis,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wall_time_reads_back_what_it_writes() {
        let at = UnixMillis(1_732_233_600_123);
        assert_eq!(at.to_string(), "2024-11-22T00:00:00.123Z");
        assert_eq!(UnixMillis::parse(&at.to_string()), Some(at));
        assert_eq!(UnixMillis::parse("2024-11-22T01:00:00.123+01:00"), Some(at));
        assert_eq!(UnixMillis::parse("tomorrow"), None);
        let last = UnixMillis::parse("9999-12-31T23:59:59Z").expect("a time");
        assert_eq!(last.to_string(), "9999-12-31T23:59:59Z");
        for unwritable in ["9999-12-31T23:59:59-01:00", "0000-01-01T00:00:00+01:00"] {
            assert_eq!(UnixMillis::parse(unwritable), None, "{unwritable}");
        }
    }
}
