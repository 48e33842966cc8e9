//! Carries out what the brain decides, and tells it what came of it.

use std::collections::{HashMap, HashSet};
use std::future::{Future, poll_fn};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, ready};
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use super::clock::Clock;
use super::connector::HiveMap;
use super::hive_actor::Order;
use crate::brain::{Action, Brain, Event, JobRequest};
use crate::config::Config;
use crate::domain::{Attempt, Ending, HiveId, JobId, Mono, Narration, Now, WorkerId, WorkerSpec};
use crate::error::{Error, Result};
use crate::hives::Provisioner;
use crate::relay::pool::Pool;
use crate::router::{
    Assignment, Call, Flow, FlowParts, Inbox, Journal, Lease, Notice, Patience, Step, TextBudget,
    Ticks,
};
use crate::store::{JobChange, Store};

/// Between two tries to write an ending that somebody waits for.
const STORE_RETRY: Duration = Duration::from_millis(250);

/// The brain, with the jobs whose clients wait.
pub(super) struct Core {
    pub(super) brain: Brain,
    flows: HashMap<JobId, Arc<Flow>>,
    /// Jobs that have ended, whose ending is on its way to the disk.
    settling: HashMap<JobId, Arc<Flow>>,
    actions: Vec<Action>,
}

/// What every part of the shell shares.
pub(super) struct Driver {
    pub(super) config: Config,
    pub(super) owner: Uuid,
    pub(super) store: Arc<dyn Store>,
    pub(super) pool: Arc<Pool>,
    flow_parts: Arc<FlowParts>,
    pub(super) hives: Arc<HiveMap>,
    /// Models on their way to hives.
    pub(super) provisioner: Arc<Provisioner>,
    pub(super) clock: Clock,
    tasks: TaskTracker,
    /// Where the library's own tasks run, whichever runtime a caller comes from.
    runtime: Handle,
    pub(super) stop: CancellationToken,
    pub(super) inbox: Arc<Inbox>,
    /// Counts what changed in the fleet, for those who wait for it.
    pub(super) fleet_changes: watch::Sender<u64>,
    core: Mutex<Core>,
    /// Workers that are being asked whether they answer.
    checking: Mutex<HashSet<WorkerId>>,
    timer: Notify,
    /// When the timer fires next, in ms of monotonic time.
    timer_at: AtomicU64,
}

