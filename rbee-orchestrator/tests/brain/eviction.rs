//! When a hive's disk is short, models go that can come again.

use rbee_orchestrator::brain::Event;
use rbee_orchestrator::config::{Config, ModelEviction};
use rbee_orchestrator::domain::{HiveModel, HiveRecord};
use rbee_orchestrator::scheduler::LeastLoaded;

use crate::parts::{GIB, device, hive, model, on_disk, report, secs};
use crate::world::World;

const NEW: &str = "org/new";

/// Three models of the hub and one that is not, of 1 GiB each.
fn models() -> Vec<HiveModel> {
    let of_hub = ["hf:org/x/m.gguf", "hf:org/y/m.gguf", "https://host/z.gguf"];
    let mut models = of_hub.map(|name| on_disk(name, &[], 1)).to_vec();
    models[0].aliases = vec!["x".into(), "hf:org/x".into()];
    models.push(on_disk("file:own.gguf", &["own"], 1));
    models
}

fn world(change: impl FnOnce(&mut Config)) -> World {
    let mut config = Config::default();
    change(&mut config);
    let mut world = World::with(config, Box::new(LeastLoaded), Vec::new());
    world.hive("a", &[device(0, "cpu", 64)]);
    let mut report = report(&[device(0, "cpu", 64)]);
    report.models = models();
    world.report("a", report, Vec::new());
    world.clear();
    world
}

/// A request runs with each of these, one after the other, and its worker goes.
fn used(world: &mut World, names: &[&str]) {
    for name in names {
        world.pass(secs(1));
        let spawned = world.spawns().len();
        let job = world.submit(name);
        let (_, spec) = world.spawns()[spawned].clone();
        world.ready(&spec.id, spec.model.as_str(), 1);
        world.end(job);
        world.shut_down(&spec.id, true);
        world.stopped(&spec.id);
    }
}

/// What goes when a new model lacks so many GiB.
fn victims(world: &mut World, gib: u64) -> Result<Vec<String>, String> {
    world.submit(NEW);
    let victims = world
        .brain
        .make_disk_room(&hive("a"), &model(NEW), gib * GIB)?;
    Ok(victims.iter().map(ToString::to_string).collect())
}

const X: &str = "hf:org/x/m.gguf";
const Y: &str = "hf:org/y/m.gguf";
const Z: &str = "https://host/z.gguf";

#[test]
fn what_was_used_least_recently_goes_first() {
    let mut world = world(|_| ());
    used(&mut world, &[X, Y, Z, X]);
    assert_eq!(victims(&mut world, 2).unwrap(), [Y, Z]);
}

#[test]
fn a_model_that_lies_elsewhere_neither_goes_nor_counts() {
    let mut world = world(|_| ());
    let mut report = report(&[device(0, "cpu", 64)]);
    report.models = models();
    report.models[0].removable = false;
    world.report("a", report, Vec::new());
    used(&mut world, &[X, Y, Z]);
    let refused = victims(&mut world, 3).unwrap_err();
    for said in ["would free 2048 MiB", "hf:org/x/m.gguf lies elsewhere"] {
        assert!(refused.contains(said), "{refused}");
    }
    assert_eq!(victims(&mut world, 1).unwrap(), [Y]);
}

#[test]
fn what_was_used_least_often_goes_first_where_that_is_set() {
    let mut world = world(|config| config.hives.model_eviction = ModelEviction::Lfu);
    used(&mut world, &[X, X, Z, Z, Y]);
    assert_eq!(victims(&mut world, 1).unwrap(), [Y]);
}

#[test]
fn what_is_pinned_or_in_use_or_waited_for_or_no_one_can_bring_back_stays() {
    let mut world = world(|config| config.hives.pinned_models = vec!["x".into()]);
    world.submit(Y);
    let why = victims(&mut world, 2).unwrap_err();
    for said in [
        "2048 MiB are missing",
        "free 1024 MiB",
        "hf:org/x/m.gguf is pinned",
        "hf:org/y/m.gguf is in use",
        "file:own.gguf can't be fetched again",
    ] {
        assert!(why.contains(said), "{why}");
    }
    assert_eq!(victims(&mut world, 1).unwrap(), [Z]);
}

#[test]
fn nothing_goes_where_that_is_not_wanted() {
    let mut world = world(|config| config.hives.model_eviction = ModelEviction::Off);
    assert!(victims(&mut world, 1).unwrap_err().contains("is off"));
}

#[test]
fn what_is_going_is_not_loaded_until_it_is_known_whether_it_went() {
    let mut world = world(|_| ());
    used(&mut world, &[Y, Z]);
    assert_eq!(victims(&mut world, 1).unwrap(), [X]);
    world.clear();
    let job = world.submit(X);
    assert!(world.spawns().is_empty() && world.is_open(job));
    let (now, out) = (world.now, &mut world.actions);
    world
        .brain
        .disk_room_made(now, &hive("a"), &model(NEW), out);
    assert_eq!(world.spawns().len(), 1);
}

#[test]
fn the_order_is_that_of_the_last_life() {
    let mut before = world(|_| ());
    used(&mut before, &[Y, X, Z]);
    let view = before.brain.view(before.now);
    let stored: HiveRecord = view.hives[&hive("a")].record.clone();
    let config = Config::default();
    let mut world = World::with(config, Box::new(LeastLoaded), vec![stored]).after(&before);
    let mut again = report(&[device(0, "cpu", 64)]);
    again.models = models();
    world.report("a", again, Vec::new());
    assert_eq!(victims(&mut world, 2).unwrap(), [Y, X]);
}

#[test]
fn a_model_that_has_just_come_is_not_the_first_to_go() {
    let mut world = world(|_| ());
    used(&mut world, &[X]);
    world.brain.expect_fetch(&hive("a"), &model(Y));
    world.pass(secs(1));
    world.tell(Event::Fetched {
        hive: hive("a"),
        model: model(Y),
        result: Ok(None),
    });
    world.pass(secs(1));
    used(&mut world, &[Z]);
    assert_eq!(victims(&mut world, 1).unwrap(), [X]);
}
