//! Hives that end by themselves: started again, given up, taken up again.

use rbee_orchestrator::brain::{Action, Event};
use rbee_orchestrator::domain::{HiveMode, HiveStatus};
use rbee_orchestrator::error::{Code, Error};

use crate::parts::{SMOL, device, failed, hive, report, secs, spec};
use crate::world::World;

/// A hive `a` that the queen started, and that runs.
fn started() -> World {
    let mut world = World::with_hive();
    world.is_ours("a");
    world
}

/// It ends, is started again, and is back; returns how long that took.
fn end_and_come_back(world: &mut World) -> std::time::Duration {
    world.clear();
    let ended = world.now.mono;
    world.miss("a", true);
    let most = secs(61);
    while world.starts().is_empty() && world.now.mono.since(ended) < most {
        world.pass(std::time::Duration::from_millis(100));
    }
    assert_eq!(world.starts(), [hive("a")]);
    let took = world.now.mono.since(ended);
    world.started("a", Ok(()));
    world.report("a", report(&[device(0, "cpu", 8)]), Vec::new());
    took
}

#[test]
fn a_hive_that_the_queen_started_and_that_dies_is_started_again_within_a_second() {
    let mut world = started();
    let took = end_and_come_back(&mut world);
    assert!(
        took <= secs(1) + std::time::Duration::from_millis(100),
        "{took:?}"
    );
    assert_eq!(world.known("a").status, HiveStatus::Online);
    assert_eq!(world.brain.counters().hive_restarts, 1);
}

#[test]
fn a_hive_that_somebody_else_started_is_started_again_only_when_it_is_needed() {
    let mut world = World::with_hive();
    world.miss("a", true);
    world.pass(secs(600));
    assert!(world.starts().is_empty());
    world.submit(SMOL);
    assert_eq!(world.starts(), [hive("a")]);
}

#[test]
fn who_needs_a_hive_that_has_just_died_does_not_wait_for_the_pause() {
    let mut world = started();
    world.miss("a", true);
    let job = world.submit(SMOL);
    assert_eq!(world.starts(), [hive("a")]);
    assert_eq!(world.told(job), ["start_hive"]);
    let told = world.actions.iter().find_map(|action| match action {
        Action::Narrate { narration, .. } => Some(narration.human.clone()),
        _ => None,
    });
    assert_eq!(told.unwrap(), "Starting hive a again, which has ended");
    world.pass(secs(5));
    assert_eq!(world.starts().len(), 1, "one start, not two");
    assert_eq!(world.brain.counters().hive_restarts, 1);
}

#[test]
fn one_that_dies_again_and_again_is_given_up_and_says_why() {
    let mut world = started();
    for _ in 0..5 {
        end_and_come_back(&mut world);
    }
    world.clear();
    world.miss("a", true);
    let known = world.known("a");
    assert_eq!(known.status, HiveStatus::Error);
    let message = known.last_error.unwrap().message;
    for told in [
        "gave up after 5 starts",
        "600 s",
        "connection refused",
        "resume",
    ] {
        assert!(message.contains(told), "no {told:?} in {message}");
    }
    let job = world.submit(SMOL);
    assert_eq!(world.code(job), "HIVE_UNREACHABLE");
    assert!(world.error(job).message.contains("gave up after 5 starts"));
    world.pass(secs(7200));
    world.submit(SMOL);
    assert!(world.starts().is_empty(), "until a person says so");
    let counters = world.brain.counters();
    assert_eq!((counters.hive_restarts, counters.hives_given_up), (5, 1));
}

#[test]
fn a_hive_that_can_not_be_started_again_is_given_up_too() {
    let mut world = started();
    world.miss("a", true);
    for _ in 0..5 {
        world.pass(secs(61));
        world.started(
            "a",
            Err(Error::new(Code::HiveUnreachable, "it exited with 1")),
        );
    }
    assert_eq!(world.starts().len(), 5);
    let known = world.known("a");
    assert!(known.gave_up);
    assert!(
        known
            .last_error
            .unwrap()
            .message
            .contains("it exited with 1")
    );
}

