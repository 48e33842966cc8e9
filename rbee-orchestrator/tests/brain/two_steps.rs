//! Jobs that are let in first and confirmed when they are durable, and those of an earlier life.

use rbee_orchestrator::brain::{Event, JobRequest};
use rbee_orchestrator::config::Capacity;
use rbee_orchestrator::domain::{JobId, Outcome, Priority};
use rbee_orchestrator::error::Code;

use crate::parts::{SMOL, device, report, secs, spec};
use crate::world::World;

use std::time::Duration;

/// A job that outlives its connection.
pub(crate) fn asynchronous(request: &mut JobRequest) {
    request.asynchronous = true;
    request.queue_timeout = Duration::MAX;
}

fn recover(world: &mut World, change: impl FnOnce(&mut JobRequest)) -> JobId {
    let mut request = world.request(SMOL);
    asynchronous(&mut request);
    change(&mut request);
    let id = request.id;
    world.tell(Event::Recover(Box::new(request)));
    id
}

#[test]
fn a_job_that_was_let_in_runs_when_it_is_confirmed_and_not_before() {
    let (mut world, id) = World::with_smol(1);
    let job = world.admit(SMOL, asynchronous).unwrap();
    world.pass(secs(1));
    assert_eq!(world.runs_on(job), None);
    assert_eq!(world.brain.tally().admitted, 1);
    world.tell(Event::Confirm(job));
    assert_eq!(world.runs_on(job), Some(id));
    world.tell(Event::Confirm(job));
    assert_eq!(world.brain.tally().running, 1);
}

#[test]
fn a_job_that_was_let_in_takes_its_place_in_the_queue_at_once() {
    let (mut world, _) = World::configured(1, |config| {
        config.queue.capacity_interactive = Capacity::of(1);
    });
    world.submit(SMOL);
    let job = world.admit(SMOL, asynchronous).unwrap();
    let refused = world.admit(SMOL, asynchronous).unwrap_err();
    assert_eq!(refused.code, Code::SystemAtCapacity);
    world.tell(Event::Withdraw(job));
    assert!(world.is_open(job), "it never was");
    assert_eq!(world.brain.open_jobs(), 1);
    assert!(world.admit(SMOL, asynchronous).is_ok(), "its place is free");
}

#[test]
fn what_is_refused_when_it_is_to_be_let_in_leaves_nothing_behind() {
    let (mut world, _) = World::with_smol(1);
    let error = world.admit("nonsense", asynchronous).unwrap_err();
    assert_eq!(error.code, Code::ModelNotFound);
    assert!(world.actions.is_empty());
    assert_eq!(world.brain.open_jobs(), 0);
}

#[test]
fn a_job_that_is_cancelled_before_it_is_confirmed_ends_then() {
    let (mut world, _) = World::with_smol(1);
    let job = world.admit(SMOL, asynchronous).unwrap();
    world.cancel(job);
    assert!(world.is_open(job), "its row may not be there yet");
    world.tell(Event::Confirm(job));
    assert!(matches!(world.outcome(job), Some(Outcome::Cancelled(_))));
    assert_eq!(world.runs_on(job), None);
    assert_eq!(world.brain.open_jobs(), 0);
}

#[test]
fn an_asynchronous_job_waits_for_as_long_as_it_takes_and_its_time_counts_from_each_dispatch() {
    let (mut world, _) = World::with_smol(1);
    let running = world.submit_with(SMOL, |r| r.total_timeout = secs(7200));
    let job = world.submit_with(SMOL, asynchronous);
    world.pass(secs(3600));
    assert!(world.is_open(job));
    world.end(running);
    world.pass(secs(299));
    assert_eq!(world.aborts(job), 0);
    world.pass(secs(1));
    assert_eq!(world.aborts(job), 1);
}

#[test]
fn a_deadline_ends_an_asynchronous_job_wherever_it_is() {
    let (mut world, _) = World::with_smol(1);
    let at = world.now.wall + secs(400);
    let with_deadline = |request: &mut JobRequest| {
        asynchronous(request);
        request.deadline = Some(at);
    };
    let running = world.submit_with(SMOL, |r| {
        with_deadline(r);
        r.total_timeout = secs(1000);
    });
    let waiting = world.submit_with(SMOL, with_deadline);
    world.pass(secs(399));
    assert!(world.is_open(waiting));
    world.pass(secs(1));
    assert_eq!(world.code(waiting), "TIMEOUT");
    assert_eq!(world.aborts(running), 1);
}

#[test]
fn a_queen_that_goes_down_leaves_asynchronous_jobs_to_the_next_life() {
    let (mut world, _) = World::with_smol(1);
    let running = world.submit(SMOL);
    let job = world.submit_with(SMOL, asynchronous);
    let admitted = world.admit(SMOL, asynchronous).unwrap();
    world.brain.drain(world.now, &mut world.actions);
    world.tell(Event::Confirm(admitted));
    world.end(running);
    world.pass(secs(1000));
    for job in [job, admitted] {
        assert!(world.is_open(job) && world.runs_on(job).is_none());
    }
    assert_eq!(world.brain.tally().running, 0);
}

#[test]
fn what_an_earlier_life_left_runs_in_the_order_of_its_submission_whatever_the_bounds() {
    let mut world = World::new();
    world.register(spec("a"));
    let mut left: Vec<JobRequest> = (0..3).map(|_| world.request("smol")).collect();
    let ids: Vec<JobId> = left.iter().map(|request| request.id).collect();
    left.swap(0, 2);
    for mut request in left {
        asynchronous(&mut request);
        request.attempts = 2;
        world.tell(Event::Recover(Box::new(request)));
    }
    world.started("a", Ok(()));
    world.report("a", report(&[device(0, "cpu", 8)]), Vec::new());
    let worker = world.spawned();
    world.ready(&worker, SMOL, 1);
    assert!(world.runs_on(ids[0]).is_some());
    assert_eq!(world.attempts(ids[0]), [3], "earlier attempts count on");
    assert_eq!(world.run_all(ids[0]), ids[1..]);
}

#[test]
fn what_an_earlier_life_left_too_long_ends_without_running() {
    let (mut world, _) = World::with_smol(1);
    let late = world.now.wall;
    let job = recover(&mut world, |request| request.deadline = Some(late));
    assert_eq!(world.code(job), "TIMEOUT");
    assert_eq!(world.runs_on(job), None);
}

#[test]
fn a_batch_job_of_an_earlier_life_has_waited_since_then() {
    let (mut world, _) = World::with_smol(1);
    let running = world.submit(SMOL);
    let submitted = world.now.wall;
    world.now.wall = submitted + secs(290);
    let old = recover(&mut world, |request| {
        request.priority = Priority::Batch;
        request.submitted_at = submitted;
    });
    world.pass(secs(10));
    assert_eq!(world.brain.counters().promoted, 1);
    let late = world.submit(SMOL);
    assert_eq!(world.run_all(running), [old, late]);
}
