//! Hives: started on demand, lost, adopted, removed.

use rbee_orchestrator::brain::SeenState;
use rbee_orchestrator::domain::HiveStatus;
use rbee_orchestrator::error::{Code, Error};

use crate::parts::{SMOL, device, hive, report, secs, seen, spec, worker};
use crate::world::World;

fn no_binary() -> Error {
    Error::new(Code::HiveUnreachable, "rbee-hive was not found on PATH")
}

fn status(world: &World, name: &str) -> HiveStatus {
    world.brain.view(world.now).hives[&hive(name)].status
}

#[test]
fn a_hive_that_does_not_start_refuses_those_who_wait_and_is_tried_again_after_a_while() {
    let mut world = World::new();
    world.register(spec("a"));
    let job = world.submit("smol");
    world.started("a", Err(no_binary()));
    assert_eq!(world.code(job), "HIVE_UNREACHABLE");
    assert!(world.error(job).message.contains("rbee-hive was not found"));
    assert_eq!(world.error(job).retry_after, Some(secs(15)));
    world.pass(secs(14));
    let early = world.submit("smol");
    assert_eq!(world.code(early), "HIVE_UNREACHABLE");
    assert_eq!(world.starts().len(), 1);
    world.pass(secs(1));
    let job = world.submit("smol");
    assert!(world.is_open(job));
    assert_eq!(world.starts().len(), 2);
}

#[test]
fn a_hundred_requests_start_a_hive_once() {
    let mut world = World::new();
    world.register(spec("a"));
    for _ in 0..100 {
        world.submit("smol");
        world.submit("other");
    }
    assert_eq!(world.starts(), [hive("a")]);
}

#[test]
fn a_hive_that_starts_and_never_reports_does_not_keep_anyone_waiting() {
    let mut world = World::new();
    world.register(spec("a"));
    let job = world.submit("smol");
    world.started("a", Ok(()));
    for _ in 0..3 {
        assert!(world.is_open(job));
        world.miss("a", false);
    }
    assert_eq!(world.code(job), "HIVE_UNREACHABLE");
    assert_eq!(status(&world, "a"), HiveStatus::Error);
    assert_eq!(world.starts().len(), 1, "not again at once");
}

#[test]
fn a_hive_that_dies_right_after_its_start_is_an_answer_at_once() {
    let mut world = World::new();
    world.register(spec("a"));
    let job = world.submit("smol");
    world.started("a", Ok(()));
    world.miss("a", true);
    assert_eq!(world.code(job), "HIVE_UNREACHABLE");
    assert_eq!(world.starts().len(), 1);
}

#[test]
fn a_hive_that_reports_no_device_is_no_capacity() {
    let mut world = World::new();
    world.hive("a", &[]);
    let job = world.submit(SMOL);
    assert_eq!(world.code(job), "NO_CAPACITY");
}

#[test]
fn a_hive_that_can_not_tell_has_the_devices_of_its_registration() {
    let mut world = World::new();
    let mut claims = spec("old");
    claims.devices.insert("cuda".into(), 2);
    world.register(claims);
    world.list("old", Vec::new());
    let view = world.brain.view(world.now);
    let devices = &view.hives[&hive("old")].capabilities().unwrap().devices;
    let names: Vec<_> = devices.iter().map(|d| (&*d.backend, d.index)).collect();
    assert_eq!(names, [("cuda", 0), ("cuda", 1)]);
}

#[test]
fn the_workers_of_a_lost_hive_are_asked_and_those_that_answer_stay() {
    let mut world = World::with_hive();
    let ids = [worker("w-0"), worker("w-1")];
    let listed = ids
        .each_ref()
        .map(|id| seen("a", id, SMOL, SeenState::Ready));
    world.list("a", listed.into());
    for _ in 0..2 {
        world.miss("a", false);
        assert!(world.checks().is_empty(), "two misses are no loss");
    }
    world.miss("a", false);
    assert_eq!(status(&world, "a"), HiveStatus::Offline);
    assert_eq!(world.checks(), ids);
    world.check(&ids[0], true);
    world.check(&ids[1], false);
    assert!(world.has_worker(&ids[0]) && !world.has_worker(&ids[1]));
    let job = world.submit(SMOL);
    assert_eq!(world.runs_on(job), None, "it gets no new work meanwhile");
    let listed = vec![seen("a", &ids[0], SMOL, SeenState::Ready)];
    world.list("a", listed);
    assert_eq!(world.runs_on(job), Some(ids[0].clone()));
}