#[test]
fn work_goes_elsewhere_when_a_hive_was_given_up() {
    let mut world = started();
    world.hive("b", &[device(0, "cpu", 8)]);
    for _ in 0..5 {
        end_and_come_back(&mut world);
    }
    world.clear();
    world.miss("a", true);
    world.submit(SMOL);
    assert_eq!(world.spawns()[0].0, hive("b"));
}

#[test]
fn a_person_may_have_a_hive_tried_again_that_was_given_up() {
    for registers_again in [true, false] {
        let mut world = started();
        for _ in 0..5 {
            end_and_come_back(&mut world);
        }
        world.miss("a", true);
        world.clear();
        match registers_again {
            true => world.register(spec("a")),
            false => {
                let now = world.now;
                let resumed = world.brain.resume_hive(now, &hive("a"), &mut world.actions);
                resumed.unwrap();
            }
        }
        assert_eq!(world.starts(), [hive("a")]);
        world.started("a", Ok(()));
        world.report("a", report(&[device(0, "cpu", 8)]), Vec::new());
        let took = end_and_come_back(&mut world);
        assert!(took < secs(2), "its past is forgotten: {took:?}");
    }
}

#[test]
fn one_that_was_steady_for_long_begins_anew() {
    let mut world = started();
    for _ in 0..20 {
        end_and_come_back(&mut world);
        world.pass(secs(601));
    }
    assert_eq!(world.brain.counters().hives_given_up, 0);
}

#[test]
fn whether_a_hive_that_nobody_may_start_has_ended_does_not_matter() {
    let mut world = World::new();
    let mut other = spec("a");
    other.mode = HiveMode::Network;
    world.register(other);
    world.report("a", report(&[device(0, "cpu", 8)]), Vec::new());
    world.is_ours("a");
    world.miss("a", true);
    world.pass(secs(600));
    assert!(world.starts().is_empty());
}

#[test]
fn the_pauses_before_starts_grow_and_have_a_bound() {
    let mut sums = [std::time::Duration::ZERO; 5];
    for seed in 0..20 {
        let mut world = started();
        world.brain = world.brain.seeded(seed);
        for sum in &mut sums {
            *sum += end_and_come_back(&mut world);
        }
    }
    assert!(sums[0] < sums[2] && sums[2] < sums[4], "{sums:?}");
    // Half of the longest, on average: 16 s.
    assert!(
        sums[4] > secs(20 * 4) && sums[4] < secs(20 * 12),
        "{sums:?}"
    );
}

#[test]
fn a_hive_that_dies_of_each_order_is_given_up_as_well() {
    let mut world = started();
    for _ in 0..6 {
        world.clear();
        world.submit_with(SMOL, |r| r.queue_timeout = secs(1));
        let mut spawned = world.spawns();
        while let Some((_, worker)) = spawned.pop() {
            let dead = Error::new(Code::HiveUnreachable, "connection reset");
            world.answer_spawn(&worker.id, Err(dead));
        }
        for _ in 0..61 {
            world.pass(secs(1));
            if !world.starts().is_empty() {
                break;
            }
        }
        if !world.starts().is_empty() {
            world.started("a", Ok(()));
            world.report("a", report(&[device(0, "cpu", 8)]), Vec::new());
        }
    }
    assert!(world.known("a").gave_up, "{:?}", world.known("a"));
}

#[test]
fn a_start_that_the_queen_slept_through_is_tried_again_and_is_no_failed_one() {
    let mut world = started();
    world.wake_up();
    world.miss("a", true);
    let job = world.submit(SMOL);
    world.stand_still(secs(30));
    world.tell(Event::Pulse);
    world.clear();
    world.started("a", Err(failed("it did not answer in time")));
    assert_eq!(world.starts(), [hive("a")]);
    assert_eq!(world.known("a").status, HiveStatus::Starting);
    // What fails now fails.
    world.started("a", Err(failed("no binary")));
    assert_eq!(world.known("a").status, HiveStatus::Error);
    assert!(!world.is_open(job));
}
