//! Every decision, in one state machine: no socket, no clock, no disk, no task.
//!
//! [`Brain::handle`] takes an event and the time and appends what is to be done. The same code
//! runs in production and under a test's hand-moved clock.

mod action;
mod addresses;
mod admission;
mod arrival;
mod batch;
mod breaker;
mod calls;
mod chance;
mod counters;
mod doubt;
mod drains;
mod event;
mod eviction;
mod fleet;
mod hive_notes;
mod job;
mod jobs;
mod leases;
mod limiter;
mod names;
mod no_place;
mod places;
mod placing;
mod provisioning;
mod queue;
mod quota;
mod rates;
mod restarts;
mod retry;
mod room;
mod spawning;
mod stall;
mod steadiness;
mod suspicion;
mod tenants;
mod trust;
mod waiting;
mod watch;
mod window;
mod workers;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fmt;

use crate::config::Config;
use crate::domain::{HiveId, HiveRecord, JobId, ModelRef, Mono, Now, Outcome, Worker, WorkerId};
use crate::error::{Error, Result};
use crate::hashing::IdMap;
use crate::scheduler::{ClusterView, Hive, Scheduler, Workers};

pub use action::Action;
use batch::Lately;
pub use calls::{SpawnOrder, WorkerCallback};
use chance::Chance;
pub use counters::{Counters, Tally};
pub use event::{Aftermath, Blame, Event, JobRequest, Report, SeenState, SeenWorker, Spawned};
use hive_notes::HiveNotes;
use job::{Due, Job, Phase};
use names::{Meaning, Names};
pub use places::QueuePlace;
use queue::Queue;
use rates::Rates;
use retry::Budget;
use room::Room;
pub use spawning::OrderAnswer;
pub use stall::PULSE;
use tenants::{Midnight, Tenants};

/// The state machine. See the module's documentation.
pub struct Brain {
    config: Config,
    scheduler: Box<dyn Scheduler>,
    hives: BTreeMap<HiveId, Hive>,
    hive_notes: HashMap<HiveId, HiveNotes>,
    workers: Workers,
    /// What the registry does not need but the brain does.
    worker_notes: IdMap<WorkerId, workers::Notes>,
    /// Ids that hives gave to workers in place of the minted ones.
    other_ids: HashMap<WorkerId, WorkerId>,
    /// Ready calls for unknown ids, held while a spawn is in flight.
    early_ready: Vec<WorkerCallback>,
    /// Those of them that are to be taken in, since no spawn was theirs.
    early_adoptable: Vec<WorkerCallback>,
    /// Workers that were stopped: a report that was on its way does not bring them back.
    gone: HashMap<WorkerId, workers::Tombstone>,
    /// Who was last seen at which address.
    addresses: HashMap<addresses::Address, addresses::Holder>,
    names: Names,
    queue: Queue,
    room: Room,
    /// Models whose waiting jobs are about to be told their places, and when.
    telling: HashMap<ModelRef, Mono>,
    /// Models for which a place is looked for again soon.
    looks: HashSet<ModelRef>,
    rates: Rates,
    lately: Lately,
    tenants: Tenants,
    /// When a new day begins, while somebody waits for it.
    midnight: Option<Midnight>,
    budget: Budget,
    chance: Chance,
    counters: Counters,
    jobs: IdMap<JobId, Job>,
    due: BTreeSet<(Mono, Due)>,
    draining: bool,
    /// When the last event came, once a pulse did.
    awake_at: Option<Mono>,
    /// When the queen last found that she had stood still.
    stalled_until: Mono,
    mint: Box<dyn FnMut() -> WorkerId + Send + Sync>,
}

impl fmt::Debug for Brain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Brain")
            .field("scheduler", &self.scheduler.name())
            .field("hives", &self.hives.len())
            .field("waiting", &self.queue.len())
            .field("jobs", &self.jobs.len())
            .finish_non_exhaustive()
    }
}

