//! Cold models: one load for all who wait, and what they hear when it takes long or fails.

use rbee_orchestrator::brain::{Event, SeenState, SpawnOrder};
use rbee_orchestrator::domain::Constraints;
use rbee_orchestrator::error::{Code, Error};

use crate::parts::{BIG, SMOL, device, failed, on_disk, report, secs, seen, spec, worker};
use crate::world::World;

#[test]
fn a_cold_model_is_spawned_once_for_a_hundred_waiting_requests() {
    let mut world = World::with_hive();
    let jobs: Vec<_> = (0..100).map(|_| world.submit(SMOL)).collect();
    let id = world.spawned();
    for job in &jobs {
        assert_eq!(world.told(*job), ["load"], "late comers are told as well");
    }
    world.ready(&id, SMOL, 100);
    assert!(jobs.iter().all(|job| world.runs_on(*job).is_some()));
    assert_eq!(world.spawns().len(), 1);
}

#[test]
fn other_names_and_constraints_that_lead_to_the_same_device_share_one_load() {
    let mut world = World::with_hive();
    let jobs = [
        world.submit("smol"),
        world.submit("tiny"),
        world.submit_with(SMOL, |r| r.constraints.backend = Some("cpu".into())),
        world.submit_with(SMOL, |r| r.constraints.device = Some(0)),
        world.submit_with(SMOL, |r| r.openai_only = true),
    ];
    let id = world.spawned();
    world.ready(&id, SMOL, 8);
    assert!(jobs.iter().all(|job| world.runs_on(*job).is_some()));
}

#[test]
fn hot_models_never_wait_behind_a_cold_one() {
    let (mut world, hot) = World::with_smol(4);
    let cold = world.submit(BIG);
    let job = world.submit(SMOL);
    assert_eq!(world.runs_on(job), Some(hot));
    assert_eq!(world.runs_on(cold), None);
}

#[test]
fn a_queue_full_of_cold_requests_does_not_keep_a_hot_one_out() {
    let (mut world, _) = World::with_smol(4);
    for _ in 0..1000 {
        world.submit(BIG);
    }
    let cold = world.submit(BIG);
    assert_eq!(world.code(cold), "SYSTEM_AT_CAPACITY");
    assert!(world.error(cold).retry_after.is_some());
    let hot = world.submit(SMOL);
    assert!(world.runs_on(hot).is_some());
}

#[test]
fn waiting_too_long_for_a_load_is_model_loading_and_the_load_goes_on_for_the_next() {
    let mut world = World::with_hive();
    let first = world.submit(SMOL);
    let id = world.spawned();
    world.pass(secs(61));
    assert_eq!(world.code(first), "MODEL_LOADING");
    assert!(world.error(first).retry_after.is_some());
    assert!(world.stops().is_empty());
    let second = world.submit(SMOL);
    world.ready(&id, SMOL, 1);
    assert_eq!(world.runs_on(second), Some(id));
    assert_eq!(world.spawns().len(), 1);
}

#[test]
fn waiting_too_long_for_a_slot_is_a_time_out() {
    let (mut world, _) = World::with_smol(1);
    world.submit(SMOL);
    let second = world.submit(SMOL);
    world.pass(secs(61));
    assert_eq!(world.code(second), "TIMEOUT");
}

#[test]
fn a_load_may_take_five_minutes_and_twenty_seconds_for_each_gib() {
    let mut world = World::with_hive();
    let patient = world.submit_with(BIG, |request| {
        request.queue_timeout = secs(3600);
        request.total_timeout = secs(3600);
    });
    let id = world.spawned();
    world.answer_spawn(&id, Ok(id.clone()));
    world.pass(secs(300 + 6 * 20 - 1));
    assert!(world.is_open(patient));
    world.pass(secs(2));
    assert_eq!(world.code(patient), "WORKER_FAILED");
    assert_eq!(world.stops(), [id.clone()]);
    assert!(!world.has_worker(&id));
}

