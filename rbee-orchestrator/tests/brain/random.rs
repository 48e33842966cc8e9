//! Random interleavings of everything that can happen, in any order and at any time. A failure
//! prints its seed and the steps that led to it; `RBEE_SEED=…` runs just that seed, `RBEE_SEEDS=…` so
//! many of them.

mod fetches;
mod hives;
mod invariants;
mod jobs;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::time::Duration;

use rbee_orchestrator::brain::{Event, JobRequest, SeenState};
use rbee_orchestrator::config::{Capacity, Config, QuotaPolicy, WhenFull};
use rbee_orchestrator::domain::{
    Attempt, HiveId, JobId, ModelRef, TenantLimits, UnixMillis, WorkerId, WorkerProtocol,
};
use rbee_orchestrator::error::{Code, Error};
use rbee_orchestrator::scheduler::{LeastLoaded, RoundRobin, Scheduler};

use crate::dice::{Dice, HIVES, Nonsense};
use crate::parts::{BIG, SMOL, call, failed, hive, secs, spec, worker};
use crate::world::World;

const SEEDS: u64 = 300;
const STEPS: usize = 400;
const MODELS: [&str; 9] = [
    "smol",
    "tiny",
    SMOL,
    BIG,
    "nonsense",
    "hf:nonsense",
    "org/repo",
    REPO,
    "hf:org/other",
];
const REPO: &str = "hf:org/repo";

/// A lease that is out: the router has it.
type Lease = (JobId, Attempt, WorkerId);

struct Run {
    dice: Dice,
    world: World,
    steps: Vec<String>,
    actions: Vec<String>,
    /// Requests of the jobs that came in and were not withdrawn.
    submitted: BTreeMap<JobId, JobRequest>,
    /// Let in, and neither confirmed nor withdrawn.
    admitted: Vec<JobId>,
    finished: HashSet<JobId>,
    attempts: HashMap<JobId, Attempt>,
    leases: Vec<Lease>,
    returned: Vec<Lease>,
    /// Ids that were ever seen, to be named again at the wrong time.
    workers: Vec<WorkerId>,
    spawning: Vec<WorkerId>,
    /// Fetches that hives were asked for, and that have not ended.
    fetching: Vec<(HiveId, ModelRef)>,
    /// How often rare states were reached.
    reached: Reached,
}

/// Counts by what happened.
type Reached = BTreeMap<&'static str, u64>;

fn config(seed: u64) -> Config {
    let mut config = Config::default();
    config.queue.capacity_interactive = Capacity::of(12);
    config.queue.capacity_batch = Capacity::of(6);
    config.queue.max_bytes = 4000;
    config.queue.promote_after = secs(20);
    config.hives.worker_slots = Some(2);
    config.hives.restart_limit = (seed % 4) as u32;
    config.hives.offline_after = 1 + (seed % 3) as u32;
    if seed.is_multiple_of(2) {
        config.queue.when_full = WhenFull::DropOldestBatch;
    }
    if seed % 4 < 2 {
        config.quota_policy = QuotaPolicy::Queue;
    }
    if seed % 5 < 3 {
        let limits = TenantLimits {
            max_concurrent: Some(4),
            tokens_per_day: Some(5000),
            requests_per_minute: Some(30),
            tokens_per_minute: Some(3000),
            ..TenantLimits::default()
        };
        config.tenants.insert("default".into(), limits);
        let limits = TenantLimits {
            weight: 3,
            models: Some(vec!["smol".into(), "nonsense".into()]),
            ..TenantLimits::default()
        };
        config.tenants.insert("heavy".into(), limits);
    }
    config
}

fn world(seed: u64) -> World {
    let scheduler: Box<dyn Scheduler> = match seed % 3 {
        0 => Box::new(LeastLoaded),
        1 => Box::new(RoundRobin::default()),
        _ => Box::new(Nonsense(Dice(seed))),
    };
    let mut world = World::with(config(seed), scheduler, Vec::new());
    world.register(spec("a"));
    if seed % 10 == 7 {
        world.wake_up();
    }
    world
}

