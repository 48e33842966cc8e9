//! What the brain wanted done.

use rbee_orchestrator::brain::Action;
use rbee_orchestrator::domain::{Ending, HiveId, JobId, Outcome, WorkerId, WorkerSpec};
use rbee_orchestrator::error::Error;

use super::World;

impl World {
    /// Where a job was dispatched to.
    pub(crate) fn runs_on(&self, job: JobId) -> Option<WorkerId> {
        self.attempt_of(job).map(|(_, worker)| worker)
    }

    /// The numbers under which a job was dispatched.
    pub(crate) fn attempts(&self, wanted: JobId) -> Vec<u32> {
        let attempt = |action: &Action| match action {
            Action::Dispatch { job, attempt, .. } if *job == wanted => Some(*attempt),
            _ => None,
        };
        self.actions.iter().filter_map(attempt).collect()
    }

    pub(crate) fn spawns(&self) -> Vec<(HiveId, std::sync::Arc<WorkerSpec>)> {
        let spawn = |action: &Action| match action {
            Action::Spawn { hive, worker, .. } => Some((hive.clone(), worker.clone())),
            _ => None,
        };
        self.actions.iter().filter_map(spawn).collect()
    }

    /// The one worker that was spawned.
    pub(crate) fn spawned(&self) -> WorkerId {
        let spawns = self.spawns();
        assert_eq!(spawns.len(), 1, "{spawns:?}");
        spawns[0].1.id.clone()
    }

    pub(crate) fn starts(&self) -> Vec<HiveId> {
        let start = |action: &Action| match action {
            Action::StartHive { hive } => Some(hive.clone()),
            _ => None,
        };
        self.actions.iter().filter_map(start).collect()
    }

    pub(crate) fn stopped_hives(&self) -> Vec<HiveId> {
        let stop = |action: &Action| match action {
            Action::StopHive { hive } => Some(hive.clone()),
            _ => None,
        };
        self.actions.iter().filter_map(stop).collect()
    }

    pub(crate) fn hive_checks(&self) -> Vec<HiveId> {
        let check = |action: &Action| match action {
            Action::CheckHive { hive } => Some(hive.clone()),
            _ => None,
        };
        self.actions.iter().filter_map(check).collect()
    }

    pub(crate) fn stops(&self) -> Vec<WorkerId> {
        let stop = |action: &Action| match action {
            Action::StopWorker { worker, .. } => Some(worker.clone()),
            _ => None,
        };
        self.actions.iter().filter_map(stop).collect()
    }

    pub(crate) fn checks(&self) -> Vec<WorkerId> {
        let check = |action: &Action| match action {
            Action::CheckWorker { worker } => Some(worker.id.clone()),
            _ => None,
        };
        self.actions.iter().filter_map(check).collect()
    }

    pub(crate) fn aborts(&self, wanted: JobId) -> usize {
        let abort =
            |action: &&Action| matches!(action, Action::Abort { job, .. } if *job == wanted);
        self.actions.iter().filter(abort).count()
    }

    pub(crate) fn told(&self, wanted: JobId) -> Vec<&'static str> {
        let told = |action: &Action| match action {
            Action::Narrate { job, narration } if *job == wanted => Some(narration.action),
            _ => None,
        };
        self.actions.iter().filter_map(told).collect()
    }

    /// The places that a job was told, with the seconds it will wait.
    pub(crate) fn places(&self, wanted: JobId) -> Vec<(usize, Option<u64>)> {
        let told = |action: &Action| match action {
            Action::Queued {
                job,
                position,
                wait,
            } if *job == wanted => Some((*position, wait.map(|wait| wait.as_secs()))),
            _ => None,
        };
        self.actions.iter().filter_map(told).collect()
    }

    /// Lets whoever runs end, one after the other, until nobody runs; returns them in order.
    pub(crate) fn run_all(&mut self, mut running: JobId) -> Vec<JobId> {
        let mut order = Vec::new();
        loop {
            let from = self.actions.len();
            self.end(running);
            let next = self.actions[from..].iter().find_map(|action| match action {
                Action::Dispatch { job, .. } => Some(*job),
                _ => None,
            });
            match next {
                Some(job) => running = job,
                None => return order,
            }
            order.push(running);
        }
    }

    pub(crate) fn ending(&self, wanted: JobId) -> Ending {
        let finish = |action: &Action| match action {
            Action::Finish { job, ending, .. } if *job == wanted => Some((**ending).clone()),
            _ => None,
        };
        self.actions
            .iter()
            .find_map(finish)
            .expect("the job has ended")
    }

    /// How a job ended; at most once.
    pub(crate) fn outcome(&self, wanted: JobId) -> Option<Outcome> {
        let finish = |action: &Action| match action {
            Action::Finish { job, ending, .. } if *job == wanted => Some(ending.outcome.clone()),
            _ => None,
        };
        let ends: Vec<Outcome> = self.actions.iter().filter_map(finish).collect();
        assert!(ends.len() <= 1, "{wanted} ended twice: {ends:?}");
        ends.into_iter().next()
    }

    pub(crate) fn error(&self, job: JobId) -> Error {
        let outcome = self.outcome(job).expect("the job has ended");
        outcome.error().expect("with an error").clone()
    }

    pub(crate) fn code(&self, job: JobId) -> &'static str {
        self.error(job).code.as_str()
    }

    /// Whether its newest attempt is with a worker.
    pub(crate) fn is_running(&self, job: JobId) -> bool {
        self.is_open(job) && self.attempts(job).len() > self.requeues(job).len()
    }

    pub(crate) fn is_open(&self, job: JobId) -> bool {
        self.outcome(job).is_none()
    }
}
