//! Fairness between those who wait for the same model: deficit round robin between tenants, by
//! their weights, and round robin between the sessions of a tenant.
//!
//! A round gives each tenant as many tokens as its weight, and a job is served when its tenant has
//! saved up what it costs. Rounds in which nobody could be served are not gone through one by one.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::domain::{JobId, SessionId, TenantId};

use super::{Entry, GroupId};

/// What one job may cost at most: a wild estimate must not lock its tenant out for long.
const MAX_COST: u64 = 1 << 20;

type Session = Option<SessionId>;

/// The jobs of one class that wait for a model.
#[derive(Debug, Default)]
pub(super) struct Flows {
    tenants: BTreeMap<TenantId, Flow>,
    turns: u64,
    len: usize,
}

/// The jobs of one tenant.
#[derive(Debug, Default)]
struct Flow {
    weight: u64,
    /// Tokens saved up and not used.
    deficit: u64,
    /// When it was served last, in turns.
    turn: u64,
    lanes: BTreeMap<Session, Lanes>,
    /// For each group the sessions that have jobs of it, the one served longest ago first.
    order: BTreeMap<GroupId, BTreeSet<(u64, Session)>>,
    turns: u64,
}

/// The jobs of one session, by group, with their costs.
#[derive(Debug, Default)]
struct Lanes {
    /// When it was served last, in turns of its tenant.
    turn: u64,
    by_group: BTreeMap<GroupId, BTreeMap<JobId, u64>>,
}

/// The job of a tenant that comes first.
struct Head {
    job: JobId,
    group: GroupId,
    cost: u64,
}

/// Who comes next, and what it takes until then.
#[derive(Debug)]
pub(super) struct Pick {
    pub(super) job: JobId,
    pub(super) group: GroupId,
    cost: u64,
    rounds: u64,
}

/// How a tenant stands: whoever needs the fewest rounds comes next, of equals the one that was
/// served longest ago.
struct Standing {
    deficit: u64,
    weight: u64,
    turn: u64,
    cost: u64,
}

impl Standing {
    fn rank(&self) -> (u64, u64) {
        let missing = self.cost.saturating_sub(self.deficit);
        (missing.div_ceil(self.weight), self.turn)
    }
}

impl Flows {
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Whether all its jobs are of one session, so that they go in the order of their coming.
    pub(super) fn is_plain(&self) -> bool {
        let mut tenants = self.tenants.values();
        tenants.next().is_none_or(|flow| flow.lanes.len() == 1) && tenants.next().is_none()
    }

    pub(super) fn weigh(&mut self, weight: impl Fn(&TenantId) -> u32) {
        for (tenant, flow) in &mut self.tenants {
            flow.weight = u64::from(weight(tenant).max(1));
        }
    }

    pub(super) fn push(&mut self, entry: &Entry<'_>, group: GroupId, weight: u32) {
        self.len += 1;
        let flow = self.tenants.entry(entry.tenant.clone());
        let flow = flow.or_insert_with(|| {
            self.turns += 1;
            Flow {
                turn: self.turns,
                ..Flow::default()
            }
        });
        flow.weight = u64::from(weight.max(1));
        flow.push(entry, group);
    }

    /// Takes a job out, wherever it stands.
    pub(super) fn remove(&mut self, entry: &Entry<'_>, group: GroupId) -> bool {
        let Some(flow) = self.tenants.get_mut(entry.tenant) else {
            return false;
        };
        let was_there = flow.remove(entry, group);
        self.len -= usize::from(was_there);
        if flow.lanes.is_empty() {
            self.tenants.remove(entry.tenant);
        }
        was_there
    }

    /// Who comes next of those whose groups are not held up.
    pub(super) fn next(&self, held_up: &BTreeSet<GroupId>) -> Option<Pick> {
        let heads = self.tenants.values().filter_map(|flow| {
            let head = flow.head(held_up)?;
            Some((flow.standing(head.cost).rank(), head))
        });
        let ((rounds, _), head) = heads.min_by_key(|(rank, _)| *rank)?;
        Some(Pick {
            job: head.job,
            group: head.group,
            cost: head.cost,
            rounds,
        })
    }

    /// Takes out who came next, and notes that he was served.
    pub(super) fn serve(&mut self, entry: &Entry<'_>, pick: &Pick, held_up: &BTreeSet<GroupId>) {
        if pick.rounds > 0 {
            let in_line = self.tenants.values_mut();
            for flow in in_line.filter(|flow| flow.head(held_up).is_some()) {
                flow.deficit += pick.rounds * flow.weight;
            }
        }
        self.turns += 1;
        if let Some(flow) = self.tenants.get_mut(entry.tenant) {
            flow.turn = self.turns;
            flow.deficit = flow.deficit.saturating_sub(pick.cost);
            flow.note_turn(entry.session);
        }
        self.remove(entry, pick.group);
    }