impl Run {
    fn new(seed: u64) -> Self {
        Run {
            dice: Dice(seed),
            world: world(seed),
            steps: Vec::new(),
            actions: Vec::new(),
            submitted: BTreeMap::new(),
            admitted: Vec::new(),
            finished: HashSet::new(),
            attempts: HashMap::new(),
            leases: Vec::new(),
            returned: Vec::new(),
            workers: vec![worker("x-0"), worker("x-1"), worker("x-2")],
            spawning: Vec::new(),
            fetching: Vec::new(),
            reached: Reached::new(),
        }
    }

    fn reach(&mut self, what: &'static str) {
        *self.reached.entry(what).or_default() += 1;
    }

    /// What the brain of this life has counted.
    fn reach_what_was_counted(&mut self) {
        let counters = self.world.brain.counters();
        for (what, count) in [
            ("restart", counters.hive_restarts),
            ("give-up", counters.hives_given_up),
            ("flap", counters.hive_flaps),
            ("stall", counters.stalls),
        ] {
            *self.reached.entry(what).or_default() += count;
        }
    }

    fn tell(&mut self, event: Event) {
        self.steps.push(format!("{event:?}"));
        self.world.tell(event);
    }

    fn say(&mut self, what: String) {
        self.steps.push(what);
    }

    fn step(&mut self, seed: u64) {
        // A call that is held for a spawn may change a worker that just took work, when the last
        // spawn in flight is forgotten.
        let no_call_is_held = self.spawning.is_empty();
        match self.dice.below(29) {
            0..=5 => self.submit(),
            6..=9 => self.return_lease(),
            10 => self.cancel(),
            11..=12 => {
                self.answer_spawn();
                // A call that was held for it may change a worker that just took work.
                return self.check(false);
            }
            13..=14 => return self.hive_lists(),
            16..=17 => {
                self.worker_event();
                return self.check(no_call_is_held);
            }
            18..=19 => self.worker_calls(),
            20 => {
                self.administrate();
                return self.check(no_call_is_held);
            }
            21..=22 => {
                self.pass();
                return self.check(no_call_is_held);
            }
            23..=24 => self.confirm_or_withdraw(),
            25..=26 => self.fetch_event(),
            15 | 27 => {
                self.hive_start_or_miss();
                return self.check(no_call_is_held);
            }
            _ if self.dice.one_in(12) => self.restart(seed),
            _ if self.world.awake && self.dice.one_in(2) => {
                self.stand_still();
                return self.check(false);
            }
            _ => self.turn_the_wall_clock(),
        }
        self.check(true);
    }

    fn any_worker(&mut self) -> WorkerId {
        self.dice.pick(&self.workers).unwrap()
    }

    fn answer_spawn(&mut self) {
        let id = match self.dice.below(8) {
            0 => self.any_worker(),
            _ if self.spawning.is_empty() => return,
            _ => {
                let at = self.dice.below(self.spawning.len());
                self.spawning.swap_remove(at)
            }
        };
        let result = match self.dice.below(6) {
            0 => Err(Error::new(Code::InsufficientVram, "full")),
            1 => Err(failed("no engine")),
            2 => Ok(self.any_worker()),
            _ => Ok(id.clone()),
        };
        self.say(format!("{id} spawned: {result:?}"));
        self.world.answer_spawn(&id, result);
    }

    fn state(&mut self) -> SeenState {
        match self.dice.below(8) {
            0 => SeenState::Stopping,
            1 => SeenState::Failed(failed("died")),
            2..=3 => SeenState::Loading,
            _ => SeenState::Ready,
        }
    }

    fn protocol(&mut self) -> WorkerProtocol {
        match self.dice.one_in(4) {
            true => WorkerProtocol::Rbee,
            false => WorkerProtocol::OpenAi,
        }
    }

    fn worker_event(&mut self) {
        let worker = self.any_worker();
        let event = match self.dice.below(8) {
            0 => Event::WorkerFailed {
                worker,
                error: failed("died"),
            },
            1..=2 => Event::WorkerStopped { worker },
            _ => Event::WorkerChecked {
                worker,
                answers: !self.dice.one_in(3),
                begun: self.world.now.mono,
            },
        };
        self.tell(event);
    }

