//! A brain, a clock that is moved by hand, and everything that the brain wanted done.

use std::time::Duration;

use rbee_orchestrator::brain::{
    Action, Blame, Brain, Event, JobRequest, Report, SeenState, SeenWorker, Spawned, WorkerCallback,
};
use rbee_orchestrator::config::Config;
use rbee_orchestrator::domain::{
    Capabilities, Constraints, Device, HiveProcess, HiveRecord, HiveSpec, JobId, JobKind, Mono,
    Now, Outcome, Priority, TenantId, UnixMillis, WorkerId,
};
use rbee_orchestrator::error::{Code, Error, Result};
use rbee_orchestrator::scheduler::{Hive, LeastLoaded, Scheduler};
use uuid::Uuid;

use crate::parts::{SMOL, call, device, failed, hive, port_of, report, secs, seen, spec, worker};

mod done;

/// See the module.
pub(crate) struct World {
    pub(crate) brain: Brain,
    pub(crate) now: Now,
    pub(crate) actions: Vec<Action>,
    /// Whether the shell says that it is awake.
    pub(crate) awake: bool,
    jobs: u128,
    life: u32,
}

impl World {
    /// No hive yet.
    pub(crate) fn new() -> Self {
        Self::with(Config::default(), Box::new(LeastLoaded), Vec::new())
    }

    pub(crate) fn with(
        config: Config,
        scheduler: Box<dyn Scheduler>,
        hives: Vec<HiveRecord>,
    ) -> Self {
        let mut minted = 0;
        let brain = Brain::new(config, scheduler, hives).mint_ids_with(move || {
            minted += 1;
            worker(&format!("minted-{minted}"))
        });
        World {
            brain,
            now: Now {
                mono: Mono(secs(1000)),
                wall: UnixMillis(1_700_000_000_000),
            },
            actions: Vec::new(),
            awake: false,
            jobs: 0,
            life: 0,
        }
    }

    /// One hive `a` with a CPU of 8 GiB, which runs.
    pub(crate) fn with_hive() -> Self {
        let mut world = World::new();
        world.hive("a", &[device(0, "cpu", 8)]);
        world
    }

    /// The same, with a ready smol of so many slots.
    pub(crate) fn with_smol(slots: u32) -> (Self, WorkerId) {
        Self::configured(slots, |_| {})
    }

    /// The same, with another configuration.
    pub(crate) fn configured(slots: u32, change: impl FnOnce(&mut Config)) -> (Self, WorkerId) {
        let mut config = Config::default();
        change(&mut config);
        let mut world = World::with(config, Box::new(LeastLoaded), Vec::new());
        world.hive("a", &[device(0, "cpu", 8)]);
        let id = world.adopt("a", "smol-0", SMOL, slots);
        (world, id)
    }

    pub(crate) fn tell(&mut self, event: Event) {
        self.brain.handle(self.now, event, &mut self.actions);
    }

    /// Makes no id again that an earlier world made.
    pub(crate) fn after(mut self, earlier: &World) -> Self {
        (self.jobs, self.life) = (earlier.jobs, earlier.life + 1);
        let (life, mut minted) = (self.life, 0);
        self.brain = self.brain.mint_ids_with(move || {
            minted += 1;
            worker(&format!("minted-{life}-{minted}"))
        });
        self
    }

    /// Forgets what was done so far.
    pub(crate) fn clear(&mut self) {
        self.actions.clear();
    }

    /// Lets time pass, with a tick whenever one is due.
    pub(crate) fn pass(&mut self, time: Duration) {
        let end = self.now.mono + time;
        while let Some(due) = self.brain.next_due().filter(|due| *due <= end) {
            self.stay_awake(due);
            self.step(due.since(self.now.mono));
            self.tell(Event::Tick);
            assert!(self.brain.next_due().is_none_or(|next| next > due));
        }
        self.stay_awake(end);
        self.step(end.since(self.now.mono));
        self.tell(Event::Tick);
    }

    /// The shell's pulses up to a time, rarer than they are, and never so rare as to be missed.
    fn stay_awake(&mut self, until: Mono) {
        while self.awake && until.since(self.now.mono) > secs(2) {
            self.step(secs(2));
            self.tell(Event::Pulse);
        }
    }

