//! Whose fault a failure is: a request's own mistakes hurt nobody else.

use rbee_orchestrator::brain::{Action, Aftermath, Blame, Event, Report};
use rbee_orchestrator::domain::{BreakerState, JobId, Outcome, WorkerId};

use crate::dice::Dice;
use crate::parts::{SMOL, device, failed, secs};
use crate::retry::{other, two_workers};
use crate::two_steps::asynchronous;
use crate::world::World;

fn three_workers(slots: u32) -> World {
    let (mut world, _) = two_workers(slots);
    world.hive("c", &[device(0, "cpu", 8)]);
    world.adopt("c", "c-0", SMOL, slots);
    world
}

/// The worker breaks a job's attempt off.
fn break_off(world: &mut World, job: JobId) -> WorkerId {
    let worker = world.runs_on(job).unwrap();
    let mut report = Report::of(Outcome::Failed(failed("it broke off")));
    (report.blame, report.aftermath) = (Blame::Worker, Aftermath::Suspect);
    world.end_with(job, report);
    worker
}

#[test]
fn an_error_answer_of_an_only_worker_is_told_at_once_and_costs_nobody_anything() {
    let (mut world, id) = World::with_smol(2);
    for _ in 0..50 {
        for change in [|_: &mut _| {}, asynchronous] {
            let bad = world.submit_with(SMOL, change);
            world.fail(bad, Blame::Unclear);
            assert_eq!(world.code(bad), "WORKER_FAILED");
            assert_eq!(world.error(bad).message, "it broke off");
            assert_eq!(world.attempts(bad), [1]);
        }
        let good = world.submit(SMOL);
        assert_eq!(world.runs_on(good), Some(id.clone()));
        world.end(good);
    }
    assert!(world.checks().is_empty(), "nobody doubts the worker");
    assert_eq!(world.brain.counters().breaker_opened, 0);
}

#[test]
fn an_error_answer_is_tried_on_one_other_worker_and_on_no_third() {
    let mut world = three_workers(1);
    let job = world.submit(SMOL);
    let first = world.runs_on(job).unwrap();
    world.fail(job, Blame::Unclear);
    let second = world.runs_on(job).unwrap();
    assert_ne!(first, second);
    world.fail(job, Blame::Unclear);
    assert_eq!(world.attempts(job), [1, 2]);
    let error = world.error(job);
    assert!(error.message.contains(first.as_str()), "{error}");
    assert!(error.message.contains(second.as_str()), "{error}");
    assert!(error.message.contains("no other worker"), "{error}");
}

#[test]
fn a_worker_that_answered_with_an_error_is_not_asked_again_when_it_is_all_that_is_left() {
    for change in [|_: &mut _| {}, asynchronous] {
        let (mut world, ids) = two_workers(1);
        let job = world.submit_with(SMOL, change);
        let first = world.runs_on(job).unwrap();
        let second = other(&ids, &first);
        let _busy = world.submit(SMOL);
        world.fail(job, Blame::Unclear);
        world.pass(secs(2));
        assert!(world.is_open(job), "it waits for the other");
        world.tell(Event::WorkerFailed {
            worker: second,
            error: failed("died"),
        });
        world.pass(secs(2));
        assert_eq!(world.attempts(job), [1]);
        assert_eq!(world.code(job), "WORKER_FAILED");
    }
}

#[test]
fn a_request_that_breaks_two_workers_is_given_to_no_third() {
    for change in [|_: &mut _| {}, asynchronous] {
        let mut world = three_workers(4);
        let job = world.submit_with(SMOL, change);
        let first = break_off(&mut world, job);
        world.pass(secs(2));
        let second = break_off(&mut world, job);
        assert_ne!(first, second);
        assert_eq!(world.attempts(job), [1, 2]);
        let error = world.error(job);
        assert!(error.message.contains("may be the cause"), "{error}");
    }
}

#[test]
fn a_request_after_which_a_worker_died_gets_one_more_try_even_under_the_same_name() {
    let (mut world, id) = World::with_smol(1);
    let job = world.submit_with(SMOL, asynchronous);
    break_off(&mut world, job);
    world.check(&id, false);
    world.check(&id, true);
    world.pass(secs(2));
    assert_eq!(world.attempts(job), [1, 2]);
    break_off(&mut world, job);
    assert_eq!(world.code(job), "WORKER_FAILED");
    // One that broke off and lived is tried on.
    let job = world.submit_with(SMOL, asynchronous);
    world.check(&id, true);
    for _ in 0..2 {
        break_off(&mut world, job);
        world.check(&id, true);
        world.pass(secs(4));
    }
    assert_eq!(world.attempts(job), [1, 2, 3]);
}

#[test]
fn a_request_that_no_worker_got_is_not_to_blame() {
    let mut world = three_workers(4);
    let job = world.submit_with(SMOL, asynchronous);
    for _ in 0..4 {
        let mut report = Report::of(Outcome::Failed(failed("connection refused")));
        report.blame = Blame::Unreached;
        world.end_with(job, report);
        world.pass(secs(9));
    }
    assert_eq!(world.attempts(job), [1, 2, 3, 4, 5]);
}

