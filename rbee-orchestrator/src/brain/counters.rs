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
    /// Not to be dispatched yet, after a failure.
    pub backing_off: usize,
    /// With a worker, or cut off there and not back yet.
    pub running: usize,
}

impl Tally {
    /// All jobs that have not ended.
    #[must_use]
    pub fn open(&self) -> usize {
        self.admitted + self.held + self.backing_off + self.waiting + self.running
    }
}

/// How often what happened since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Counters {
    /// Reports of attempts that were not the newest of their jobs, or of unknown jobs: refused.
    pub stale_reports: u64,
    /// Attempts that were made because an earlier one failed by its worker's fault.
    pub retries: u64,
    /// Retries that the budget did not allow.
    pub retries_refused: u64,
    /// Attempts that met a worker with too much to do.
    pub back_pressure: u64,
    /// Times that a worker was left alone because it failed again and again.
    pub breaker_opened: u64,
    /// Times that a worker became the last resort because it answered with errors again and again.
    pub last_resorts: u64,
    /// Batch jobs that waited for so long that they were treated as interactive.
    pub promoted: u64,
    /// Times that a batch job gave up its slot for an interactive one.
    pub given_back: u64,
    /// Batch jobs that ended because interactive ones needed their place in a full queue.
    pub dropped: u64,
    /// Jobs that were held back because their tenants' quotas did not allow them.
    pub quota_held: u64,
    /// Hives that were started again because they had ended by themselves.
    pub hive_restarts: u64,
    /// Hives that were given up because they ended again and again.
    pub hives_given_up: u64,
    /// Times that a hive came back which had been out of reach again and again.
    pub hive_flaps: u64,
    /// Times that the queen herself stood still, so that what she missed says nothing of others.
    pub stalls: u64,
}
