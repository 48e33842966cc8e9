//! Hives that are out of reach, drained, or unsteady; a queen that stood still.

use std::time::Duration;

use rbee_orchestrator::brain::{Aftermath, Blame, Event, Report, SeenState};
use rbee_orchestrator::domain::{HiveStatus, Outcome};
use rbee_orchestrator::error::Result;

use crate::parts::{SMOL, call, device, failed, hive, report, secs, seen, worker};
use crate::world::World;

fn drain(world: &mut World, name: &str, stop: bool) -> Result<()> {
    let now = world.now;
    world
        .brain
        .drain_hive(now, &hive(name), stop, &mut world.actions)
}

fn resume(world: &mut World, name: &str) {
    let now = world.now;
    let resumed = world
        .brain
        .resume_hive(now, &hive(name), &mut world.actions);
    resumed.unwrap();
}

/// It misses checks until it is lost.
fn lose(world: &mut World, name: &str) {
    for _ in 0..3 {
        world.miss(name, false);
    }
    assert_eq!(world.known(name).status, HiveStatus::Offline);
}

fn list_ready(world: &mut World, id: &rbee_orchestrator::domain::WorkerId) {
    let mut listed = seen("a", id, SMOL, SeenState::Ready);
    listed.spec.slots_total = 2;
    world.list("a", vec![listed]);
}

#[test]
fn what_runs_on_a_lost_hive_goes_on_and_what_waits_goes_elsewhere() {
    let (mut world, id) = World::with_smol(2);
    world.hive("b", &[device(0, "cpu", 8)]);
    let running = world.submit(SMOL);
    assert_eq!(world.runs_on(running), Some(id.clone()));
    lose(&mut world, "a");
    assert!(world.is_open(running));
    assert_eq!(world.aborts(running), 0);
    let next = world.submit(SMOL);
    assert_eq!(world.runs_on(next), None, "no new work");
    assert_eq!(world.spawns()[0].0, hive("b"));
    // A busy worker that does not answer is not dead.
    world.check(&id, false);
    assert!(world.has_worker(&id));
    world.end(running);
    assert!(!world.is_open(running));
    world.check(&id, false);
    assert!(!world.has_worker(&id), "it left with its last lease");
}

#[test]
fn jobs_that_wait_for_a_load_on_a_hive_that_is_lost_are_placed_anew() {
    let mut world = World::with_hive();
    let job = world.submit(SMOL);
    let first = world.spawned();
    world.answer_spawn(&first, Ok(first.clone()));
    world.hive("b", &[device(0, "cpu", 8)]);
    lose(&mut world, "a");
    world.check(&first, false);
    assert!(world.is_open(job));
    let second = world.spawned();
    world.ready(&second, SMOL, 1);
    assert_eq!(world.runs_on(job), Some(second));
}

#[test]
fn a_hive_that_comes_back_has_its_workers_at_work_again_without_a_new_load() {
    let (mut world, id) = World::with_smol(2);
    lose(&mut world, "a");
    world.check(&id, true);
    world.clear();
    list_ready(&mut world, &id);
    let job = world.submit(SMOL);
    assert_eq!(world.runs_on(job), Some(id));
    assert!(world.spawns().is_empty());
}

#[test]
fn a_worker_that_its_hive_lists_and_nobody_asked_for_is_shown_as_adopted() {
    let (mut world, id) = World::with_smol(1);
    world.submit("big");
    let spawned = world.spawned();
    world.ready(&spawned, crate::parts::BIG, 1);
    let view = world.brain.view(world.now);
    assert!(view.workers.get(&id).unwrap().adopted);
    assert!(!view.workers.get(&spawned).unwrap().adopted);
}

#[test]
fn a_stream_that_breaks_off_has_its_hive_checked_at_once_and_in_quick_succession() {
    let (mut world, id) = World::with_smol(1);
    let pause = world.brain.check_pause(&hive("a"));
    assert!(pause > secs(13) && pause < secs(17), "{pause:?}");
    let job = world.submit(SMOL);
    let mut broken = Report::of(Outcome::Failed(failed("connection reset")));
    (broken.blame, broken.aftermath) = (Blame::Worker, Aftermath::Suspect);
    world.end_with(job, broken);
    assert!(world.hive_checks().contains(&hive("a")));
    world.miss("a", false);
    let pause = world.brain.check_pause(&hive("a"));
    assert!(pause < Duration::from_millis(500), "{pause:?}");
    world.list("a", Vec::new());
    world.check(&id, true);
    let pause = world.brain.check_pause(&hive("a"));
    assert!(pause > secs(13), "it answers: {pause:?}");
}

#[test]
fn checks_of_many_hives_are_spread() {
    let mut world = World::with_hive();
    let pauses = (0..200).map(|_| world.brain.check_pause(&hive("a")));
    let mut pauses: Vec<Duration> = pauses.collect();
    pauses.sort_unstable();
    let within = |pause: &Duration| (13.5..=16.5).contains(&pause.as_secs_f64());
    assert!(pauses.iter().all(within), "{pauses:?}");
    assert!(pauses[199] - pauses[0] > secs(2));
}

