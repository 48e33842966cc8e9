//! Carries out what the brain decides, and tells it what came of it.

mod actions;
mod loops;
mod unattended;

use std::collections::HashSet;
use std::future::Future;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::runtime::Handle;
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use super::clock::Clock;
use super::connector::HiveMap;
use crate::brain::{Action, Brain, Event, JobRequest};
use crate::budget::Budget;
use crate::config::Config;
use crate::domain::{JobId, JobRecord, Mono, Now, Reach, TenantId, WorkerId};
use crate::error::{Error, Result};
use crate::hashing::IdMap;
use crate::hives::Provisioner;
use crate::relay::pool::Pool;
use crate::router::{Call, Flow, FlowParts, Inbox, Journal, Privacy, TextBudget, Ticks};
use crate::store::{JobChange, Store};

/// Keys that can come in at once without waiting for each other, at most.
const KEY_LOCKS: usize = 1024;

/// The brain, with the jobs whose clients wait.
pub(in crate::orchestrator) struct Core {
    pub(in crate::orchestrator) brain: Brain,
    flows: IdMap<JobId, Arc<Flow>>,
    /// Jobs that have ended, whose ending is on its way to the disk.
    settling: IdMap<JobId, Arc<Flow>>,
    // Empty between two decisions; what they hold in memory is used again.
    actions: Vec<Action>,
    sent: Vec<Event>,
}

/// What every part of the shell shares.
pub(in crate::orchestrator) struct Driver {
    pub(in crate::orchestrator) config: Config,
    pub(in crate::orchestrator) owner: Uuid,
    pub(in crate::orchestrator) store: Arc<dyn Store>,
    pub(in crate::orchestrator) pool: Arc<Pool>,
    flow_parts: Arc<FlowParts>,
    /// Held while tenants change, so that brain and store agree.
    pub(in crate::orchestrator) tenants: tokio::sync::Mutex<()>,
    /// Held while a job with an idempotency key comes in, by the key's hash: those that come at once
    /// with one key must find the first.
    keys: Vec<tokio::sync::Mutex<()>>,
    pub(in crate::orchestrator) hives: Arc<HiveMap>,
    /// Models on their way to hives.
    pub(in crate::orchestrator) provisioner: Arc<Provisioner>,
    pub(in crate::orchestrator) clock: Clock,
    tasks: TaskTracker,
    /// Where the library's own tasks run, whichever runtime a caller comes from.
    runtime: Handle,
    pub(in crate::orchestrator) stop: CancellationToken,
    pub(in crate::orchestrator) inbox: Arc<Inbox>,
    /// Counts what changed in the fleet, for those who wait for it.
    pub(in crate::orchestrator) fleet_changes: watch::Sender<u64>,
    /// Where models may be fetched from.
    pub(in crate::orchestrator) reach: Reach,
    /// What requests hold.
    pub(in crate::orchestrator) bodies: Budget,
    pub(in crate::orchestrator) answers: Budget,
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
    pub(in crate::orchestrator) fn new(
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
            privacy: Privacy::of(&config.privacy),
        };
        Driver {
            flow_parts: Arc::new(flow_parts),
            tenants: tokio::sync::Mutex::default(),
            keys: (0..KEY_LOCKS)
                .map(|_| tokio::sync::Mutex::default())
                .collect(),
            reach: config.reach(),
            bodies: Budget::new(config.limits.max_bodies_bytes),
            answers: Budget::new(config.limits.max_answers_bytes),
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
                flows: IdMap::default(),
                settling: IdMap::default(),
                actions: Vec::new(),
                sent: Vec::new(),
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
    pub(in crate::orchestrator) fn look<T>(&self, look: impl FnOnce(&Brain, Now) -> T) -> T {
        let now = self.clock.now();
        look(&self.lock().brain, now)
    }

    /// Lets the brain decide, and carries out what it wants in the order it wants it.
    pub(in crate::orchestrator) fn decide<T>(
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
        self.inbox.take(&mut core.sent);
        for event in core.sent.drain(..) {
            core.brain.handle(now, event, actions);
        }
    }

    /// Tells the brain what was sent to it, if anything was.
    pub(in crate::orchestrator) fn catch_up(self: &Arc<Self>) {
        if !self.inbox.is_empty() {
            self.decide(|_, _, _| ());
        }
    }

    /// Spawns a task that the end of the orchestrator waits for.
    pub(in crate::orchestrator) fn spawn<T: Send + 'static>(
        &self,
        task: impl Future<Output = T> + Send + 'static,
    ) -> JoinHandle<T> {
        self.tasks.spawn_on(task, &self.runtime)
    }

    /// Ends every task, and waits for it.
    pub(in crate::orchestrator) async fn end_tasks(&self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }

