//! A hive's life, with real processes and one shared port.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rbee_orchestrator::Code;
use rbee_orchestrator::domain::{HiveId, HiveMode, HiveSpec};
use rbee_orchestrator::hives::{HiveHandle, HiveToken, Stopped};
use rbee_orchestrator::transport::{DirectTransport, HiveTransport, LocalTransport};
use rustix::process::{Pid, Signal, kill_process};

use crate::fake_hive::{FakeHives, eventually};

#[tokio::test]
async fn a_hive_is_started_once_for_many_callers_and_stopped() {
    let hives = FakeHives::new();
    let hive = Arc::new(hives.handle(hives.options("healthy"), None));
    assert!(hive.client().is_none());
    let callers: Vec<_> = (0..5)
        .map(|_| {
            let hive = Arc::clone(&hive);
            tokio::spawn(async move { hive.ensure_running().await })
        })
        .collect();
    let mut found = Vec::new();
    for caller in callers {
        found.push(caller.await.expect("no panic").expect("it runs"));
    }
    assert!(
        found
            .iter()
            .all(|process| *process == found[0] && process.started_by_queen)
    );
    assert_eq!(hives.processes().len(), 1);

    let client = hive.client().expect("its port is known");
    assert_eq!(client.workers().await.expect("it answers"), []);
    assert_eq!(client.capabilities().await.expect("it answers"), None);
    assert_eq!(hive.stop().await.expect("it stops"), Stopped::Ended);
    assert_eq!(hives.log().matches("asked to stop").count(), 1);
    assert_eq!(
        hive.stop().await.expect("nothing to do"),
        Stopped::WasNotRunning
    );
    assert_eq!(hive.process(), None);
}

#[tokio::test]
async fn a_hive_of_an_earlier_life_is_adopted_and_may_be_stopped() {
    let hives = FakeHives::new();
    let before = hives.handle(hives.options("healthy"), None);
    let process = before.ensure_running().await.expect("it starts");
    drop(before);

    let hive = hives.handle(hives.options("healthy"), Some(process.clone()));
    assert_eq!(hive.ensure_running().await.expect("it runs"), process);
    assert_eq!(hives.processes().len(), 1);
    assert_eq!(hive.stop().await.expect("it stops"), Stopped::Ended);
}

#[tokio::test]
async fn a_hive_that_someone_else_started_with_our_token_is_adopted_and_never_stopped() {
    let hives = FakeHives::new();
    let someone = LocalTransport::new();
    let theirs = someone
        .start(&hives.command("healthy"))
        .await
        .expect("it starts");

    let hive = hives.handle(hives.options("healthy"), None);
    let process = hive.ensure_running().await.expect("it runs");
    assert_eq!((process.port, process.pid), (theirs.port, None));
    assert!(!process.started_by_queen);
    assert_eq!(hive.stop().await.expect("nothing to do"), Stopped::NotOurs);
    assert!(someone.is_running(&theirs).await.expect("known"));
    someone
        .stop(&theirs, Duration::from_secs(10))
        .await
        .expect("it stops");
}

#[tokio::test]
async fn a_hive_with_a_foreign_token_is_left_alone_and_the_next_port_is_taken() {
    let hives = FakeHives::new();
    let someone = LocalTransport::new();
    let theirs = someone
        .start(&hives.command("foreign"))
        .await
        .expect("it starts");

    let hive = hives.handle(hives.options("healthy"), None);
    let process = hive.ensure_running().await.expect("on the next port");
    assert!(process.port > theirs.port && process.started_by_queen);
    assert_eq!(hive.stop().await.expect("it stops"), Stopped::Ended);
    assert!(someone.is_running(&theirs).await.expect("known"));
    someone
        .stop(&theirs, Duration::from_secs(10))
        .await
        .expect("it stops");
}

#[tokio::test]
async fn a_hive_that_died_comes_back_to_its_own_port_even_if_an_earlier_one_is_free_by_now() {
    let hives = FakeHives::new();
    let other = std::net::TcpListener::bind(("127.0.0.1", hives.port)).expect("it was free");
    let hive = hives.handle(hives.options("healthy"), None);
    let before = hive.ensure_running().await.expect("on the next port");
    assert!(before.port > hives.port);
    let pid = before.pid.and_then(|pid| Pid::from_raw(pid.cast_signed()));
    kill_process(pid.expect("known"), Signal::KILL).expect("it is ours");
    eventually("it has gone", || hives.processes().is_empty()).await;
    drop(other);
    let after = hive.ensure_running().await.expect("it runs again");
    assert_eq!(after.port, before.port);
    assert_eq!(hive.stop().await.expect("it stops"), Stopped::Ended);
}

