//! Jobs for which there is no place now. Those that outlive their connections wait for one.

use std::time::Duration;

use rbee_orchestrator::brain::{Aftermath, Blame, Event, Report, SeenState};
use rbee_orchestrator::domain::{JobId, Outcome, Priority, WorkerId};
use rbee_orchestrator::error::{Code, Error};

use crate::parts::{BIG, SMOL, call, device, failed, hive, report, secs, seen, spec, worker};
use crate::two_steps::asynchronous;
use crate::world::World;

const NIGHT: Duration = Duration::from_secs(10 * 3600);

/// A server that no hive owns, and that is up.
fn a_server(slots: u32) -> (World, WorkerId) {
    let mut world = World::new();
    let id = worker("server");
    let mut spec = call(&id, SMOL);
    spec.slots_total = Some(slots);
    let answer = world
        .brain
        .register_worker(world.now, &spec, &mut world.actions);
    answer.unwrap();
    world.check(&id, true);
    (world, id)
}

/// The attempt of a job finds nobody who listens.
fn refuses_connection(world: &mut World, job: JobId) {
    let mut report = Report::of(Outcome::Failed(failed("connection refused")));
    (report.blame, report.aftermath) = (Blame::Unreached, Aftermath::Suspect);
    world.end_with(job, report);
}

#[test]
fn a_worker_that_is_away_for_a_night_costs_no_task_an_attempt_and_their_order_stays() {
    let (mut world, id) = a_server(1);
    let jobs: Vec<JobId> = (0..20)
        .map(|_| world.submit_with(SMOL, asynchronous))
        .collect();
    refuses_connection(&mut world, jobs[0]);
    world.check(&id, false);
    for _ in 0..60 {
        world.pass(NIGHT / 60);
        world.check(&id, false);
    }
    assert!(jobs.iter().all(|job| world.is_open(*job)));
    assert_eq!(world.brain.tally().waiting, 20);
    assert!(world.told(jobs[7]).contains(&"no_place"));
    let why = world.brain.waits_for(jobs[7]).unwrap();
    assert!(why.contains("does not answer its health check"), "{why}");
    world.check(&id, true);
    assert_eq!(world.runs_on(jobs[0]), Some(id));
    assert_eq!(world.run_all(jobs[0]), jobs[1..]);
    assert!(world.requeues(jobs[0]).len() == 1 && world.attempts(jobs[0]) == [1, 2]);
}

#[test]
fn a_worker_that_refuses_connections_again_and_again_uses_no_task_up() {
    let (mut world, id) = a_server(1);
    let job = world.submit_with(SMOL, asynchronous);
    for _ in 0..30 {
        refuses_connection(&mut world, job);
        world.check(&id, false);
        world.pass(secs(15));
        world.check(&id, true);
    }
    assert_eq!(world.attempts(job).len(), 31);
    for _ in 0..4 {
        world.fail(job, Blame::Worker);
        world.check(&id, true);
        world.pass(secs(60));
    }
    world.fail(job, Blame::Worker);
    assert_eq!(world.code(job), "WORKER_FAILED", "real failures count");
}

#[test]
fn a_client_gets_an_answer_at_once_though_tasks_wait_for_the_same_place() {
    let (mut world, id) = a_server(1);
    let task = world.submit_with(SMOL, asynchronous);
    refuses_connection(&mut world, task);
    world.check(&id, false);
    let client = world.submit(SMOL);
    assert_eq!(world.code(client), "NO_CAPACITY");
    assert!(world.is_open(task));
}

#[test]
fn a_client_who_waits_with_tasks_for_a_load_that_fails_gets_its_error_and_they_wait_on() {
    let mut world = World::with_hive();
    let task = world.submit_with(SMOL, asynchronous);
    let client = world.submit(SMOL);
    let id = world.spawned();
    world.answer_spawn(&id, Err(failed("the engine exited with 1")));
    assert_eq!(world.code(client), "WORKER_FAILED");
    assert!(world.is_open(task));
    let why = world.brain.waits_for(task).unwrap();
    assert!(why.contains("the engine exited with 1"), "{why}");
}

#[test]
fn a_load_that_fails_for_ten_minutes_is_tried_now_and_then_and_loses_nothing() {
    let mut world = World::with_hive();
    let task = world.submit_with(SMOL, asynchronous);
    let mut loads = 0;
    let end = world.now.mono + secs(600);
    while world.now.mono < end {
        while world.spawns().len() > loads {
            let id = world.spawns()[loads].1.id.clone();
            world.answer_spawn(&id, Err(failed("llama-server is not there")));
            loads += 1;
        }
        world.pass(secs(1));
    }
    // `hives.retry_after` lies between two of them.
    assert!((20..=40).contains(&loads), "{loads}");
    assert!(world.is_open(task) && world.attempts(task).is_empty());
    world.pass(secs(60));
    let id = world.spawns()[loads].1.id.clone();
    world.ready(&id, SMOL, 1);
    assert_eq!(world.attempts(task), [1]);
}