    fn worker_calls(&mut self) {
        let id = self.any_worker();
        let mut call = call(&id, MODELS[2 + self.dice.below(2)]);
        call.hive = self.dice.one_in(2).then(|| hive(HIVES[self.dice.below(3)]));
        call.speaks_for = match (self.dice.one_in(4), &call.hive) {
            (true, _) => Vec::new(),
            (false, Some(hive)) => vec![hive.clone()],
            (false, None) => HIVES.map(hive).to_vec(),
        };
        call.slots_total = Some(self.dice.below(4) as u32);
        call.protocol = Some(self.protocol());
        self.say(format!("calls or is registered: {call:?}"));
        let (now, world) = (self.world.now, &mut self.world);
        let _ = match self.dice.one_in(4) {
            true => world.brain.register_worker(now, &call, &mut world.actions),
            false => world.call_ready(call),
        };
    }

    fn pass(&mut self) {
        let time = Duration::from_millis(self.dice.below(20_000) as u64);
        self.say(format!("{time:?} pass"));
        self.pass_time(time);
    }

    /// Lets time pass, and looks at what is done whenever something is due.
    fn pass_time(&mut self, time: Duration) {
        let end = self.world.now.mono + time;
        let due = |world: &World| world.brain.next_due().filter(|due| *due <= end);
        while let Some(due) = due(&self.world) {
            self.world.pass(due.since(self.world.now.mono));
            // Of what falls due together, one thing may give a worker work and another end it.
            self.check(false);
        }
        self.world.pass(end.since(self.world.now.mono));
    }

    /// The queen stands still, in runs in which she would notice it.
    fn stand_still(&mut self) {
        let time = Duration::from_millis(self.dice.below(20_000) as u64);
        self.say(format!("the queen stands still for {time:?}"));
        self.world.stand_still(time);
        self.tell(Event::Tick);
    }

    fn turn_the_wall_clock(&mut self) {
        let step = self.dice.below(7_200_000) as i64 - 3_600_000;
        self.say(format!("the wall clock is turned by {step} ms"));
        self.world.now.wall = UnixMillis(self.world.now.wall.0 + step);
        self.tell(Event::Tick);
    }
}

/// Runs a seed to its end; returns all that the brain wanted done, and what came about.
fn run(seed: u64) -> (Vec<String>, Reached) {
    let mut run = Run::new(seed);
    let result = catch_unwind(AssertUnwindSafe(|| {
        for _ in 0..STEPS {
            run.step(seed);
        }
        run.wind_down();
    }));
    if let Err(panic) = result {
        for step in &run.steps {
            eprintln!("{step}");
        }
        eprintln!("seed {seed} failed after these {} steps", run.steps.len());
        resume_unwind(panic);
    }
    run.reach_what_was_counted();
    (run.actions, run.reached)
}

/// The seeds that are run: `RBEE_SEED` alone, or all below `RBEE_SEEDS`.
fn seeds() -> std::ops::Range<u64> {
    let number = |name| {
        let value = std::env::var(name).ok()?;
        Some(value.parse().expect("a seed is a number"))
    };
    match number("RBEE_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("RBEE_SEEDS").unwrap_or(SEEDS),
    }
}

#[test]
fn whatever_happens_every_job_ends_once_and_no_slot_is_given_out_twice() {
    let seeds = seeds();
    let is_alone = seeds.clone().count() == 1;
    let mut reached = Reached::new();
    for (what, count) in seeds.flat_map(|seed| run(seed).1) {
        *reached.entry(what).or_default() += count;
    }
    for what in [
        "fetched",
        "fetch failed",
        "eviction",
        "restart",
        "give-up",
        "drain",
        "resume",
        "drained and stopped",
        "flap",
        "stall",
    ] {
        let count = reached.get(what).copied().unwrap_or(0);
        assert!(count >= 10 || is_alone, "too rarely: {what}: {reached:?}");
    }
}

#[test]
fn the_same_seed_gives_the_same_actions() {
    for seed in 0..30 {
        assert_eq!(run(seed), run(seed), "seed {seed}");
    }
}
