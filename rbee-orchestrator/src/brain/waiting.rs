//! Waiting: how jobs come to the lines and leave them, and what they are told meanwhile.

use crate::domain::{
    HiveId, HiveStatus, JobId, Narration, Now, Priority, Prospect, Worker, WorkerId,
};

use crate::scheduler::Hive;

use super::Brain;
use super::action::Action;
use super::job::{Due, Phase};
use super::placing::HeldUp;
use super::queue::{GroupKey, Next, Waits};

impl Brain {
    /// Lets a job wait in the line of its model.
    pub(super) fn enqueue(&mut self, now: Now, id: JobId, tentative: bool) {
        let Some(job) = self.jobs.get_mut(&id) else {
            return;
        };
        job.phase = Phase::Waiting;
        if job.class == Priority::Batch && job.promote_at <= now.mono {
            job.class = Priority::Interactive;
            self.counters.promoted += 1;
        }
        let weight = self.tenants.weight(&job.request.tenant);
        self.queue.push(&job.entry(), weight, tentative);
        let model = job.key.model.clone();
        if job.class == Priority::Batch {
            let at = job.promote_at;
            self.schedule(at, Due::Promote(id));
        }
        self.await_turn(now, id);
        self.line_moved(now, &model);
    }

    /// Takes a waiting job out of its line, wherever it stands there.
    pub(super) fn leave_line(&mut self, now: Now, id: JobId) {
        if let Some(job) = self.jobs.get(&id) {
            self.queue.remove(&job.entry());
            self.note_left(now, id);
        }
    }

    /// Takes the job that comes next out of its line.
    pub(super) fn serve(&mut self, now: Now, next: &Next, held_up: &HeldUp) {
        if let Some(job) = self.jobs.get(&next.job) {
            self.queue.serve(&job.entry(), next, held_up);
            self.note_left(now, next.job);
        }
    }

    fn note_left(&mut self, now: Now, id: JobId) {
        let Some(job) = self.jobs.get_mut(&id) else {
            return;
        };
        job.stop_waiting(now);
        let promotion = (job.promote_at, Due::Promote(id));
        let model = job.key.model.clone();
        if job.class == Priority::Batch {
            self.due.remove(&promotion);
        }
        self.line_moved(now, &model);
    }

    /// A batch job has waited for long enough: it goes to the others, by the time of its
    /// submission.
    pub(super) fn promote(&mut self, now: Now, id: JobId, out: &mut Vec<Action>) {
        let Some(job) = self.jobs.get_mut(&id) else {
            return;
        };
        debug_assert!(job.phase == Phase::Waiting && job.class == Priority::Batch);
        let weight = self.tenants.weight(&job.request.tenant);
        self.queue.promote(&job.entry(), weight);
        job.class = Priority::Interactive;
        let model = job.key.model.clone();
        self.counters.promoted += 1;
        self.line_moved(now, &model);
        // It may take what was kept free of batch work.
        self.pump_model(now, &model, out);
    }

    /// A job came to a group that waits already: it is told the same as the others.
    pub(super) fn join(&mut self, now: Now, key: &GroupKey, job: JobId, out: &mut Vec<Action>) {
        // While the queen goes down, nobody is placed any more.
        if self.draining {
            return;
        }
        let told = self.queue.group(key).and_then(|g| g.narration.clone());
        if let Some(narration) = told {
            return out.push(Action::Narrate { job, narration });
        }
        let placement = self.place(now, key);
        self.act_on(now, key, placement, out);
    }

    /// A job came back, and the line was pumped: if it waits still, it is told where and for what,
    /// unless what was done `since` told it already.
    pub(super) fn tell_again(&mut self, id: JobId, since: usize, out: &mut Vec<Action>) {
        let Some(job) = self.jobs.get(&id).filter(|job| job.phase == Phase::Waiting) else {
            return;
        };
        let narration = self.queue.group(&job.key).and_then(|g| g.narration.clone());
        let told = |action: &Action| matches!(action, Action::Narrate { job, .. } if *job == id);
        if let Some(narration) = narration.filter(|_| !out[since..].iter().any(told)) {
            out.push(Action::Narrate { job: id, narration });
        }
        self.tell_place(id, out);
    }

    pub(super) fn start_hive(
        &mut self,
        now: Now,
        key: &GroupKey,
        hive: &HiveId,
        out: &mut Vec<Action>,
    ) {
        self.request_hive_start(now, hive, out);
        if self.is_starting(hive) {
            self.wait_for_hive(now, key, hive, out);
        }
    }

    fn is_starting(&self, hive: &HiveId) -> bool {
        let hive = self.hives.get(hive);
        hive.is_some_and(|hive| hive.status == HiveStatus::Starting)
    }

    fn wait_for_hive(&mut self, now: Now, key: &GroupKey, hive: &HiveId, out: &mut Vec<Action>) {
        let (action, human) = match self.installed_part(hive) {
            Some(percent) => (
                "install_hive",
                format!("Installing the hive on {hive}: {percent} %"),
            ),
            None if self.ended_lately(now, hive) => (
                "start_hive",
                format!("Starting hive {hive} again, which has ended"),
            ),
            None => ("start_hive", format!("Starting hive {hive}")),
        };
        let narration = Narration {
            actor: "queen",
            action,
            target: hive.to_string(),
            human,
        };
        self.tell_group(key, Waits::Hive(hive.clone()), narration, out);
    }

    fn installed_part(&self, hive: &HiveId) -> Option<u8> {
        self.hive_notes.get(hive).and_then(|notes| notes.installing)
    }

