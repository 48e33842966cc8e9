//! What follows an attempt that failed.

use std::time::Duration;

use rbee_orchestrator::brain::{Action, Aftermath, Blame, Event, JobRequest, Report};
use rbee_orchestrator::domain::{JobId, Outcome, UnixMillis, Usage, WorkerId};
use rbee_orchestrator::error::{Code, Error};

use crate::parts::{SMOL, device, failed, secs, seen, worker};
use crate::two_steps::asynchronous;
use crate::world::World;

/// Two workers with smol, of so many slots each.
pub(crate) fn two_workers(slots: u32) -> (World, [WorkerId; 2]) {
    let mut world = World::with_hive();
    world.hive("b", &[device(0, "cpu", 8)]);
    let ids = [
        world.adopt("a", "a-0", SMOL, slots),
        world.adopt("b", "b-0", SMOL, slots),
    ];
    (world, ids)
}

pub(crate) fn other(ids: &[WorkerId; 2], id: &WorkerId) -> WorkerId {
    ids.iter().find(|other| *other != id).unwrap().clone()
}

/// Every place where the job ran, with the requeues between.
fn course(world: &World, wanted: JobId) -> Vec<String> {
    let step = |action: &Action| match action {
        Action::Dispatch {
            job,
            attempt,
            worker,
            ..
        } if *job == wanted => Some(format!("{attempt} on {}", worker.id)),
        Action::Requeue { job, attempt, .. } if *job == wanted => Some(format!("not {attempt}")),
        _ => None,
    };
    world.actions.iter().filter_map(step).collect()
}

#[test]
fn a_request_whose_worker_fails_goes_to_another_at_once_three_times_at_most() {
    let (mut world, ids) = two_workers(4);
    let job = world.submit(SMOL);
    let first = world.runs_on(job).unwrap();
    let second = other(&ids, &first);
    for blame in [Blame::Unreached, Blame::Worker] {
        let mut report = Report::of(Outcome::Failed(failed("it broke off")));
        report.blame = blame;
        world.end_with(job, report);
        assert!(world.is_open(job));
    }
    let expected = [
        format!("1 on {first}"),
        "not 1".into(),
        format!("2 on {second}"),
        "not 2".into(),
        format!("3 on {first}"),
    ];
    assert_eq!(course(&world, job), expected);
    world.fail(job, Blame::Worker);
    assert_eq!(world.code(job), "WORKER_FAILED");
    assert_eq!(world.brain.counters().retries, 2);
}

#[test]
fn what_is_the_requests_own_fault_or_was_relayed_or_cancelled_is_not_tried_again() {
    let ends = |change: fn(&mut Report)| {
        let (mut world, _) = two_workers(1);
        let job = world.submit(SMOL);
        let mut report = Report::of(Outcome::Failed(failed("it broke off")));
        report.blame = Blame::Worker;
        change(&mut report);
        world.end_with(job, report);
        !world.is_open(job) && world.requeues(job).is_empty()
    };
    assert!(!ends(|_| {}));
    assert!(ends(|report| report.blame = Blame::Request));
    assert!(ends(|report| report.relayed = true));
    assert!(ends(|report| report.outcome = Outcome::Complete));
    assert!(ends(|report| {
        report.outcome = Outcome::Cancelled(Error::new(Code::Cancelled, "gone"));
    }));
}

#[test]
fn a_job_that_comes_back_is_before_all_others() {
    let (mut world, ids) = two_workers(1);
    let jobs = [(); 2].map(|()| world.submit(SMOL));
    let waiting = world.submit(SMOL);
    let failing = world.runs_on(jobs[0]).unwrap();
    world.fail(jobs[0], Blame::Worker);
    // The worker that failed takes the next in line; the other one takes him who came back.
    assert_eq!(world.runs_on(waiting), Some(failing.clone()));
    let late = world.submit(SMOL);
    world.end(jobs[1]);
    assert_eq!(world.attempts(jobs[0]), [1, 2]);
    assert_eq!(world.runs_on(jobs[0]), Some(other(&ids, &failing)));
    assert_eq!(world.runs_on(late), None);
}

