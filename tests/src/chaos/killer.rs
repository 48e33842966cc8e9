//! Starts the queen, has her die, and starts her again: at a step that her test hook names, or at
//! any time.

use super::weather::Weather;
use crate::clock::monotonic_ns;
use crate::harness::{Fallen, Launch, Queen};
use crate::random::Random;
use anyhow::{Result, bail, ensure};
use rustix::process::Signal;
use std::collections::BTreeMap;
use std::ops::Range;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

/// Set for a queen's process, it makes her kill herself: `STEP:N`, at the Nth time that she comes
/// to the step. Only debug builds have it.
const HOOK: &str = "QUEEN_TEST_KILL_AT";

/// The step that only a life comes to which finds an older version's database.
const MIGRATING: &str = "migrating";

/// The step that a life comes to for as long as old jobs are left, right after its start.
const PURGING: &str = "purging";

/// The steps that a life comes to under load, and up to how many passings make sense.
const UNDER_LOAD: [(&str, u64); 6] = [
    ("submit-inserted", 12),
    ("dispatched", 12),
    ("mid-stream", 40),
    ("finish-before-commit", 12),
    ("recovering", 1),
    ("recovery-uncommitted", 1),
];

/// How long a queen may live without coming to the step that is to be her last.
const PATIENCE: Duration = Duration::from_secs(3);

/// The longest life that ends at any time.
const ANY_TIME_MS: u64 = 1200;

/// When a queen dies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Death {
    /// At the nth passing of a step
    At(&'static str, u64),
    /// So long after she is up
    After(Duration),
}

/// A life, and where her only worker is meanwhile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Life {
    death: Death,
    worker: Worker,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Worker {
    There,
    /// Goes away half-way through it
    Leaves,
    Away,
    /// Comes back half-way through it
    Returns,
}

/// Five lives between whose first and last the worker is away: for longer than an attempt is put off.
fn away(random: &mut Random) -> [Life; 5] {
    let mut any_time = || Death::After(Duration::from_millis(random.between(1, ANY_TIME_MS)));
    [
        (any_time(), Worker::Leaves),
        (Death::At("recovering", 1), Worker::Away),
        (any_time(), Worker::Away),
        (Death::At("recovery-uncommitted", 1), Worker::Away),
        (any_time(), Worker::Returns),
    ]
    .map(|(death, worker)| Life { death, worker })
}

/// How many of so many deaths are in the middle of a purge.
pub(super) fn purges(kills: usize) -> usize {
    1 + kills / 20
}

/// `kills` lives: first those that an old database brings, then each step in turns with deaths at
/// any time, in an order that the seed decides, and after each turn some without the worker.
pub(super) fn plan(kills: usize, random: &mut Random) -> Vec<Life> {
    let there = |death| Life {
        death,
        worker: Worker::There,
    };
    // The second life takes jobs in: a clock that is years ahead of the newest one purges nothing.
    let mut deaths = vec![
        Death::At(MIGRATING, 1),
        Death::After(Duration::from_millis(ANY_TIME_MS)),
    ];
    deaths.resize(2 + purges(kills), Death::At(PURGING, 1));
    let mut lives: Vec<Life> = deaths.into_iter().map(there).collect();
    while lives.len() < kills {
        let steps = UNDER_LOAD.iter();
        let mut turn: Vec<Death> = steps
            .map(|(step, most)| Death::At(step, random.between(1, *most)))
            .collect();
        for _ in 0..UNDER_LOAD.len() / 2 {
            let ms = random.between(1, ANY_TIME_MS);
            turn.push(Death::After(Duration::from_millis(ms)));
        }
        random.shuffle(&mut turn);
        lives.extend(turn.into_iter().map(there));
        lives.extend(away(random));
    }
    lives.truncate(kills);
    lives
}

/// What the killer did.
#[derive(Debug, Default)]
pub(super) struct Kills {
    /// How often the queen died at each step; `any time` where no step was asked for
    pub(super) struck: BTreeMap<&'static str, usize>,
    /// How often she never came to the step, and was killed all the same
    pub(super) missed: BTreeMap<&'static str, usize>,
    /// When each of her processes was started, on the clock of [`crate::clock`]
    pub(super) started_ns: Vec<u64>,
    /// When the worker was away, up to the end of the life in which it came back
    pub(super) away_ns: Vec<Range<u64>>,
}

pub(super) const ANY_TIME: &str = "any time";

impl Kills {
    pub(super) fn count(&self) -> usize {
        self.struck.values().chain(self.missed.values()).sum()
    }

