//! Chance that can be repeated.

use std::time::Duration;

/// SplitMix64: a few instructions, and good enough to spread retries.
#[derive(Debug, Default)]
pub(super) struct Chance(u64);

impl Chance {
    pub(super) fn seeded(seed: u64) -> Self {
        Chance(seed)
    }

    /// Any time up to this one, each as likely as the other.
    pub(super) fn up_to(&mut self, most: Duration) -> Duration {
        // The upper 53 bits, all that a float can hold.
        let share = (self.next() >> 11) as f64 / (1_u64 << 53) as f64;
        most.mul_f64(share)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }
}