#[test]
fn a_hive_that_reboots_and_one_that_was_given_up_keep_their_tasks() {
    let mut world = World::with_hive();
    world.adopt("a", "a-0", SMOL, 1);
    let running = world.submit_with(SMOL, asynchronous);
    let waiting = world.submit_with(BIG, asynchronous);
    let pinned = world.submit_with(SMOL, |request| {
        asynchronous(request);
        request.constraints.hive = Some(hive("a"));
    });
    world.miss("a", true);
    refuses_connection(&mut world, running);
    world.check(&worker("a-0"), false);
    for _ in 0..40 {
        world.started("a", Err(Error::new(Code::HiveUnreachable, "no route")));
        world.pass(secs(90));
    }
    let jobs = [running, waiting, pinned];
    assert!(jobs.iter().all(|job| world.is_open(*job)));
    world.started("a", Ok(()));
    world.report("a", report(&[device(0, "cpu", 8)]), Vec::new());
    world.pass(secs(120));
    assert!(!world.spawns().is_empty(), "{:?}", world.brain.tally());
}

#[test]
fn tasks_of_an_earlier_life_wait_for_a_fleet_that_is_off_and_a_model_that_nobody_knows() {
    let mut world = World::new();
    world.register(spec("a"));
    let jobs: Vec<JobId> = ["file:not-seen-yet.gguf", SMOL]
        .into_iter()
        .map(|model| {
            let mut request = world.request(model);
            asynchronous(&mut request);
            request.attempts = 3;
            let id = request.id;
            world.tell(Event::Recover(Box::new(request)));
            id
        })
        .collect();
    world.started("a", Err(Error::new(Code::HiveUnreachable, "no route")));
    world.pass(NIGHT);
    assert!(jobs.iter().all(|job| world.is_open(*job)));
    world.started("a", Ok(()));
    world.report("a", report(&[device(0, "cpu", 8)]), Vec::new());
    let listed = seen(
        "a",
        &worker("x"),
        "file:not-seen-yet.gguf",
        SeenState::Ready,
    );
    world.list("a", vec![listed]);
    assert_eq!(world.runs_on(jobs[0]), Some(worker("x")));
    assert_eq!(world.spawns().len(), 1, "for the other");
}

#[test]
fn ten_thousand_tasks_without_a_place_cost_a_look_as_much_as_one() {
    let (mut world, id) = a_server(1);
    let first = world.submit_with(SMOL, asynchronous);
    refuses_connection(&mut world, first);
    world.check(&id, false);
    world.clear();
    for _ in 0..10_000 {
        let mut request = world.request(SMOL);
        asynchronous(&mut request);
        request.priority = Priority::Batch;
        world.tell(Event::Recover(Box::new(request)));
    }
    world.pass(secs(2));
    world.clear();
    // Only places in the line are told; nobody is told again why.
    world.pass(secs(3600));
    assert!(world.told(first).is_empty());
    assert!(world.actions.len() < 100, "{}", world.actions.len());
}

#[test]
fn a_task_that_waits_for_a_place_ends_with_its_own_time_out_and_says_why() {
    let (mut world, id) = a_server(1);
    let queue = world.submit_with(SMOL, |request| {
        asynchronous(request);
        request.queue_timeout = secs(100);
    });
    refuses_connection(&mut world, queue);
    let at = world.now.wall + secs(200);
    let deadline = world.submit_with(SMOL, |request| {
        asynchronous(request);
        request.deadline = Some(at);
    });
    world.check(&id, false);
    world.pass(secs(99));
    assert!(world.is_open(queue));
    world.pass(secs(1));
    assert_eq!(world.code(queue), "WORKER_FAILED");
    assert!(world.error(queue).message.contains("connection refused"));
    world.pass(secs(100));
    assert_eq!(world.code(deadline), "TIMEOUT");
}

#[test]
fn what_can_never_be_ends_at_once() {
    let (mut world, _) = World::with_smol(1);
    let busy = world.submit(SMOL);
    let task = world.submit_with(SMOL, |request| {
        asynchronous(request);
        request.constraints.hive = Some(hive("a"));
    });
    let removed = world
        .brain
        .remove_hive(world.now, &hive("a"), &mut world.actions);
    removed.unwrap();
    assert_eq!(world.code(task), "HIVE_NOT_FOUND");
    assert!(world.is_open(busy));
}

#[test]
fn back_pressure_is_no_failure_in_this_life_and_the_next() {
    let (mut world, _) = World::with_smol(1);
    let task = world.submit_with(SMOL, asynchronous);
    for _ in 0..10 {
        world.fail(task, Blame::Load(None));
        world.pass(secs(2));
    }
    assert_eq!(world.attempts(task).len(), 11);
    assert!(world.is_open(task));
}
