//! A hive's process on the machine.

use std::fs;
use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;

use rbee_orchestrator::Code;
use rbee_orchestrator::domain::{HiveId, HiveProcess, HiveSpec};
use rbee_orchestrator::hives::{
    CallTimeouts, HiveHandle, HiveOptions, HiveToken, PortClaims, Stopped,
};
use rbee_orchestrator::transport::HiveTransport;

use rbee_tests::harness::sshd::Sshd;

use crate::eventually;

const GRACE: Duration = Duration::from_secs(10);

#[tokio::test]
async fn a_hive_is_started_found_again_watched_and_stopped() {
    let sshd = Sshd::start();
    let transport = sshd.transport();
    let command = sshd.hive("healthy");
    let process = transport.start(&command).await.expect("it starts");
    assert!(process.started_by_queen && process.pid.is_some());
    assert_eq!(process.port, command.port);
    assert!(transport.is_running(&process).await.expect("known"));
    assert!(transport.may_be_ours(process.port).await.expect("known"));
    transport.connect(process.port).await.expect("it listens");
    let log = transport
        .logs(&command.log_file, 1)
        .await
        .expect("readable");
    assert_eq!(log, [format!("listening on {}", process.port)]);

    // Another life of the queen, who knows nothing of it.
    let found = sshd.transport().left_running(&command).await;
    assert_eq!(found.expect("known"), Some(process.clone()));

    let later = HiveProcess {
        pid_start_time: Some(1),
        ..process.clone()
    };
    assert!(!transport.is_running(&later).await.expect("known"));
    transport.stop(&later, GRACE).await.expect("it has gone");
    assert!(transport.is_running(&process).await.expect("known"));

    transport.stop(&process, GRACE).await.expect("it stops");
    assert!(!transport.is_running(&process).await.expect("known"));
    transport.stop(&process, GRACE).await.expect("no error");
    assert_eq!(sshd.programs(), Vec::<u32>::new());
}

#[tokio::test]
async fn a_hive_outlives_the_session_and_the_transport() {
    let mut sshd = Sshd::start();
    let transport = sshd.transport();
    let process = transport
        .start(&sshd.hive("healthy"))
        .await
        .expect("it starts");
    drop(transport);
    sshd.kill();
    sshd.start_again();
    let transport = sshd.transport();
    assert!(transport.is_running(&process).await.expect("known"));
    transport.stop(&process, GRACE).await.expect("it stops");
}

#[tokio::test]
async fn a_hive_that_ignores_sigterm_is_killed_with_all_that_it_started() {
    let sshd = Sshd::start();
    let transport = sshd.transport();
    let process = transport
        .start(&sshd.hive("stubborn"))
        .await
        .expect("it starts");
    let grace = Duration::from_millis(300);
    transport.stop(&process, grace).await.expect("killed");
    eventually("all have gone", || sshd.everything().is_empty()).await;
}

#[tokio::test]
async fn a_hive_that_crashes_or_stays_mute_is_told_with_its_last_words() {
    let sshd = Sshd::start();
    let transport = sshd.transport();
    let error = transport
        .start(&sshd.hive("crash"))
        .await
        .expect_err("it crashes");
    assert_eq!(error.code, Code::HiveUnreachable);
    for part in ["ended before", "loading settings", "boom: no engine found"] {
        assert!(error.message.contains(part), "{part} in {error}");
    }
    let mut mute = sshd.hive("mute");
    mute.start_timeout = Duration::from_secs(2);
    let error = transport.start(&mute).await.expect_err("it stays mute");
    assert!(error.message.contains("within 2s"), "{error}");
    assert!(error.message.contains("thinking about it"), "{error}");
    assert!(
        !error.message.contains("boom"),
        "an earlier start's output: {error}"
    );
    assert!(error.details.is_some_and(|d| d["log_lines"].is_array()));
    eventually("all have gone", || sshd.everything().is_empty()).await;
}

#[tokio::test]
async fn a_hive_whose_start_was_dropped_is_found_again() {
    let sshd = Sshd::start();
    let transport = sshd.transport();
    let command = sshd.hive("healthy");
    let pid_file = sshd.home().join(".rbee/run/gpu-0.pid");
    tokio::select! {
        biased;
        () = eventually("it runs", || pid_file.exists()) => {}
        _ = transport.start(&command) => {}
    }
    let found = transport.left_running(&command).await.expect("known");
    let process = found.expect("it runs");
    assert_eq!(sshd.programs(), Vec::from_iter(process.pid));
    transport.stop(&process, GRACE).await.expect("it stops");
}