#[test]
fn with_no_other_worker_a_job_waits_until_its_own_answers_a_check() {
    let (mut world, id) = World::with_smol(2);
    let job = world.submit(SMOL);
    world.fail(job, Blame::Worker);
    assert_eq!(world.checks(), [id.clone()], "it is a suspect now");
    assert_eq!(world.attempts(job), [1]);
    assert_eq!(world.told(job), ["check_worker"]);
    assert_eq!(world.places(job), [(0, None)]);
    world.check(&id, true);
    assert_eq!(world.attempts(job), [1, 2]);
}

#[test]
fn a_job_that_waits_in_vain_after_a_failure_ends_with_what_failed() {
    for total in [20, 300] {
        let (mut world, id) = World::with_smol(1);
        let job = world.submit_with(SMOL, |r| {
            (r.total_timeout, r.queue_timeout) = (secs(total), secs(30));
        });
        let mut report = Report::of(Outcome::Failed(failed("closed without a byte")));
        (report.blame, report.aftermath) = (Blame::Worker, Aftermath::Suspect);
        world.end_with(job, report);
        world.pass(secs(total.min(30) - 1));
        assert!(world.is_open(job));
        world.pass(secs(1));
        assert_eq!(world.code(job), "WORKER_FAILED");
        assert_eq!(world.error(job).message, "closed without a byte");
        assert!(world.has_worker(&id));
    }
}

#[test]
fn a_job_whose_worker_died_goes_to_another_when_its_lease_comes_back() {
    let (mut world, ids) = two_workers(1);
    let job = world.submit(SMOL);
    let dead = world.runs_on(job).unwrap();
    world.tell(Event::WorkerFailed {
        worker: dead.clone(),
        error: failed("died"),
    });
    world.fail(job, Blame::Worker);
    assert_eq!(world.runs_on(job), Some(other(&ids, &dead)));
}

#[test]
fn an_asynchronous_job_is_tried_again_after_a_pause_even_if_a_part_was_relayed() {
    let (mut world, _) = World::with_smol(1);
    let job = world.submit_with(SMOL, asynchronous);
    for attempt in 1..5_u32 {
        let mut report = Report::of(Outcome::Failed(failed("it broke off")));
        (report.blame, report.relayed) = (Blame::Worker, true);
        world.end_with(job, report);
        let (failed, not_before) = *world.requeues(job).last().unwrap();
        assert_eq!(failed, attempt);
        let pause = not_before.unwrap().since(world.now.wall);
        assert!(pause <= secs(1 << (attempt - 1)), "{pause:?}");
        assert_eq!(world.brain.tally().backing_off, 1);
        world.pass(pause + Duration::from_millis(1));
        assert_eq!(world.attempts(job).len() as u32, attempt + 1);
    }
    world.fail(job, Blame::Worker);
    assert_eq!(world.code(job), "WORKER_FAILED");
}

#[test]
fn pauses_are_spread_and_the_same_seed_gives_the_same_ones() {
    let pauses = |seed| -> Vec<UnixMillis> {
        let (mut world, _) = World::with_smol(8);
        world.brain = std::mem::replace(&mut world.brain, World::new().brain).seeded(seed);
        let jobs = [(); 8].map(|()| world.submit_with(SMOL, asynchronous));
        jobs.iter().for_each(|job| world.fail(*job, Blame::Worker));
        jobs.iter()
            .map(|job| world.requeues(*job)[0].1.unwrap())
            .collect()
    };
    assert_eq!(pauses(1), pauses(1));
    assert_ne!(pauses(1), pauses(2));
    let mut different = pauses(1);
    different.sort_unstable();
    different.dedup();
    assert!(different.len() > 4, "{different:?}");
}

