//! What the brain remembers of hives.

use crate::domain::Mono;

/// What the brain keeps of a hive beside what schedulers see.
#[derive(Debug, Default)]
pub(super) struct HiveNotes {
    /// Whether it was seen running, and has not ended since as far as is known.
    pub(super) runs: bool,
    /// When it ended by itself, or could not be started after that, not long ago.
    pub(super) ends: Vec<Mono>,
    /// When it is started again.
    pub(super) restart_due: Option<Mono>,
    /// When the start that is under way was asked for.
    pub(super) start_begun: Option<Mono>,
    /// How much of its program is on its machine, while that is brought there for its start.
    pub(super) installing: Option<u8>,
    /// Whether an attempt broke off on one of its workers, and it has not answered since.
    pub(super) in_doubt: bool,
    /// Whether it is stopped when its last job has ended.
    pub(super) stops_when_idle: bool,
    /// When it was lost without having ended, not long ago.
    pub(super) losses: Vec<Mono>,
    /// When it has been steady for long enough.
    pub(super) steady_due: Option<Mono>,
}