#[test]
fn a_load_that_runs_out_of_time_ends_just_those_who_wait_for_it() {
    let mut world = World::new();
    world.hive("a", &[device(0, "cpu", 8), device(1, "cuda", 8)]);
    let long = |request: &mut rbee_orchestrator::brain::JobRequest| {
        request.queue_timeout = secs(3600);
        request.total_timeout = secs(3600);
    };
    let first = world.submit_with(SMOL, |request| {
        request.constraints.device = Some(0);
        long(request);
    });
    world.pass(secs(200));
    let second = world.submit_with(SMOL, |request| {
        request.constraints.device = Some(1);
        long(request);
    });
    assert_eq!(world.spawns().len(), 2);
    world.pass(secs(130));
    assert_eq!(world.code(first), "WORKER_FAILED");
    assert!(world.is_open(second));
}

#[test]
fn an_adopted_worker_that_never_finishes_loading_is_stopped_too() {
    let mut world = World::with_hive();
    let id = crate::parts::worker("hung");
    world.list("a", vec![seen("a", &id, SMOL, SeenState::Loading)]);
    world.pass(secs(321));
    assert_eq!(world.stops(), [id.clone()]);
    assert!(!world.has_worker(&id));
}

#[test]
fn a_device_that_has_no_room_after_all_is_left_out_for_a_while_and_another_is_tried() {
    let mut world = World::new();
    world.hive("a", &[device(0, "cuda", 16)]);
    world.hive("b", &[device(0, "cuda", 8)]);
    let full = || Error::new(Code::InsufficientVram, "no room");
    let job = world.submit(SMOL);
    let first = world.spawned();
    world.answer_spawn(&first, Err(full()));
    let second = world.spawns()[1].clone();
    assert_eq!(second.0.as_str(), "b");
    world.answer_spawn(&second.1.id, Err(full()));
    assert_eq!(world.code(job), "INSUFFICIENT_VRAM");
    assert_eq!(world.brain.next_due(), None, "nothing of it is left");

    let refused = world.submit(SMOL);
    assert_eq!(world.code(refused), "INSUFFICIENT_VRAM");
    world.pass(secs(15));
    world.submit(SMOL);
    assert_eq!(world.spawns().len(), 3, "the time is over");
}

#[test]
fn a_load_that_fails_ends_those_who_wait_and_is_not_tried_again_for_a_while() {
    let mut world = World::with_hive();
    let job = world.submit(SMOL);
    let id = world.spawned();
    world.answer_spawn(&id, Err(failed("the engine exited with 1")));
    assert_eq!(world.code(job), "WORKER_FAILED");
    assert!(world.error(job).message.contains("exited with 1"));
    world.pass(secs(5));
    let crowd = [(); 3].map(|()| world.submit(SMOL));
    for late in crowd {
        assert_eq!(world.code(late), "WORKER_FAILED");
        assert_eq!(world.error(late).message, world.error(job).message);
        assert_eq!(world.error(late).retry_after, Some(secs(10)));
    }
    let other = world.submit(BIG);
    assert!(world.is_open(other), "only this model is remembered");
    assert_eq!(world.spawns().len(), 2);
    world.pass(secs(10));
    world.submit(SMOL);
    assert_eq!(world.spawns().len(), 3);
}

#[test]
fn a_load_that_failed_in_one_place_is_tried_in_another() {
    let mut world = World::new();
    world.hive("a", &[device(0, "cpu", 16), device(1, "cpu", 8)]);
    let first = world.submit(SMOL);
    let id = world.spawned();
    world.answer_spawn(&id, Err(failed("the engine exited with 1")));
    assert_eq!(world.code(first), "WORKER_FAILED");
    let second = world.submit(SMOL);
    assert!(world.is_open(second));
    assert_eq!(world.spawns()[1].1.device, 1);
}

#[test]
fn an_order_does_not_mind_that_the_load_failed_and_its_success_is_a_new_beginning() {
    let mut world = World::with_hive();
    world.submit(SMOL);
    let id = world.spawned();
    world.answer_spawn(&id, Err(failed("the engine exited with 1")));
    let order = SpawnOrder {
        model: "smol".into(),
        constraints: Constraints::default(),
    };
    let (now, ordered) = (world.now, worker("ordered"));
    let answer = world
        .brain
        .order_worker(now, ordered.clone(), &order, &mut world.actions);
    assert!(answer.is_ok());
    world.ready(&ordered, SMOL, 1);
    world.shut_down(&ordered, false);
    world.stopped(&ordered);
    let next = world.submit(SMOL);
    assert!(world.is_open(next));
    assert_eq!(world.spawns().len(), 3);
}

