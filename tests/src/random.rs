//! Choices that a seed decides (splitmix64): what a run did can be told, and asked for again.

/// Draws numbers.
#[derive(Debug, Clone)]
pub struct Random(u64);

/// Spreads the bits of `x`.
#[must_use]
pub fn mix(x: u64) -> u64 {
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

impl Random {
    /// The choices that go with a seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Random(seed)
    }

    /// Other choices of the same seed, for whoever draws beside this one.
    #[must_use]
    pub fn fork(&self, number: u64) -> Self {
        Random(mix(self.0 ^ mix(number + 1)))
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// A number from `from` to `to`, both of them possible.
    pub fn between(&mut self, from: u64, to: u64) -> u64 {
        from + self.next() % (to - from + 1)
    }

    /// True that many times of a hundred.
    pub fn percent(&mut self, of_a_hundred: u64) -> bool {
        self.between(0, 99) < of_a_hundred
    }

    /// One of them.
    ///
    /// # Panics
    /// When there is none.
    pub fn pick<T: Copy>(&mut self, all: &[T]) -> T {
        let last = all.len().checked_sub(1);
        let last = last.expect("there is something to pick from");
        all[self.between(0, last as u64) as usize]
    }

    /// Puts them in another order.
    pub fn shuffle<T>(&mut self, all: &mut [T]) {
        for last in (1..all.len()).rev() {
            let other = self.between(0, last as u64) as usize;
            all.swap(last, other);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_decides_and_a_fork_draws_otherwise() {
        let draw = |mut random: Random| [(); 8].map(|()| random.between(1, 1000));
        assert_eq!(draw(Random::new(7)), draw(Random::new(7)));
        assert_ne!(draw(Random::new(7)), draw(Random::new(8)));
        let forks = [0, 1].map(|number| draw(Random::new(7).fork(number)));
        assert_ne!(forks[0], forks[1]);
    }

    #[test]
    fn every_number_of_a_range_comes() {
        let mut random = Random::new(1);
        let mut seen = [false; 4];
        for _ in 0..100 {
            seen[random.between(2, 5) as usize - 2] = true;
        }
        assert_eq!(seen, [true; 4]);
        let mut order = [1, 2, 3, 4, 5, 6];
        random.shuffle(&mut order);
        assert_ne!(order, [1, 2, 3, 4, 5, 6]);
        order.sort_unstable();
        assert_eq!(order, [1, 2, 3, 4, 5, 6]);
    }
}