    /// The shell begins to say that it is awake.
    pub(crate) fn wake_up(&mut self) {
        self.awake = true;
        self.tell(Event::Pulse);
    }

    /// Nothing of the queen runs for a while: no event is taken in.
    pub(crate) fn stand_still(&mut self, time: Duration) {
        self.step(time);
    }

    fn step(&mut self, time: Duration) {
        self.now.mono = self.now.mono + time;
        self.now.wall = self.now.wall + time;
    }

    // Hives

    pub(crate) fn register(&mut self, spec: HiveSpec) {
        let record = HiveRecord::new(spec);
        self.brain.add_hive(self.now, record, &mut self.actions);
    }

    /// A hive that runs and has reported.
    pub(crate) fn hive(&mut self, name: &str, devices: &[Device]) {
        self.register(spec(name));
        self.report(name, report(devices), Vec::new());
        self.clear();
    }

    pub(crate) fn report(&mut self, name: &str, has: Capabilities, workers: Vec<SeenWorker>) {
        self.tell(Event::HiveReport {
            hive: hive(name),
            capabilities: Some(has),
            workers,
        });
    }

    /// A report of workers alone.
    pub(crate) fn list(&mut self, name: &str, workers: Vec<SeenWorker>) {
        self.tell(Event::HiveReport {
            hive: hive(name),
            capabilities: None,
            workers,
        });
    }

    pub(crate) fn miss(&mut self, name: &str, gone: bool) {
        self.tell(Event::HiveMissed {
            hive: hive(name),
            error: Error::new(Code::HiveUnreachable, "connection refused"),
            gone,
            begun: self.now.mono,
        });
    }

    /// A check that began a while ago was missed.
    pub(crate) fn miss_late(&mut self, name: &str, ago: Duration) {
        let begun = Mono(self.now.mono.0 - ago);
        self.tell(Event::HiveMissed {
            hive: hive(name),
            error: Error::new(Code::HiveUnreachable, "no answer"),
            gone: false,
            begun,
        });
    }

    /// A check of a worker that began a while ago was missed.
    pub(crate) fn check_late(&mut self, id: &WorkerId, ago: Duration) {
        self.tell(Event::WorkerChecked {
            worker: id.clone(),
            answers: false,
            begun: Mono(self.now.mono.0 - ago),
        });
    }

    pub(crate) fn hive_stopped(&mut self, name: &str, result: Result<()>) {
        self.tell(Event::HiveStopped {
            hive: hive(name),
            result,
        });
    }

    /// A hive is remembered as one that the queen started.
    pub(crate) fn is_ours(&mut self, name: &str) {
        let process = HiveProcess {
            port: 9200,
            pid: Some(1),
            pid_start_time: None,
            started_by_queen: true,
        };
        self.brain.set_hive_process(&hive(name), Some(process));
    }

    pub(crate) fn known(&self, name: &str) -> Hive {
        self.brain.view(self.now).hives[&hive(name)].clone()
    }

    pub(crate) fn started(&mut self, name: &str, result: Result<()>) {
        self.tell(Event::HiveStarted {
            hive: hive(name),
            result,
        });
    }

    // Workers

    /// A worker that its hive lists as ready.
    pub(crate) fn adopt(&mut self, on: &str, id: &str, model_name: &str, slots: u32) -> WorkerId {
        let id = worker(id);
        let mut listed = seen(on, &id, model_name, SeenState::Ready);
        listed.spec.slots_total = slots;
        self.list(on, vec![listed]);
        id
    }

    pub(crate) fn answer_spawn(&mut self, id: &WorkerId, result: Result<WorkerId>) {
        let result = result.map(|id| Spawned {
            port: port_of(&id),
            id,
            host: "127.0.0.1".into(),
            authorization: None,
        });
        self.tell(Event::SpawnAnswered {
            worker: id.clone(),
            result,
        });
    }

    pub(crate) fn call_ready(&mut self, call: WorkerCallback) -> Result<()> {
        self.brain.worker_ready(self.now, call, &mut self.actions)
    }

    /// A spawned worker's whole way: the hive answers, it calls back.
    pub(crate) fn ready(&mut self, id: &WorkerId, model_name: &str, slots: u32) {
        self.answer_spawn(id, Ok(id.clone()));
        let mut call = call(id, model_name);
        call.slots_total = Some(slots);
        call.speaks_for = Vec::from_iter(self.brain.hive_of(id));
        self.call_ready(call).unwrap();
    }