    /// The steps that she never died at.
    pub(super) fn untouched(&self) -> Vec<&'static str> {
        let under_load = UNDER_LOAD.iter().map(|(step, _)| *step);
        let all = [MIGRATING, PURGING].into_iter().chain(under_load);
        all.filter(|step| !self.struck.contains_key(step)).collect()
    }

    /// Has her live and die as planned, until `deadline`; returns the queen who lives on.
    ///
    /// # Errors
    /// When she ends otherwise than by the kill, or does not come up again.
    pub(super) fn carry_out<'h>(
        &mut self,
        lives: &[Life],
        launch: impl Fn() -> Launch<'h>,
        weather: &Weather<'_>,
        deadline: Instant,
    ) -> Result<Queen> {
        for (number, life) in lives.iter().enumerate() {
            if Instant::now() > deadline {
                break;
            }
            let (number, of, death, worker) = (number + 1, lives.len(), life.death, life.worker);
            eprintln!("chaos: life {number} of {of}: {death:?}, worker {worker:?}");
            self.one_life(*life, launch(), weather)?;
        }
        weather.stub().come_back()?;
        self.away_is_over();
        self.started_ns.push(monotonic_ns());
        match launch().try_start() {
            Ok(queen) => Ok(queen),
            Err(fallen) => bail!("the queen does not come up any more:\n{}", fallen.log),
        }
    }

    fn away_is_over(&mut self) {
        if let Some(away) = self.away_ns.last_mut() {
            away.end = away.end.min(monotonic_ns());
        }
    }

    fn one_life(&mut self, life: Life, launch: Launch<'_>, weather: &Weather<'_>) -> Result<()> {
        self.started_ns.push(monotonic_ns());
        let there = life.worker == Worker::There;
        if there || life.worker == Worker::Leaves {
            weather.calm()?;
        }
        match life.death {
            Death::At(step, passing) => {
                let launch = launch.env(HOOK, &format!("{step}:{passing}"));
                let struck = match launch.try_start() {
                    Ok(mut queen) => match queen.ended(PATIENCE) {
                        Some(status) => {
                            check_killed(status, &queen.log())?;
                            true
                        }
                        None => {
                            queen.kill();
                            false
                        }
                    },
                    Err(Fallen { status, log }) => {
                        check_killed(status, &log)?;
                        true
                    }
                };
                let count = if struck {
                    &mut self.struck
                } else {
                    &mut self.missed
                };
                *count.entry(step).or_default() += 1;
            }
            Death::After(time) => match launch.try_start() {
                Ok(mut queen) => {
                    let _passing = match there {
                        true => weather.turn(self.started_ns.len())?,
                        false => None,
                    };
                    lives_for(&mut queen, time / 2)?;
                    match life.worker {
                        Worker::Leaves => {
                            self.away_ns.push(monotonic_ns()..u64::MAX);
                            weather.stub().leave()?;
                        }
                        Worker::Returns => weather.stub().come_back()?,
                        Worker::There | Worker::Away => {}
                    }
                    lives_for(&mut queen, time / 2)?;
                    queen.kill();
                    if life.worker == Worker::Returns {
                        self.away_is_over();
                    }
                    *self.struck.entry(ANY_TIME).or_default() += 1;
                }
                Err(fallen) => bail!("the queen did not come up again:\n{}", fallen.log),
            },
        }
        Ok(())
    }
}

fn lives_for(queen: &mut Queen, time: Duration) -> Result<()> {
    match queen.ended(time) {
        Some(status) => bail!("the queen ended by herself ({status}):\n{}", queen.log()),
        None => Ok(()),
    }
}

fn check_killed(status: ExitStatus, log: &str) -> Result<()> {
    let killed = status.signal() == Some(Signal::KILL.as_raw());
    ensure!(killed, "the queen ended by herself ({status}):\n{log}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_short_plan_has_every_step_and_a_seed_decides_it() {
        for seed in 0..20 {
            let lives = plan(17, &mut Random::new(seed));
            assert_eq!(lives, plan(17, &mut Random::new(seed)));
            assert_eq!(lives[0].death, Death::At(MIGRATING, 1));
            assert_eq!(lives[2].death, Death::At(PURGING, 1));
            for (step, _) in UNDER_LOAD {
                let has = |life: &&Life| matches!(life.death, Death::At(name, _) if name == step);
                let with_worker = lives[..12].iter().filter(has);
                assert_eq!(with_worker.count(), 1, "{step}, seed {seed}");
            }
            let without: Vec<Worker> = lives[12..].iter().map(|life| life.worker).collect();
            use Worker::{Away, Leaves, Returns};
            assert_eq!(without, [Leaves, Away, Away, Away, Returns]);
        }
        assert_eq!(plan(200, &mut Random::new(1)).len(), 200);
    }
}
