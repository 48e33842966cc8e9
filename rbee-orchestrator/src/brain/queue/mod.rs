//! Jobs that wait: for each model a line, and in it groups that may run in the same places.

mod flows;

use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::domain::{
    Constraints, HiveId, JobId, ModelRef, Narration, Priority, SessionId, TenantId, WorkerId,
};

use super::event::JobRequest;
use crate::error::Error;
use crate::scheduler::PlacementRequest;
use flows::{Flows, Pick};

/// What makes jobs wait together.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct GroupKey {
    pub(super) model: ModelRef,
    pub(super) constraints: Constraints,
    pub(super) openai_only: bool,
    /// The worker that failed them last.
    pub(super) avoid: Option<WorkerId>,
}

impl GroupKey {
    pub(super) fn of(request: &JobRequest, model: ModelRef) -> Self {
        GroupKey {
            model,
            constraints: request.constraints.clone(),
            openai_only: request.openai_only,
            avoid: None,
        }
    }

    /// The same as a scheduler is asked.
    pub(super) fn request(&self) -> PlacementRequest<'_> {
        PlacementRequest {
            model: &self.model,
            constraints: &self.constraints,
            openai_only: self.openai_only,
            avoid: self.avoid.as_ref(),
        }
    }
}

/// Names a group within its model's line; never given twice there.
pub(super) type GroupId = u32;

/// What a group waits for.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) enum Waits {
    /// A free slot.
    #[default]
    Slot,
    /// A place: there is none now. Only jobs that outlive their connections wait for one.
    Place(Box<Error>),
    /// A hive that starts.
    Hive(HiveId),
    /// A hive that fetches the model.
    Fetch(HiveId),
    /// A hive that can fetch the model: all fetch others.
    Turn,
    /// A hive that came and went, and must be steady first.
    Steady(HiveId),
    /// A worker that loads.
    Load(WorkerId),
    /// A worker that is being checked.
    Check(WorkerId),
    /// A worker that is left alone for a while.
    Pause(WorkerId),
}

/// A waiting job, with what decides its place.
pub(super) struct Entry<'a> {
    pub(super) job: JobId,
    pub(super) key: &'a GroupKey,
    pub(super) class: Priority,
    /// Whether it had its turn and came back: it comes before the others of its class.
    pub(super) returned: bool,
    /// Whether it outlives its connection, and so can wait for whatever time it takes.
    pub(super) asynchronous: bool,
    pub(super) tenant: &'a TenantId,
    pub(super) session: &'a Option<SessionId>,
    /// What it counts for in its tenant's share, in tokens.
    pub(super) cost: u64,
}

/// Jobs of one key.
#[derive(Debug)]
pub(super) struct Group {
    pub(super) key: GroupKey,
    /// By class, then by the time of submission.
    jobs: BTreeSet<(Priority, JobId)>,
    pub(super) waits: Waits,
    /// What was told last; a job that comes later is told the same.
    pub(super) narration: Option<Narration>,
    /// Whether all of its jobs outlive their connections.
    pub(super) patient: bool,
    /// Whether some of its names may come to mean another model.
    pub(super) tentative: bool,
}

impl Group {
    pub(super) fn jobs(&self) -> impl Iterator<Item = JobId> {
        self.jobs.iter().map(|(_, job)| *job)
    }

    /// Whether it has a job of this class or of one that comes before it.
    pub(super) fn has_of(&self, class: Priority) -> bool {
        self.jobs.first().is_some_and(|(first, _)| *first <= class)
    }

    /// Those of a class, in the order of their submission.
    pub(super) fn jobs_of(&self, class: Priority) -> impl Iterator<Item = JobId> {
        let jobs = self.jobs.iter().filter(move |(of, _)| *of == class);
        jobs.map(|(_, job)| *job)
    }
}

/// Who comes next in a line.
#[derive(Debug)]
pub(super) struct Next {
    pub(super) job: JobId,
    pub(super) key: GroupKey,
    pub(super) group: GroupId,
    /// `None` for one that had its turn and came back.
    pick: Option<Pick>,
}

/// The jobs of a class.
#[derive(Debug, Default)]
struct Class {
    returned: BTreeMap<JobId, GroupId>,
    flows: Flows,
}

impl Class {
    fn len(&self) -> usize {
        self.returned.len() + self.flows.len()
    }
}

