//! Jobs: admission, waiting, dispatch, and their one ending.

use std::time::Duration;

use crate::domain::{
    Attempt, Ending, HiveId, HiveStatus, JobId, ModelRef, Narration, Now, Outcome, PlacedOn,
    WorkerId,
};
use crate::error::{Code, Error};
use crate::scheduler::{ClusterView, Placement, PlacementRequest};

use super::event::{Action, Due, Job, JobRequest, Phase, Report};
use super::names::Meaning;
use super::queue::{GroupKey, Waits};
use super::{Brain, workers};

/// A model that loads is worth asking for again after this long.
const LOADING_RETRY_AFTER: Duration = Duration::from_secs(10);

pub(super) fn shutting_down() -> Error {
    Error::new(
        Code::ShuttingDown,
        "the queen is shutting down; ask again when she is back",
    )
}

impl Brain {
    pub(super) fn submit(&mut self, now: Now, request: Box<JobRequest>, out: &mut Vec<Action>) {
        let id = request.id;
        match self.admit(&request) {
            Err(error) => self.refuse(now, id, error, out),
            Ok(meaning) => {
                let key = self.enter(now, request, meaning);
                self.pump_first(now, key, id, out);
            }
        }
    }

    /// Whether the request may come in at all, and which model it means.
    fn admit(&self, request: &JobRequest) -> Result<Meaning, Error> {
        if self.draining {
            return Err(shutting_down());
        }
        if let Some(hive) = &request.constraints.hive
            && !self.hives.contains_key(hive)
        {
            return Err(self.hive_not_found(hive).param("node"));
        }
        if self.queue.len() >= self.config.queue.capacity {
            return Err(Error::new(
                Code::SystemAtCapacity,
                format!(
                    "{} requests wait already, as many as may; ask again later",
                    self.queue.len()
                ),
            ));
        }
        self.names.resolve(&request.model)
    }

    pub(super) fn hive_not_found(&self, hive: &HiveId) -> Error {
        let known: Vec<&str> = self.hives.keys().map(HiveId::as_str).collect();
        let message = format!("there is no hive {hive}; there is {}", known.join(", "));
        Error::new(Code::HiveNotFound, message)
    }

    /// Ends a job that was never taken in.
    fn refuse(&mut self, now: Now, job: JobId, error: Error, out: &mut Vec<Action>) {
        let outcome = Outcome::Failed(error);
        let ending = Ending {
            outcome,
            usage: None,
            result: None,
            at: now.wall,
        };
        out.push(Action::Finish {
            job,
            attempt: 0,
            ending: Box::new(ending),
        });
    }

    /// Takes the job in, with its deadlines, at the end of its group.
    fn enter(&mut self, now: Now, request: Box<JobRequest>, meaning: Meaning) -> EntryKey {
        let (model, tentative) = match meaning {
            Meaning::Certain(model) => (model, None),
            Meaning::Fallback(model) => (model, Some(request.model.clone())),
        };
        let key = GroupKey::of(&request, model);
        let total = now.mono + request.total_timeout;
        let total_deadline = match request.deadline {
            Some(deadline) => total.min(now.mono + deadline.since(now.wall)),
            None => total,
        };
        let id = request.id;
        let queue_deadline = now.mono + request.queue_timeout;
        let due = match queue_deadline < total_deadline {
            true => (queue_deadline, Due::Queue(id)),
            false => (total_deadline, Due::Total(id)),
        };
        self.due.insert(due.clone());
        let job = Job {
            request,
            attempt: 0,
            phase: Phase::Waiting,
            total_deadline,
            due,
        };
        self.jobs.insert(id, job);
        EntryKey { key, tentative }
    }

    /// Places a new job at once, or puts it behind those that wait.
    fn pump_first(&mut self, now: Now, entry: EntryKey, job: JobId, out: &mut Vec<Action>) {
        let EntryKey { key, tentative } = entry;
        if !self.queue.is_waiting(&key)
            && let Some((worker, why)) = self.route(now, &key)
        {
            self.dispatch(now, job, &key.model, &worker, why, out);
            return;
        }
        let (group, position) = self.queue.push(key.clone(), job);
        if tentative.is_some() {
            group.tentative = tentative;
        }
        out.push(Action::Queued { job, position });
        match &group.narration {
            Some(narration) => {
                out.push(Action::Narrate {
                    job,
                    narration: narration.clone(),
                });
            }
            None => self.pump(now, &key, out),
        }
    }

