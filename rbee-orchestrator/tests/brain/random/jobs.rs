//! What happens to jobs.

use std::time::Duration;

use rbee_orchestrator::brain::{Aftermath, Blame, Event, JobRequest, Report};
use rbee_orchestrator::domain::{
    Constraints, JobId, Mono, Outcome, Priority, SessionId, Tenant, TenantId, TenantLimits,
};
use rbee_orchestrator::error::{Code, Error};

use super::{MODELS, Run, world};
use crate::dice::HIVES;
use crate::parts::{failed, hive, secs};

impl Run {
    pub(super) fn constraints(&mut self) -> Constraints {
        let dice = &mut self.dice;
        Constraints {
            hive: dice.one_in(6).then(|| hive(HIVES[dice.below(3)])),
            backend: dice.one_in(8).then(|| "cpu".into()),
            device: dice.one_in(8).then(|| dice.below(2) as u32),
        }
    }

    fn request(&mut self) -> JobRequest {
        let constraints = self.constraints();
        let name = MODELS[self.dice.below(MODELS.len())];
        let wall = self.world.now.wall;
        let dice = &mut self.dice;
        let mut request = self.world.request(name);
        request.constraints = constraints;
        request.openai_only = dice.one_in(4);
        request.priority = match dice.one_in(3) {
            true => Priority::Batch,
            false => Priority::Interactive,
        };
        request.tenant = match dice.below(8) {
            0 => TenantId::new("nobody").unwrap(),
            1..=3 => TenantId::new("heavy").unwrap(),
            _ => TenantId::default(),
        };
        let session = |at| SessionId::new(format!("s-{at}")).unwrap();
        request.session = dice.one_in(2).then(|| session(dice.below(3)));
        request.tokens = dice.below(400) as u64;
        request.bytes = dice.below(600) as u64;
        request.queue_timeout = secs(dice.below(60) as u64);
        request.total_timeout = secs(dice.below(120) as u64);
        request.flowing_timeout = request.total_timeout + secs(dice.below(60) as u64);
        request.deadline = dice.one_in(8).then(|| wall + secs(dice.below(60) as u64));
        if dice.one_in(3) {
            request.asynchronous = true;
            request.queue_timeout = Duration::MAX;
        }
        request
    }

    pub(super) fn submit(&mut self) {
        let request = self.request();
        let id = request.id;
        if !self.dice.one_in(3) {
            self.submitted.insert(id, request.clone());
            return self.tell(Event::Submit(Box::new(request)));
        }
        self.say(format!("admit {request:?}"));
        let (now, world) = (self.world.now, &mut self.world);
        let kept = request.clone();
        let admitted = world
            .brain
            .admit(now, Box::new(request), &mut world.actions);
        self.say(format!("{admitted:?}"));
        if admitted.is_ok() {
            self.submitted.insert(id, kept);
            self.admitted.push(id);
        }
    }

    pub(super) fn confirm_or_withdraw(&mut self) {
        if self.admitted.is_empty() {
            return;
        }
        let at = self.dice.below(self.admitted.len());
        let job = self.admitted.swap_remove(at);
        match self.dice.one_in(3) {
            true => {
                self.submitted.remove(&job);
                self.tell(Event::Withdraw(job));
            }
            false => self.tell(Event::Confirm(job)),
        }
    }

    pub(super) fn cancel(&mut self) {
        let jobs: Vec<JobId> = self.submitted.keys().copied().collect();
        let unknown = JobId(uuid::Uuid::max());
        let job = self.dice.pick(&jobs).unwrap_or(unknown);
        let error = Error::new(Code::Cancelled, "gone");
        self.tell(Event::Cancel { job, error });
    }

    /// A lease comes back, or, now and then, one comes back again.
    pub(super) fn return_lease(&mut self) {
        let again = self.dice.one_in(10);
        let lease = match again {
            true => self.dice.pick(&self.returned),
            false if self.leases.is_empty() => None,
            false => {
                let at = self.dice.below(self.leases.len());
                let lease = self.leases.swap_remove(at);
                self.returned.push(lease.clone());
                Some(lease)
            }
        };
        let Some((job, attempt, worker)) = lease else {
            return;
        };
        let report = self.report();
        self.tell(Event::AttemptEnded {
            job,
            attempt,
            worker,
            report: Box::new(report),
        });
    }

    fn report(&mut self) -> Report {
        let dice = &mut self.dice;
        let mut report = Report::of(match dice.below(4) {
            0..=1 => Outcome::Failed(failed("broken off")),
            2 => Outcome::Cancelled(Error::new(Code::Cancelled, "gone")),
            _ => Outcome::Complete,
        });
        report.blame = match dice.below(5) {
            0 => Blame::Request,
            2 => Blame::GivenBack,
            1 => Blame::Load(dice.one_in(2).then(|| secs(dice.below(90) as u64))),
            _ => Blame::Worker,
        };
        report.relayed = dice.one_in(3);
        report.aftermath = match (dice.one_in(4), dice.one_in(8)) {
            (true, _) => Aftermath::Suspect,
            (_, true) => Aftermath::Computing,
            _ => Aftermath::Clean,
        };
        report
    }

    pub(super) fn set_tenants(&mut self) {
        let dice = &mut self.dice;
        let tenants = (0..dice.below(3)).map(|at| Tenant {
            id: TenantId::new(["default", "nobody"][at]).unwrap(),
            limits: TenantLimits {
                max_concurrent: Some(dice.below(6) as u32),
                ..TenantLimits::default()
            },
        });
        let tenants: Vec<Tenant> = tenants.collect();
        self.say(format!("tenants are {tenants:?}"));
        let (now, world) = (self.world.now, &mut self.world);
        world
            .brain
            .set_tenants(now, tenants, &[], &mut world.actions);
    }

    /// The queen dies and begins anew: what was asynchronous and confirmed is recovered, in any
    /// order, the rest is the store's to end.
    pub(super) fn restart(&mut self, seed: u64) {
        self.say("the queen dies".into());
        self.reach_what_was_counted();
        let now = self.world.now;
        let actions = std::mem::take(&mut self.world.actions);
        self.world = world(seed).after(&self.world);
        (self.world.now, self.world.actions) = (now, actions);
        self.world.now.mono = Mono(secs(self.dice.below(1000) as u64));
        for list in [&mut self.leases, &mut self.returned] {
            list.clear();
        }
        self.spawning.clear();
        self.fetching.clear();
        let finished = &self.finished;
        self.submitted.retain(|job, request| {
            let durable = request.asynchronous && !self.admitted.contains(job);
            finished.contains(job) || durable
        });
        self.admitted.clear();
        let open = self.submitted.iter();
        let mut open: Vec<JobRequest> = open
            .filter(|(job, _)| !finished.contains(*job))
            .map(|(_, request)| request.clone())
            .collect();
        if self.dice.one_in(2) {
            open.reverse();
        }
        for mut request in open {
            request.attempts = self.attempts.get(&request.id).copied().unwrap_or(0);
            let pause = secs(self.dice.below(100) as u64);
            request.not_before = self.dice.one_in(2).then_some(now.wall + pause);
            self.tell(Event::Recover(Box::new(request)));
        }
    }
}
