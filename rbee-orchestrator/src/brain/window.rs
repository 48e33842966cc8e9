//! Counts over the last while.

use std::time::Duration;

use crate::domain::Mono;

const BUCKETS: usize = 10;

/// Two counts over a sliding window, which moves by a tenth of its length.
#[derive(Debug, Default)]
pub(super) struct Window {
    counts: [[u32; 2]; BUCKETS],
    newest: u64,
}

impl Window {
    pub(super) fn add(&mut self, now: Mono, length: Duration, counts: [u32; 2]) {
        self.move_on(now, length);
        let bucket = &mut self.counts[at(self.newest)];
        for (sum, count) in bucket.iter_mut().zip(counts) {
            *sum = sum.saturating_add(count);
        }
    }

    pub(super) fn sums(&mut self, now: Mono, length: Duration) -> [u64; 2] {
        self.move_on(now, length);
        let mut sums = [0; 2];
        for counts in &self.counts {
            for (sum, count) in sums.iter_mut().zip(counts) {
                *sum += u64::from(*count);
            }
        }
        sums
    }

    fn move_on(&mut self, now: Mono, length: Duration) {
        let width = (micros(length) / BUCKETS as u64).max(1);
        let newest = micros(now.0) / width;
        let passed = newest.saturating_sub(self.newest).min(BUCKETS as u64);
        for bucket in 0..passed {
            self.counts[at(newest - bucket)] = [0; 2];
        }
        self.newest = self.newest.max(newest);
    }
}

fn at(bucket: u64) -> usize {
    (bucket % BUCKETS as u64) as usize
}

fn micros(time: Duration) -> u64 {
    time.as_secs()
        .saturating_mul(1_000_000)
        .saturating_add(u64::from(time.subsec_micros()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_older_than_the_window_does_not_count() {
        let (mut window, length) = (Window::default(), Duration::from_secs(10));
        let at = |seconds| Mono(Duration::from_secs(seconds));
        for second in 100..130 {
            window.add(at(second), length, [1, 2]);
        }
        assert_eq!(window.sums(at(129), length), [10, 20]);
        assert_eq!(window.sums(at(134), length), [5, 10]);
        assert_eq!(window.sums(at(139), length), [0, 0]);
        window.add(at(1000), length, [1, 0]);
        assert_eq!(window.sums(at(1009), length), [1, 0]);
    }
}