#[tokio::test]
async fn a_listener_of_another_user_is_never_shown_the_token() {
    if !cfg!(target_os = "linux") || !rustix::process::geteuid().is_root() {
        eprintln!("skipped: only root on Linux can play another user");
        return;
    }
    let hives = FakeHives::new();
    let mut command = hives.command("other-user");
    command.log_file = hives.path("theirs.log");
    let someone = LocalTransport::new();
    let theirs = someone.start(&command).await.expect("it starts");

    let hive = hives.handle(hives.options("healthy"), None);
    let process = hive.ensure_running().await.expect("on the next port");
    assert!(process.port > theirs.port && process.started_by_queen);
    let log = std::fs::read_to_string(&command.log_file).expect("it wrote");
    assert!(
        log.contains("listening") && !log.contains("was shown"),
        "{log}"
    );
    assert_eq!(hive.stop().await.expect("it stops"), Stopped::Ended);
    someone
        .stop(&theirs, Duration::from_secs(10))
        .await
        .expect("it stops");
}

#[tokio::test]
async fn two_queens_on_one_machine_each_get_their_own_hive() {
    let hives = FakeHives::new();
    let mut options = hives.options("healthy");
    let first = hives.handle(options.clone(), None);
    options.token = HiveToken::random().expect("there is randomness");
    options.log_file = hives.path("second.log");
    let second = hives.handle(options, None);
    let (a, b) = tokio::join!(first.ensure_running(), second.ensure_running());
    let (a, b) = (a.expect("it runs"), b.expect("it runs"));
    assert_ne!(a.port, b.port);
    for hive in [&first, &second] {
        hive.client()
            .expect("known")
            .workers()
            .await
            .expect("its own token is accepted");
        assert_eq!(hive.stop().await.expect("it stops"), Stopped::Ended);
    }
}

#[tokio::test]
async fn two_local_hives_of_one_queen_do_not_adopt_each_other() {
    let hives = FakeHives::new();
    let options = hives.options("healthy");
    let first = hives.handle(options.clone(), None);
    first.ensure_running().await.expect("it runs");
    let spec = HiveSpec::local(HiveId::new("second").expect("a name"));
    let second = HiveHandle::new(&spec, None, Arc::new(LocalTransport::new()), options);
    second.ensure_running().await.expect("it runs");
    assert_ne!(first.process(), second.process());
    assert_eq!(hives.processes().len(), 2);
    for hive in [&first, &second] {
        assert_eq!(hive.stop().await.expect("it stops"), Stopped::Ended);
    }
}