    /// Asks the scheduler for a group whose first job could run at once; acts on no other answer.
    fn route(&mut self, now: Now, key: &GroupKey) -> Option<(WorkerId, String)> {
        match self.place(now, key) {
            Placement::Route { worker, why } => {
                let free = self
                    .workers
                    .get(&worker)
                    .is_some_and(|w| w.slots_free() > 0);
                free.then_some((worker, why))
            }
            _ => None,
        }
    }

    pub(super) fn place(&mut self, now: Now, key: &GroupKey) -> Placement {
        let request = PlacementRequest {
            model: &key.model,
            constraints: &key.constraints,
            openai_only: key.openai_only,
        };
        let view = ClusterView {
            workers: &self.workers,
            hives: &self.hives,
            now: now.mono,
        };
        self.scheduler.place(&request, &view)
    }

    /// Places as many jobs of a group as there is room for.
    pub(super) fn pump(&mut self, now: Now, key: &GroupKey, out: &mut Vec<Action>) {
        while self.queue.front(key).is_some() {
            match self.place(now, key) {
                Placement::Route { worker, why } => {
                    let free = self
                        .workers
                        .get(&worker)
                        .is_some_and(|w| w.slots_free() > 0);
                    let Some(job) = free.then(|| self.queue.pop(key)).flatten() else {
                        return;
                    };
                    self.dispatch(now, job, &key.model, &worker, why, out);
                }
                Placement::StartHive(hive) => return self.start_hive(now, key, hive, out),
                Placement::Spawn {
                    hive,
                    backend,
                    devices,
                    evict: _,
                } => {
                    let order = workers::Place {
                        hive,
                        backend,
                        devices,
                    };
                    if let Some(worker) = self.spawn(now, &key.model, order, out) {
                        self.wait_for_load(key, &worker, out);
                    }
                    return;
                }
                Placement::Wait => return self.note_what_is_waited_for(key, out),
                Placement::Reject(error) => return self.end_group(now, key, &error, out),
            }
        }
    }

    /// Pumps every group that could have been waiting for a worker with this model.
    pub(super) fn pump_model(&mut self, now: Now, model: &ModelRef, out: &mut Vec<Action>) {
        if self.queue.len() == 0 {
            return;
        }
        for key in self.queue.keys(|key, _| key.model == *model) {
            self.pump(now, &key, out);
        }
    }

    /// Pumps everything: a hive came, went, or told something new.
    pub(super) fn pump_all(&mut self, now: Now, out: &mut Vec<Action>) {
        self.settle_names(now, out);
        for key in self.queue.keys(|_, _| true) {
            self.pump(now, &key, out);
        }
    }

    /// Moves jobs whose model's name has become known to the group of that model.
    fn settle_names(&mut self, now: Now, out: &mut Vec<Action>) {
        for key in self.queue.keys(|_, group| group.tentative.is_some()) {
            let name = self
                .queue
                .get(&key)
                .and_then(|group| group.tentative.clone());
            let Some(Ok(Meaning::Certain(model))) = name.map(|name| self.names.resolve(&name))
            else {
                continue;
            };
            let Some(group) = self.queue.take(&key).filter(|_| model != key.model) else {
                continue;
            };
            let settled = GroupKey { model, ..key };
            for job in group.jobs {
                self.queue.push(settled.clone(), job);
            }
            self.pump(now, &settled, out);
        }
    }

    fn start_hive(&mut self, now: Now, key: &GroupKey, hive: HiveId, out: &mut Vec<Action>) {
        let narration = Narration {
            actor: "queen",
            action: "start_hive",
            target: hive.to_string(),
            human: format!("Starting hive {hive}"),
        };
        self.tell_group(key, Waits::Hive(hive.clone()), narration, out);
        self.request_hive_start(now, &hive, out);
    }

