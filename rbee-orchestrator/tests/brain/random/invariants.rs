//! What must hold whatever happens.

use std::sync::Arc;

use rbee_orchestrator::brain::{Action, Event, Report};
use rbee_orchestrator::domain::{HiveId, Outcome, WorkerId, WorkerSpec};

use super::{Lease, Run};
use crate::parts::secs;

impl Run {
    /// Holds what the brain wanted against what it may want. `in_order` says that the registry
    /// is as it was when the brain decided.
    pub(super) fn check(&mut self, in_order: bool) {
        for action in std::mem::take(&mut self.world.actions) {
            self.actions.push(format!("{action:?}"));
            match action {
                Action::Dispatch {
                    job,
                    attempt,
                    worker,
                    ..
                } => self.dispatched((job, attempt, worker.id.clone()), in_order),
                Action::Finish { job, .. } => {
                    assert!(self.submitted.contains(&job), "{job} was never submitted");
                    assert!(self.finished.insert(job), "{job} ended twice");
                }
                Action::Spawn { hive, worker, .. } => self.was_spawned(&hive, &worker, in_order),
                Action::Abort { job, .. } => {
                    let runs = |lease: &Lease| lease.0 == job;
                    assert!(self.leases.iter().any(runs), "{job} does not run");
                }
                _ => {}
            }
        }
        let open = self.submitted.len() - self.finished.len();
        assert_eq!(self.world.brain.open_jobs(), open);
        let waiting = open - self.running();
        assert_eq!(
            self.world.brain.waiting(),
            waiting,
            "each open job waits or runs"
        );
    }

    fn running(&self) -> usize {
        let runs = |lease: &&Lease| !self.finished.contains(&lease.0);
        self.leases.iter().filter(runs).count()
    }

    fn dispatched(&mut self, lease: Lease, in_order: bool) {
        assert!(!self.finished.contains(&lease.0), "{} has ended", lease.0);
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

    /// Every deadline passes, every lease comes back, and every worker answers.
    pub(super) fn wind_down(&mut self) {
        self.say("everything comes to its end".into());
        self.world.pass(secs(7200));
        self.check(true);
        for (job, attempt, worker) in std::mem::take(&mut self.leases) {
            let report = Box::new(Report::of(Outcome::Complete));
            self.tell(Event::AttemptEnded {
                job,
                attempt,
                worker,
                report,
            });
        }
        let view = self.world.brain.view(self.world.now);
        let mut workers: Vec<_> = view.workers.iter().map(|w| w.spec.id.clone()).collect();
        workers.sort_unstable();
        for worker in workers {
            self.tell(Event::WorkerChecked {
                worker,
                answers: true,
            });
        }
        self.check(true);
        assert_eq!(
            self.finished.len(),
            self.submitted.len(),
            "every job has ended"
        );
        assert_eq!(self.world.brain.open_jobs(), 0);
        assert_eq!(self.world.brain.next_due(), None);
        let view = self.world.brain.view(self.world.now);
        assert!(view.workers.iter().all(|worker| worker.leases == 0));
    }
}
