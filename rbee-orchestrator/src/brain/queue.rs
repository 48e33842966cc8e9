//! Jobs that wait, in groups that may run in the same places.

use std::collections::{HashMap, VecDeque};

use crate::domain::{Constraints, HiveId, JobId, ModelRef, Narration, Priority, WorkerId};

use super::event::JobRequest;
use crate::scheduler::PlacementRequest;

/// What makes jobs wait together.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct GroupKey {
    pub(super) model: ModelRef,
    pub(super) constraints: Constraints,
    pub(super) openai_only: bool,
}

impl GroupKey {
    pub(super) fn of(request: &JobRequest, model: ModelRef) -> Self {
        GroupKey {
            model,
            constraints: request.constraints.clone(),
            openai_only: request.openai_only,
        }
    }

    /// The same as a scheduler is asked.
    pub(super) fn request(&self) -> PlacementRequest<'_> {
        PlacementRequest {
            model: &self.model,
            constraints: &self.constraints,
            openai_only: self.openai_only,
        }
    }
}

/// What a group waits for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) enum Waits {
    /// A free slot.
    #[default]
    Slot,
    /// A hive that starts.
    Hive(HiveId),
    /// A worker that loads.
    Load(WorkerId),
    /// A worker that is being checked.
    Check(WorkerId),
}

/// A job's place among those that wait for the same model: batch jobs come after all others,
/// within a class the older comes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Turn {
    pub(super) class: Priority,
    pub(super) job: JobId,
}

/// Jobs of one key; within a class first come first served.
#[derive(Debug, Default)]
pub(super) struct Group {
    pub(super) turns: VecDeque<Turn>,
    pub(super) waits: Waits,
    /// What was told last; a job that comes later is told the same.
    pub(super) narration: Option<Narration>,
    /// The name that was asked for, while it is not known which model it means.
    pub(super) tentative: Option<String>,
}

impl Group {
    pub(super) fn jobs(&self) -> impl Iterator<Item = JobId> {
        self.turns.iter().map(|turn| turn.job)
    }
}

/// All waiting jobs.
#[derive(Debug, Default)]
pub(super) struct Queue {
    groups: HashMap<GroupKey, Group>,
    len: usize,
}

impl Queue {
    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn is_waiting(&self, key: &GroupKey) -> bool {
        !self.groups.is_empty() && self.groups.contains_key(key)
    }

    /// Puts a job behind those of its class in its group, with its model's name if it is not
    /// known what that means; returns its position.
    pub(super) fn push(&mut self, key: GroupKey, turn: Turn, tentative: Option<String>) -> usize {
        self.len += 1;
        let group = self.groups.entry(key).or_default();
        if tentative.is_some() {
            group.tentative = tentative;
        }
        let at = group
            .turns
            .partition_point(|waiting| waiting.class <= turn.class);
        group.turns.insert(at, turn);
        at
    }

    /// Puts a job that waited elsewhere into a group, by class and the time of its submission.
    pub(super) fn insert(&mut self, key: GroupKey, turn: Turn) {
        self.len += 1;
        let turns = &mut self.groups.entry(key).or_default().turns;
        let at = turns.partition_point(|waiting| *waiting < turn);
        turns.insert(at, turn);
    }

    pub(super) fn front(&self, key: &GroupKey) -> Option<Turn> {
        self.groups.get(key)?.turns.front().copied()
    }

    pub(super) fn pop(&mut self, key: &GroupKey) -> Option<JobId> {
        let group = self.groups.get_mut(key)?;
        let turn = group.turns.pop_front()?;
        if group.turns.is_empty() {
            self.groups.remove(key);
        }
        self.len -= 1;
        Some(turn.job)
    }

    /// Takes a job out, wherever it stands.
    pub(super) fn remove(&mut self, key: &GroupKey, job: JobId) {
        let Some(group) = self.groups.get_mut(key) else {
            return;
        };
        let before = group.turns.len();
        group.turns.retain(|waiting| waiting.job != job);
        let removed = before - group.turns.len();
        self.len -= removed;
        if group.turns.is_empty() {
            self.groups.remove(key);
        }
    }

    pub(super) fn take(&mut self, key: &GroupKey) -> Option<Group> {
        let group = self.groups.remove(key)?;
        self.len -= group.turns.len();
        Some(group)
    }

    pub(super) fn get(&self, key: &GroupKey) -> Option<&Group> {
        self.groups.get(key)
    }

    pub(super) fn get_mut(&mut self, key: &GroupKey) -> Option<&mut Group> {
        self.groups.get_mut(key)
    }

    /// Keys of the groups that `wanted` accepts, by the turn of their first jobs.
    pub(super) fn keys(&self, wanted: impl Fn(&GroupKey, &Group) -> bool) -> Vec<GroupKey> {
        let mut found: Vec<(&Turn, &GroupKey)> = self
            .groups
            .iter()
            .filter(|(key, group)| wanted(key, group))
            .filter_map(|(key, group)| Some((group.turns.front()?, key)))
            .collect();
        found.sort_unstable_by_key(|(first, _)| **first);
        found.into_iter().map(|(_, key)| key.clone()).collect()
    }
}