#[test]
fn a_pause_of_an_earlier_life_holds_on_and_its_failures_count() {
    let (mut world, _) = World::with_smol(1);
    let mut request = world.request(SMOL);
    asynchronous(&mut request);
    (request.attempts, request.failures) = (9, 4);
    request.not_before = Some(world.now.wall + secs(30));
    let job = request.id;
    world.tell(Event::Recover(Box::new(request)));
    world.pass(secs(29));
    assert_eq!(world.runs_on(job), None);
    assert_eq!(world.brain.tally().backing_off, 1);
    world.pass(secs(1));
    assert_eq!(world.attempts(job), [10]);
    world.fail(job, Blame::Worker);
    assert_eq!(world.code(job), "WORKER_FAILED", "that was the last");
}

#[test]
fn a_job_of_an_earlier_life_whose_model_no_hive_has_yet_is_given_time() {
    let mut world = World::new();
    let mut request = world.request(SMOL);
    asynchronous(&mut request);
    request.attempts = 1;
    let job = request.id;
    world.tell(Event::Recover(Box::new(request)));
    assert!(world.is_open(job));
    world.hive("a", &[device(0, "cpu", 8)]);
    world.adopt("a", "a-0", SMOL, 1);
    world.pass(secs(2));
    assert_eq!(world.attempts(job), [2]);
}

#[test]
fn a_pause_ends_with_a_cancellation_or_the_deadline() {
    let (mut world, _) = World::with_smol(2);
    let at = world.now.wall + Duration::from_millis(1);
    let cancelled = world.submit_with(SMOL, asynchronous);
    let late = world.submit_with(SMOL, |request| {
        asynchronous(request);
        request.deadline = Some(at);
    });
    world.fail(cancelled, Blame::Worker);
    world.fail(late, Blame::Worker);
    world.cancel(cancelled);
    assert!(matches!(
        world.outcome(cancelled),
        Some(Outcome::Cancelled(_))
    ));
    world.pass(Duration::from_millis(1));
    assert_eq!(world.code(late), "WORKER_FAILED");
    assert_eq!(world.brain.open_jobs(), 0);
}

#[test]
fn the_budget_allows_a_share_of_the_requests_and_a_few_in_any_case() {
    let (mut world, _) = World::configured(1000, |config| {
        config.retry.budget_min = 3;
        config.retry.attempts_interactive = 100;
        config.breaker.failures = 1000;
        config.breaker.ratio = 1.0;
        config.breaker.min_attempts = 1000;
    });
    world.adopt("a", "smol-1", SMOL, 1000);
    let storm = |world: &mut World, requests: usize| {
        let jobs: Vec<JobId> = (0..requests).map(|_| world.submit(SMOL)).collect();
        let before = world.brain.counters();
        jobs.iter().for_each(|job| world.fail(*job, Blame::Worker));
        for job in &jobs {
            if world.is_open(*job) {
                world.end(*job);
            }
        }
        let after = world.brain.counters();
        assert_eq!(
            after.retries + after.retries_refused - before.retries - before.retries_refused,
            requests as u64
        );
        after.retries - before.retries
    };
    let mut both = vec![seen(
        "a",
        &worker("smol-0"),
        SMOL,
        rbee_orchestrator::brain::SeenState::Ready,
    )];
    both[0].spec.slots_total = 1000;
    world.list("a", both);
    assert_eq!(storm(&mut world, 5), 3, "the least");
    world.pass(secs(20));
    assert_eq!(storm(&mut world, 100), 20, "a fifth");
    assert_eq!(
        storm(&mut world, 100),
        20,
        "a fifth of 200, less what was used"
    );
    world.pass(secs(20));
    assert_eq!(storm(&mut world, 50), 10);
}

