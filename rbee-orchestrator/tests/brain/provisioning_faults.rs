//! What goes wrong while models come: hives that go, are busy or unsteady, names that differ.

use rbee_orchestrator::domain::{HiveId, JobId};
use rbee_orchestrator::error::{Code, Error};

use crate::parts::{device, failed, hive, model, on_disk, secs};
use crate::provisioning::{FILE, REPO, two_hives, with_disk};
use crate::world::World;

#[test]
fn a_file_of_the_main_branch_is_one_model_however_it_is_written() {
    let mut world = World::with_hive();
    let names = [
        FILE,
        "org/repo@main::file=m.gguf",
        "hf:org/repo::file=m.gguf",
    ];
    let jobs = names.map(|name| world.submit(name));
    assert_eq!(world.provisions(), [(hive("a"), model(FILE))]);
    let mut report = with_disk(10);
    report.models.push(on_disk(FILE, &[], 1));
    world.report("a", report, Vec::new());
    world.fetch_ended("a", FILE, Ok(None));
    let worker = world.spawned();
    world.ready(&worker, FILE, 3);
    for job in jobs {
        assert_eq!(world.runs_on(job), Some(worker.clone()));
    }
}

#[test]
fn a_hive_gets_a_few_downloads_at_once_and_the_others_wait_for_their_turn() {
    let mut world = World::with_hive();
    let names: Vec<String> = (0..10).map(|at| format!("hf:org/repo-{at}")).collect();
    let jobs: Vec<JobId> = names.iter().map(|name| world.submit(name)).collect();
    assert_eq!(world.provisions().len(), 4);
    assert_eq!(world.told(jobs[9]), ["provision"]);
    for at in 0..5 {
        let unknown = Error::new(Code::ModelNotFound, "the hub does not know it");
        world.fetch_ended("a", &names[at], Err(unknown));
        assert_eq!(world.code(jobs[at]), "MODEL_NOT_FOUND");
        assert_eq!(world.provisions().len(), at + 5);
    }
    world.pass(secs(61));
    let error = world.error(jobs[9]);
    assert_eq!(error.code, Code::NoCapacity);
    assert!(error.message.contains("other downloads"), "{error}");
    assert!(error.retry_after.is_some());
}

#[test]
fn a_hive_that_must_be_steady_first_is_waited_for() {
    let mut world = World::with_hive();
    for _ in 0..2 {
        for _ in 0..3 {
            world.miss("a", false);
        }
        world.report("a", with_disk(10), Vec::new());
    }
    assert_eq!(world.brain.counters().hive_flaps, 1);
    let job = world.submit(REPO);
    assert_eq!(world.told(job), ["steady_hive"]);
    assert!(world.provisions().is_empty());
    world.pass(secs(16));
    assert_eq!(world.provisions().len(), 1);
}

#[test]
fn a_hive_that_does_not_answer_is_no_reason_to_say_that_there_is_no_such_model() {
    let mut world = World::with_hive();
    world.miss("a", true);
    world.started("a", Err(failed("no binary")));
    let job = world.submit(REPO);
    let error = world.error(job);
    assert_eq!(error.code, Code::HiveUnreachable);
    assert!(error.message.contains("no binary"), "{error}");
    assert!(error.retry_after.is_some());
}

#[test]
fn a_hive_that_ends_in_the_middle_of_a_download_is_started_and_goes_on() {
    let mut world = World::with_hive();
    let job = world.submit(REPO);
    world.miss("a", true);
    assert_eq!(world.starts(), [hive("a")]);
    world.report("a", with_disk(10), Vec::new());
    assert_eq!(world.provisions().len(), 1);
    assert_eq!(world.told(job), ["provision", "start_hive", "provision"]);
    world.fetched("a");
    assert_eq!(world.spawns().len(), 1);
}

#[test]
fn where_a_hive_does_not_come_back_in_the_middle_of_a_download_another_fetches_it() {
    let mut world = two_hives();
    let job = world.submit(REPO);
    world.miss("b", true);
    world.started("b", Err(failed("the disk is broken")));
    let asked: Vec<HiveId> = world.provisions().into_iter().map(|(on, _)| on).collect();
    assert_eq!(asked, [hive("b"), hive("a")]);
    world.fetched("a");
    assert!(world.is_open(job));
    assert_eq!(world.spawns().len(), 1);
}

#[test]
fn a_download_that_failed_for_an_unknown_reason_is_tried_on_one_more_hive() {
    let mut world = two_hives();
    world.hive("c", &[device(0, "cpu", 8)]);
    let job = world.submit(REPO);
    world.fetch_failed("b", Code::DownloadFailed, "the line is down");
    assert!(world.is_open(job));
    world.fetch_failed("a", Code::DownloadFailed, "the line is down");
    assert_eq!(world.code(job), "DOWNLOAD_FAILED");
    assert_eq!(world.provisions().len(), 2);
}

#[test]
fn what_comes_under_another_name_than_was_asked_for_is_not_fetched_again() {
    let mut world = World::with_hive();
    let job = world.submit(FILE);
    let mut report = with_disk(10);
    report
        .models
        .push(on_disk("hf:org/repo/M.gguf", &[FILE], 1));
    world.report("a", report, Vec::new());
    world.fetch_ended("a", FILE, Ok(None));
    assert_eq!(world.provisions().len(), 1);
    assert_eq!(world.spawns().len(), 1);
    assert!(world.is_open(job));
}