impl Driver {
    #[allow(
        clippy::too_many_arguments,
        reason = "the parts are made one by one by the builder"
    )]
    pub(super) fn new(
        config: Config,
        owner: Uuid,
        store: Arc<dyn Store>,
        pool: Arc<Pool>,
        hives: Arc<HiveMap>,
        clock: Clock,
        brain: Brain,
    ) -> Self {
        let flow_parts = FlowParts {
            ticks: Ticks::default(),
            text: Arc::new(TextBudget::new(config.replay.max_bytes)),
        };
        Driver {
            flow_parts: Arc::new(flow_parts),
            provisioner: Arc::new(Provisioner::new(config.clone())),
            config,
            owner,
            store,
            pool,
            hives,
            clock,
            tasks: TaskTracker::new(),
            runtime: Handle::current(),
            stop: CancellationToken::new(),
            inbox: Arc::default(),
            fleet_changes: watch::Sender::new(0),
            core: Mutex::new(Core {
                brain,
                flows: HashMap::new(),
                settling: HashMap::new(),
                actions: Vec::new(),
            }),
            checking: Mutex::default(),
            timer: Notify::new(),
            timer_at: AtomicU64::new(u64::MAX),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Core> {
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks at the brain without telling it anything.
    pub(super) fn look<T>(&self, look: impl FnOnce(&Brain, Now) -> T) -> T {
        let now = self.clock.now();
        look(&self.lock().brain, now)
    }

    /// Lets the brain decide, and carries out what it wants in the order it wants it.
    pub(super) fn decide<T>(
        self: &Arc<Self>,
        decide: impl FnOnce(&mut Brain, Now, &mut Vec<Action>) -> T,
    ) -> T {
        let now = self.clock.now();
        let mut core = self.lock();
        self.decide_in(&mut core, now, decide)
    }

    fn decide_in<T>(
        self: &Arc<Self>,
        core: &mut Core,
        now: Now,
        decide: impl FnOnce(&mut Brain, Now, &mut Vec<Action>) -> T,
    ) -> T {
        let mut actions = std::mem::take(&mut core.actions);
        self.take_sent(core, now, &mut actions);
        let decided = decide(&mut core.brain, now, &mut actions);
        while !actions.is_empty() {
            for action in actions.drain(..) {
                self.carry_out(core, action);
            }
            self.take_sent(core, now, &mut actions);
        }
        core.actions = actions;
        self.set_timer(core.brain.next_due());
        decided
    }

    fn take_sent(&self, core: &mut Core, now: Now, actions: &mut Vec<Action>) {
        for event in self.inbox.take() {
            core.brain.handle(now, event, actions);
        }
    }

    /// Tells the brain what was sent to it, if anything was.
    pub(super) fn catch_up(self: &Arc<Self>) {
        if !self.inbox.is_empty() {
            self.decide(|_, _, _| ());
        }
    }

    /// Spawns a task that the end of the orchestrator waits for.
    pub(super) fn spawn<T: Send + 'static>(
        &self,
        task: impl Future<Output = T> + Send + 'static,
    ) -> JoinHandle<T> {
        self.tasks.spawn_on(task, &self.runtime)
    }

    /// Ends every task, and waits for it.
    pub(super) async fn end_tasks(&self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }

    /// Tells the brain what happened.
    pub(super) fn feed(self: &Arc<Self>, event: Event) {
        let of_fleet = matches!(event, Event::HiveReport { .. } | Event::HiveStarted { .. });
        self.decide(|brain, now, out| brain.handle(now, event, out));
        if of_fleet {
            self.fleet_changes.send_modify(|count| *count += 1);
        }
    }

    /// A flow for a job that is about to be taken in.
    pub(super) fn new_flow(&self, call: Call) -> Arc<Flow> {
        Arc::new(Flow::new(call, self.pool.clone(), self.flow_parts.clone()))
    }

    /// What a job tells that has not ended, or whose ending is on its way to the disk. Under the
    /// lock: a journal that is made while the job ends would miss that.
    pub(super) fn journal(&self, job: JobId) -> Option<Arc<Journal>> {
        let core = self.lock();
        let flow = core.flows.get(&job).or_else(|| core.settling.get(&job));
        flow.map(|flow| flow.journal())
    }

    /// Asks whether a job may come in; it is counted then, and waits for its confirmation.
    pub(super) fn admit(self: &Arc<Self>, flow: Arc<Flow>, request: Box<JobRequest>) -> Result<()> {
        let now = self.clock.now();
        let mut core = self.lock();
        self.decide_in(&mut core, now, |brain, now, out| {
            brain.admit(now, request, out)
        })?;
        core.flows.insert(flow.id(), flow);
        Ok(())
    }

    /// Takes an admission back.
    pub(super) fn withdraw(self: &Arc<Self>, job: JobId) {
        self.feed(Event::Withdraw(job));
        self.lock().flows.remove(&job);
    }

    /// Does the work of a job whose client does not wait for it.
    pub(super) fn run_unattended(self: &Arc<Self>, flow: Arc<Flow>) {
        let driver = self.clone();
        self.spawn(async move {
            let work = poll_fn(|cx| {
                loop {
                    let step = flow.poll_step(cx);
                    driver.catch_up();
                    match ready!(step) {
                        Step::End | Step::Failed(_) => return Poll::Ready(()),
                        _ => {}
                    }
                }
            });
            tokio::select! {
                () = work => {}
                () = driver.stop.cancelled() => {}
            }
        });
    }

    /// Gives a job its worker when its dispatch is on disk: after a crash no other attempt may have
    /// the number of one whose text somebody has read.
    fn assign_durably(self: &Arc<Self>, flow: Arc<Flow>, assignment: Assignment) {
        let driver = self.clone();
        self.spawn(async move {
            let written = async {
                while let Err(error) = driver.store.flush().await {
                    tracing::warn!(job = %flow.id(), %error, "the dispatch is not stored yet");
                    tokio::time::sleep(STORE_RETRY).await;
                }
            };
            tokio::select! {
                () = written => flow.assign(assignment),
                () = driver.stop.cancelled() => {}
            }
        });
    }

    /// Records an ending that nobody may hear of before it is on disk. A disk that is full or locked
    /// is waited for.
    fn finish_durably(self: &Arc<Self>, flow: Arc<Flow>, attempt: Attempt, ending: Ending) {
        let driver = self.clone();
        self.spawn(async move {
            let job = flow.id();
            let written = async {
                while let Err(error) = driver.store.finish(job, attempt, ending.clone()).await {
                    tracing::warn!(%job, %error, "the ending is not stored yet");
                    tokio::time::sleep(STORE_RETRY).await;
                }
            };
            tokio::select! {
                () = written => flow.settle(flow.last_events(&ending)),
                () = driver.stop.cancelled() => drop(flow.shelve()),
            }
            driver.lock().settling.remove(&job);
        });
    }

    /// Takes a job in. Its flow is known before the brain can act on it.
    pub(super) fn take_in(self: &Arc<Self>, flow: Arc<Flow>, event: Event) {
        let now = self.clock.now();
        let mut core = self.lock();
        core.flows.insert(flow.id(), flow);
        self.decide_in(&mut core, now, |brain, now, out| {
            brain.handle(now, event, out);
        });
    }

    /// One action. Nothing here waits: what takes time is handed to a task.
    fn carry_out(self: &Arc<Self>, core: &mut Core, action: Action) {
        match action {
            Action::Requeue {
                job,
                attempt,
                not_before,
                error,
            } => {
                tracing::debug!(%job, attempt, %error, "the attempt failed, the job waits again");
                self.store.record(JobChange::Requeued {
                    job,
                    attempt,
                    not_before,
                });
                if let Some(flow) = core.flows.get(&job) {
                    flow.notify(Notice::Narration(retry_narration(job, attempt, &error)));
                }
            }
            Action::Queued {
                job,
                position,
                wait,
            } => {
                if let Some(flow) = core.flows.get(&job) {
                    flow.notify(Notice::Queued { position, wait });
                }
            }
            Action::Narrate { job, narration } => {
                if let Some(flow) = core.flows.get(&job) {
                    flow.notify(Notice::Narration(narration));
                }
            }
            Action::Dispatch {
                job,
                attempt,
                worker,
                placed,
                at,
            } => {
                let lease = Lease::new(worker, job, attempt, self.inbox.clone());
                let model = placed.model.clone();
                self.store.record(JobChange::Claimed {
                    job,
                    attempt,
                    placed,
                    at,
                });
                let assignment = Assignment {
                    lease,
                    attempt,
                    model,
                    at,
                };
                match core.flows.get(&job) {
                    Some(flow) if flow.call.asynchronous => {
                        self.assign_durably(flow.clone(), assignment);
                    }
                    Some(flow) => flow.assign(assignment),
                    None => {}
                }
            }
            Action::Abort { job, outcome } => {
                if let Some(flow) = core.flows.get(&job) {
                    flow.abort(&outcome);
                }
            }
            Action::Finish {
                job,
                attempt,
                ending,
            } => {
                if let Some(error) = ending.outcome.error() {
                    tracing::debug!(%job, attempt, %error, "job ended");
                }
                let flow = core.flows.remove(&job);
                if let Some(flow) = &flow {
                    flow.abort(&ending.outcome);
                }
                match flow {
                    Some(flow) if flow.call.asynchronous => {
                        core.settling.insert(job, flow.clone());
                        self.finish_durably(flow, attempt, *ending);
                    }
                    Some(flow) => {
                        let last_events = flow.last_events(&ending);
                        self.store.record(JobChange::Finished {
                            job,
                            attempt,
                            ending,
                        });
                        flow.settle(last_events);
                    }
                    None => {}
                }
            }
            Action::StartHive { hive } => self.order(&hive, Order::Start),
            Action::Spawn {
                hive,
                worker,
                devices,
                for_job,
            } => {
                tracing::info!(%hive, worker = %worker.id, model = %worker.model, "spawning");
                let flow = for_job.and_then(|job| core.flows.get(&job));
                let order = Order::Spawn {
                    worker,
                    devices,
                    correlation_id: flow.map(|flow| flow.call.correlation_id.clone()),
                };
                self.order(&hive, order);
            }
            Action::StopWorker { hive, worker } => {
                tracing::info!(%hive, %worker, "stopping a worker");
                self.order(&hive, Order::StopWorker(worker));
            }
            Action::CheckHive { hive } => self.order(&hive, Order::Check),
            Action::CheckWorker { worker } => self.check_worker(worker, None),
            Action::CancelOnWorker { worker, job } => self.check_worker(worker, Some(job)),
        }
    }

    fn order(self: &Arc<Self>, hive: &HiveId, order: Order) {
        let is_start = matches!(order, Order::Start);
        if self.hives.order(hive, order) {
            return;
        }
        tracing::debug!(%hive, is_start, "an order for a hive that nobody serves");
        if !is_start {
            return;
        }
        // Who waits for the start must hear of it. By a task: the brain is just deciding.
        let error = Error::new(
            crate::error::Code::HiveUnreachable,
            format!(
                "hive {hive} is not served: the queen can't use its registration, or is shutting \
                 down; register it again"
            ),
        );
        let (driver, hive) = (self.clone(), hive.clone());
        self.spawn(async move {
            driver.feed(Event::HiveStarted {
                hive,
                result: Err(error),
            });
        });
    }

    /// Asks a worker whether it answers, after it was told that nobody waits for `cancelled`. One
    /// check of a worker runs at a time.
    pub(super) fn check_worker(
        self: &Arc<Self>,
        worker: Arc<WorkerSpec>,
        cancelled: Option<JobId>,
    ) {
        let driver = self.clone();
        self.spawn(async move {
            let check = async {
                if let Some(job) = cancelled {
                    driver
                        .pool
                        .cancel(&worker, job, driver.config.timeouts.health)
                        .await;
                }
                if !driver.checking().insert(worker.id.clone()) {
                    return None;
                }
                let answers = driver
                    .pool
                    .is_healthy(&worker, driver.config.timeouts.health)
                    .await;
                driver.checking().remove(&worker.id);
                Some(answers)
            };
            let answers = tokio::select! {
                answers = check => answers,
                () = driver.stop.cancelled() => None,
            };
            if let Some(answers) = answers {
                tracing::debug!(worker = %worker.id, answers, "checked a worker");
                driver.feed(Event::WorkerChecked {
                    worker: worker.id.clone(),
                    answers,
                });
            }
        });
    }

    fn checking(&self) -> MutexGuard<'_, HashSet<WorkerId>> {
        self.checking.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes the timer fire in time for what is due first.
    fn set_timer(&self, due: Option<Mono>) {
        let due = as_ms(due);
        if due < self.timer_at.load(Ordering::Relaxed) {
            self.timer_at.store(due, Ordering::Relaxed);
            self.timer.notify_one();
        }
    }

    /// Takes in what was sent when nobody else is about to decide.
    pub(super) async fn run_inbox(self: Arc<Self>) {
        loop {
            tokio::select! {
                () = self.inbox.arrived() => self.catch_up(),
                () = self.stop.cancelled() => return self.catch_up(),
            }
        }
    }

    /// Tells the brain when something has fallen due.
    pub(super) async fn run_timer(self: Arc<Self>) {
        loop {
            // Noted under the lock, as `set_timer` does: neither can miss what the other saw.
            let due = self.look(|brain, _| {
                let due = brain.next_due();
                self.timer_at.store(as_ms(due), Ordering::Relaxed);
                due
            });
            // A far end stands for never; something nearer wakes the timer.
            let wait = due.map_or(Duration::from_secs(3600), |at| self.clock.until(at));
            tokio::select! {
                () = tokio::time::sleep(wait) => self.feed(Event::Tick),
                () = self.timer.notified() => {}
                () = self.stop.cancelled() => return,
            }
        }
    }

    /// Cuts off what stands still, and closes connections that were idle for too long.
    pub(super) async fn run_patience(self: Arc<Self>) {
        let timeouts = &self.config.timeouts;
        let patience = Patience {
            first_token: timeouts.first_token,
            between_tokens: timeouts.between_tokens,
            client_stall: timeouts.client_stall,
        };
        loop {
            tokio::select! {
                () = tokio::time::sleep(patience.period()) => {}
                () = self.stop.cancelled() => return,
            }
            self.pool.sweep();
            let flows: Vec<Arc<Flow>> = self.lock().flows.values().cloned().collect();
            self.flow_parts.ticks.advance();
            for flow in flows {
                flow.check_patience(&patience);
            }
            self.catch_up();
        }
    }

    /// Checks the workers that no hive vouches for.
    pub(super) async fn run_worker_checks(self: Arc<Self>) {
        let hives = &self.config.hives;
        let mut last = Instant::now();
        loop {
            tokio::select! {
                () = tokio::time::sleep(hives.loading_interval) => {}
                () = self.stop.cancelled() => return,
            }
            let routine = last.elapsed() >= hives.check_interval;
            if routine {
                last = Instant::now();
            }
            let due: Vec<Arc<WorkerSpec>> =
                self.look(|brain, _| brain.workers_to_check(routine).cloned().collect());
            for worker in due {
                self.check_worker(worker, None);
            }
        }
    }

    /// Lets go of the asynchronous jobs that have not ended: another life of the queen goes on with
    /// them.
    pub(super) fn shelve_all(&self) {
        let mut core = self.lock();
        let shelved = core.flows.extract_if(|_, flow| flow.call.asynchronous);
        for (job, flow) in shelved {
            if let Some(attempt) = flow.shelve() {
                self.store.record(JobChange::Requeued {
                    job,
                    attempt,
                    not_before: None,
                });
            }
        }
    }

    /// Ends every job that has not ended.
    pub(super) fn abort_all(self: &Arc<Self>, error: &Error) {
        let jobs: Vec<JobId> = self.lock().flows.keys().copied().collect();
        for job in jobs {
            self.feed(Event::Cancel {
                job,
                error: error.clone(),
            });
        }
    }
}

fn retry_narration(job: JobId, attempt: Attempt, error: &Error) -> Narration {
    Narration {
        actor: "queen",
        action: "retry",
        target: job.to_string(),
        human: format!(
            "Attempt {attempt} failed and is tried again: {}",
            error.message
        ),
    }
}

/// A time for the atomic; the far end stands for never.
fn as_ms(due: Option<Mono>) -> u64 {
    due.map_or(u64::MAX, |at| {
        u64::try_from(at.0.as_millis()).unwrap_or(u64::MAX)
    })
}