    /// A hive's program is brought to its machine, before the hive can be started.
    pub(super) fn hive_installing(
        &mut self,
        now: Now,
        id: &HiveId,
        percent: Option<u8>,
        out: &mut Vec<Action>,
    ) {
        if !self.is_starting(id) {
            return;
        }
        let notes = self.hive_notes.entry(id.clone()).or_default();
        notes.installing = percent;
        let waits = Waits::Hive(id.clone());
        for key in self.queue.keys(|group| group.waits == waits) {
            self.wait_for_hive(now, &key, id, out);
        }
    }

    /// What kept those who waited for a hive.
    pub(super) fn what_kept(&self, hive: &HiveId) -> String {
        match self.installed_part(hive) {
            Some(percent) => format!("hive {hive} was still being installed ({percent} %)"),
            None if self.is_starting(hive) => format!("hive {hive} was still starting"),
            None => format!("hive {hive}, which came and went, was not steady yet"),
        }
    }

    pub(super) fn wait_for_load(
        &mut self,
        key: &GroupKey,
        worker: &WorkerId,
        out: &mut Vec<Action>,
    ) {
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

    /// The hive has such a fetch.
    pub(super) fn wait_for_fetch(&mut self, key: &GroupKey, hive: &HiveId, out: &mut Vec<Action>) {
        let fetches = self.hives.get(hive);
        let Some(fetch) = fetches.and_then(|hive| hive.fetch(&key.model)) else {
            return;
        };
        let progress = fetch
            .progress()
            .map_or_else(String::new, |p| format!(": {p}"));
        let narration = Narration {
            actor: "queen",
            action: "provision",
            target: hive.to_string(),
            human: format!("Downloading {} to {hive}{progress}", key.model),
        };
        self.tell_group(key, Waits::Fetch(hive.clone()), narration, out);
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

    fn wait_for_pause(&mut self, key: &GroupKey, worker: &WorkerId, out: &mut Vec<Action>) {
        let narration = Narration {
            actor: "queen",
            action: "pause_worker",
            target: worker.to_string(),
            human: format!(
                "Waiting until worker {worker} can be given more work: {}",
                self.why_paused(worker)
            ),
        };
        self.tell_group(key, Waits::Pause(worker.clone()), narration, out);
    }

    fn wait_until_steady(&mut self, key: &GroupKey, hive: &HiveId, out: &mut Vec<Action>) {
        let narration = Narration {
            actor: "queen",
            action: "steady_hive",
            target: hive.to_string(),
            human: format!("Waiting until hive {hive}, which came and went, has been steady"),
        };
        self.tell_group(key, Waits::Steady(hive.clone()), narration, out);
    }

    fn wait_for_turn(&mut self, key: &GroupKey, out: &mut Vec<Action>) {
        let narration = Narration {
            actor: "queen",
            action: "provision",
            target: String::new(),
            human: format!(
                "Waiting until a hive can download {}: all download others",
                key.model
            ),
        };
        self.tell_group(key, Waits::Turn, narration, out);
    }

    /// A policy said wait: find out for what, so that the clients can be told.
    pub(super) fn note_what_is_waited_for(
        &mut self,
        now: Now,
        key: &GroupKey,
        out: &mut Vec<Action>,
    ) {
        let view = self.view(now);
        let request = key.request();
        let served = view.candidates(&request).any(Worker::is_in_service);
        let to_come = |wanted: fn(&Worker) -> bool| {
            let mut candidates = view.candidates(&request).filter(|_| !served);
            let worker = candidates.find(|worker| wanted(worker));
            worker.map(|worker| worker.spec.id.clone())
        };
        if let Some(worker) = to_come(|worker| worker.hopes_for(Prospect::Loads)) {
            return self.wait_for_load(key, &worker, out);
        }
        if let Some(worker) = to_come(|worker| worker.hopes_for(Prospect::Checked)) {
            return self.wait_for_check(key, &worker, out);
        }
        if let Some(worker) = to_come(|worker| worker.ready) {
            return self.wait_for_pause(key, &worker, out);
        }
        let only = key.constraints.hive.as_ref();
        let allowed =
            |hive: &&Hive| !served && !hive.draining && only.is_none_or(|only| only == hive.id());
        let first = |wanted: &dyn Fn(&Hive) -> bool| {
            let mut hives = view.hives.values().filter(allowed);
            let hive = hives.find(|hive| wanted(hive));
            hive.map(|hive| hive.id().clone())
        };
        let suits = |hive: &Hive| hive.status == HiveStatus::Online && request.has_device_on(hive);
        let busy = |hive: &Hive| suits(hive) && view.can_spawn(hive) && !view.can_fetch(hive);
        if let Some(hive) = first(&|hive| hive.fetch(&key.model).is_some() && suits(hive)) {
            self.wait_for_fetch(key, &hive, out);
        } else if let Some(hive) = first(&|hive| hive.status == HiveStatus::Starting) {
            self.wait_for_hive(now, key, &hive, out);
        } else if let Some(hive) = first(&|hive| view.is_unsteady(hive)) {
            self.wait_until_steady(key, &hive, out);
        } else if first(&busy).is_some() {
            self.wait_for_turn(key, out);
        } else if let Some(group) = self.queue.group_mut(key) {
            group.waits = Waits::Slot;
            group.narration = None;
            self.make_way(now, key, out);
        }
    }

    /// Tells the jobs of a group what happens, unless they were told the same last.
    pub(super) fn tell_group(
        &mut self,
        key: &GroupKey,
        waits: Waits,
        narration: Narration,
        out: &mut Vec<Action>,
    ) {
        let Some(group) = self.queue.group_mut(key) else {
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
