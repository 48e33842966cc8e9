//! How a store does.

/// How a store does, as its last writes and a search for damage found it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Condition {
    /// Nothing is known to be wrong.
    Sound,
    /// The last write found no room on the disk.
    Full,
    /// The last write failed for another reason.
    Unwritable,
    /// Part of what was written can't be read any more.
    Damaged,
}

impl Condition {
    /// The name that clients see.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Condition::Sound => "ok",
            Condition::Full => "full",
            Condition::Unwritable => "unwritable",
            Condition::Damaged => "damaged",
        }
    }
}
