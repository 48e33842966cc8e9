//! Where workers go, and which worker takes a request.

use std::time::Duration;

use rbee_orchestrator::brain::{OrderAnswer, SeenState, SpawnOrder};
use rbee_orchestrator::config::Config;
use rbee_orchestrator::domain::{Constraints, HiveRecord, JobId, WorkerProtocol};
use rbee_orchestrator::error::{Code, Error};
use rbee_orchestrator::scheduler::RoundRobin;

use crate::parts::{BIG, SMOL, device, hive, report, secs, seen, spec, worker};
use crate::two_steps::asynchronous;
use crate::world::World;

#[test]
fn a_worker_goes_to_the_hive_and_device_with_the_most_free_memory() {
    let mut world = World::new();
    world.hive("a", &[device(0, "cuda", 8), device(1, "cuda", 10)]);
    world.hive("b", &[device(0, "cuda", 9), device(3, "cuda", 24)]);
    world.submit(SMOL);
    let (on, spec) = world.spawns()[0].clone();
    assert_eq!((on.as_str(), spec.device), ("b", 3));
}

#[test]
fn a_model_that_fits_nowhere_is_refused_with_the_numbers() {
    let mut world = World::new();
    world.hive("a", &[device(0, "cuda", 5)]);
    let job = world.submit(BIG);
    assert_eq!(world.code(job), "INSUFFICIENT_VRAM");
    assert!(world.error(job).message.contains("6144 MiB"));
    assert!(world.error(job).message.contains("5120 MiB"));
}

#[test]
fn a_stopped_hive_counts_with_its_stored_report_and_one_that_never_reported_starts_last() {
    let mut known = HiveRecord::new(spec("b"));
    known.capabilities = Some(report(&[device(0, "cpu", 8)]));
    let unknown = HiveRecord::new(spec("a"));
    let scheduler = Box::new(rbee_orchestrator::scheduler::LeastLoaded);
    let mut world = World::with(Config::default(), scheduler, vec![unknown, known]);
    let job = world.submit(SMOL);
    assert_eq!(world.starts(), [hive("b")]);
    world.started(
        "b",
        Err(Error::new(Code::HiveUnreachable, "no such binary")),
    );
    assert_eq!(world.starts(), [hive("b"), hive("a")]);
    assert!(world.is_open(job));
}

#[test]
fn constraints_are_kept() {
    let mut world = World::new();
    world.hive("a", &[device(0, "cuda", 24), device(1, "cpu", 8)]);
    world.hive("b", &[device(0, "cuda", 16), device(1, "cuda", 8)]);
    let mut place = |node: Option<&str>, backend: Option<&str>, device| {
        world.clear();
        world.submit_with(SMOL, |request| {
            request.constraints = Constraints {
                hive: node.map(hive),
                backend: backend.map(str::to_owned),
                device,
            };
        });
        let (on, spec) = world.spawns()[0].clone();
        (on.to_string(), spec.device)
    };
    assert_eq!(place(Some("b"), None, None), ("b".into(), 0));
    assert_eq!(place(None, Some("cpu"), None), ("a".into(), 1));
    assert_eq!(place(Some("b"), None, Some(1)), ("b".into(), 1));
}

#[test]
fn a_node_that_is_not_there_is_hive_not_found() {
    let mut world = World::with_hive();
    let job = world.submit_with(SMOL, |r| r.constraints.hive = Some(hive("z")));
    assert_eq!(world.code(job), "HIVE_NOT_FOUND");
    assert_eq!(world.error(job).param, Some("node"));
}

#[test]
fn a_device_that_no_hive_has_is_the_callers_mistake_and_one_that_another_hive_has_is_not() {
    let mut world = World::new();
    world.hive("a", &[device(0, "cpu", 8)]);
    world.hive("b", &[device(0, "cuda", 5)]);
    let mut refused = |node: Option<&str>, backend: Option<&str>, device: Option<u32>| {
        let job = world.submit_with(SMOL, |request| {
            request.constraints = Constraints {
                hive: node.map(hive),
                backend: backend.map(str::to_owned),
                device,
            };
        });
        let error = world.error(job);
        assert_eq!(error.code.as_str(), "INVALID_REQUEST", "{error}");
        assert_eq!(error.retry_after, None, "{error}");
        (error.param, error.message.clone())
    };
    let (param, message) = refused(None, Some("metal"), None);
    assert_eq!(param, Some("backend"));
    for device in ["metal", "cpu 0 on a", "cuda 0 on b"] {
        assert!(message.contains(device), "{message}");
    }
    assert_eq!(refused(None, None, Some(7)).0, Some("device"));
    assert_eq!(refused(None, Some("cpu"), Some(1)).0, Some("backend"));
    let (_, message) = refused(Some("a"), Some("cuda"), None);
    assert!(message.contains("no hive a has"), "{message}");
    assert!(!message.contains("on b"), "{message}");
    let small = world.submit_with(BIG, |r| r.constraints.backend = Some("cuda".into()));
    assert_eq!(world.code(small), "INSUFFICIENT_VRAM");
    // To a device that is there the model may come.
    let mut bare = report(&[device(0, "metal", 8)]);
    bare.models.clear();
    world.register(spec("c"));
    world.report("c", bare, Vec::new());
    let later = world.submit_with(SMOL, |r| r.constraints.backend = Some("metal".into()));
    assert_eq!(world.code(later), "NO_CAPACITY");
}

