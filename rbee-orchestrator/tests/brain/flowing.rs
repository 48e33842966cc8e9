//! How long an answer may take that flows.

use rbee_orchestrator::brain::{Action, Blame, Event, JobRequest};
use rbee_orchestrator::domain::JobId;

use crate::parts::{SMOL, secs};
use crate::world::World;

/// A client that set no time: 300 s in all, and 1800 s if its answer flows.
fn patient(request: &mut JobRequest) {
    request.flowing_timeout = secs(1800);
}

/// The attempts of a job that are to end if they do not flow.
fn asked(world: &World, wanted: JobId) -> Vec<u32> {
    let asked = |action: &Action| match action {
        Action::EndUnlessFlowing { job, attempt } if *job == wanted => Some(*attempt),
        _ => None,
    };
    world.actions.iter().filter_map(asked).collect()
}

fn stands_still(world: &mut World, job: JobId, attempt: u32) {
    world.tell(Event::NotFlowing { job, attempt });
}

#[test]
fn an_answer_that_flows_is_ended_by_the_longest_time_and_no_sooner() {
    let (mut world, _) = World::with_smol(1);
    let job = world.submit_with(SMOL, patient);
    world.pass(secs(300));
    assert_eq!((asked(&world, job), world.aborts(job)), (vec![1], 0));
    world.pass(secs(1499));
    assert_eq!(world.aborts(job), 0);
    world.pass(secs(1));
    assert_eq!((asked(&world, job), world.aborts(job)), (vec![1], 1));
}

#[test]
fn an_answer_that_does_not_flow_ends_at_its_time() {
    let (mut world, _) = World::with_smol(1);
    let job = world.submit_with(SMOL, patient);
    world.pass(secs(300));
    stands_still(&mut world, job, 1);
    assert_eq!(world.aborts(job), 1);
    // To be told again changes nothing.
    stands_still(&mut world, job, 1);
    assert_eq!(world.aborts(job), 1);
}

#[test]
fn a_time_that_the_client_set_holds_for_what_flows_too() {
    let (mut world, _) = World::with_smol(2);
    let job = world.submit(SMOL);
    let deadline = world.now.wall + secs(400);
    let bounded = world.submit_with(SMOL, |request| {
        patient(request);
        request.deadline = Some(deadline);
    });
    world.pass(secs(300));
    assert_eq!((asked(&world, job), world.aborts(job)), (vec![], 1));
    assert_eq!(
        (asked(&world, bounded), world.aborts(bounded)),
        (vec![1], 0)
    );
    world.pass(secs(100));
    assert_eq!(world.aborts(bounded), 1);
}

#[test]
fn a_job_that_waits_has_its_time_and_no_more() {
    let (mut world, _) = World::with_smol(1);
    world.submit_with(SMOL, |request| request.total_timeout = secs(7200));
    let job = world.submit_with(SMOL, |request| {
        patient(request);
        request.queue_timeout = secs(7200);
    });
    world.pass(secs(300));
    assert_eq!(world.code(job), "TIMEOUT");
    assert_eq!(asked(&world, job), Vec::<u32>::new());
}

#[test]
fn each_attempt_of_an_asynchronous_job_has_its_own_time() {
    let (mut world, _) = World::with_smol(1);
    let job = world.submit_with(SMOL, |request| {
        patient(request);
        request.asynchronous = true;
    });
    world.pass(secs(1000));
    assert_eq!(asked(&world, job), [1]);
    world.fail(job, Blame::Worker);
    world.pass(secs(10));
    assert_eq!(world.attempts(job), [1, 2]);
    // What is said of an older attempt says nothing.
    stands_still(&mut world, job, 1);
    world.pass(secs(280));
    assert_eq!((asked(&world, job), world.aborts(job)), (vec![1], 0));
    world.pass(secs(20));
    assert_eq!((asked(&world, job), world.aborts(job)), (vec![1, 2], 0));
    stands_still(&mut world, job, 2);
    assert_eq!(world.aborts(job), 1);
}