/// The jobs that wait for one model: batch jobs come after all others, within a class the shares of
/// tenants and sessions decide.
#[derive(Debug, Default)]
pub(super) struct Line {
    ids: HashMap<GroupKey, GroupId>,
    groups: BTreeMap<GroupId, Group>,
    groups_made: GroupId,
    classes: [Class; 2],
}

impl Line {
    /// Jobs in it.
    pub(super) fn len(&self) -> usize {
        self.classes.iter().map(Class::len).sum()
    }

    pub(super) fn groups(&self) -> impl Iterator<Item = &Group> {
        self.groups.values()
    }

    pub(super) fn group_by_id(&self, id: GroupId) -> Option<&Group> {
        self.groups.get(&id)
    }

    /// The first jobs in the order in which they would be served if nothing held them up.
    pub(super) fn order(&self, most: usize) -> Vec<(JobId, GroupId)> {
        let mut order = Vec::new();
        for class in &self.classes {
            let returned = class.returned.iter().map(|(job, group)| (*job, *group));
            order.extend(returned.take(most - order.len()));
            order.extend(class.flows.order(most - order.len()));
        }
        order
    }

    /// Whether the jobs of a class go in the order of their coming.
    pub(super) fn is_plain(&self, class: Priority) -> bool {
        self.classes[class as usize].flows.is_plain()
    }

    /// Jobs before the last of a class.
    pub(super) fn last_place(&self, class: Priority) -> usize {
        let until = &self.classes[..=class as usize];
        let jobs: usize = until.iter().map(Class::len).sum();
        jobs.saturating_sub(1)
    }

    fn insert(&mut self, entry: &Entry<'_>, weight: u32) -> &mut Group {
        let id = *self.ids.entry(entry.key.clone()).or_insert_with(|| {
            self.groups_made += 1;
            self.groups_made
        });
        let class = &mut self.classes[entry.class as usize];
        match entry.returned {
            true => drop(class.returned.insert(entry.job, id)),
            false => class.flows.push(entry, id, weight),
        }
        let group = self.groups.entry(id).or_insert_with(|| Group {
            key: entry.key.clone(),
            jobs: BTreeSet::new(),
            waits: Waits::default(),
            narration: None,
            patient: true,
            tentative: false,
        });
        group.jobs.insert((entry.class, entry.job));
        group.patient &= entry.asynchronous;
        group
    }

    fn remove(&mut self, entry: &Entry<'_>) -> bool {
        let Some(id) = self.ids.get(entry.key).copied() else {
            return false;
        };
        let class = &mut self.classes[entry.class as usize];
        let was_there = match entry.returned {
            true => class.returned.remove(&entry.job).is_some(),
            false => class.flows.remove(entry, id),
        };
        self.forget(id, entry);
        was_there
    }

    /// Takes a job out of its group, and a group that has none any more out of the line.
    fn forget(&mut self, id: GroupId, entry: &Entry<'_>) {
        if let Some(group) = self.groups.get_mut(&id) {
            group.jobs.remove(&(entry.class, entry.job));
            if group.jobs.is_empty() {
                self.groups.remove(&id);
                self.ids.remove(entry.key);
            }
        }
    }

    fn next(&self, held_up: &BTreeSet<GroupId>) -> Option<Next> {
        if self.groups.keys().all(|group| held_up.contains(group)) {
            return None;
        }
        self.classes.iter().find_map(|class| {
            let mut returned = class.returned.iter();
            let (job, group, pick) = match returned.find(|(_, group)| !held_up.contains(group)) {
                Some((job, group)) => (*job, *group, None),
                None => {
                    let pick = class.flows.next(held_up)?;
                    (pick.job, pick.group, Some(pick))
                }
            };
            let key = self.groups.get(&group)?.key.clone();
            Some(Next {
                job,
                key,
                group,
                pick,
            })
        })
    }

    fn serve(&mut self, entry: &Entry<'_>, next: &Next, held_up: &BTreeSet<GroupId>) {
        let class = &mut self.classes[entry.class as usize];
        match &next.pick {
            None => drop(class.returned.remove(&entry.job)),
            Some(pick) => class.flows.serve(entry, pick, held_up),
        }
        self.forget(next.group, entry);
    }
}