#[test]
fn an_acknowledged_task_waits_for_a_device_that_is_away() {
    let mut world = World::new();
    world.register(spec("a"));
    let task = world.submit_with(SMOL, |request| {
        asynchronous(request);
        request.constraints.backend = Some("cuda".into());
    });
    world.report("a", report(&[device(0, "cpu", 8)]), Vec::new());
    assert!(world.is_open(task));
    let why = world.brain.waits_for(task).unwrap();
    assert!(why.contains("no hive has a device of cuda"), "{why}");
    world.report("a", report(&[device(0, "cuda", 8)]), Vec::new());
    assert_eq!(world.spawns().len(), 1);
}

#[test]
fn an_openai_request_to_a_model_with_only_rbee_workers_is_invalid_and_spawns_nothing() {
    let mut world = World::with_hive();
    let id = worker("plain");
    let mut listed = seen("a", &id, SMOL, SeenState::Ready);
    listed.spec.protocol = WorkerProtocol::Rbee;
    world.list("a", vec![listed]);
    let chat = world.submit_with(SMOL, |request| request.openai_only = true);
    assert_eq!(world.code(chat), "INVALID_REQUEST");
    assert!(world.spawns().is_empty());
    let task = world.submit(SMOL);
    assert_eq!(world.runs_on(task), Some(id));
}

#[test]
fn a_worker_that_turns_out_to_speak_rbee_is_not_spawned_again_and_again() {
    let mut world = World::with_hive();
    let chat = world.submit_with(SMOL, |request| request.openai_only = true);
    let id = world.spawned();
    world.answer_spawn(&id, Ok(id.clone()));
    let mut call = crate::parts::call(&id, SMOL);
    call.protocol = Some(WorkerProtocol::Rbee);
    world.call_ready(call).unwrap();
    assert_eq!(world.code(chat), "INVALID_REQUEST");
    assert_eq!(world.spawns().len(), 1);
}

#[test]
fn a_hive_that_words_a_device_differently_does_not_cause_a_second_spawn() {
    let mut world = World::new();
    world.hive("a", &[device(0, "cuda", 8)]);
    let job = world.submit_with(SMOL, |r| r.constraints.backend = Some("cuda".into()));
    let id = world.spawned();
    world.answer_spawn(&id, Ok(id.clone()));
    // The list says "cpu".
    world.list("a", vec![seen("a", &id, SMOL, SeenState::Ready)]);
    assert_eq!(world.runs_on(job), Some(id));
}

#[test]
fn an_ordered_worker_does_not_take_the_memory_of_one_that_loads() {
    let mut world = World::with_hive();
    world.submit(BIG);
    let order = SpawnOrder {
        model: "big".into(),
        constraints: Constraints::default(),
    };
    let now = world.now;
    let answer = world
        .brain
        .order_worker(now, worker("second"), &order, &mut world.actions);
    assert_eq!(answer.unwrap_err().code, Code::InsufficientVram);
    let order = SpawnOrder {
        model: "smol".into(),
        ..order
    };
    let answer = world
        .brain
        .order_worker(now, worker("third"), &order, &mut world.actions);
    assert_eq!(answer.unwrap(), OrderAnswer::Spawning(hive("a")));
}

/// A world with three ready smols: one slot on a small device, four on a large one, four on a small
/// one.
fn three_smols(mut world: World) -> World {
    world.hive("a", &[device(0, "cpu", 4)]);
    world.hive("b", &[device(0, "cpu", 30)]);
    world.hive("c", &[device(0, "cpu", 4)]);
    world.adopt("a", "a-0", SMOL, 2);
    world.adopt("b", "b-0", SMOL, 4);
    world.adopt("c", "c-0", SMOL, 4);
    world
}

fn places(world: &World, jobs: &[JobId]) -> Vec<String> {
    let place = |job: &JobId| world.runs_on(*job).map_or("-".into(), |id| id.to_string());
    jobs.iter().map(place).collect()
}

fn submit(world: &mut World, count: usize) -> Vec<JobId> {
    let submit = |_| {
        world.pass(Duration::from_millis(1));
        world.submit(SMOL)
    };
    (0..count).map(submit).collect()
}

#[test]
fn least_loaded_takes_the_smallest_share_of_slots_then_more_memory_then_the_least_recent() {
    let mut world = three_smols(World::new());
    // All idle: memory decides, then of a and c the name, since both were never used.
    let jobs = submit(&mut world, 6);
    let expected = ["b-0", "a-0", "c-0", "b-0", "c-0", "b-0"];
    // a has half of its slots taken by one job; b and c a quarter each.
    assert_eq!(places(&world, &jobs), expected);
    // b: 3/4, a: 1/2, c: 2/4. a was used before c.
    let jobs = submit(&mut world, 1);
    assert_eq!(places(&world, &jobs), ["a-0"]);
}

#[test]
fn round_robin_takes_turns_and_passes_over_the_full() {
    let scheduler = Box::new(RoundRobin::default());
    let mut world = three_smols(World::with(Config::default(), scheduler, Vec::new()));
    let jobs = submit(&mut world, 11);
    let expected = [
        "a-0", "b-0", "c-0", "a-0", "b-0", "c-0", "b-0", "c-0", "b-0", "c-0", "-",
    ];
    assert_eq!(places(&world, &jobs), expected);
    world.pass(secs(1));
}
