//! Workers that have too much to do.

use std::time::Duration;

use rbee_orchestrator::brain::Blame;
use rbee_orchestrator::domain::{JobId, Outcome};

use crate::parts::{SMOL, secs};
use crate::retry::{other, two_workers};
use crate::world::World;

fn busy(wait: Option<Duration>) -> Blame {
    Blame::Load(wait)
}

#[test]
fn back_pressure_is_nobodys_fault_and_the_worker_gets_its_pause() {
    let (mut world, id) = World::with_smol(4);
    let job = world.submit(SMOL);
    for attempt in 1..10 {
        world.fail(job, busy(None));
        assert_eq!(world.attempts(job).len(), attempt);
        let late = world.submit(SMOL);
        assert_eq!(world.runs_on(late), None, "nobody gets it now");
        assert_eq!(world.told(late), ["pause_worker"]);
        world.cancel(late);
        world.pass(secs(1));
        assert_eq!(world.attempts(job).len(), attempt + 1);
    }
    world.end(job);
    assert!(matches!(world.outcome(job), Some(Outcome::Complete)));
    assert!(world.has_worker(&id) && world.checks().is_empty());
    let counters = world.brain.counters();
    assert_eq!((counters.back_pressure, counters.retries), (9, 0));
    assert_eq!(counters.breaker_opened, 0);
}

#[test]
fn a_worker_with_too_much_to_do_is_passed_over_for_as_long_as_it_says() {
    let (mut world, ids) = two_workers(4);
    let job = world.submit(SMOL);
    let first = world.runs_on(job).unwrap();
    world.fail(job, busy(Some(secs(7))));
    let second = other(&ids, &first);
    assert_eq!(world.runs_on(job), Some(second), "at once");
    let others = [(); 5].map(|()| world.submit(SMOL));
    let on_first = |world: &World| {
        let there = |job: &&JobId| world.runs_on(**job) == Some(first.clone());
        others.iter().filter(there).count()
    };
    assert_eq!(on_first(&world), 0);
    world.pass(Duration::from_millis(6999));
    assert_eq!(on_first(&world), 0);
    world.pass(Duration::from_millis(1));
    assert_eq!(on_first(&world), 2, "those who found no slot on the other");
}

#[test]
fn a_pause_is_neither_nothing_nor_forever() {
    for (wait, pause) in [(secs(0), 100), (secs(3600), 60_000)] {
        let (mut world, _) = World::with_smol(1);
        let job = world.submit_with(SMOL, |r| r.queue_timeout = secs(100));
        world.fail(job, busy(Some(wait)));
        world.pass(Duration::from_millis(pause - 1));
        assert_eq!(world.attempts(job), [1]);
        world.pass(Duration::from_millis(1));
        assert_eq!(world.attempts(job), [1, 2]);
    }
}

#[test]
fn a_client_who_met_nothing_but_back_pressure_hears_no_capacity() {
    let (mut world, _) = World::with_smol(1);
    let job = world.submit(SMOL);
    for _ in 0..59 {
        world.fail(job, busy(None));
        world.pass(secs(1));
        assert!(world.is_open(job));
    }
    world.fail(job, busy(Some(secs(30))));
    world.pass(secs(1));
    assert_eq!(world.code(job), "NO_CAPACITY");
    assert!(world.error(job).retry_after.is_some());
}