    pub(crate) fn check(&mut self, id: &WorkerId, answers: bool) {
        self.tell(Event::WorkerChecked {
            worker: id.clone(),
            answers,
            begun: self.now.mono,
        });
    }

    pub(crate) fn shut_down(&mut self, id: &WorkerId, force: bool) {
        self.brain
            .shutdown_worker(self.now, id, force, &mut self.actions)
            .unwrap();
    }

    pub(crate) fn stopped(&mut self, id: &WorkerId) {
        self.tell(Event::WorkerStopped { worker: id.clone() });
    }

    pub(crate) fn has_worker(&self, id: &WorkerId) -> bool {
        self.brain.view(self.now).workers.contains(id)
    }

    pub(crate) fn leases(&self, id: &WorkerId) -> u32 {
        let view = self.brain.view(self.now);
        view.workers.get(id).map_or(0, |worker| worker.leases)
    }

    // Jobs

    pub(crate) fn request(&mut self, model_name: &str) -> JobRequest {
        self.jobs += 1;
        JobRequest {
            id: JobId(Uuid::from_u128(self.jobs)),
            kind: JobKind::Task,
            model: model_name.into(),
            constraints: Constraints::default(),
            openai_only: false,
            priority: Priority::Interactive,
            tenant: TenantId::default(),
            session: None,
            total_timeout: secs(300),
            flowing_timeout: secs(300),
            queue_timeout: secs(60),
            deadline: None,
            asynchronous: false,
            attempts: 0,
            failures: 0,
            submitted_at: self.now.wall,
            not_before: None,
            bytes: 100,
            tokens: 100,
        }
    }

    pub(crate) fn submit(&mut self, model_name: &str) -> JobId {
        self.submit_with(model_name, |_| {})
    }

    pub(crate) fn submit_with(
        &mut self,
        model_name: &str,
        change: impl FnOnce(&mut JobRequest),
    ) -> JobId {
        let mut request = self.request(model_name);
        change(&mut request);
        let id = request.id;
        self.tell(Event::Submit(Box::new(request)));
        id
    }

    /// The first half of a submission: it is let in, or refused.
    pub(crate) fn admit(
        &mut self,
        model_name: &str,
        change: impl FnOnce(&mut JobRequest),
    ) -> Result<JobId> {
        let mut request = self.request(model_name);
        change(&mut request);
        let id = request.id;
        let (now, out) = (self.now, &mut self.actions);
        self.brain.admit(now, Box::new(request), out).map(|()| id)
    }

    pub(crate) fn cancel(&mut self, job: JobId) {
        let error = Error::new(Code::Cancelled, "the client has gone");
        self.tell(Event::Cancel { job, error });
    }

    /// A job's lease comes back with a whole answer.
    pub(crate) fn end(&mut self, job: JobId) {
        self.end_with(job, Report::of(Outcome::Complete));
    }

    pub(crate) fn end_with(&mut self, job: JobId, report: Report) {
        let (attempt, worker) = self.attempt_of(job).expect("the job was dispatched");
        self.tell(Event::AttemptEnded {
            job,
            attempt,
            worker,
            report: Box::new(report),
        });
    }

    /// A job's lease comes back without an answer, for somebody's fault.
    pub(crate) fn fail(&mut self, job: JobId, blame: Blame) {
        let mut report = Report::of(Outcome::Failed(failed("it broke off")));
        report.blame = blame;
        self.end_with(job, report);
    }

    /// The attempts after which a job waits again, with the times before which it does not run.
    pub(crate) fn requeues(&self, wanted: JobId) -> Vec<(u32, Option<UnixMillis>)> {
        let requeue = |action: &Action| match action {
            Action::Requeue {
                job,
                attempt,
                not_before,
                ..
            } if *job == wanted => Some((*attempt, *not_before)),
            _ => None,
        };
        self.actions.iter().filter_map(requeue).collect()
    }

    pub(crate) fn attempt_of(&self, wanted: JobId) -> Option<(u32, WorkerId)> {
        self.actions.iter().rev().find_map(|action| match action {
            Action::Dispatch {
                job,
                attempt,
                worker,
                ..
            } if *job == wanted => Some((*attempt, worker.id.clone())),
            _ => None,
        })
    }
}
