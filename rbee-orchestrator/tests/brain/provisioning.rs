//! A model that no hive has is fetched by one, once for all who wait for it.

use rbee_orchestrator::brain::{Action, Event, SpawnOrder};
use rbee_orchestrator::config::Config;
use rbee_orchestrator::domain::{Capabilities, Constraints, HiveId, JobId, ModelRef};
use rbee_orchestrator::error::{Code, Error, Result};
use rbee_orchestrator::scheduler::LeastLoaded;

use crate::parts::{GIB, device, failed, hive, model, on_disk, report, secs};
use crate::world::World;

pub(crate) const REPO: &str = "org/repo";
pub(crate) const FILE: &str = "hf:org/repo/m.gguf";

impl World {
    pub(crate) fn provisions(&self) -> Vec<(HiveId, ModelRef)> {
        let provision = |action: &Action| match action {
            Action::Provision { hive, model } => Some((hive.clone(), model.clone())),
            _ => None,
        };
        self.actions.iter().filter_map(provision).collect()
    }

    pub(crate) fn fetch_progress(&mut self, on: &str, name: &str, percent: u64) {
        self.tell(Event::FetchProgress {
            hive: hive(on),
            model: model(name),
            bytes_downloaded: percent,
            bytes_total: 100,
        });
    }

    /// The hive reports the file, and the fetch has ended.
    pub(crate) fn fetched(&mut self, on: &str) {
        self.report(on, with_file(100), Vec::new());
        self.fetch_ended(on, REPO, Ok(None));
    }

    pub(crate) fn fetch_ended(&mut self, on: &str, name: &str, result: Result<Option<String>>) {
        self.tell(Event::Fetched {
            hive: hive(on),
            model: model(name),
            result,
        });
    }

    pub(crate) fn fetch_failed(&mut self, on: &str, code: Code, message: &str) {
        self.fetch_ended(on, REPO, Err(Error::new(code, message)));
    }

    /// What a job was told about the download.
    fn told_of_download(&self, wanted: JobId) -> Vec<String> {
        let told = |action: &Action| match action {
            Action::Narrate { job, narration }
                if *job == wanted && narration.action == "provision" =>
            {
                Some(narration.human.clone())
            }
            _ => None,
        };
        self.actions.iter().filter_map(told).collect()
    }
}

pub(crate) fn with_disk(gib: u64) -> Capabilities {
    Capabilities {
        disk_free_bytes: Some(gib * GIB),
        ..report(&[device(0, "cpu", 8)])
    }
}

/// With a file of the repository, and the names that the repository goes by.
fn with_file(gib: u64) -> Capabilities {
    let mut report = with_disk(gib);
    let names = ["m", REPO, "hf:org/repo"];
    report.models.push(on_disk(FILE, &names, 1));
    report
}

pub(crate) fn two_hives() -> World {
    let mut world = World::with_hive();
    world.report("a", with_disk(10), Vec::new());
    world.hive("b", &[device(0, "cuda", 8)]);
    let mut report = with_disk(20);
    report.devices = vec![device(0, "cuda", 8)];
    world.report("b", report, Vec::new());
    world.clear();
    world
}

#[test]
fn a_hundred_requests_cause_one_download_and_one_load() {
    let mut world = two_hives();
    let jobs: Vec<JobId> = (0..100)
        .map(|at| world.submit(["org/repo", "hf:org/repo"][at % 2]))
        .collect();
    assert_eq!(world.provisions(), [(hive("b"), model(REPO))]);
    assert!(world.spawns().is_empty());
    world.fetched("b");
    let (on, spec) = world.spawns()[0].clone();
    assert_eq!((on, spec.model.as_str()), (hive("b"), FILE));
    let worker = world.spawned();
    world.ready(&worker, FILE, 100);
    for job in jobs {
        assert_eq!(world.runs_on(job), Some(worker.clone()));
    }
}

