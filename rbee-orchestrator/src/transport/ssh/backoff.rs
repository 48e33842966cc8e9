//! How long a machine that can't be reached is left alone.

use std::time::Instant;

use super::connect::Refused;
use crate::config::SshOptions;

/// Failed connection attempts in a row.
#[derive(Debug, Default)]
pub(super) struct Backoff {
    failures: u32,
    last: Option<(Refused, Instant)>,
}

impl Backoff {
    /// While it is too early for another attempt, the last one's failure.
    pub(super) fn check(&self) -> Result<(), Refused> {
        let Some((refused, until)) = &self.last else {
            return Ok(());
        };
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(());
        }
        let mut refused = refused.clone();
        let seconds = left.as_secs_f64();
        let again = format!(" (tried lately; again in {seconds:.1} s)");
        refused.error.message.push_str(&again);
        refused.error = refused.error.retry_after(left);
        Err(refused)
    }

    pub(super) fn failed(&mut self, refused: &Refused, options: &SshOptions) {
        let doubled = 1_u32.checked_shl(self.failures).unwrap_or(u32::MAX);
        let longest = options.backoff_first.saturating_mul(doubled);
        let longest = longest.min(options.backoff_max);
        self.failures = self.failures.saturating_add(1);
        // Between a half and all of it, so that a fleet does not come back at once.
        let part = f64::from(getrandom::u32().unwrap_or(u32::MAX)) / f64::from(u32::MAX);
        let pause = longest.mul_f64(0.5 + part / 2.0);
        self.last = Some((refused.clone(), Instant::now() + pause));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    use crate::error::{Code, Error};
    use crate::transport::ssh::connect::Stage;

    #[test]
    fn the_pause_doubles_up_to_its_bound_and_tells_what_failed() {
        let options = SshOptions {
            backoff_first: Duration::from_secs(10),
            backoff_max: Duration::from_secs(60),
            ..SshOptions::default()
        };
        let mut backoff = Backoff::default();
        assert!(backoff.check().is_ok());
        let refused = Refused::new(Stage::Reach, Error::new(Code::HiveUnreachable, "no route"));
        for most in [10, 20, 40, 60, 60] {
            backoff.failed(&refused, &options);
            let refused = backoff.check().expect_err("it is too early");
            assert!(refused.error.message.contains("no route"), "{refused:?}");
            let pause = refused.error.retry_after.expect("told");
            let bounds = Duration::from_secs(most / 2 - 1)..=Duration::from_secs(most);
            assert!(bounds.contains(&pause), "{pause:?} of {most} s");
        }
    }
}