#[tokio::test]
async fn a_dead_hive_is_started_again() {
    let hives = FakeHives::new();
    let hive = hives.handle(hives.options("healthy"), None);
    let before = hive.ensure_running().await.expect("it runs");
    kill_process(pid(before.pid), Signal::KILL).expect("it is ours");
    while hive.is_running().await.expect("known") {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let after = hive.ensure_running().await.expect("it runs again");
    assert_ne!(before.pid, after.pid);
    assert_eq!(hive.stop().await.expect("it stops"), Stopped::Ended);
}

#[tokio::test]
async fn a_wedged_hive_of_ours_is_replaced() {
    let hives = FakeHives::new();
    let mut options = hives.options("healthy");
    options.timeouts.health = Duration::from_millis(300);
    options.stop_grace = Duration::from_millis(500);
    let before = hives.handle(options.clone(), None);
    let before = before.ensure_running().await.expect("it runs");
    // So long is its silence borne.
    options.start_timeout = Duration::from_secs(5);
    let hive = hives.handle(options, Some(before.clone()));
    kill_process(pid(before.pid), Signal::STOP).expect("it is ours");
    let after = hive.ensure_running().await.expect("a new one runs");
    assert_ne!(before.pid, after.pid);
    assert_eq!(hives.processes().len(), 1);
    assert_eq!(hive.stop().await.expect("it stops"), Stopped::Ended);
}

#[tokio::test]
async fn a_hive_of_ours_with_an_older_token_is_replaced() {
    let hives = FakeHives::new();
    let before = hives.handle(hives.options("healthy"), None);
    let process = before.ensure_running().await.expect("it runs");
    let mut options = hives.options("healthy");
    options.token = HiveToken::new("changed").expect("a token");
    let hive = hives.handle(options, Some(process.clone()));
    let after = hive.ensure_running().await.expect("a new one runs");
    assert_ne!(after.pid, process.pid);
    assert_eq!(hives.processes().len(), 1);
    assert_eq!(hive.stop().await.expect("it stops"), Stopped::Ended);
}

#[tokio::test]
async fn a_hive_that_does_not_take_the_token_it_was_given_is_stopped_again() {
    let hives = FakeHives::new();
    let hive = hives.handle(hives.options("foreign"), None);
    let error = hive
        .ensure_running()
        .await
        .expect_err("it refuses the token");
    assert_eq!(error.code, Code::HiveUnreachable);
    assert!(error.message.contains("RBEE_API_TOKEN"), "{error}");
    assert!(
        !error.message.contains(hives.token.expose()),
        "no secret in errors"
    );
    assert_eq!(hive.process(), None);
}

#[tokio::test]
async fn hives_that_know_no_shutdown_call_or_ignore_it_are_stopped_by_signals() {
    for (mode, grace) in [("old", 10_000), ("stubborn", 300)] {
        let hives = FakeHives::new();
        let mut options = hives.options(mode);
        options.stop_grace = Duration::from_millis(grace);
        let hive = hives.handle(options, None);
        hive.ensure_running().await.expect("it runs");
        let begun = Instant::now();
        assert_eq!(
            hive.stop().await.expect("it stops"),
            Stopped::Ended,
            "{mode}"
        );
        assert!(
            begun.elapsed() < Duration::from_secs(8),
            "{mode} did not take its whole grace"
        );
    }
}

#[tokio::test]
async fn a_hive_gets_what_it_needs_in_its_environment_and_no_secret_of_the_queen() {
    let hives = FakeHives::new();
    let hive = hives.handle(hives.options("healthy"), None);
    let process = hive.ensure_running().await.expect("it runs");
    let environment = format!("/proc/{}/environ", process.pid.expect("known"));
    let environment = std::fs::read(environment).expect("it is ours");
    let environment = String::from_utf8_lossy(&environment);
    for expected in [
        "QUEEN_CALLBACK_URL=http://127.0.0.1:8080",
        "RBEE_WORKER_HOST=127.0.0.1",
        &format!("RBEE_API_TOKEN={}", hives.token.expose()),
        &format!("LLORCH_API_TOKEN={}", hives.token.expose()),
    ] {
        assert!(
            environment.split('\0').any(|entry| entry == expected),
            "{expected}"
        );
    }
    hive.stop().await.expect("it stops");
}

#[tokio::test]
async fn a_registration_does_not_choose_a_local_program() {
    use std::os::unix::fs::PermissionsExt;
    let hives = FakeHives::new();
    let program = hives.path("planted-hive");
    std::fs::write(&program, "#!/bin/sh\ntouch \"$0.ran\"\n").expect("temp dir is writable");
    let mode = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(&program, mode).expect("it is ours");
    let mut options = hives.options("healthy");
    options.template[0] = "planted-hive".into();
    let spec = HiveSpec {
        install_path: Some(hives.path("").display().to_string()),
        ..HiveSpec::local(HiveId::localhost())
    };
    let hive = HiveHandle::new(&spec, None, Arc::new(LocalTransport::new()), options);
    let error = hive.ensure_running().await.expect_err("not in its places");
    assert!(error.message.contains("was not found"), "{error}");
    assert!(!hives.path("planted-hive.ran").exists());
}

#[tokio::test]
async fn a_program_that_does_not_tell_its_version_is_not_started() {
    let hives = FakeHives::new();
    let mut options = hives.options("healthy");
    options.template[0] = "/bin/false".into();
    let hive = hives.handle(options, None);
    let error = hive.ensure_running().await.expect_err("it is no hive");
    assert_eq!(error.code, Code::HiveUnreachable);
    assert!(error.message.contains("--version"), "{error}");
    assert_eq!(hives.log(), "", "nothing was started");
}

#[tokio::test]
async fn an_unmanaged_hive_is_only_asked_for_its_health() {
    let hives = FakeHives::new();
    let someone = LocalTransport::new();
    let theirs = someone
        .start(&hives.command("foreign"))
        .await
        .expect("it starts");
    let spec = HiveSpec {
        mode: HiveMode::Network,
        port: Some(theirs.port),
        ..HiveSpec::local(HiveId::new("gpu-0").expect("a name"))
    };
    let transport = Arc::new(DirectTransport::new("127.0.0.1"));
    let hive = HiveHandle::new(&spec, None, transport, hives.options("healthy"));
    let process = hive.ensure_running().await.expect("it is healthy");
    assert_eq!(
        (process.port, process.started_by_queen),
        (theirs.port, false)
    );
    assert_eq!(hive.stop().await.expect("nothing to do"), Stopped::NotOurs);

    someone
        .stop(&theirs, Duration::from_secs(10))
        .await
        .expect("it stops");
    let error = hive.ensure_running().await.expect_err("nobody starts it");
    assert_eq!(error.code, Code::HiveUnreachable);
    assert!(error.message.contains("gpu-0"), "{error}");
}

fn pid(pid: Option<u32>) -> Pid {
    let raw = pid.expect("it was started here").cast_signed();
    Pid::from_raw(raw).expect("a pid is not zero")
}