#[test]
fn a_hive_that_can_not_be_started_again_does_not_vouch_for_its_workers() {
    let (mut world, id) = World::with_smol(1);
    world.started("a", Err(no_binary()));
    assert_eq!(world.checks(), [id]);
}

#[test]
fn the_reason_of_a_failed_start_is_not_lost_among_missed_checks() {
    let mut world = World::new();
    world.register(spec("a"));
    world.started("a", Err(no_binary()));
    for _ in 0..5 {
        world.miss("a", true);
    }
    let job = world.submit("smol");
    assert!(world.error(job).message.contains("rbee-hive was not found"));
}

#[test]
fn workers_of_an_earlier_life_are_adopted_from_their_hives_list() {
    let mut world = World::new();
    world.register(spec("a"));
    let ids = [worker("ready"), worker("loads"), worker("ends")];
    let states = [SeenState::Ready, SeenState::Loading, SeenState::Stopping];
    let listed = ids.iter().zip(states);
    let listed = listed
        .map(|(id, state)| seen("a", id, SMOL, state))
        .collect();
    world.report("a", report(&[device(0, "cpu", 8)]), listed);
    assert_eq!(
        ids.each_ref().map(|id| world.has_worker(id)),
        [true, true, false]
    );
    let job = world.submit(SMOL);
    assert_eq!(world.runs_on(job), Some(ids[0].clone()));
    assert!(world.spawns().is_empty());
}

#[test]
fn those_who_wait_for_a_hive_that_is_removed_get_an_answer() {
    let mut world = World::new();
    world.register(spec("a"));
    let anywhere = world.submit("smol");
    let there = world.submit_with("smol", |r| r.constraints.hive = Some(hive("a")));
    let now = world.now;
    let removed = world.brain.remove_hive(now, &hive("a"), &mut world.actions);
    assert!(removed.is_ok());
    assert_eq!(world.code(there), "HIVE_NOT_FOUND");
    assert_eq!(world.code(anywhere), "MODEL_NOT_FOUND");
}

#[test]
fn a_hive_that_is_removed_and_added_again_gets_its_workers_back() {
    let (mut world, id) = World::with_smol(1);
    let running = world.submit(SMOL);
    let now = world.now;
    let removed = world.brain.remove_hive(now, &hive("a"), &mut world.actions);
    assert!(removed.is_ok() && !world.has_worker(&id));
    assert!(world.is_open(running), "what runs goes on");
    world.register(spec("a"));
    let listed = vec![seen("a", &id, SMOL, SeenState::Ready)];
    world.report("a", report(&[device(0, "cpu", 8)]), listed);
    let job = world.submit(SMOL);
    assert_eq!(world.runs_on(job), Some(id.clone()));
    world.end(running);
    assert_eq!(world.leases(&id), 1);
}

#[test]
fn a_hive_registered_at_another_place_starts_anew_and_nobody_waits_for_the_old_one() {
    let mut world = World::new();
    world.register(spec("a"));
    let job = world.submit("smol");
    let mut moved = spec("a");
    moved.hostname = "10.0.0.2".into();
    world.register(moved);
    assert_eq!(world.starts().len(), 2);
    world.report("a", report(&[device(0, "cpu", 8)]), Vec::new());
    assert!(world.is_open(job));
    let id = world.spawned();
    world.ready(&id, SMOL, 1);
    world.register(spec("a"));
    assert!(!world.has_worker(&id), "it is not on that machine");
}

#[test]
fn a_hive_registered_again_at_the_same_place_keeps_what_is_known() {
    let (mut world, id) = World::with_smol(1);
    world.register(spec("a"));
    assert_eq!(status(&world, "a"), HiveStatus::Online);
    let job = world.submit(SMOL);
    assert_eq!(world.runs_on(job), Some(id));
}

#[test]
fn a_start_that_is_tried_again_does_not_show_the_error_of_the_last_one() {
    let mut world = World::new();
    world.register(spec("a"));
    world.submit("smol");
    world.started("a", Err(no_binary()));
    let last_error = |world: &World| {
        let view = world.brain.view(world.now);
        view.hives[&hive("a")].last_error.clone()
    };
    assert!(last_error(&world).is_some());
    world.pass(secs(60));
    world.submit("smol");
    assert_eq!(status(&world, "a"), HiveStatus::Starting);
    assert_eq!(last_error(&world), None);
}
