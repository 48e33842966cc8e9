//! Workers that fail again and again: left alone, and then tried with care.

use rbee_orchestrator::brain::{Blame, Report};
use rbee_orchestrator::domain::{JobId, Outcome};
use rbee_orchestrator::error::{Code, Error};

use crate::parts::{SMOL, secs};
use crate::world::World;

/// A worker of eight slots whose next failure is one too many.
fn on_the_brink() -> (World, rbee_orchestrator::domain::WorkerId) {
    let (mut world, id) = World::configured(8, |config| config.retry.attempts_interactive = 1);
    for _ in 0..4 {
        let job = world.submit(SMOL);
        world.fail(job, Blame::Worker);
    }
    (world, id)
}

fn left_alone() -> (World, rbee_orchestrator::domain::WorkerId) {
    let (mut world, id) = on_the_brink();
    let job = world.submit(SMOL);
    world.fail(job, Blame::Worker);
    assert_eq!(world.brain.counters().breaker_opened, 1);
    (world, id)
}

#[test]
fn a_worker_that_fails_five_times_in_a_row_gets_nothing_for_a_while_then_one_probe() {
    let (mut world, id) = left_alone();
    let jobs = [(); 3].map(|()| world.submit(SMOL));
    let running = |world: &World| {
        jobs.iter()
            .filter(|job| world.runs_on(**job).is_some())
            .count()
    };
    assert_eq!(running(&world), 0);
    assert_eq!(world.told(jobs[0]), ["pause_worker"]);
    let allowance = |world: &World| {
        world
            .brain
            .view(world.now)
            .workers
            .get(&id)
            .unwrap()
            .allowance
    };
    assert_eq!(allowance(&world), Some(0));
    world.pass(secs(5));
    assert_eq!(running(&world), 1, "one probe");
    world.end(jobs[0]);
    assert_eq!(running(&world), 3, "it works again");
    assert_eq!(allowance(&world), None);
}

#[test]
fn a_probe_that_fails_is_followed_by_a_longer_pause() {
    let (mut world, _) = left_alone();
    for pause in [5, 10, 20] {
        let probe = world.submit(SMOL);
        world.pass(secs(pause - 1));
        assert_eq!(world.runs_on(probe), None);
        world.pass(secs(1));
        assert!(world.runs_on(probe).is_some(), "{pause}");
        world.fail(probe, Blame::Worker);
    }
    assert_eq!(world.brain.counters().breaker_opened, 4);
}

#[test]
fn a_probe_that_says_nothing_makes_room_for_the_next() {
    let (mut world, _) = left_alone();
    let says_nothing: [fn(&mut World, JobId); 3] = [
        |world, job| world.fail(job, Blame::Request),
        |world, job| {
            let error = Error::new(Code::Cancelled, "gone");
            world.end_with(job, Report::of(Outcome::Cancelled(error)));
        },
        |world, job| world.fail(job, Blame::Load(None)),
    ];
    world.pass(secs(5));
    for say in says_nothing {
        let [probe, next] = [(); 2].map(|()| world.submit(SMOL));
        assert!(world.runs_on(probe).is_some() && world.runs_on(next).is_none());
        say(&mut world, probe);
        world.pass(secs(1));
        for job in [probe, next] {
            world.cancel(job);
            if world.runs_on(job).is_some() && world.is_open(job) {
                world.end_with(
                    job,
                    Report::of(Outcome::Cancelled(Error::new(Code::Cancelled, "gone"))),
                );
            }
        }
    }
    assert_eq!(world.brain.counters().breaker_opened, 1);
}

#[test]
fn neither_bad_requests_nor_back_pressure_count_as_failures() {
    let (mut world, _) = on_the_brink();
    for blame in [Blame::Request, Blame::Load(None)] {
        let job = world.submit(SMOL);
        world.fail(job, blame);
        world.cancel(job);
        world.pass(secs(1));
    }
    assert_eq!(world.brain.counters().breaker_opened, 0);
    let job = world.submit(SMOL);
    world.fail(job, Blame::Worker);
    assert_eq!(
        world.brain.counters().breaker_opened,
        1,
        "they did not heal it either"
    );
}

#[test]
fn what_began_before_a_worker_was_left_alone_says_nothing_about_it_now() {
    let (mut world, _) = on_the_brink();
    let [long, last] = [(); 2].map(|()| world.submit(SMOL));
    world.fail(last, Blame::Worker);
    world.pass(secs(5));
    world.end(long);
    let [probe, next] = [(); 2].map(|()| world.submit(SMOL));
    assert!(world.runs_on(probe).is_some() && world.runs_on(next).is_none());
}

#[test]
fn a_worker_that_is_left_alone_is_passed_over() {
    let (mut world, id) = left_alone();
    world.hive("b", &[crate::parts::device(0, "cpu", 8)]);
    let other = world.adopt("b", "b-0", SMOL, 1);
    let jobs = [(); 2].map(|()| world.submit(SMOL));
    assert_eq!(world.runs_on(jobs[0]), Some(other));
    assert_eq!(world.runs_on(jobs[1]), None);
    world.pass(secs(5));
    assert_eq!(world.runs_on(jobs[1]), Some(id));
}

#[test]
fn nothing_is_left_of_a_worker_that_goes_while_it_is_left_alone() {
    let (mut world, id) = left_alone();
    world.shut_down(&id, true);
    world.stopped(&id);
    assert_eq!(world.brain.next_due(), None);
}