impl Brain {
    /// A brain that knows these hives and no worker.
    #[must_use]
    pub fn new(config: Config, scheduler: Box<dyn Scheduler>, hives: Vec<HiveRecord>) -> Self {
        let hives = hives
            .into_iter()
            .map(|hive| (hive.spec.id.clone(), Hive::new(hive)))
            .collect();
        let mut brain = Brain {
            names: Names::new(&config.aliases),
            scheduler,
            hives,
            hive_notes: HashMap::new(),
            workers: Workers::default(),
            worker_notes: IdMap::default(),
            other_ids: HashMap::new(),
            early_ready: Vec::new(),
            early_adoptable: Vec::new(),
            gone: HashMap::new(),
            addresses: HashMap::new(),
            queue: Queue::default(),
            room: Room::default(),
            telling: HashMap::new(),
            looks: HashSet::new(),
            rates: Rates::default(),
            lately: Lately::default(),
            tenants: Tenants::new(&config.tenants),
            midnight: None,
            budget: Budget::default(),
            chance: Chance::default(),
            counters: Counters::default(),
            jobs: IdMap::default(),
            due: BTreeSet::new(),
            draining: false,
            awake_at: None,
            stalled_until: Mono::default(),
            mint: Box::new(WorkerId::mint),
            config,
        };
        for hive in brain.hives.values() {
            brain.names.learn(hive.id(), hive.models());
        }
        brain
    }

    /// Takes the ids of spawned workers from here instead of a random source, so that a run can
    /// be repeated.
    #[must_use]
    pub fn mint_ids_with(mut self, mint: impl FnMut() -> WorkerId + Send + Sync + 'static) -> Self {
        self.mint = Box::new(mint);
        self
    }

    /// Seeds what is left to chance, the pauses between attempts; 0 unless it is called.
    #[must_use]
    pub fn seeded(mut self, seed: u64) -> Self {
        self.chance = Chance::seeded(seed);
        self
    }

    /// Takes an event in and appends what is to be done about it.
    pub fn handle(&mut self, now: Now, event: Event, out: &mut Vec<Action>) {
        self.mind_the_gap(now, &event);
        self.mind_the_clock(now);
        match event {
            Event::Submit(request) => {
                let id = request.id;
                if let Err(error) = self.submit(now, request, out) {
                    self.refuse(now, id, error, out);
                }
            }
            Event::Confirm(job) => self.confirm(now, job, out),
            Event::Withdraw(job) => self.withdraw(now, job),
            Event::Recover(request) => self.recover(now, request, out),
            Event::Cancel { job, error } => self.cancel(now, job, error, out),
            Event::NotFlowing { job, attempt } => self.not_flowing(now, job, attempt, out),
            Event::AttemptEnded {
                job,
                attempt,
                worker,
                report,
            } => {
                self.attempt_ended(now, job, attempt, &worker, *report, out);
            }
            Event::HiveStarted { hive, result } => self.hive_started(now, &hive, result, out),
            Event::HiveInstalling { hive, percent } => {
                self.hive_installing(now, &hive, percent, out);
            }
            Event::HiveReport {
                hive,
                capabilities,
                workers,
            } => {
                self.hive_report(now, &hive, capabilities, workers, out);
            }
            Event::HiveMissed {
                hive,
                error,
                gone,
                begun,
            } => match !gone && self.stood_still_since(begun) {
                true => out.push(Action::CheckHive { hive }),
                false => self.hive_missed(now, &hive, error, gone, out),
            },
            Event::HiveStopped { hive, result } => self.hive_stopped(now, &hive, result, out),
            Event::FetchProgress {
                hive,
                model,
                bytes_downloaded,
                bytes_total,
            } => {
                self.fetch_progress(now, &hive, &model, (bytes_downloaded, bytes_total), out);
            }
            Event::Fetched {
                hive,
                model,
                result,
            } => self.fetched(now, &hive, &model, result, out),
            Event::SpawnAnswered { worker, result } => {
                self.spawn_answered(now, &worker, result, out);
            }
            Event::WorkerFailed { worker, error } => self.worker_failed(now, &worker, &error, out),
            Event::WorkerChecked {
                worker,
                answers,
                begun,
            } => match !answers && self.stood_still_since(begun) {
                true => self.check_again(&worker, out),
                false => self.worker_checked(now, &worker, answers, out),
            },
            Event::WorkerServes { worker, names } => {
                self.told_what_is_served(now, &worker, names, out);
            }
            Event::WorkerNotStopped { worker, error } => {
                self.not_stopped(now, &worker, error, out);
            }
            Event::WorkerStopped { worker } => self.worker_stopped(now, &worker, out),
            Event::Tick | Event::Pulse => {}
        }
        self.expire(now, out);
        self.adopt_early_callers(now, out);
        // What that ended may have made something due at once.
        self.expire(now, out);
        debug_assert!(self.is_consistent());
    }

    /// When the next [`Event::Tick`] is due.
    #[must_use]
    pub fn next_due(&self) -> Option<Mono> {
        self.due.first().map(|(at, _)| *at)
    }

