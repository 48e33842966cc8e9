//! Batch work leaves room for those who wait for their answers.

use rbee_orchestrator::brain::{Action, Aftermath, Blame, Event, JobRequest, Report};
use rbee_orchestrator::domain::{JobId, Outcome, Priority};
use rbee_orchestrator::error::{Code, Error};

use crate::parts::{SMOL, failed, secs};
use crate::two_steps::asynchronous;
use crate::world::World;

fn batch(request: &mut JobRequest) {
    asynchronous(request);
    request.priority = Priority::Batch;
}

/// The attempts of a job that were told to give their slots back.
fn gives_back(world: &World, wanted: JobId) -> Vec<u32> {
    let told = |action: &Action| match action {
        Action::GiveBack { job, attempt, .. } if *job == wanted => Some(*attempt),
        _ => None,
    };
    world.actions.iter().filter_map(told).collect()
}

/// Whether the requeues of a job counted as failures.
fn counted(world: &World, wanted: JobId) -> Vec<bool> {
    let counted = |action: &Action| match action {
        Action::Requeue { job, failed, .. } if *job == wanted => Some(*failed),
        _ => None,
    };
    world.actions.iter().filter_map(counted).collect()
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
        assert_eq!(world.places(interactive), [], "it does not wait");
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

#[test]
fn an_only_slot_is_given_back_to_who_waits_and_the_batch_job_begins_anew() {
    let (mut world, id) = World::with_smol(1);
    let job = world.submit_with(SMOL, batch);
    let interactive = world.submit(SMOL);
    assert_eq!(gives_back(&world, job), [1]);
    let late = world.submit(SMOL);
    assert_eq!(gives_back(&world, job), [1], "once is enough");
    world.fail(job, Blame::GivenBack);
    assert_eq!(world.runs_on(interactive), Some(id));
    assert_eq!(counted(&world, job), [false]);
    world.end(interactive);
    assert!(world.is_running(late), "it comes before the batch job, too");
    world.end(late);
    assert!(!world.is_running(job), "it waits for quiet");
    world.pass(secs(10));
    assert_eq!(world.attempts(job), [1, 2]);
    world.end(job);
    assert!(matches!(world.outcome(job), Some(Outcome::Complete)));
    assert_eq!(world.brain.counters().given_back, 1);
    assert_eq!(world.brain.counters().retries, 0);
}

#[test]
fn a_batch_job_gives_back_a_few_times_and_then_no_more() {
    for (most, expected) in [(3, vec![1, 2, 3]), (1, vec![1]), (0, vec![])] {
        let (mut world, _) = World::configured(1, |config| config.queue.batch_gives_back = most);
        let job = world.submit_with(SMOL, batch);
        for _ in 0..5 {
            let interactive = world.submit(SMOL);
            match gives_back(&world, job).last() == world.attempts(job).last() {
                true => world.fail(job, Blame::GivenBack),
                false => world.end(job),
            }
            assert!(world.is_running(interactive));
            world.end(interactive);
            world.pass(secs(10));
            if !world.is_open(job) {
                break;
            }
        }
        assert_eq!(gives_back(&world, job), expected, "at most {most}");
        assert!(matches!(world.outcome(job), Some(Outcome::Complete)));
    }
}

#[test]
fn slots_are_not_given_back_where_interactive_work_has_its_own() {
    let (mut world, _) = World::with_smol(2);
    let job = world.submit_with(SMOL, batch);
    let _interactive = [(); 3].map(|()| world.submit(SMOL));
    assert!(gives_back(&world, job).is_empty());
}

#[test]
fn of_several_slots_that_are_all_batch_works_the_one_taken_last_is_given_back() {
    let (mut world, _) = World::configured(2, |config| config.queue.batch_share = 1.0);
    let first = world.submit_with(SMOL, batch);
    world.pass(secs(1));
    let last = world.submit_with(SMOL, batch);
    let waiting = [(); 2].map(|()| world.submit(SMOL));
    assert!(gives_back(&world, first).is_empty());
    assert_eq!(gives_back(&world, last), [1]);
    world.fail(last, Blame::GivenBack);
    assert!(world.is_running(waiting[0]));
    assert!(gives_back(&world, first).is_empty(), "one has got a slot");
}

#[test]
fn only_batch_work_that_nobody_waits_for_gives_back() {
    let (mut world, _) = World::with_smol(1);
    let with_client = world.submit_with(SMOL, |r| r.priority = Priority::Batch);
    world.submit(SMOL);
    assert!(gives_back(&world, with_client).is_empty());

    let (mut world, _) = World::with_smol(1);
    let interactive = world.submit_with(SMOL, asynchronous);
    world.submit(SMOL);
    assert!(gives_back(&world, interactive).is_empty());

    // Promoted, it is batch work no more, neither with a slot nor in line for one.
    let (mut world, _) = World::with_smol(1);
    let long = |r: &mut JobRequest| {
        batch(r);
        r.total_timeout = secs(7200);
    };
    let running = world.submit_with(SMOL, long);
    let promoted = world.submit_with(SMOL, long);
    world.pass(secs(299));
    assert!(gives_back(&world, running).is_empty());
    world.pass(secs(2));
    assert!(gives_back(&world, running).is_empty());
    world.end(running);
    assert!(world.is_running(promoted));
    world.submit(SMOL);
    assert!(gives_back(&world, promoted).is_empty());
}

#[test]
fn what_happens_meanwhile_stands() {
    let told = || {
        let (mut world, _) = World::with_smol(1);
        let job = world.submit_with(SMOL, batch);
        let interactive = world.submit(SMOL);
        assert_eq!(gives_back(&world, job), [1]);
        (world, job, interactive)
    };
    let (mut world, job, interactive) = told();
    world.end(job);
    assert!(matches!(world.outcome(job), Some(Outcome::Complete)));
    assert!(world.is_running(interactive));

    let (mut world, job, interactive) = told();
    world.fail(job, Blame::Worker);
    assert_eq!(counted(&world, job), [true]);
    assert!(world.is_running(interactive));

    let (mut world, job, interactive) = told();
    let error = Error::new(Code::Cancelled, "gone");
    world.tell(Event::Cancel { job, error });
    let gone = Outcome::Cancelled(Error::new(Code::Cancelled, "gone"));
    world.end_with(job, Report::of(gone));
    assert!(matches!(world.outcome(job), Some(Outcome::Cancelled(_))));
    assert!(world.is_running(interactive));
}

#[test]
fn a_worker_that_can_not_cancel_keeps_the_slot_until_it_answers_and_no_second_job_gives_back() {
    let (mut world, id) = World::configured(2, |config| config.queue.batch_share = 1.0);
    let jobs = [(); 2].map(|()| world.submit_with(SMOL, batch));
    let interactive = world.submit(SMOL);
    let victim = jobs[1];
    assert_eq!(gives_back(&world, victim), [1]);
    let mut report = Report::of(Outcome::Failed(failed("given back")));
    (report.blame, report.aftermath) = (Blame::GivenBack, Aftermath::Computing);
    world.end_with(victim, report);
    world.submit(SMOL);
    assert!(!world.is_running(interactive));
    assert!(gives_back(&world, jobs[0]).is_empty());
    world.check(&id, true);
    assert!(world.is_running(interactive));
}

#[test]
fn one_whose_time_runs_out_while_it_waits_again_is_told_of_that() {
    let (mut world, _) = World::with_smol(1);
    let job = world.submit_with(SMOL, |r| {
        batch(r);
        r.queue_timeout = secs(5);
    });
    let interactive = world.submit(SMOL);
    world.fail(job, Blame::GivenBack);
    assert!(world.is_running(interactive));
    world.pass(secs(5));
    assert_eq!(world.code(job), "TIMEOUT");
}