    /// The first jobs in the order in which they would be served if nothing else came.
    pub(super) fn order(&self, most: usize) -> Vec<(JobId, GroupId)> {
        let mut walks: Vec<Walk> = self.tenants.values().map(|flow| flow.walk(most)).collect();
        let mut turns = self.turns;
        let mut order = Vec::with_capacity(self.len.min(most));
        while order.len() < most {
            let ranks = walks.iter().enumerate();
            let ranks = ranks.filter_map(|(at, walk)| Some((walk.standing()?.rank(), at)));
            let Some(((rounds, _), at)) = ranks.min() else {
                break;
            };
            for walk in walks.iter_mut().filter(|walk| !walk.sessions.is_empty()) {
                walk.deficit += rounds * walk.weight;
            }
            turns += 1;
            order.extend(walks[at].serve(turns));
        }
        order
    }
}

impl Flow {
    fn standing(&self, cost: u64) -> Standing {
        Standing {
            deficit: self.deficit,
            weight: self.weight,
            turn: self.turn,
            cost,
        }
    }

    fn push(&mut self, entry: &Entry<'_>, group: GroupId) {
        let lanes = self.lanes.entry(entry.session.clone());
        let lanes = lanes.or_insert_with(|| {
            self.turns += 1;
            Lanes {
                turn: self.turns,
                ..Lanes::default()
            }
        });
        let lane = lanes.by_group.entry(group).or_default();
        if lane.is_empty() {
            let sessions = self.order.entry(group).or_default();
            sessions.insert((lanes.turn, entry.session.clone()));
        }
        lane.insert(entry.job, entry.cost.clamp(1, MAX_COST));
    }

    fn remove(&mut self, entry: &Entry<'_>, group: GroupId) -> bool {
        let Some(lanes) = self.lanes.get_mut(entry.session) else {
            return false;
        };
        let Some(lane) = lanes.by_group.get_mut(&group) else {
            return false;
        };
        if lane.remove(&entry.job).is_none() {
            return false;
        }
        if lane.is_empty() {
            lanes.by_group.remove(&group);
            if let Some(sessions) = self.order.get_mut(&group) {
                sessions.remove(&(lanes.turn, entry.session.clone()));
                if sessions.is_empty() {
                    self.order.remove(&group);
                }
            }
        }
        if lanes.by_group.is_empty() {
            self.lanes.remove(entry.session);
        }
        true
    }

    fn head(&self, held_up: &BTreeSet<GroupId>) -> Option<Head> {
        let in_line = self.order.iter();
        let in_line = in_line.filter(|(group, _)| !held_up.contains(group));
        let heads = in_line.filter_map(|(group, sessions)| {
            let (turn, session) = sessions.first()?;
            let lane = self.lanes.get(session)?.by_group.get(group)?;
            let (job, cost) = lane.first_key_value()?;
            let head = Head {
                job: *job,
                group: *group,
                cost: *cost,
            };
            Some(((*turn, *job), head))
        });
        let (_, head) = heads.min_by_key(|(rank, _)| *rank)?;
        Some(head)
    }

    /// A session was served: it comes last now, in each group where it waits.
    fn note_turn(&mut self, session: &Session) {
        if self.lanes.len() == 1 {
            return;
        }
        self.turns += 1;
        let Some(lanes) = self.lanes.get_mut(session) else {
            return;
        };
        let old = std::mem::replace(&mut lanes.turn, self.turns);
        for group in lanes.by_group.keys() {
            if let Some(sessions) = self.order.get_mut(group)
                && let Some((_, session)) = sessions.take(&(old, session.clone()))
            {
                sessions.insert((self.turns, session));
            }
        }
    }

    fn walk(&self, most: usize) -> Walk {
        let mut lanes: Vec<&Lanes> = self.lanes.values().collect();
        lanes.sort_unstable_by_key(|lanes| lanes.turn);
        Walk {
            deficit: self.deficit,
            weight: self.weight,
            turn: self.turn,
            sessions: lanes.into_iter().map(|lanes| lanes.first(most)).collect(),
        }
    }
}

impl Lanes {
    /// The first jobs of all groups, in the order of their coming.
    fn first(&self, most: usize) -> VecDeque<(JobId, GroupId, u64)> {
        let of_lane = |(group, lane): (&GroupId, &BTreeMap<JobId, u64>)| {
            let group = *group;
            let jobs = lane.iter().take(most);
            jobs.map(move |(job, cost)| (*job, group, *cost))
                .collect::<Vec<_>>()
        };
        let mut jobs: Vec<_> = self.by_group.iter().flat_map(of_lane).collect();
        if self.by_group.len() > 1 {
            jobs.sort_unstable();
        }
        jobs.into()
    }
}

/// A tenant's jobs, while it is worked out in which order they would be served.
struct Walk {
    deficit: u64,
    weight: u64,
    turn: u64,
    sessions: VecDeque<VecDeque<(JobId, GroupId, u64)>>,
}

impl Walk {
    fn standing(&self) -> Option<Standing> {
        let (_, _, cost) = self.sessions.front()?.front()?;
        Some(Standing {
            deficit: self.deficit,
            weight: self.weight,
            turn: self.turn,
            cost: *cost,
        })
    }

    fn serve(&mut self, turn: u64) -> Option<(JobId, GroupId)> {
        let mut session = self.sessions.pop_front()?;
        let (job, group, cost) = session.pop_front()?;
        if !session.is_empty() {
            self.sessions.push_back(session);
        }
        self.turn = turn;
        self.deficit = self.deficit.saturating_sub(cost);
        Some((job, group))
    }
}
