//! Numbers that stand for names in the columns. They are on disks: they never change their meaning.

use crate::domain::{JobKind, JobState, Priority};

// The index of open jobs and every change of a job know that a state below 2 is open.

pub(super) fn state_code(state: JobState) -> u8 {
    match state {
        JobState::Queued => 0,
        JobState::Running => 1,
        JobState::Complete => 2,
        JobState::Failed => 3,
        JobState::Cancelled => 4,
    }
}

pub(super) fn state_from(code: u8) -> Option<JobState> {
    JobState::ALL
        .into_iter()
        .find(|state| state_code(*state) == code)
}

pub(super) fn kind_code(kind: JobKind) -> u8 {
    match kind {
        JobKind::Task => 0,
        JobKind::Chat => 1,
        JobKind::Completion => 2,
        JobKind::Embedding => 3,
    }
}

pub(super) fn kind_from(code: u8) -> Option<JobKind> {
    use JobKind::{Chat, Completion, Embedding, Task};
    let all = [Task, Chat, Completion, Embedding];
    all.into_iter().find(|kind| kind_code(*kind) == code)
}

pub(super) fn priority_code(priority: Priority) -> u8 {
    match priority {
        Priority::Interactive => 0,
        Priority::Batch => 1,
    }
}

pub(super) fn priority_from(code: u8) -> Option<Priority> {
    let all = [Priority::Interactive, Priority::Batch];
    all.into_iter()
        .find(|priority| priority_code(*priority) == code)
}
