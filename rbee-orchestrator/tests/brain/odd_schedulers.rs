//! A policy of an embedder may answer anything; no job is lost or sent to where it can't run.

use rbee_orchestrator::config::Config;
use rbee_orchestrator::error::{Code, Error};
use rbee_orchestrator::scheduler::{ClusterView, Placement, PlacementRequest, Scheduler};

use crate::parts::{BIG, SMOL, device, hive, secs, worker};
use crate::world::World;

struct Says(Placement);

impl Scheduler for Says {
    fn name(&self) -> &'static str {
        "says"
    }

    fn place(&mut self, _: &PlacementRequest<'_>, _: &ClusterView<'_>) -> Placement {
        self.0.clone()
    }
}

/// Hive `a` with a ready smol of one slot that is taken, and an idle big.
fn world(says: Placement) -> World {
    let mut world = World::with(Config::default(), Box::new(Says(says)), Vec::new());
    world.hive("a", &[device(0, "cpu", 8)]);
    world.adopt("a", "smol-0", SMOL, 1);
    world.adopt("a", "big-0", BIG, 1);
    world
}

fn route(id: &str) -> Placement {
    Placement::Route {
        worker: worker(id),
        why: "because".into(),
    }
}

fn spawn(on: &str, device: u32) -> Placement {
    Placement::Spawn {
        hive: hive(on),
        backend: "cpu".into(),
        devices: vec![device],
        evict: Vec::new(),
    }
}

#[test]
fn a_request_that_is_sent_nowhere_sensible_waits_and_times_out() {
    let nonsense = [
        route("unknown"),
        route("big-0"),
        spawn("unknown", 0),
        Placement::StartHive(hive("unknown")),
        Placement::StartHive(hive("a")),
        Placement::Provision { hive: hive("a") },
        Placement::Wait,
    ];
    for says in nonsense {
        let mut world = world(says.clone());
        let job = world.submit(SMOL);
        assert!(
            world.runs_on(job).is_none() && world.is_open(job),
            "{says:?}"
        );
        world.pass(secs(61));
        assert_eq!(world.code(job), "TIMEOUT", "{says:?}");
        assert!(world.spawns().is_empty() && world.starts().is_empty());
        assert_eq!(world.brain.next_due(), None);
    }
}

#[test]
fn a_full_or_unready_or_draining_worker_gets_nothing() {
    let mut world = world(route("smol-0"));
    let first = world.submit(SMOL);
    let second = world.submit(SMOL);
    assert!(world.runs_on(first).is_some() && world.runs_on(second).is_none());
    world.shut_down(&worker("smol-0"), false);
    world.end(first);
    assert!(world.runs_on(second).is_none());
    world.stopped(&worker("smol-0"));
    world.pass(secs(61));
    assert!(!world.is_open(second));
}

#[test]
fn a_spawn_where_the_request_may_not_run_is_not_carried_out() {
    let mut world = world(spawn("a", 0));
    world.submit_with(SMOL, |r| r.constraints.device = Some(1));
    assert!(world.spawns().is_empty());
}

#[test]
fn a_spawn_on_a_device_that_just_had_no_room_is_not_repeated() {
    let mut world = world(spawn("a", 0));
    let job = world.submit(SMOL);
    let id = world.spawned();
    world.answer_spawn(&id, Err(Error::new(Code::InsufficientVram, "full")));
    assert_eq!(world.spawns().len(), 1);
    world.pass(secs(61));
    assert!(!world.is_open(job));
}

#[test]
fn a_spawn_on_a_hive_that_is_not_there_any_more_waits_for_it() {
    let mut world = world(spawn("a", 0));
    world.miss("a", true);
    let job = world.submit(SMOL);
    assert!(world.spawns().is_empty());
    world.list("a", Vec::new());
    assert_eq!(world.spawns().len(), 1);
    assert!(world.is_open(job));
}
