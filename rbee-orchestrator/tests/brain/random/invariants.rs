//! What must hold whatever happens.

use std::sync::Arc;

use rbee_orchestrator::brain::{Action, Event, Report};
use rbee_orchestrator::domain::{HiveId, JobId, ModelRef, Outcome, WorkerId, WorkerSpec};
use rbee_orchestrator::error::{Code, Error};

use super::{Lease, Run};
use crate::parts::secs;

impl Run {
    /// Holds what the brain wanted against what it may want. `in_order` says that the registry
    /// is as it was when the brain decided.
    pub(super) fn check(&mut self, in_order: bool) {
        let mut overdue = Vec::new();
        for action in std::mem::take(&mut self.world.actions) {
            self.actions.push(format!("{action:?}"));
            match action {
                Action::Dispatch {
                    job,
                    attempt,
                    worker,
                    ..
                } => self.dispatched((job, attempt, worker.id.clone()), in_order),
                Action::Requeue { job, attempt, .. } => {
                    assert_eq!(
                        self.attempts.get(&job),
                        Some(&attempt),
                        "of the newest attempt"
                    );
                    let runs = |lease: &Lease| lease.0 == job && lease.1 == attempt;
                    assert!(!self.leases.iter().any(runs), "{job} runs still");
                    assert!(!self.finished.contains(&job), "{job} has ended");
                }
                Action::Finish { job, attempt, .. } => {
                    assert!(
                        self.submitted.contains_key(&job),
                        "{job} was never submitted"
                    );
                    assert!(self.finished.insert(job), "{job} ended twice");
                    let newest = self.attempts.get(&job).copied().unwrap_or(0);
                    assert_eq!(attempt, newest, "{job} ends with its newest attempt");
                }
                Action::Spawn { hive, worker, .. } => self.was_spawned(&hive, &worker, in_order),
                Action::Provision { hive, model } => self.was_asked_for(hive, model, in_order),
                Action::StopHive { hive } => {
                    self.reach("drained and stopped");
                    assert!(!self.holds_leases(&hive, in_order), "{hive} has work");
                }
                Action::Abort { job, .. } => {
                    let runs = |lease: &Lease| lease.0 == job;
                    assert!(self.leases.iter().any(runs), "{job} does not run");
                }
                Action::GiveBack { job, attempt, why } => {
                    let asynchronous = |job| self.submitted.get(job).map(|job| job.asynchronous);
                    if why.code == Code::NoCapacity {
                        let runs = |lease: &Lease| lease.0 == job && lease.1 == attempt;
                        assert!(self.leases.iter().any(runs), "{job} does not run");
                        assert_eq!(asynchronous(&job), Some(true), "{job} is waited for");
                    }
                }
                Action::EndUnlessFlowing { job, attempt } => {
                    self.reach("flows on");
                    let runs = |lease: &Lease| lease.0 == job && lease.1 == attempt;
                    assert!(self.leases.iter().any(runs), "{job} does not run");
                    overdue.push((job, attempt));
                }
                _ => {}
            }
        }
        for (job, attempt) in overdue {
            if self.dice.one_in(2) {
                self.tell(Event::NotFlowing { job, attempt });
                self.check(in_order);
            }
        }
        let open = self.open().count();
        let tally = self.world.brain.tally();
        assert_eq!(self.world.brain.open_jobs(), open);
        assert_eq!(
            tally.open(),
            open,
            "each open job is in one place: {tally:?}"
        );
        assert_eq!(tally.running, self.running());
        assert_eq!(tally.waiting, self.world.brain.waiting());
        assert_eq!(tally.admitted, self.admitted.len());
    }

    fn open(&self) -> impl Iterator<Item = JobId> {
        let jobs = self.submitted.keys().copied();
        jobs.filter(|job| !self.finished.contains(job))
    }

    fn running(&self) -> usize {
        let runs = |lease: &&Lease| !self.finished.contains(&lease.0);
        self.leases.iter().filter(runs).count()
    }