#[test]
fn the_tries_of_one_job_are_one_witness_against_a_worker() {
    let (mut world, id) = World::configured(1, |config| {
        config.retry.attempts_interactive = 9;
    });
    let job = world.submit(SMOL);
    for _ in 0..9 {
        break_off(&mut world, job);
        world.check(&id, true);
    }
    assert_eq!(world.attempts(job).len(), 9);
    assert_eq!(world.brain.counters().breaker_opened, 0);
}

#[test]
fn a_worker_that_answers_all_with_errors_is_the_last_resort_and_nobody_waits_for_that() {
    let (mut world, ids) = two_workers(2);
    let bad = ids[0].clone();
    let good = other(&ids, &bad);
    let on = |world: &World, job| world.runs_on(job).unwrap();
    // Whoever comes to the bad one gets its answer from the other.
    while world.brain.counters().last_resorts == 0 {
        let job = world.submit(SMOL);
        if on(&world, job) == bad {
            world.fail(job, Blame::Unclear);
        }
        assert_eq!(on(&world, job), good);
        world.end(job);
        world.pass(secs(1));
    }
    let state = |world: &World| {
        let view = world.brain.view(world.now);
        let note = view.workers.get(&bad).unwrap().breaker.clone();
        note.map(|note| (note.state, note.failures))
    };
    assert_eq!(state(&world), Some((BreakerState::LastResort, 5)));
    let said = |a: &&Action| matches!(a, Action::Distrust { worker, .. } if worker.id == bad);
    assert_eq!(world.actions.iter().filter(said).count(), 1, "it is logged");
    let jobs = [(); 3].map(|()| world.submit(SMOL));
    let places = jobs.map(|job| on(&world, job));
    assert_eq!(places, [good.clone(), good, bad.clone()]);
    world.end(jobs[2]);
    assert_eq!(state(&world), None, "it works");
    assert_eq!(world.brain.counters().breaker_opened, 0);
}

#[test]
fn a_breaker_that_opens_tells_why_in_the_list_and_to_those_who_wait() {
    let (mut world, id) = World::configured(4, |config| config.retry.attempts_interactive = 1);
    for _ in 0..5 {
        let job = world.submit(SMOL);
        break_off(&mut world, job);
        world.check(&id, true);
    }
    let note = |world: &World| {
        let view = world.brain.view(world.now);
        view.workers.get(&id).unwrap().breaker.clone().unwrap()
    };
    assert_eq!(note(&world).state, BreakerState::Open);
    assert_eq!(note(&world).failures, 5);
    assert_eq!(note(&world).until, Some(world.now.wall + secs(5)));
    let waits = world.submit_with(SMOL, |request| request.queue_timeout = secs(3));
    let told = |action: &Action| match action {
        Action::Narrate { job, narration } if *job == waits => Some(narration.human.clone()),
        _ => None,
    };
    let told: Vec<String> = world.actions.iter().filter_map(told).collect();
    assert!(told[0].contains("it broke off"), "{told:?}");
    world.pass(secs(3));
    let error = world.error(waits);
    assert!(error.message.contains("it broke off"), "{error}");
    world.pass(secs(2));
    assert_eq!(note(&world).state, BreakerState::HalfOpen);
}

/// Whatever bad requests do, a good one waits only while every slot is taken.
#[test]
fn in_random_mixes_good_requests_wait_for_no_more_than_the_slots_that_bad_ones_hold() {
    for seed in 0..60 {
        let mut dice = Dice(seed);
        let slots = 1 + dice.below(4) as u32;
        let workers = 1 + dice.below(3);
        let (mut world, first) = World::with_smol(slots);
        let mut ids = vec![first];
        for name in ["b", "c"].iter().take(workers - 1) {
            world.hive(name, &[device(0, "cpu", 8)]);
            ids.push(world.adopt(name, &format!("{name}-0"), SMOL, slots));
        }
        // Good ones, and bad ones with how they fail.
        let mut jobs: Vec<(JobId, Option<Blame>)> = Vec::new();
        for _ in 0..200 {
            match dice.below(5) {
                0 => jobs.push((world.submit(SMOL), None)),
                1 => {
                    let blames = [Blame::Unclear, Blame::Unclear, Blame::Request];
                    let job = match dice.one_in(3) {
                        true => world.submit_with(SMOL, asynchronous),
                        false => world.submit(SMOL),
                    };
                    jobs.push((job, dice.pick(&blames)));
                }
                2 | 3 => {
                    let mut running = jobs.clone();
                    running.retain(|(job, _)| world.is_running(*job));
                    match dice.pick(&running) {
                        Some((job, None)) => world.end(job),
                        Some((job, Some(blame))) => world.fail(job, blame),
                        None => {}
                    }
                }
                _ => world.pass(secs(dice.below(3) as u64)),
            }
            jobs.retain(|(job, _)| world.is_open(*job));
            let mut waits = jobs
                .iter()
                .filter(|(job, bad)| bad.is_none() && !world.is_running(*job));
            if waits.next().is_some() {
                let full = ids.iter().all(|id| world.leases(id) == slots);
                assert!(full, "a good request waits beside a free slot, seed {seed}");
            }
        }
        assert_eq!(world.brain.counters().breaker_opened, 0, "seed {seed}");
    }
}
