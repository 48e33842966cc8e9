//! Requests: queue, slots, time-outs, endings.

use std::time::Duration;

use rbee_orchestrator::brain::{Action, Event, Report};
use rbee_orchestrator::config::{Capacity, Config};
use rbee_orchestrator::domain::{JobId, Outcome, Priority, UnixMillis};
use rbee_orchestrator::error::{Code, Error};
use rbee_orchestrator::scheduler::LeastLoaded;

use crate::parts::{SMOL, device, secs};
use crate::world::World;

#[test]
fn a_returned_slot_goes_to_the_one_who_waits_longest_whatever_his_constraints() {
    let (mut world, id) = World::with_smol(1);
    let running = world.submit(SMOL);
    let plain = [world.submit(SMOL)];
    let on_cpu = world.submit_with(SMOL, |r| r.constraints.backend = Some("cpu".into()));
    let last = world.submit(SMOL);
    for (before, next) in [(running, plain[0]), (plain[0], on_cpu), (on_cpu, last)] {
        assert_eq!(world.runs_on(next), None);
        world.end(before);
        assert_eq!(world.runs_on(next), Some(id.clone()));
    }
}

#[test]
fn slots_that_come_free_together_are_shared_by_the_order_of_arrival() {
    let mut world = World::with_hive();
    let plain = world.submit(SMOL);
    let id = world.spawned();
    let on_cpu = world.submit_with(SMOL, |r| r.constraints.backend = Some("cpu".into()));
    let later = world.submit(SMOL);
    world.ready(&id, SMOL, 2);
    assert!(world.runs_on(plain).is_some() && world.runs_on(on_cpu).is_some());
    assert_eq!(world.runs_on(later), None);
}

#[test]
fn a_job_that_runs_out_of_time_is_cut_off_and_its_lease_comes_back_once() {
    let (mut world, id) = World::with_smol(1);
    let job = world.submit(SMOL);
    world.pass(secs(301));
    assert_eq!(world.aborts(job), 1);
    assert!(world.is_open(job), "the ending comes with the lease");
    assert_eq!(world.leases(&id), 1);
    let error = Error::new(Code::Timeout, "too long");
    world.end_with(job, Report::of(Outcome::Failed(error.clone())));
    assert_eq!(world.code(job), "TIMEOUT");
    assert_eq!(world.leases(&id), 0);
    world.end_with(job, Report::of(Outcome::Failed(error)));
    assert_eq!(world.leases(&id), 0);
    assert_eq!(world.brain.next_due(), None);
    assert_eq!(world.brain.open_jobs(), 0);
}

#[test]
fn a_late_report_of_an_attempt_changes_nothing() {
    let (mut world, id) = World::with_smol(2);
    let first = world.submit(SMOL);
    world.end(first);
    let second = world.submit(SMOL);
    world.end(first);
    let report = |job, attempt| Event::AttemptEnded {
        job,
        attempt,
        worker: id.clone(),
        report: Box::new(Report::of(Outcome::Complete)),
    };
    world.tell(report(second, 0));
    world.tell(report(second, 2));
    assert!(world.is_open(second));
    assert_eq!(world.leases(&id), 1);
    let waiting = world.submit("big");
    world.tell(report(waiting, 0));
    assert!(world.is_open(waiting));
}

#[test]
fn a_cancelled_job_ends_at_once_while_it_waits_and_with_its_lease_while_it_runs() {
    let (mut world, _) = World::with_smol(1);
    let running = world.submit(SMOL);
    let waiting = world.submit(SMOL);
    let cancel = |job| Event::Cancel {
        job,
        error: Error::new(Code::Cancelled, "the client has gone"),
    };
    world.tell(cancel(waiting));
    assert!(matches!(
        world.outcome(waiting),
        Some(Outcome::Cancelled(_))
    ));
    world.tell(cancel(running));
    world.tell(cancel(running));
    assert_eq!(world.aborts(running), 1);
    assert_eq!(world.brain.next_due(), None);
    assert_eq!(world.brain.waiting(), 0);
}

#[test]
fn a_draining_queen_refuses_what_comes_ends_what_waits_and_lets_run_what_runs() {
    let (mut world, _) = World::with_smol(1);
    let running = world.submit(SMOL);
    let waiting = world.submit(SMOL);
    world.brain.drain(world.now, &mut world.actions);
    assert_eq!(world.code(waiting), "SHUTTING_DOWN");
    let refused = world.submit(SMOL);
    assert_eq!(world.code(refused), "SHUTTING_DOWN");
    assert!(world.is_open(running));
    world.end(running);
    assert!(matches!(world.outcome(running), Some(Outcome::Complete)));
}