#[test]
fn a_drained_hive_gets_no_new_work_and_what_runs_there_ends() {
    let (mut world, id) = World::with_smol(2);
    world.hive("b", &[device(0, "cpu", 8)]);
    let running = world.submit(SMOL);
    drain(&mut world, "a", false).unwrap();
    let next = world.submit(SMOL);
    assert_eq!(world.spawns()[0].0, hive("b"));
    assert_eq!(world.runs_on(next), None);
    let shown = world
        .brain
        .view(world.now)
        .workers
        .get(&id)
        .unwrap()
        .clone();
    assert!(shown.withheld && shown.slots_free() == 0);
    world.end(running);
    assert!(world.stops().is_empty() && world.stopped_hives().is_empty());
    resume(&mut world, "a");
    assert_eq!(world.runs_on(next), Some(id), "its worker was kept");
}

#[test]
fn when_all_that_could_serve_is_drained_the_answer_says_so() {
    let (mut world, _) = World::with_smol(1);
    drain(&mut world, "a", false).unwrap();
    let job = world.submit(SMOL);
    assert_eq!(world.code(job), "NO_CAPACITY");
    assert!(world.error(job).message.contains("hive a is drained"));
    // Hive `b` runs, and has no such model.
    world.report("b", report(&[]), Vec::new());
    let there = world.submit_with(SMOL, |r| r.constraints.hive = Some(hive("a")));
    assert_eq!(world.code(there), "NO_CAPACITY");
}

#[test]
fn a_hive_that_is_drained_to_be_stopped_is_stopped_after_its_last_job() {
    let (mut world, id) = World::with_smol(2);
    world.is_ours("a");
    let jobs = [world.submit(SMOL), world.submit(SMOL)];
    drain(&mut world, "a", true).unwrap();
    world.end(jobs[0]);
    assert!(world.stopped_hives().is_empty());
    world.end(jobs[1]);
    assert_eq!(world.stopped_hives(), [hive("a")]);
    world.hive_stopped("a", Ok(()));
    world.check(&id, false);
    assert!(!world.has_worker(&id));
    assert_eq!(world.known("a").status, HiveStatus::Offline);
    world.pass(secs(600));
    let job = world.submit(SMOL);
    assert_eq!(world.code(job), "NO_CAPACITY");
    assert!(world.starts().is_empty(), "it was to be stopped");
    resume(&mut world, "a");
    world.submit(SMOL);
    assert_eq!(world.starts(), [hive("a")]);
}

#[test]
fn a_hive_that_is_drained_to_be_stopped_is_stopped_when_its_last_worker_dies() {
    let (mut world, id) = World::with_smol(1);
    world.submit(SMOL);
    drain(&mut world, "a", true).unwrap();
    assert!(world.stopped_hives().is_empty());
    world.tell(Event::WorkerFailed {
        worker: id,
        error: failed("died"),
    });
    assert_eq!(world.stopped_hives(), [hive("a")]);
}

#[test]
fn a_worker_that_shows_itself_on_a_drained_hive_gets_no_work_either() {
    let mut world = World::with_hive();
    drain(&mut world, "a", false).unwrap();
    let late = worker("late");
    let mut ready = call(&late, SMOL);
    ready.hive = Some(hive("a"));
    world.call_ready(ready).unwrap();
    let listed = seen("a", &worker("other"), SMOL, SeenState::Ready);
    world.list("a", vec![listed]);
    let job = world.submit(SMOL);
    assert_eq!(world.runs_on(job), None);
    assert_eq!(world.code(job), "NO_CAPACITY");
}

#[test]
fn only_a_hive_that_the_queen_manages_can_be_drained_to_be_stopped() {
    let mut world = World::new();
    let mut other = crate::parts::spec("a");
    other.mode = rbee_orchestrator::domain::HiveMode::Network;
    world.register(other);
    let refused = drain(&mut world, "a", true).unwrap_err();
    assert_eq!(refused.code.as_str(), "INVALID_REQUEST");
    assert!(!world.known("a").draining);
    let unknown = drain(&mut world, "b", false).unwrap_err();
    assert_eq!(unknown.code.as_str(), "HIVE_NOT_FOUND");
}

#[test]
fn a_hive_that_comes_and_goes_must_be_steady_before_it_gets_new_workers() {
    let mut world = World::with_hive();
    lose(&mut world, "a");
    world.list("a", Vec::new());
    assert_eq!(world.known("a").last_error, None, "once is nothing");
    lose(&mut world, "a");
    let id = worker("runs");
    list_ready(&mut world, &id);
    let known = world.known("a");
    assert_eq!(known.status, HiveStatus::Online);
    let message = known.last_error.unwrap().message;
    assert!(message.contains("lost 2 times within 300 s"), "{message}");
    let served = world.submit(SMOL);
    assert_eq!(world.runs_on(served), Some(id), "what runs there serves");
    let waits = world.submit("big");
    assert_eq!(world.told(waits), ["steady_hive"]);
    assert!(world.spawns().is_empty());
    world.pass(secs(15));
    assert_eq!(world.spawns().len(), 1);
    assert_eq!(world.known("a").last_error, None);
    assert_eq!(world.brain.counters().hive_flaps, 1);
}

