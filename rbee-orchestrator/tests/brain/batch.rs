//! Batch work leaves room for those who wait for their answers.

use rbee_orchestrator::brain::JobRequest;
use rbee_orchestrator::domain::{JobId, Priority};

use crate::parts::{SMOL, secs};
use crate::two_steps::asynchronous;
use crate::world::World;

fn batch(request: &mut JobRequest) {
    asynchronous(request);
    request.priority = Priority::Batch;
}

fn running(world: &World, jobs: &[JobId]) -> usize {
    let runs = |job: &&JobId| world.runs_on(**job).is_some() && world.is_open(**job);
    jobs.iter().filter(runs).count()
}

#[test]
fn an_interactive_request_finds_a_slot_however_many_batch_jobs_there_are() {
    for (slots, most) in [(2, 1), (3, 2), (4, 3), (10, 8)] {
        let (mut world, _) = World::with_smol(slots);
        let jobs = [(); 20].map(|()| world.submit_with(SMOL, batch));
        assert_eq!(running(&world, &jobs), most, "of {slots}");
        let interactive = world.submit(SMOL);
        assert!(world.runs_on(interactive).is_some());
        world.end(interactive);
        world.pass(secs(10));
        world.end(jobs[0]);
        assert_eq!(running(&world, &jobs), most, "the next takes its place");
    }
}

#[test]
fn all_slots_are_batch_works_where_the_share_says_so() {
    let (mut world, _) = World::configured(2, |config| config.queue.batch_share = 1.0);
    let jobs = [(); 3].map(|()| world.submit_with(SMOL, batch));
    assert_eq!(running(&world, &jobs), 2);
}

#[test]
fn the_last_free_slot_is_kept_while_interactive_work_came_lately() {
    let (mut world, _) = World::with_smol(4);
    let busy = [(); 3].map(|()| world.submit(SMOL));
    let waits = world.submit_with(SMOL, batch);
    assert_eq!(world.runs_on(waits), None);
    world.end(busy[0]);
    assert!(world.runs_on(waits).is_some(), "two were free");
}

#[test]
fn an_only_slot_goes_to_batch_work_when_it_has_been_quiet() {
    let (mut world, _) = World::with_smol(1);
    let interactive = world.submit(SMOL);
    world.end(interactive);
    let waits = world.submit_with(SMOL, batch);
    for _ in 0..3 {
        world.pass(secs(9));
        assert_eq!(world.runs_on(waits), None);
        let interactive = world.submit(SMOL);
        assert!(world.runs_on(interactive).is_some());
        world.end(interactive);
    }
    world.pass(secs(10));
    assert!(world.runs_on(waits).is_some());
}

#[test]
fn a_batch_job_that_is_never_let_in_is_promoted_and_takes_the_last_slot() {
    let (mut world, _) = World::with_smol(1);
    let interactive = world.submit(SMOL);
    world.end(interactive);
    let waits = world.submit_with(SMOL, batch);
    for _ in 0..61 {
        let interactive = world.submit(SMOL);
        if world.runs_on(waits).is_some() {
            break;
        }
        world.end(interactive);
        world.pass(secs(5));
    }
    assert!(world.runs_on(waits).is_some());
    assert_eq!(world.brain.counters().promoted, 1);
}
