//! Placing: whoever waits is placed when something changes, in the order of the line.

use std::collections::BTreeSet;

use crate::domain::{ModelRef, Now, Priority, WorkerId};
use crate::scheduler::{ClusterView, Placement};

use super::Brain;
use super::action::Action;
use super::names::Meaning;
use super::queue::{Group, GroupId, GroupKey, Next};
use super::spawning::Place;

/// Groups of a line for which there is no place now.
pub(super) type HeldUp = BTreeSet<GroupId>;

impl Brain {
    pub(super) fn place(&mut self, now: Now, key: &GroupKey) -> Placement {
        let view = ClusterView {
            workers: &self.workers,
            hives: &self.hives,
            auto_download: self.config.hives.auto_download,
            now: now.mono,
        };
        self.scheduler.place(&key.request(), &view)
    }

    /// Whether a worker that a policy chose can take a job of the group now: a policy's answer is
    /// a plan, and a wrong one must not reach a worker.
    pub(super) fn may_take(&self, key: &GroupKey, worker: &WorkerId) -> bool {
        self.workers.get(worker).is_some_and(|worker| {
            worker.slots_free() > 0
                && worker.spec.model == key.model
                && key.request().is_served_by(worker)
        })
    }

    /// Whether somebody waits already who could take a slot of the worker, and whom a job of this class does
    /// not come before.
    pub(super) fn is_wanted(&self, class: Priority, key: &GroupKey, worker: &WorkerId) -> bool {
        let Some(line) = self.queue.line(&key.model) else {
            return false;
        };
        let worker = self.workers.get(worker);
        let serves = |group: &GroupKey| worker.is_some_and(|w| group.request().is_served_by(w));
        let mut groups = line.groups().filter(|group| group.has_of(class));
        groups.any(|group| serves(&group.key))
    }

    /// Carries out a policy's answer for a group that waits.
    pub(super) fn act_on(
        &mut self,
        now: Now,
        key: &GroupKey,
        placement: Placement,
        out: &mut Vec<Action>,
    ) {
        match placement {
            // Who gets the slot is for the line to say.
            Placement::Route { worker, .. } => {
                if self.may_take(key, &worker) {
                    self.pump_model(now, &key.model, out);
                }
            }
            Placement::StartHive(hive) => self.start_hive(now, key, &hive, out),
            Placement::Spawn {
                hive,
                backend,
                devices,
                evict: _,
            } => {
                let place = Place {
                    hive,
                    backend,
                    devices,
                };
                let for_job = self.queue.group(key).and_then(|group| group.jobs().next());
                if place.suits(&key.constraints)
                    && let Some(worker) = self.spawn(now, &key.model, place, for_job, out)
                {
                    self.wait_for_load(key, &worker, out);
                }
            }
            Placement::Provision { hive } => self.provision(now, key, &hive, out),
            Placement::Wait => self.note_what_is_waited_for(now, key, out),
            Placement::Reject(error) => self.no_place(now, key, &error, out),
        }
    }

    /// Places the job that comes next; says whether it went.
    fn place_next(
        &mut self,
        now: Now,
        next: &Next,
        held_up: &HeldUp,
        out: &mut Vec<Action>,
    ) -> bool {
        match self.place(now, &next.key) {
            Placement::Route { worker, .. } if self.has_answered(next.job, &worker) => {
                self.leave_line(now, next.job);
                self.end_answered(now, next.job, out);
                true
            }
            Placement::Route { .. } if !self.may_go(now, next.job) => {
                self.await_quiet(now, &next.key.model);
                false
            }
            Placement::Route { worker, why } => {
                let may_go = self.may_take(&next.key, &worker);
                if may_go {
                    self.serve(now, next, held_up);
                    self.dispatch(now, next.job, &worker, why, out);
                }
                may_go
            }
            placement => {
                self.act_on(now, &next.key, placement, out);
                false
            }
        }
    }

    /// Places as many jobs that wait for the model as there is room for. A group for which there
    /// is no place holds nobody up but itself.
    pub(super) fn pump_model(&mut self, now: Now, model: &ModelRef, out: &mut Vec<Action>) {
        // What still waits is for a later life.
        if self.draining {
            return;
        }
        let mut held_up = HeldUp::new();
        while let Some(next) = self.queue.next(model, &held_up) {
            if !self.place_next(now, &next, &held_up, out) {
                held_up.insert(next.group);
            }
        }
    }

    /// Pumps everything: a hive came, went, or told something new.
    pub(super) fn pump_all(&mut self, now: Now, out: &mut Vec<Action>) {
        if self.queue.len() > 0 {
            self.settle_names(now, out);
            for model in self.queue.models() {
                self.pump_model(now, &model, out);
            }
        }
    }

    /// Moves jobs whose model's name has become known to the line of that model.
    fn settle_names(&mut self, now: Now, out: &mut Vec<Action>) {
        for key in self.queue.keys(|group| group.tentative) {
            let jobs: Vec<_> = self
                .queue
                .group(&key)
                .into_iter()
                .flat_map(Group::jobs)
                .collect();
            let mut unsettled = false;
            for id in jobs {
                let Some(job) = self.jobs.get(&id) else {
                    continue;
                };
                match self.names.resolve(&job.request.model) {
                    Ok(Meaning::Certain(model)) if model != key.model => {
                        self.leave_line(now, id);
                        if let Some(job) = self.jobs.get_mut(&id) {
                            job.key.model = model;
                        }
                        self.enqueue(now, id, false);
                        self.end_unentitled(now, id, out);
                    }
                    Ok(Meaning::Certain(_)) => {}
                    _ => unsettled = true,
                }
            }
            if let Some(group) = self.queue.group_mut(&key) {
                group.tentative = unsettled;
            }
        }
    }
}