#[test]
fn each_further_loss_doubles_the_time_that_a_hive_must_be_steady() {
    let mut world = World::with_hive();
    let mut times = Vec::new();
    for _ in 0..4 {
        lose(&mut world, "a");
        world.list("a", Vec::new());
        times.push(
            world
                .known("a")
                .unsteady_until
                .since(world.now.mono)
                .as_secs(),
        );
    }
    assert_eq!(times, [0, 15, 30, 60]);
    world.pass(secs(400));
    lose(&mut world, "a");
    world.list("a", Vec::new());
    assert_eq!(
        world.known("a").unsteady_until.since(world.now.mono),
        secs(0)
    );
}

#[test]
fn another_steady_hive_is_taken_before_one_that_comes_and_goes() {
    let mut world = World::with_hive();
    world.hive("b", &[device(0, "cpu", 2)]);
    for _ in 0..2 {
        lose(&mut world, "a");
        world.list("a", Vec::new());
    }
    world.submit(SMOL);
    assert_eq!(world.spawns()[0].0, hive("b"));
}

#[test]
fn a_queen_that_stood_still_checks_again_before_she_counts_what_she_missed() {
    let (mut world, id) = World::with_smol(2);
    world.wake_up();
    let running = world.submit(SMOL);
    world.pass(secs(10));
    world.clear();
    world.stand_still(secs(60));
    for _ in 0..3 {
        // These checks began before or while she stood still.
        world.miss_late("a", secs(50));
    }
    assert_eq!(world.known("a").status, HiveStatus::Online);
    assert_eq!(world.hive_checks(), vec![hive("a"); 3]);
    world.check_late(&id, secs(50));
    assert_eq!(world.checks(), [id.clone()], "asked again");
    assert!(world.is_open(running) && world.aborts(running) == 0);
    assert_eq!(world.brain.counters().stalls, 1);
    // What is missed from now on counts.
    lose(&mut world, "a");
}

#[test]
fn a_load_gets_the_time_back_in_which_the_queen_stood_still() {
    let mut world = World::with_hive();
    world.wake_up();
    world.submit_with(SMOL, |r| r.queue_timeout = secs(3000));
    let id = world.spawned();
    world.answer_spawn(&id, Ok(id.clone()));
    world.pass(secs(290));
    world.stand_still(secs(120));
    world.pass(secs(5));
    assert!(world.stops().is_empty() && world.has_worker(&id));
    world.pass(secs(60));
    assert_eq!(world.stops(), [id], "its own time is over in the end");
}

#[test]
fn a_job_whose_time_passed_while_the_queen_stood_still_ends_with_timeout() {
    let (mut world, _) = World::with_smol(2);
    world.wake_up();
    let short = world.submit_with(SMOL, |r| {
        (r.total_timeout, r.flowing_timeout) = (secs(30), secs(30));
    });
    let long = world.submit(SMOL);
    world.stand_still(secs(60));
    world.pass(secs(1));
    assert_eq!(world.aborts(short), 1);
    assert_eq!(world.aborts(long), 0);
}

#[test]
fn a_hive_whose_process_has_ended_is_lost_whether_or_not_the_queen_stood_still() {
    let mut world = World::with_hive();
    world.wake_up();
    world.stand_still(secs(60));
    world.miss("a", true);
    assert_eq!(world.known("a").status, HiveStatus::Offline);
}

#[test]
fn a_worker_that_an_older_hive_has_forgotten_serves_on_and_is_asked_with_each_list() {
    let (mut world, id) = World::with_smol(1);
    for _ in 0..10 {
        world.pass(secs(15));
        world.clear();
        world.list("a", Vec::new());
        if world.checks().is_empty() {
            continue;
        }
        world.check(&id, true);
        let due: Vec<_> = world.brain.workers_to_check(false).collect();
        assert!(due.is_empty(), "and not all the time: {due:?}");
        let job = world.submit(SMOL);
        assert_eq!(world.runs_on(job), Some(id.clone()));
        world.end(job);
    }
    world.list("a", Vec::new());
    world.check(&id, false);
    assert!(!world.has_worker(&id), "now it is gone");
}

#[test]
fn a_worker_of_a_lost_hive_is_asked_until_it_is_gone_or_the_hive_is_back() {
    let (mut world, id) = World::with_smol(1);
    lose(&mut world, "a");
    for _ in 0..5 {
        world.check(&id, true);
        let due: Vec<_> = world.brain.workers_to_check(false).collect();
        assert_eq!(due.len(), 1);
    }
    world.check(&id, false);
    assert!(!world.has_worker(&id));
}