#[test]
fn those_who_wait_are_told_how_far_it_is_and_no_more_than_once_a_second() {
    let mut world = World::with_hive();
    let job = world.submit(REPO);
    world.fetch_progress("a", REPO, 1);
    world.fetch_progress("a", REPO, 2);
    world.pass(secs(1));
    world.fetch_progress("a", REPO, 42);
    world.pass(secs(1));
    world.fetch_progress("a", REPO, 42);
    let late = world.submit(REPO);
    let told = ["", ": 1 %", ": 42 %"];
    let told = told.map(|far| format!("Downloading hf:org/repo to a{far}"));
    assert_eq!(world.told_of_download(job), told);
    assert_eq!(world.told_of_download(late), told[2..]);
}

#[test]
fn a_name_without_an_organisation_is_not_found_at_once() {
    let mut world = World::with_hive();
    for name in ["smoll", "hf:smoll", "file:smoll.gguf"] {
        let job = world.submit(name);
        assert_eq!(world.code(job), "MODEL_NOT_FOUND", "{name}");
        assert!(world.error(job).message.contains("there is big, smol"));
    }
    assert!(world.provisions().is_empty());
}

#[test]
fn without_auto_download_the_error_says_how_to_get_the_model() {
    let mut config = Config::default();
    config.hives.auto_download = false;
    let mut world = World::with(config, Box::new(LeastLoaded), Vec::new());
    world.hive("a", &[device(0, "cpu", 8)]);
    let job = world.submit(REPO);
    assert_eq!(world.code(job), "MODEL_NOT_FOUND");
    let message = world.error(job).message;
    assert!(message.contains("POST /v2/models/download"), "{message}");
    assert!(world.provisions().is_empty());
}

#[test]
fn the_hub_s_refusal_reaches_all_who_wait_and_those_who_come_soon_after() {
    let mut world = two_hives();
    let jobs = [world.submit(REPO), world.submit(REPO)];
    world.fetch_failed("b", Code::ModelNotFound, "the hub has no org/repo");
    let late = world.submit(REPO);
    for job in [jobs[0], jobs[1], late] {
        let error = world.error(job);
        assert_eq!(error.code, Code::ModelNotFound);
        assert!(error.message.contains("the hub has no org/repo"), "{error}");
        assert!(error.message.contains("there is big, smol"), "{error}");
    }
    assert_eq!(world.provisions().len(), 1);
    world.pass(secs(16));
    world.submit(REPO);
    assert_eq!(world.provisions().len(), 2);
}

#[test]
fn a_full_disk_sends_the_download_to_another_hive() {
    let mut world = two_hives();
    let job = world.submit(REPO);
    world.fetch_failed("b", Code::InsufficientDisk, "the disk is full");
    let asked: Vec<HiveId> = world.provisions().into_iter().map(|(on, _)| on).collect();
    assert_eq!(asked, [hive("b"), hive("a")]);
    assert!(world.is_open(job));
    world.fetch_failed("a", Code::InsufficientDisk, "the disk is full");
    assert_eq!(world.code(job), "INSUFFICIENT_DISK");
}

#[test]
fn a_download_goes_where_the_request_may_run() {
    let mut world = two_hives();
    world.submit_with(REPO, |r| r.constraints.backend = Some("cpu".into()));
    world.submit_with(REPO, |r| r.constraints.hive = Some(hive("b")));
    let asked: Vec<HiveId> = world.provisions().into_iter().map(|(on, _)| on).collect();
    assert_eq!(asked, [hive("a"), hive("b")]);
}

#[test]
fn a_hive_that_never_reported_starts_first_and_one_that_is_off_starts_for_the_download() {
    let mut world = World::new();
    world.register(crate::parts::spec("a"));
    let job = world.submit(REPO);
    assert_eq!(world.starts(), [hive("a")]);
    world.report("a", with_disk(10), Vec::new());
    assert_eq!(world.provisions().len(), 1);
    world.fetch_failed("a", Code::DownloadFailed, "the line is down");
    assert_eq!(world.code(job), "DOWNLOAD_FAILED");
    world.miss("a", true);
    world.clear();
    world.pass(secs(16));
    world.submit(REPO);
    assert_eq!(world.starts(), [hive("a")]);
}