    fn wait_for_load(&mut self, key: &GroupKey, worker: &WorkerId, out: &mut Vec<Action>) {
        let place = self
            .workers
            .get(worker)
            .and_then(|worker| worker.spec.hive.clone());
        let on = place.map_or_else(String::new, |hive| format!(" on {hive}"));
        let narration = Narration {
            actor: "queen",
            action: "load",
            target: key.model.to_string(),
            human: format!("Loading {}{on}", key.model),
        };
        self.tell_group(key, Waits::Load(worker.clone()), narration, out);
    }

    /// A policy said wait: find out for what, so that the clients can be told.
    fn note_what_is_waited_for(&mut self, key: &GroupKey, out: &mut Vec<Action>) {
        let request = PlacementRequest {
            model: &key.model,
            constraints: &key.constraints,
            openai_only: key.openai_only,
        };
        let view = ClusterView {
            workers: &self.workers,
            hives: &self.hives,
            now: crate::domain::Mono::default(),
        };
        if view.candidates(&request).any(|worker| worker.ready) {
            if let Some(group) = self.queue.get_mut(key) {
                group.waits = Waits::Slot;
                group.narration = None;
            }
            return;
        }
        let loading = view
            .candidates(&request)
            .next()
            .map(|worker| worker.spec.id.clone());
        if let Some(worker) = loading {
            self.wait_for_load(key, &worker, out);
            return;
        }
        let allowed = |id: &HiveId| key.constraints.hive.as_ref().is_none_or(|only| only == id);
        let starting = self
            .hives
            .iter()
            .find(|(id, hive)| hive.status == HiveStatus::Starting && allowed(id))
            .map(|(id, _)| id.clone());
        if let Some(hive) = starting {
            let narration = Narration {
                actor: "queen",
                action: "start_hive",
                target: hive.to_string(),
                human: format!("Starting hive {hive}"),
            };
            self.tell_group(key, Waits::Hive(hive), narration, out);
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
        for job in &group.jobs {
            out.push(Action::Narrate {
                job: *job,
                narration: narration.clone(),
            });
        }
        group.narration = Some(narration);
    }

    fn dispatch(
        &mut self,
        now: Now,
        id: JobId,
        model: &ModelRef,
        worker: &WorkerId,
        why: String,
        out: &mut Vec<Action>,
    ) {
        let (Some(job), Some(worker)) = (self.jobs.get_mut(&id), self.workers.get_mut(worker))
        else {
            debug_assert!(false, "a job that waits and a worker that was chosen exist");
            return;
        };
        debug_assert!(worker.slots_free() > 0 && job.phase == Phase::Waiting);
        worker.leases += 1;
        worker.last_used = now.mono;
        worker.last_used_at = Some(now.wall);
        job.attempt += 1;
        job.phase = Phase::Running;
        if let Due::Queue(_) = job.due.1 {
            self.due.remove(&job.due);
            job.due = (job.total_deadline, Due::Total(id));
            self.due.insert(job.due.clone());
        }
        let spec = worker.spec.clone();
        let placed = PlacedOn {
            model: model.clone(),
            worker: spec.id.clone(),
            hive: spec.hive.clone(),
            why,
        };
        out.push(Action::Dispatch {
            job: id,
            attempt: job.attempt,
            worker: spec,
            placed,
            at: now.wall,
        });
    }

    pub(super) fn attempt_ended(
        &mut self,
        now: Now,
        id: JobId,
        attempt: Attempt,
        worker: &WorkerId,
        report: Report,
        out: &mut Vec<Action>,
    ) {
        let current = self.jobs.get(&id).is_some_and(|job| job.attempt == attempt);
        if current && let Some(job) = self.jobs.remove(&id) {
            self.due.remove(&job.due);
            let Report {
                outcome,
                usage,
                result,
                suspect: _,
            } = report;
            let ending = Ending {
                outcome,
                usage,
                result,
                at: now.wall,
            };
            out.push(Action::Finish {
                job: id,
                attempt,
                ending: Box::new(ending),
            });
        }
        self.return_lease(now, worker, report.suspect, out);
    }

    /// Ends a job that waits, or cuts off one that runs.
    fn end(&mut self, now: Now, id: JobId, outcome: Outcome, out: &mut Vec<Action>) {
        let Some(job) = self.jobs.get_mut(&id) else {
            return;
        };
        self.due.remove(&job.due);
        match job.phase {
            Phase::Aborting => {}
            Phase::Running => {
                job.phase = Phase::Aborting;
                out.push(Action::Abort { job: id, outcome });
            }
            Phase::Waiting => {
                if let Some(key) = self.key_of(id) {
                    self.queue.remove(&key, id);
                }
                self.end_waiting(now, id, outcome, out);
            }
        }
    }

    /// Ends a job that is in no group any more.
    fn end_waiting(&mut self, now: Now, id: JobId, outcome: Outcome, out: &mut Vec<Action>) {
        if let Some(job) = self.jobs.remove(&id) {
            self.due.remove(&job.due);
            let ending = Ending {
                outcome,
                usage: None,
                result: None,
                at: now.wall,
            };
            out.push(Action::Finish {
                job: id,
                attempt: job.attempt,
                ending: Box::new(ending),
            });
        }
    }

    /// The group that a waiting job stands in.
    fn key_of(&self, id: JobId) -> Option<GroupKey> {
        let holds = |(_, group): &(&GroupKey, &super::queue::Group)| group.jobs.contains(&id);
        self.queue.groups().find(holds).map(|(key, _)| key.clone())
    }

    pub(super) fn end_group(
        &mut self,
        now: Now,
        key: &GroupKey,
        error: &Error,
        out: &mut Vec<Action>,
    ) {
        for id in self
            .queue
            .take(key)
            .map(|group| group.jobs)
            .unwrap_or_default()
        {
            self.end_waiting(now, id, Outcome::Failed(error.clone()), out);
        }
    }

    pub(super) fn cancel(&mut self, now: Now, id: JobId, error: Error, out: &mut Vec<Action>) {
        self.end(now, id, Outcome::Cancelled(error), out);
    }

    pub(super) fn queue_timed_out(&mut self, now: Now, id: JobId, out: &mut Vec<Action>) {
        let Some(job) = self.jobs.get(&id) else {
            return;
        };
        let waited = humantime(job.request.queue_timeout);
        let waits = self
            .key_of(id)
            .and_then(|key| Some(self.queue.get(&key)?.waits.clone()));
        let error = match waits {
            Some(Waits::Load(_) | Waits::Hive(_)) => Error::new(
                Code::ModelLoading,
                format!(
                    "model {} was still loading after {waited}; it goes on loading: ask again, or \
                     wait longer with queue_timeout_ms",
                    job.request.model
                ),
            )
            .retry_after(LOADING_RETRY_AFTER),
            _ => Error::new(
                Code::Timeout,
                format!(
                    "no worker had a free slot for model {} within {waited}; ask again, or wait \
                     longer with queue_timeout_ms",
                    job.request.model
                ),
            ),
        };
        self.end(now, id, Outcome::Failed(error), out);
    }

    pub(super) fn total_timed_out(&mut self, now: Now, id: JobId, out: &mut Vec<Action>) {
        let Some(job) = self.jobs.get(&id) else {
            return;
        };
        let error = Error::new(
            Code::Timeout,
            format!(
                "the request did not end within its time of {}; allow more with timeout_ms",
                humantime(job.request.total_timeout)
            ),
        );
        self.end(now, id, Outcome::Failed(error), out);
    }
}

/// A job's group, and the name it asked for if that is not settled.
struct EntryKey {
    key: GroupKey,
    tentative: Option<String>,
}

/// A duration as people write it.
pub(super) fn humantime(duration: Duration) -> String {
    match duration.as_millis() {
        ms if ms < 1000 || ms % 1000 != 0 => format!("{ms} ms"),
        ms => format!("{} s", ms / 1000),
    }
}
