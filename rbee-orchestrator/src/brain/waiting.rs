//! Waiting: groups are placed when something changes, and told what they wait for.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use crate::domain::{HiveId, HiveStatus, JobId, ModelRef, Narration, Now, Prospect, WorkerId};
use crate::scheduler::{ClusterView, Placement};

use super::Brain;
use super::event::Action;
use super::names::Meaning;
use super::queue::{GroupKey, Turn, Waits};
use super::spawning::Place;

impl Brain {
    pub(super) fn place(&mut self, now: Now, key: &GroupKey) -> Placement {
        let view = ClusterView {
            workers: &self.workers,
            hives: &self.hives,
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

    /// Carries out a policy's answer; says whether the group's next job may be placed as well.
    pub(super) fn act_on(
        &mut self,
        now: Now,
        key: &GroupKey,
        placement: Placement,
        out: &mut Vec<Action>,
    ) -> bool {
        match placement {
            Placement::Route { worker, why } => {
                if self.may_take(key, &worker)
                    && let Some(job) = self.queue.pop(key)
                {
                    self.dispatch(now, job, &key.model, &worker, why, out);
                    return true;
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
                let for_job = self.queue.get(key).and_then(|group| group.jobs().next());
                if place.suits(&key.constraints)
                    && let Some(worker) = self.spawn(now, &key.model, place, for_job, out)
                {
                    self.wait_for_load(key, &worker, out);
                }
            }
            Placement::Wait => self.note_what_is_waited_for(now, key, out),
            Placement::Reject(error) => self.end_group(now, key, &error, out),
        }
        false
    }

    /// Places as many jobs of the groups as there is room for, interactive ones first, then by age.
    fn pump(&mut self, now: Now, keys: &[GroupKey], out: &mut Vec<Action>) {
        let front = |brain: &Brain, at: usize| {
            let turn = brain.queue.front(&keys[at])?;
            Some(Reverse((turn, at)))
        };
        let mut turns: BinaryHeap<Reverse<(Turn, usize)>> =
            (0..keys.len()).filter_map(|at| front(self, at)).collect();
        while let Some(Reverse((_, at))) = turns.pop() {
            if self.queue.is_waiting(&keys[at]) {
                let placement = self.place(now, &keys[at]);
                if self.act_on(now, &keys[at], placement, out) {
                    turns.extend(front(self, at));
                }
            }
        }
    }

    /// Pumps every group that could have been waiting for a worker with this model.
    pub(super) fn pump_model(&mut self, now: Now, model: &ModelRef, out: &mut Vec<Action>) {
        if self.queue.len() > 0 {
            let keys = self.queue.keys(|key, _| key.model == *model);
            self.pump(now, &keys, out);
        }
    }

    /// Pumps everything: a hive came, went, or told something new.
    pub(super) fn pump_all(&mut self, now: Now, out: &mut Vec<Action>) {
        if self.queue.len() > 0 {
            self.settle_names();
            let keys = self.queue.keys(|_, _| true);
            self.pump(now, &keys, out);
        }
    }

    /// Moves jobs whose model's name has become known to the group of that model. Those that
    /// asked for the fallback by its full reference stay.
    fn settle_names(&mut self) {
        for key in self.queue.keys(|_, group| group.tentative.is_some()) {
            let group = self.queue.get(&key);
            let Some(name) = group.and_then(|group| group.tentative.clone()) else {
                continue;
            };
            let Ok(Meaning::Certain(model)) = self.names.resolve(&name) else {
                continue;
            };
            let group = self.queue.take(&key).unwrap_or_default();
            for turn in group.turns {
                if let Some(job) = self.jobs.get_mut(&turn.job) {
                    if job.request.model == name {
                        job.key.model = model.clone();
                    }
                    self.queue.insert(job.key.clone(), turn);
                }
            }
        }
    }

    /// A job came to a group that waits already: it is told the same as the others.
    pub(super) fn join(&mut self, now: Now, key: &GroupKey, job: JobId, out: &mut Vec<Action>) {
        let told = self.queue.get(key).and_then(|g| g.narration.clone());
        match told {
            Some(narration) => out.push(Action::Narrate { job, narration }),
            None => self.pump(now, std::slice::from_ref(key), out),
        }
    }

    fn start_hive(&mut self, now: Now, key: &GroupKey, hive: &HiveId, out: &mut Vec<Action>) {
        self.request_hive_start(now, hive, out);
        if self.is_starting(hive) {
            self.wait_for_hive(key, hive, out);
        }
    }

    fn is_starting(&self, hive: &HiveId) -> bool {
        let hive = self.hives.get(hive);
        hive.is_some_and(|hive| hive.status == HiveStatus::Starting)
    }

    fn wait_for_hive(&mut self, key: &GroupKey, hive: &HiveId, out: &mut Vec<Action>) {
        let narration = Narration {
            actor: "queen",
            action: "start_hive",
            target: hive.to_string(),
            human: format!("Starting hive {hive}"),
        };
        self.tell_group(key, Waits::Hive(hive.clone()), narration, out);
    }

    fn wait_for_load(&mut self, key: &GroupKey, worker: &WorkerId, out: &mut Vec<Action>) {
        let worker_at = self.workers.get(worker);
        let place = worker_at.and_then(|worker| worker.spec.hive.clone());
        let on = place.map_or_else(String::new, |hive| format!(" on {hive}"));
        let narration = Narration {
            actor: "queen",
            action: "load",
            target: key.model.to_string(),
            human: format!("Loading {}{on}", key.model),
        };
        self.tell_group(key, Waits::Load(worker.clone()), narration, out);
    }

    fn wait_for_check(&mut self, key: &GroupKey, worker: &WorkerId, out: &mut Vec<Action>) {
        let narration = Narration {
            actor: "queen",
            action: "check_worker",
            target: worker.to_string(),
            human: format!("Waiting for worker {worker} to answer its health check"),
        };
        self.tell_group(key, Waits::Check(worker.clone()), narration, out);
    }

    /// A policy said wait: find out for what, so that the clients can be told.
    fn note_what_is_waited_for(&mut self, now: Now, key: &GroupKey, out: &mut Vec<Action>) {
        let view = self.view(now);
        let request = key.request();
        let is_ready = view.candidates(&request).any(|worker| worker.ready);
        let to_come = |prospect| {
            let mut candidates = view.candidates(&request).filter(|_| !is_ready);
            let worker = candidates.find(|worker| worker.prospect == prospect);
            worker.map(|worker| worker.spec.id.clone())
        };
        if let Some(worker) = to_come(Prospect::Loads) {
            return self.wait_for_load(key, &worker, out);
        }
        if let Some(worker) = to_come(Prospect::Checked) {
            return self.wait_for_check(key, &worker, out);
        }
        let allowed = |id: &HiveId| key.constraints.hive.as_ref().is_none_or(|only| only == id);
        let mut starting = self.hives.keys().filter(|id| self.is_starting(id));
        let starting = starting.find(|id| allowed(id) && !is_ready).cloned();
        if let Some(hive) = starting {
            self.wait_for_hive(key, &hive, out);
        } else if let Some(group) = self.queue.get_mut(key) {
            group.waits = Waits::Slot;
            group.narration = None;
        }
    }

    /// Tells the jobs of a group what happens, unless they were told the same last.
    fn tell_group(
        &mut self,
        key: &GroupKey,
        waits: Waits,
        narration: Narration,
        out: &mut Vec<Action>,
    ) {
        let Some(group) = self.queue.get_mut(key) else {
            return;
        };
        group.waits = waits;
        if group.narration.as_ref() == Some(&narration) {
            return;
        }
        for job in group.jobs() {
            out.push(Action::Narrate {
                job,
                narration: narration.clone(),
            });
        }
        group.narration = Some(narration);
    }
}