    fn dispatched(&mut self, lease: Lease, in_order: bool) {
        assert!(!self.finished.contains(&lease.0), "{} has ended", lease.0);
        assert!(
            !self.admitted.contains(&lease.0),
            "{} is not confirmed",
            lease.0
        );
        let attempts = self.attempts.entry(lease.0).or_default();
        *attempts += 1;
        assert_eq!(*attempts, lease.1, "attempts count up");
        if in_order {
            let view = self.world.brain.view(self.world.now);
            let worker = view.workers.get(&lease.2).expect("a worker that is there");
            assert!(worker.ready && !worker.draining, "{worker:?}");
            assert!(worker.leases <= worker.spec.slots_total, "{worker:?}");
        }
        self.leases.push(lease);
    }

    fn was_spawned(&mut self, on: &HiveId, spec: &Arc<WorkerSpec>, in_order: bool) {
        let view = self.world.brain.view(self.world.now);
        let same = view.workers.with_model(&spec.model).filter(|worker| {
            let at = (worker.spec.hive.as_ref(), worker.spec.device);
            !worker.ready && worker.is_worth_waiting_for() && at == (Some(on), spec.device)
        });
        let ordered = |id: &WorkerId| id.as_str().starts_with("ordered");
        let count = same.filter(|worker| !ordered(&worker.spec.id)).count();
        assert!(
            count <= 1 || !in_order || ordered(&spec.id),
            "spawned twice: {spec:?}"
        );
        self.workers.push(spec.id.clone());
        self.spawning.push(spec.id.clone());
    }

    fn holds_leases(&self, on: &HiveId, in_order: bool) -> bool {
        let view = self.world.brain.view(self.world.now);
        let mut of_hive = view.workers.iter();
        in_order && of_hive.any(|w| w.leases > 0 && w.spec.hive.as_ref() == Some(on))
    }

    fn was_asked_for(&mut self, hive: HiveId, model: ModelRef, in_order: bool) {
        assert!(model.is_fetchable(), "{model} is where it is");
        if in_order && let Some(hive) = self.world.brain.view(self.world.now).hives.get(&hive) {
            let same = hive.fetches.iter().filter(|fetch| fetch.model == model);
            assert!(same.count() <= 1, "{model} is fetched twice");
        }
        self.fetching.push((hive, model));
    }

    fn return_all(&mut self) {
        while let Some((job, attempt, worker)) = self.leases.pop() {
            let report = Box::new(Report::of(Outcome::Complete));
            self.tell(Event::AttemptEnded {
                job,
                attempt,
                worker,
                report,
            });
            self.check(true);
        }
    }

    /// Every deadline passes, every lease comes back, and every worker answers.
    pub(super) fn wind_down(&mut self) {
        self.say("everything comes to its end".into());
        self.pass_time(secs(7200));
        self.check(true);
        for job in std::mem::take(&mut self.admitted) {
            self.tell(Event::Confirm(job));
        }
        self.check(true);
        self.return_all();
        // What no worker was found for waits as long as somebody wants it.
        for job in self.open().collect::<Vec<_>>() {
            let error = Error::new(Code::Cancelled, "gone");
            self.tell(Event::Cancel { job, error });
        }
        self.check(true);
        self.return_all();
        let view = self.world.brain.view(self.world.now);
        let mut workers: Vec<_> = view.workers.iter().map(|w| w.spec.id.clone()).collect();
        workers.sort_unstable();
        for worker in workers {
            self.tell(Event::WorkerChecked {
                worker,
                answers: true,
                begun: self.world.now.mono,
            });
        }
        self.check(true);
        assert_eq!(self.open().count(), 0, "every job has ended");
        self.pass_time(secs(7200));
        self.check(true);
        assert_eq!(self.world.brain.open_jobs(), 0);
        assert_eq!(self.world.brain.next_due(), None);
        let view = self.world.brain.view(self.world.now);
        assert!(view.workers.iter().all(|worker| worker.leases == 0));
    }
}