#[test]
fn an_asynchronous_job_waits_for_the_budget() {
    let (mut world, _) = World::configured(1, |config| config.retry.budget_min = 0);
    let job = world.submit_with(SMOL, asynchronous);
    world.fail(job, Blame::Worker);
    world.pass(secs(30));
    assert_eq!(world.attempts(job), [1]);
    assert!(world.brain.counters().retries_refused > 0);
    for _ in 0..10 {
        let easy = world.submit(SMOL);
        world.end(easy);
    }
    world.pass(secs(2));
    assert_eq!(world.attempts(job), [1, 2]);
}

#[test]
fn a_queen_that_goes_down_tries_nothing_again() {
    let (mut world, _) = two_workers(2);
    let [job, left] = [world.submit(SMOL), world.submit_with(SMOL, asynchronous)];
    world.brain.drain(world.now, &mut world.actions);
    world.fail(job, Blame::Worker);
    assert_eq!(world.code(job), "WORKER_FAILED");
    world.fail(left, Blame::Worker);
    assert_eq!(world.requeues(left).len(), 1, "that is for the next life");
    world.pass(secs(100));
    assert_eq!(world.attempts(left), [1]);
}

#[test]
fn a_job_is_charged_for_the_time_of_all_its_attempts_and_the_tokens_of_the_last() {
    let (mut world, _) = two_workers(1);
    let job = world.submit_with(SMOL, |_: &mut JobRequest| {});
    let mut report = Report::of(Outcome::Failed(failed("it broke off")));
    report.blame = Blame::Worker;
    report.inference = Duration::from_millis(700);
    let used = |tokens_out| Usage {
        tokens_in: 10,
        tokens_out,
        estimated: false,
    };
    report.usage = Some(used(5));
    world.pass(secs(2));
    world.end_with(job, report);
    world.pass(secs(3));
    let mut report = Report::of(Outcome::Complete);
    report.inference = Duration::from_millis(2500);
    report.usage = Some(used(40));
    world.end_with(job, report);
    let ending = world.ending(job);
    assert_eq!(
        (ending.times.slot_ms, ending.times.inference_ms),
        (5000, 3200)
    );
    assert_eq!(ending.usage, Some(used(40)));
}

#[test]
fn a_report_of_an_older_attempt_is_refused_and_counted() {
    let (mut world, _) = two_workers(1);
    let job = world.submit(SMOL);
    let old = world.runs_on(job).unwrap();
    world.fail(job, Blame::Worker);
    for (job, attempt) in [(job, 1), (JobId(uuid::Uuid::max()), 1)] {
        world.tell(Event::AttemptEnded {
            job,
            attempt,
            worker: old.clone(),
            report: Box::new(Report::of(Outcome::Complete)),
        });
    }
    assert!(world.is_open(job));
    assert_eq!(world.brain.counters().stale_reports, 2);
}

#[test]
fn the_queens_own_trouble_is_nobodys_failure_and_uses_no_attempt_up() {
    let (mut world, ids) = two_workers(1);
    let job = world.submit_with(SMOL, asynchronous);
    for _ in 0..50 {
        assert!(world.runs_on(job).is_some());
        world.fail(job, Blame::Queen);
        assert!(world.is_open(job));
        world.pass(secs(2));
    }
    let counters = world.brain.counters();
    assert_eq!((counters.retries, counters.breaker_opened), (0, 0));
    for id in &ids {
        assert!(!world.actions.iter().any(|action| matches!(
            action,
            Action::CheckWorker { worker } if worker.id == *id
        )));
    }
    world.end(job);
    assert!(!world.is_open(job));
}

#[test]
fn a_client_waits_for_the_queens_trouble_to_pass_no_longer_than_for_a_worker() {
    let (mut world, _) = two_workers(1);
    let job = world.submit_with(SMOL, |request| request.queue_timeout = secs(10));
    for _ in 0..5 {
        world.fail(job, Blame::Queen);
        world.pass(secs(2));
    }
    assert!(world.is_open(job));
    world.pass(secs(2));
    world.fail(job, Blame::Queen);
    assert!(!world.is_open(job));
}