/// All waiting jobs.
#[derive(Debug, Default)]
pub(super) struct Queue {
    lines: HashMap<ModelRef, Line>,
    /// Those of the batch class, the oldest first.
    batch: BTreeSet<JobId>,
    len: usize,
}

impl Queue {
    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn line(&self, model: &ModelRef) -> Option<&Line> {
        match self.len {
            0 => None,
            _ => self.lines.get(model),
        }
    }

    pub(super) fn group(&self, key: &GroupKey) -> Option<&Group> {
        let line = self.line(&key.model)?;
        line.groups.get(line.ids.get(key)?)
    }

    pub(super) fn group_mut(&mut self, key: &GroupKey) -> Option<&mut Group> {
        let line = self.lines.get_mut(&key.model)?;
        line.groups.get_mut(line.ids.get(key)?)
    }

    /// Waiting batch jobs, the oldest first.
    pub(super) fn batch(&self) -> impl Iterator<Item = JobId> {
        self.batch.iter().copied()
    }

    /// Lets a job wait; `tentative` says that its model's name may come to mean another.
    pub(super) fn push(&mut self, entry: &Entry<'_>, weight: u32, tentative: bool) {
        self.len += 1;
        if entry.class == Priority::Batch {
            self.batch.insert(entry.job);
        }
        let line = self.lines.entry(entry.key.model.clone()).or_default();
        let group = line.insert(entry, weight);
        group.tentative |= tentative;
    }

    /// Moves a batch job to the interactive ones, by the time of its submission.
    pub(super) fn promote(&mut self, entry: &Entry<'_>, weight: u32) {
        self.batch.remove(&entry.job);
        if let Some(line) = self.lines.get_mut(&entry.key.model) {
            let promoted = Entry {
                class: Priority::Interactive,
                ..*entry
            };
            // In this order, so that a group is not forgotten between the two.
            line.insert(&promoted, weight);
            line.remove(entry);
        }
    }

    /// Takes a job out, wherever it stands.
    pub(super) fn remove(&mut self, entry: &Entry<'_>) {
        let line = self.lines.get_mut(&entry.key.model);
        let was_there = line.is_some_and(|line| line.remove(entry));
        debug_assert!(was_there, "a waiting job stands in the line of its model");
        self.note_gone(entry);
    }

    /// Who comes next for a model, of those whose groups are not held up.
    pub(super) fn next(&self, model: &ModelRef, held_up: &BTreeSet<GroupId>) -> Option<Next> {
        self.line(model)?.next(held_up)
    }

    /// Takes out who came next.
    pub(super) fn serve(&mut self, entry: &Entry<'_>, next: &Next, held_up: &BTreeSet<GroupId>) {
        if let Some(line) = self.lines.get_mut(&entry.key.model) {
            line.serve(entry, next, held_up);
        }
        self.note_gone(entry);
    }

    fn note_gone(&mut self, entry: &Entry<'_>) {
        self.len -= 1;
        self.batch.remove(&entry.job);
        let line = self.lines.get(&entry.key.model);
        if line.is_some_and(|line| line.groups.is_empty()) {
            self.lines.remove(&entry.key.model);
        }
    }

    /// Gives tenants other weights.
    pub(super) fn weigh(&mut self, weight: impl Fn(&TenantId) -> u32) {
        let classes = self.lines.values_mut().flat_map(|line| &mut line.classes);
        classes.for_each(|class| class.flows.weigh(&weight));
    }

    /// Keys of the groups that `wanted` accepts, by class and age of their first jobs.
    pub(super) fn keys(&self, wanted: impl Fn(&Group) -> bool) -> Vec<GroupKey> {
        let groups = self.lines.values().flat_map(Line::groups);
        let mut found: Vec<&Group> = groups.filter(|group| wanted(group)).collect();
        found.sort_unstable_by_key(|group| group.jobs.first().copied());
        found.into_iter().map(|group| group.key.clone()).collect()
    }

    /// Models that somebody waits for, by class and age of the first jobs.
    pub(super) fn models(&self) -> Vec<ModelRef> {
        let first = |line: &Line| line.groups().filter_map(|g| g.jobs.first().copied()).min();
        let mut found: Vec<_> = self
            .lines
            .iter()
            .map(|(m, line)| (first(line), m))
            .collect();
        found.sort_unstable();
        found.into_iter().map(|(_, model)| model.clone()).collect()
    }
}