#[test]
fn who_can_not_wait_is_told_that_the_download_goes_on() {
    let mut world = World::with_hive();
    let patient = world.submit_with(REPO, |r| r.queue_timeout = secs(600));
    let job = world.submit(REPO);
    world.fetch_progress("a", REPO, 42);
    world.pass(secs(61));
    let error = world.error(job);
    assert_eq!(error.code, Code::ModelLoading);
    assert!(error.message.contains("goes on (42 %)"), "{error}");
    world.pass(secs(300));
    let error = world.error(patient);
    assert_eq!(error.code, Code::Timeout);
    assert!(error.message.contains("goes on (42 %)"), "{error}");
    world.fetched("a");
    assert!(world.spawns().is_empty(), "nobody waits any more");
    world.submit(REPO);
    assert_eq!((world.spawns().len(), world.provisions().len()), (1, 1));
}

#[test]
fn an_alias_of_the_configuration_may_stand_for_a_repository() {
    let mut config = Config::default();
    config.aliases.insert("gpt".into(), "hf:org/repo".into());
    let mut world = World::with(config, Box::new(LeastLoaded), Vec::new());
    world.hive("a", &[device(0, "cpu", 8)]);
    let job = world.submit("gpt");
    assert_eq!(world.provisions().len(), 1);
    world.fetched("a");
    let worker = world.spawned();
    world.ready(&worker, FILE, 1);
    assert_eq!(world.runs_on(job), Some(worker));
}

#[test]
fn what_a_hive_fetched_and_does_not_list_is_not_fetched_again_and_again() {
    let mut world = World::with_hive();
    let job = world.submit(REPO);
    world.fetch_ended("a", REPO, Ok(None));
    assert_eq!(world.code(job), "DOWNLOAD_FAILED");
    assert_eq!(world.provisions().len(), 1);
}

#[test]
fn a_download_that_an_administrator_ordered_is_waited_for() {
    let mut world = World::with_hive();
    world.brain.expect_fetch(&hive("a"), &model(REPO));
    let job = world.submit(REPO);
    assert!(world.provisions().is_empty());
    assert_eq!(world.told(job), ["provision"]);
    world.fetched("a");
    assert_eq!(world.spawns().len(), 1);
}

#[test]
fn an_order_for_a_worker_fetches_nothing() {
    let mut world = World::with_hive();
    let order = SpawnOrder {
        model: REPO.into(),
        constraints: Constraints::default(),
    };
    let id = crate::parts::worker("ordered");
    let answer = world
        .brain
        .order_worker(world.now, id, &order, &mut world.actions);
    assert_eq!(answer.map_err(|e| e.code), Err(Code::ModelNotFound));
}

#[test]
fn a_hive_that_goes_takes_its_downloads_along() {
    let mut world = two_hives();
    let job = world.submit(REPO);
    let (now, out) = (world.now, &mut world.actions);
    world.brain.remove_hive(now, &hive("b"), out).unwrap();
    let asked: Vec<HiveId> = world.provisions().into_iter().map(|(on, _)| on).collect();
    assert_eq!(asked, [hive("b"), hive("a")]);
    world.fetch_failed("b", Code::HiveUnreachable, "it is gone");
    assert!(world.is_open(job));
}

#[test]
fn a_hive_that_can_not_list_its_models_is_told_where_the_file_is() {
    let mut world = World::new();
    let mut old = crate::parts::spec("a");
    old.devices.insert("cpu".into(), 1);
    world.register(old);
    world.list("a", Vec::new());
    let job = world.submit(REPO);
    world.fetch_progress("a", REPO, 100);
    world.fetch_ended("a", REPO, Ok(Some("/models/m.gguf".into())));
    let path = world.actions.iter().find_map(|action| match action {
        Action::Spawn { model_path, .. } => Some(model_path.clone()),
        _ => None,
    });
    assert_eq!(path, Some(Some("/models/m.gguf".into())));
    let worker = world.spawned();
    world.answer_spawn(&worker, Err(failed("no such file")));
    assert_eq!(world.code(job), "WORKER_FAILED");
    world.pass(secs(16));
    world.submit(REPO);
    assert_eq!(world.provisions().len(), 2, "the file may have gone");
    assert_eq!(world.spawns().len(), 1);
}
