//! What the brain counts.

/// How often what happened since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Counters {
    /// Batch jobs that waited for so long that they were treated as interactive.
    pub promoted: u64,
    /// Batch jobs that ended because interactive ones needed their place in a full queue.
    pub dropped: u64,
}