    /// What a scheduler would see now.
    #[must_use]
    pub fn view(&self, now: Now) -> ClusterView<'_> {
        ClusterView {
            workers: &self.workers,
            hives: &self.hives,
            auto_download: self.config.hives.auto_download,
            now: now.mono,
        }
    }

    /// The model that a name means now.
    ///
    /// # Errors
    /// `INVALID_REQUEST` for a name that no model may have.
    pub fn resolve(&self, name: &str) -> Result<ModelRef> {
        let (Meaning::Certain(model) | Meaning::Fallback(model)) = self.names.resolve(name)?;
        Ok(model)
    }

    /// Aliases of a model, sorted.
    #[must_use]
    pub fn aliases(&self, model: &ModelRef) -> Vec<String> {
        self.names.aliases(model)
    }

    /// Jobs that wait for a worker.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.queue.len()
    }

    /// Jobs that have not ended.
    #[must_use]
    pub fn open_jobs(&self) -> usize {
        self.jobs.len()
    }

    /// How many jobs are where. Looks at each.
    #[must_use]
    pub fn tally(&self) -> Tally {
        let mut tally = Tally::default();
        for job in self.jobs.values() {
            *match job.phase {
                Phase::Admitted => &mut tally.admitted,
                Phase::Held => &mut tally.held,
                Phase::Backoff => &mut tally.backing_off,
                Phase::Waiting => &mut tally.waiting,
                Phase::Running | Phase::Aborting => &mut tally.running,
            } += 1;
        }
        tally
    }

    /// How often what happened since the start.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Whether a worker of this hive, or of any, is loading.
    #[must_use]
    pub fn is_loading(&self, hive: Option<&HiveId>) -> bool {
        let of_hive = |id: &Option<HiveId>| hive.is_none() || id.as_ref() == hive;
        self.workers
            .iter()
            .any(|worker| !worker.ready && of_hive(&worker.spec.hive))
    }

    /// Takes no more work: what comes is refused with `SHUTTING_DOWN`, what waits ends with it,
    /// what runs goes on. Asynchronous jobs that wait are left as they are, for the next life.
    pub fn drain(&mut self, now: Now, out: &mut Vec<Action>) {
        self.draining = true;
        let of_client = |job: &&Job| !job.request.asynchronous && !job.runs();
        let jobs = self.jobs.values().filter(of_client);
        let mut jobs: Vec<JobId> = jobs.map(|job| job.request.id).collect();
        jobs.sort_unstable();
        for job in jobs {
            self.end(now, job, Outcome::Failed(Error::shutting_down()), out);
        }
    }

    /// Whether [`Brain::drain`] was called.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.draining
    }

    /// Carries out what has fallen due.
    fn expire(&mut self, now: Now, out: &mut Vec<Action>) {
        while let Some((at, _)) = self.due.first()
            && *at <= now.mono
            && let Some((_, due)) = self.due.pop_first()
        {
            match due {
                Due::Queue(job) => self.queue_timed_out(now, job, out),
                Due::Total(job) => self.total_timed_out(now, job, out),
                Due::Backoff(job) => self.backoff_over(now, job, out),
                Due::Promote(job) => self.promote(now, job, out),
                Due::Quiet(model) => self.look_for_quiet(now, &model, out),
                Due::Held(tenant) => self.release_held(now, &tenant, out),
                Due::Midnight => self.at_midnight(now, out),
                Due::Places(model) => self.tell_places(&model, out),
                Due::Look(model) => self.look(now, &model, out),
                Due::Load(worker) => self.load_timed_out(now, &worker, out),
                Due::Abandoned(worker) => self.stop_what_nobody_waits_for(now, &worker, out),
                Due::Reopen(worker) => self.reopen(now, &worker, out),
                Due::Unpause(worker) => self.unpause(now, &worker, out),
                Due::Suspect(worker) => self.stop_suspect(now, &worker, out),
                Due::Restart(hive) => self.restart(now, &hive, out),
                Due::Steady(hive) => self.became_steady(now, &hive, out),
            }
        }
    }

    fn is_consistent(&self) -> bool {
        let leases_match = |worker: &Worker| {
            let notes = self.worker_notes.get(&worker.spec.id);
            notes.is_some_and(|notes| notes.leases.len() == worker.leases as usize)
        };
        self.workers.iter().all(leases_match) && self.queue.len() <= self.jobs.len()
    }
}