    /// Tells the brain what happened.
    pub(in crate::orchestrator) fn feed(self: &Arc<Self>, event: Event) {
        let of_fleet = matches!(event, Event::HiveReport { .. } | Event::HiveStarted { .. });
        self.decide(|brain, now, out| brain.handle(now, event, out));
        if of_fleet {
            self.fleet_changes.send_modify(|count| *count += 1);
        }
    }

    /// Whether the queen stood still since.
    pub(in crate::orchestrator) fn stood_still_since(self: &Arc<Self>, begun: Mono) -> bool {
        // She may be awake again only now, and not have noticed.
        self.feed(Event::Pulse);
        self.look(|brain, _| brain.stood_still_since(begun))
    }

    /// A flow for a job that is about to be taken in.
    pub(in crate::orchestrator) fn new_flow(&self, call: Call) -> Arc<Flow> {
        Arc::new(Flow::new(call, self.pool.clone(), self.flow_parts.clone()))
    }

    /// What a job tells that has not ended, or whose ending is on its way to the disk. Under the
    /// lock: a journal that is made while the job ends would miss that.
    pub(in crate::orchestrator) fn journal(&self, job: JobId) -> Option<Arc<Journal>> {
        let core = self.lock();
        let flow = core.flows.get(&job).or_else(|| core.settling.get(&job));
        flow.map(|flow| flow.journal())
    }

    /// Waits until no other job with this key is coming in.
    pub(in crate::orchestrator) async fn lock_key(
        &self,
        tenant: &TenantId,
        key: &str,
    ) -> tokio::sync::MutexGuard<'_, ()> {
        let mut hasher = DefaultHasher::new();
        (tenant, key).hash(&mut hasher);
        let at = hasher.finish() as usize % self.keys.len();
        self.keys[at].lock().await
    }

    /// Asks whether a job may come in; it is counted then, and waits for its confirmation.
    pub(in crate::orchestrator) fn admit(
        self: &Arc<Self>,
        flow: Arc<Flow>,
        request: Box<JobRequest>,
    ) -> Result<()> {
        let now = self.clock.now();
        let mut core = self.lock();
        self.decide_in(&mut core, now, |brain, now, out| {
            brain.admit(now, request, out)
        })?;
        core.flows.insert(flow.id(), flow);
        Ok(())
    }

    /// Takes an admission back.
    pub(in crate::orchestrator) fn withdraw(self: &Arc<Self>, job: JobId) {
        self.feed(Event::Withdraw(job));
        self.lock().flows.remove(&job);
    }

    /// Takes a job in that is to be recorded as soon as it is let in.
    ///
    /// # Errors
    /// Why it is refused; then nothing is recorded of it.
    pub(in crate::orchestrator) fn submit(
        self: &Arc<Self>,
        flow: &Arc<Flow>,
        request: Box<JobRequest>,
        record: Box<JobRecord>,
        stored: Option<Vec<u8>>,
    ) -> Result<()> {
        let now = self.clock.now();
        let mut core = self.lock();
        // Both before what the brain wants is carried out.
        core.flows.insert(flow.id(), flow.clone());
        let submitted = self.decide_in(&mut core, now, |brain, now, out| {
            brain.submit(now, request, out)?;
            self.store.record(JobChange::Submitted {
                record,
                request: stored,
            });
            Ok(())
        });
        if submitted.is_err() {
            core.flows.remove(&flow.id());
        }
        submitted
    }

    /// Takes a job up that an earlier life left.
    pub(in crate::orchestrator) fn recover(
        self: &Arc<Self>,
        flow: Arc<Flow>,
        request: Box<JobRequest>,
    ) {
        let now = self.clock.now();
        let mut core = self.lock();
        core.flows.insert(flow.id(), flow);
        self.decide_in(&mut core, now, |brain, now, out| {
            brain.handle(now, Event::Recover(request), out);
        });
    }

    /// Makes the timer fire in time for what is due first.
    fn set_timer(&self, due: Option<Mono>) {
        let due = as_ms(due);
        if due < self.timer_at.load(Ordering::Relaxed) {
            self.timer_at.store(due, Ordering::Relaxed);
            self.timer.notify_one();
        }
    }

    /// Ends every job that has not ended.
    pub(in crate::orchestrator) fn abort_all(self: &Arc<Self>, error: &Error) {
        let jobs: Vec<JobId> = self.lock().flows.keys().copied().collect();
        for job in jobs {
            self.feed(Event::Cancel {
                job,
                error: error.clone(),
            });
        }
    }
}

/// A time for the atomic; the far end stands for never.
fn as_ms(due: Option<Mono>) -> u64 {
    due.map_or(u64::MAX, |at| {
        u64::try_from(at.0.as_millis()).unwrap_or(u64::MAX)
    })
}
