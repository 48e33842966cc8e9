//! Hives as the orchestrator registers, starts and forgets them, with real processes.

use std::time::{Duration, Instant};

use rbee_orchestrator::domain::{HiveId, HiveRecord, HiveSpec, HiveStatus, WorkerId};
use rbee_orchestrator::store::{MemoryStore, Store};
use rbee_orchestrator::{Code, Config, Orchestrator};

use crate::fake_hive::{FakeHives, eventually, free_port};

fn config(hives: &FakeHives, mode: &str) -> Config {
    let mut config = Config::default();
    config.hives.port = hives.port;
    config.hives.commands = [("default".to_owned(), hives.template(mode))].into();
    config.hives.log_dir = Some(hives.path(""));
    config.hives.check_interval = Duration::from_millis(200);
    config.hives.loading_interval = Duration::from_millis(200);
    config
}

async fn started(hives: &FakeHives, mode: &str) -> Orchestrator {
    Orchestrator::builder()
        .config(config(hives, mode))
        .hive_token(hives.token.clone())
        .start()
        .await
        .expect("it starts")
}

/// Asks for something that needs the local hive, without waiting for it.
fn want_the_local_hive(orchestrator: &Orchestrator) {
    let orchestrator = orchestrator.clone();
    tokio::spawn(async move { orchestrator.models(None).await });
}

fn local_status(orchestrator: &Orchestrator) -> HiveStatus {
    orchestrator.hives()[0].status
}

#[tokio::test]
async fn a_hive_that_never_gets_healthy_leaves_at_once() {
    let hives = FakeHives::new();
    let orchestrator = started(&hives, "mute").await;
    want_the_local_hive(&orchestrator);
    eventually("it starts", || !hives.processes().is_empty()).await;
    let begun = Instant::now();
    orchestrator
        .remove_hive(&HiveId::localhost(), false)
        .await
        .expect("it is there");
    assert!(begun.elapsed() < Duration::from_secs(3), "{begun:?}");
    eventually("it has gone", || hives.processes().is_empty()).await;
    assert!(orchestrator.hives().is_empty());
    orchestrator.shutdown().await;
}

#[tokio::test]
async fn a_shutdown_does_not_wait_for_a_start() {
    let hives = FakeHives::new();
    let orchestrator = started(&hives, "mute").await;
    want_the_local_hive(&orchestrator);
    eventually("it starts", || !hives.processes().is_empty()).await;
    let begun = Instant::now();
    orchestrator.shutdown().await;
    assert!(begun.elapsed() < Duration::from_secs(5), "{begun:?}");
    eventually("it has gone", || hives.processes().is_empty()).await;
}

#[tokio::test]
async fn a_hive_that_is_registered_again_while_it_starts_stays_one() {
    let hives = FakeHives::new();
    let orchestrator = started(&hives, "healthy").await;
    want_the_local_hive(&orchestrator);
    eventually("it starts", || !hives.processes().is_empty()).await;
    for _ in 0..3 {
        let spec = HiveSpec::local(HiveId::localhost());
        orchestrator.add_hive(spec).await.expect("it is taken");
    }
    eventually("it is online", || {
        local_status(&orchestrator) == HiveStatus::Online
    })
    .await;
    assert_eq!(hives.processes().len(), 1);
    orchestrator.shutdown().await;
}

#[tokio::test]
async fn a_hive_that_moves_is_stopped_where_it_was() {
    let hives = FakeHives::new();
    let orchestrator = started(&hives, "healthy").await;
    orchestrator.models(None).await.expect("it runs");
    let before = hives.processes();
    let spec = HiveSpec {
        port: Some(free_port()),
        ..HiveSpec::local(HiveId::localhost())
    };
    orchestrator.add_hive(spec).await.expect("it is taken");
    want_the_local_hive(&orchestrator);
    eventually("it is online at its new place", || {
        local_status(&orchestrator) == HiveStatus::Online
    })
    .await;
    let after = hives.processes();
    assert!(after.len() == 1 && after != before, "{before:?} {after:?}");
    orchestrator.shutdown().await;
}

#[tokio::test]
async fn a_hive_that_is_added_while_it_is_removed_is_a_new_one() {
    let hives = FakeHives::new();
    let orchestrator = started(&hives, "healthy").await;
    orchestrator.models(None).await.expect("it runs");
    let before = hives.processes();
    let id = HiveId::localhost();
    let (removed, added) = tokio::join!(
        orchestrator.remove_hive(&id, false),
        orchestrator.add_hive(HiveSpec::local(id.clone())),
    );
    removed.expect("it is stopped");
    added.expect("it is taken");
    assert!(hives.processes().iter().all(|pid| !before.contains(pid)));
    want_the_local_hive(&orchestrator);
    eventually("it is online", || {
        local_status(&orchestrator) == HiveStatus::Online
    })
    .await;
    assert_eq!(hives.processes().len(), 1);
    orchestrator.shutdown().await;
}

#[tokio::test]
async fn a_registration_whose_client_leaves_is_finished() {
    let hives = FakeHives::new();
    let orchestrator = started(&hives, "healthy").await;
    let id = HiveId::new("second").expect("a name");
    let mut adding = Box::pin(orchestrator.add_hive(HiveSpec::local(id.clone())));
    let polled = futures_util::poll!(&mut adding);
    assert!(polled.is_pending());
    drop(adding);
    let is_there = || orchestrator.hives().iter().any(|hive| hive.id() == &id);
    eventually("it is registered", is_there).await;
    let removing = orchestrator.remove_hive(&id, false);
    removing.await.expect("it is there and served");
    orchestrator.shutdown().await;
}

#[tokio::test]
async fn a_stored_hive_that_cant_be_served_is_told_at_once() {
    let hives = FakeHives::new();
    let store = MemoryStore::default();
    let spec = HiveSpec {
        command: Some("no-longer-there".into()),
        ..HiveSpec::local(HiveId::localhost())
    };
    let stored = store.put_hive(HiveRecord::new(spec)).await;
    stored.expect("memory takes it");
    let mut config = config(&hives, "healthy");
    config.hives.retry_after = Duration::from_millis(100);
    let builder = Orchestrator::builder().config(config).store(store);
    let orchestrator = builder.start().await.expect("it starts");
    let error = orchestrator.models(None).await.expect_err("it can't");
    assert!(error.message.contains("no-longer-there"), "{error}");
    tokio::time::sleep(Duration::from_millis(150)).await;
    let begun = Instant::now();
    let error = orchestrator.models(None).await.expect_err("nor again");
    assert_eq!(error.code, Code::HiveUnreachable);
    assert!(begun.elapsed() < Duration::from_secs(2), "{begun:?}");
    orchestrator.shutdown().await;
}

#[tokio::test]
async fn a_worker_that_its_hive_does_not_end_keeps_its_place() {
    let hives = FakeHives::new();
    let orchestrator = started(&hives, "clings-to-worker").await;
    orchestrator.models(None).await.expect("it runs");
    eventually("its worker is known", || !orchestrator.workers().is_empty()).await;
    let worker = WorkerId::new("w1").expect("an id");
    orchestrator
        .shutdown_worker(&worker, true)
        .await
        .expect("it is known");
    let log = || std::fs::read_to_string(hives.path("hive-localhost.log")).unwrap_or_default();
    eventually("it was tried twice", || {
        log().matches("the worker stays").count() > 1
    })
    .await;
    assert!(orchestrator.workers()[0].draining);
    std::fs::write(hives.path("marker"), "").expect("temp dir is writable");
    eventually("it has gone", || orchestrator.workers().is_empty()).await;
    orchestrator.shutdown().await;
}