#[test]
fn shutting_a_loading_worker_down_ends_those_who_wait_for_it() {
    let mut world = World::with_hive();
    let job = world.submit(SMOL);
    let id = world.spawned();
    world.shut_down(&id, false);
    assert_eq!(world.code(job), "WORKER_FAILED");
    assert_eq!(world.stops(), [id.clone()]);
    // One that comes now does not wait for the worker that ends.
    let next = world.submit(SMOL);
    assert!(world.is_open(next));
    assert_eq!(world.spawns().len(), 2);
    world.answer_spawn(&id, Ok(id.clone()));
    world.stopped(&id);
    assert!(!world.has_worker(&id));
}

#[test]
fn a_loading_workers_memory_is_reserved() {
    let mut world = World::new();
    world.hive("a", &[device(0, "cpu", 6)]);
    world.submit(BIG);
    let job = world.submit(SMOL);
    assert_eq!(world.code(job), "INSUFFICIENT_VRAM");
    // A hive that lists it without its memory does not free it.
    let id = world.spawned();
    world.answer_spawn(&id, Ok(id.clone()));
    world.list("a", vec![seen("a", &id, BIG, SeenState::Loading)]);
    let job = world.submit(SMOL);
    assert_eq!(world.code(job), "INSUFFICIENT_VRAM");
}

#[test]
fn an_unknown_name_waits_for_the_hive_that_never_reported_and_then_means_its_model() {
    let mut world = World::new();
    world.register(spec("a"));
    let job = world.submit("smol");
    assert_eq!(world.starts().len(), 1);
    assert_eq!(world.told(job), ["start_hive"]);
    world.started("a", Ok(()));
    world.report("a", report(&[device(0, "cpu", 8)]), Vec::new());
    let (_, spec) = world.spawns()[0].clone();
    assert_eq!(spec.model.as_str(), SMOL);
    world.ready(&spec.id, SMOL, 1);
    assert!(world.runs_on(job).is_some());
}

#[test]
fn who_waits_for_a_hive_is_told_how_far_its_program_is_and_what_kept_him() {
    let mut world = World::new();
    world.register(spec("a"));
    let job = world.submit("smol");
    for percent in [Some(0), Some(42), None, Some(43)] {
        world.tell(Event::HiveInstalling {
            hive: spec("a").id,
            percent,
        });
    }
    let told = world.told(job);
    let (install, start) = ("install_hive", "start_hive");
    assert_eq!(told, [start, install, install, start, install]);
    world.pass(secs(3600));
    let error = world.error(job);
    assert_eq!(error.code, Code::ModelLoading);
    assert!(error.message.contains("being installed (43 %)"), "{error}");
    assert!(error.retry_after.is_some());
}

#[test]
fn a_name_that_no_hive_knows_is_not_found_and_the_answer_names_what_there_is() {
    let mut world = World::new();
    world.register(spec("a"));
    let job = world.submit("nonsense");
    world.started("a", Ok(()));
    world.report("a", report(&[device(0, "cpu", 8)]), Vec::new());
    assert_eq!(world.code(job), "MODEL_NOT_FOUND");
    assert!(world.error(job).message.contains("smol"));
}

#[test]
fn a_name_that_turns_out_to_mean_just_what_it_seemed_to_mean_loses_no_job() {
    let mut world = World::new();
    world.register(spec("a"));
    let job = world.submit("org/repo");
    let mut has = report(&[device(0, "cpu", 8)]);
    has.models.push(on_disk("hf:org/repo", &["org/repo"], 1));
    world.report("a", has, Vec::new());
    let id = world.spawned();
    world.ready(&id, "hf:org/repo", 1);
    assert_eq!(world.runs_on(job), Some(id));
}

#[test]
fn an_alias_does_not_take_those_along_who_asked_for_the_full_reference() {
    let mut world = World::new();
    world.register(spec("a"));
    let by_alias = world.submit("fast");
    let by_reference = world.submit("hf:fast");
    let mut has = report(&[device(0, "cpu", 8)]);
    has.models.push(on_disk("file:fast.gguf", &["fast"], 1));
    world.report("a", has, Vec::new());
    assert_eq!(world.spawns()[0].1.model.as_str(), "file:fast.gguf");
    assert!(world.is_open(by_alias));
    assert_eq!(world.code(by_reference), "MODEL_NOT_FOUND");
}