#[test]
fn a_full_queue_refuses_with_system_at_capacity() {
    let mut config = Config::default();
    config.queue.capacity_interactive = Capacity::of(2);
    let mut world = World::with(config, Box::new(LeastLoaded), Vec::new());
    world.hive("a", &[device(0, "cpu", 8)]);
    let jobs: Vec<JobId> = (0..3).map(|_| world.submit(SMOL)).collect();
    assert!(world.is_open(jobs[0]) && world.is_open(jobs[1]));
    assert_eq!(world.code(jobs[2]), "SYSTEM_AT_CAPACITY");
}

#[test]
fn a_refusal_that_is_known_at_once_is_not_queued_first() {
    let mut world = World::with_hive();
    world.submit("nonsense");
    let queued = |action: &Action| matches!(action, Action::Queued { .. });
    assert!(!world.actions.iter().any(queued));
}

#[test]
fn those_who_wait_are_told_their_place() {
    let (mut world, _) = World::with_smol(1);
    world.submit(SMOL);
    let jobs = [world.submit(SMOL), world.submit(SMOL)];
    let place = |wanted| {
        world.actions.iter().find_map(|action| match action {
            Action::Queued { job, position, .. } if *job == wanted => Some(*position),
            _ => None,
        })
    };
    assert_eq!(jobs.map(place), [Some(0), Some(1)]);
}

#[test]
fn a_wall_clock_that_is_set_breaks_no_time_out() {
    for hours in [-1, 1] {
        let (mut world, _) = World::with_smol(1);
        let running = world.submit(SMOL);
        let waiting = world.submit(SMOL);
        let step = hours * 3_600_000;
        world.now.wall = UnixMillis(world.now.wall.0 + step);
        world.tell(Event::Tick);
        world.pass(secs(59));
        assert!(world.is_open(waiting), "{hours}");
        world.pass(secs(2));
        assert_eq!(world.code(waiting), "TIMEOUT", "{hours}");
        world.pass(secs(238));
        assert_eq!(world.aborts(running), 0, "{hours}");
        world.pass(secs(2));
        assert_eq!(world.aborts(running), 1, "{hours}");
    }
}

#[test]
fn an_absolute_deadline_ends_a_job_that_runs_and_one_that_waits() {
    let (mut world, _) = World::with_smol(1);
    let at = world.now.wall + secs(30);
    let jobs = [(); 2].map(|()| world.submit_with(SMOL, |r| r.deadline = Some(at)));
    world.pass(Duration::from_millis(29_999));
    assert!(world.is_open(jobs[1]));
    world.pass(Duration::from_millis(1));
    assert_eq!(world.aborts(jobs[0]), 1);
    assert_eq!(world.code(jobs[1]), "TIMEOUT");
    assert!(world.error(jobs[1]).message.contains("deadline"));
}

#[test]
fn a_deadline_does_not_extend_the_time_outs_and_one_in_the_past_is_refused() {
    let (mut world, _) = World::with_smol(1);
    let far = world.now.wall + secs(86_400);
    let job = world.submit_with(SMOL, |r| r.deadline = Some(far));
    world.pass(secs(301));
    assert_eq!(world.aborts(job), 1);
    let past = world.now.wall;
    let late = world.submit_with(SMOL, |r| r.deadline = Some(past));
    assert_eq!(world.code(late), "TIMEOUT");
    assert_eq!(world.runs_on(late), None);
}

#[test]
fn batch_jobs_come_after_interactive_ones_of_any_group_with_the_model() {
    let (mut world, _) = World::configured(1, |config| {
        config.queue.batch_quiet = std::time::Duration::ZERO;
    });
    let running = world.submit(SMOL);
    let batch = [(); 2].map(|()| world.submit_with(SMOL, |r| r.priority = Priority::Batch));
    let batch_on_cpu = world.submit_with(SMOL, |r| {
        r.priority = Priority::Batch;
        r.constraints.backend = Some("cpu".into());
    });
    let first = world.submit(SMOL);
    let on_cpu = world.submit_with(SMOL, |r| r.constraints.backend = Some("cpu".into()));
    let position = |world: &World, wanted: JobId| {
        world.actions.iter().find_map(|action| match action {
            Action::Queued { job, position, .. } if *job == wanted => Some(*position),
            _ => None,
        })
    };
    assert_eq!(position(&world, first), Some(0), "before the batch jobs");
    let order = [running, first, on_cpu, batch[0], batch[1], batch_on_cpu];
    for pair in order.windows(2) {
        assert_eq!(world.runs_on(pair[1]), None);
        world.end(pair[0]);
        assert!(world.runs_on(pair[1]).is_some());
    }
}
