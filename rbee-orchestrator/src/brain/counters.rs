//! What the brain counts.

/// How many jobs are where.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// Let in, and not confirmed yet.
    pub admitted: usize,
    /// Held back by their tenants' quotas.
    pub held: usize,
    /// In line for a worker.
    pub waiting: usize,
    /// With a worker, or cut off there and not back yet.
    pub running: usize,
}

impl Tally {
    /// All jobs that have not ended.
    #[must_use]
    pub fn open(&self) -> usize {
        self.admitted + self.held + self.waiting + self.running
    }
}

/// How often what happened since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Counters {
    /// Batch jobs that waited for so long that they were treated as interactive.
    pub promoted: u64,
    /// Batch jobs that ended because interactive ones needed their place in a full queue.
    pub dropped: u64,
    /// Jobs that were held back because their tenants' quotas did not allow them.
    pub quota_held: u64,
}