#[tokio::test]
async fn a_hive_that_is_told_to_stop_while_it_starts_is_stopped() {
    let sshd = Sshd::start();
    let command = sshd.hive("mute");
    let options = HiveOptions {
        template: command.template.clone(),
        port: command.port,
        queen_url: None,
        upload_dir: None,
        token: HiveToken::random().expect("there is randomness"),
        log_file: command.log_file.clone(),
        start_timeout: command.start_timeout,
        stop_grace: Duration::from_secs(2),
        timeouts: CallTimeouts::default(),
        claims: PortClaims::default(),
    };
    let id = HiveId::new("gpu-0").expect("a name");
    let spec = HiveSpec {
        install: false,
        ..HiveSpec::over_ssh(id, sshd.target())
    };
    let hive = HiveHandle::new(&spec, None, Arc::new(sshd.transport()), options);
    let pid_file = sshd.home().join(".rbee/run/gpu-0.pid");
    tokio::select! {
        biased;
        () = eventually("it starts", || pid_file.exists()) => {}
        ended = hive.ensure_running() => panic!("it is mute: {ended:?}"),
    }
    assert_eq!(sshd.programs().len(), 1);
    assert_eq!(hive.stop().await.expect("it stops"), Stopped::Ended);
    assert_eq!(sshd.programs(), Vec::<u32>::new());
    assert_eq!(hive.stop().await.expect("done"), Stopped::WasNotRunning);
}

#[tokio::test]
async fn a_taken_port_is_passed_over() {
    let sshd = Sshd::start();
    let transport = sshd.transport();
    let command = sshd.hive("healthy");
    let taken = TcpListener::bind(("127.0.0.1", command.port)).expect("it is free");
    let process = transport.start(&command).await.expect("it starts");
    assert!(process.port > command.port);
    transport.stop(&process, GRACE).await.expect("it stops");
    drop(taken);
}

#[tokio::test]
async fn hostile_values_stay_values_and_secrets_stay_secret() {
    let sshd = Sshd::start();
    let transport = sshd.transport();
    let mut command = sshd.hive("healthy");
    let hostile = "it's $(touch pwned) `touch pwned`\n; touch pwned";
    command.env.push(("RBEE_HOSTILE".into(), hostile.into()));
    command.log_file = format!("/x/$(touch pwned)'; touch pwned; -n {}.log", "é").into();
    let process = transport.start(&command).await.expect("it starts");
    assert!(!sshd.home().join("pwned").exists());
    let pid = process.pid.expect("known");
    let environment = fs::read(format!("/proc/{pid}/environ")).expect("ours");
    let environment = String::from_utf8_lossy(&environment).into_owned();
    assert!(environment.contains(&format!("RBEE_HOSTILE={hostile}")));
    let arguments = fs::read(format!("/proc/{pid}/cmdline")).expect("ours");
    assert!(!String::from_utf8_lossy(&arguments).contains("t0ken"));
    let log = sshd.home().join(".rbee/logs");
    let log = fs::read_dir(log)
        .expect("made")
        .flatten()
        .next()
        .expect("one");
    let mode =
        std::os::unix::fs::PermissionsExt::mode(&log.metadata().expect("there").permissions());
    assert_eq!(mode & 0o777, 0o600);
    transport.stop(&process, GRACE).await.expect("it stops");

    command.env = vec![("A; touch pwned".into(), "t0ken".into())];
    let error = transport.start(&command).await.expect_err("no name");
    assert_eq!(error.code, Code::InvalidRequest);
    assert!(!error.message.contains("t0ken"), "{error}");
}

#[tokio::test]
async fn a_missing_program_is_told_with_the_places_and_the_cure() {
    let sshd = Sshd::start();
    let transport = sshd.transport();
    let mut command = sshd.hive("healthy");
    command.template[0] = "no-such-hive".into();
    command.install_path = Some("/opt/nowhere".into());
    let preflight = transport.preflight(&command).await.expect_err("missing");
    let start = transport.start(&command).await.expect_err("missing");
    for error in [preflight, start] {
        for part in ["no-such-hive", "/opt/nowhere", "PATH", "install_path"] {
            assert!(error.message.contains(part), "{part} in {error}");
        }
    }
}

#[tokio::test]
async fn a_log_that_is_not_there_has_no_lines() {
    let sshd = Sshd::start();
    let transport = sshd.transport();
    let log = std::path::Path::new("/nowhere/other.log");
    let none = transport.logs(log, 10).await.expect("no error");
    assert!(none.is_empty());
}
