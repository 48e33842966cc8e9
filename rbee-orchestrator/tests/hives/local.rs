//! `LocalTransport` against real processes.

use std::net::TcpListener;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rbee_orchestrator::Code;
use rbee_orchestrator::domain::HiveProcess;
use rbee_orchestrator::transport::{DirectTransport, HiveTransport, LocalTransport};

use crate::fake_hive::{FakeHives, eventually};

const GRACE: Duration = Duration::from_secs(10);

#[tokio::test]
async fn a_hive_is_started_watched_and_stopped() {
    let hives = FakeHives::new();
    let transport = LocalTransport::new();
    let command = hives.command("healthy");
    let preflight = transport
        .preflight(&command)
        .await
        .expect("python3 is there");
    assert!(preflight.version.starts_with("Python 3"), "{preflight:?}");

    let process = transport.start(&command).await.expect("it starts");
    assert!(process.started_by_queen && process.pid.is_some());
    assert!(transport.is_running(&process).await.expect("known"));
    transport.connect(process.port).await.expect("it listens");
    let log = transport
        .logs(&command.log_file, 1)
        .await
        .expect("readable");
    assert_eq!(log, [format!("listening on {}", process.port)]);

    let later = HiveProcess {
        pid_start_time: Some(1),
        ..process.clone()
    };
    assert!(!transport.is_running(&later).await.expect("known"));
    transport
        .stop(&later, GRACE)
        .await
        .expect("a process that has gone");
    assert!(
        transport.is_running(&process).await.expect("known"),
        "another pid was not hit"
    );

    transport.stop(&process, GRACE).await.expect("it stops");
    assert!(!transport.is_running(&process).await.expect("known"));
    transport
        .stop(&process, GRACE)
        .await
        .expect("stopping again is no error");
}

#[tokio::test]
async fn an_older_hive_is_healthy_by_its_older_route() {
    let hives = FakeHives::new();
    let transport = LocalTransport::new();
    let process = transport
        .start(&hives.command("old"))
        .await
        .expect("it starts");
    transport.stop(&process, GRACE).await.expect("it stops");
}

#[tokio::test]
async fn a_hive_that_crashes_at_start_is_told_with_its_last_words() {
    let hives = FakeHives::new();
    let mut command = hives.command("crash");
    let begun = Instant::now();
    let error = LocalTransport::new()
        .start(&command)
        .await
        .expect_err("it crashes");
    assert_eq!(error.code, Code::HiveUnreachable);
    for part in [
        "exit status: 1",
        "loading settings",
        "boom: no engine found",
        "hive.log",
    ] {
        assert!(error.message.contains(part), "{part} in {error}");
    }
    assert!(
        begun.elapsed() < command.start_timeout,
        "it did not wait for the time-out"
    );

    command.template[0] = "/bin/false".into();
    let error = LocalTransport::new()
        .start(&command)
        .await
        .expect_err("it crashes");
    assert!(
        !error.message.contains("boom"),
        "an earlier start's output: {error}"
    );
}

#[tokio::test]
async fn a_hive_that_never_gets_healthy_is_ended_with_all_that_it_started() {
    let hives = FakeHives::new();
    let mut command = hives.command("mute");
    command.start_timeout = Duration::from_secs(4);
    let error = LocalTransport::new()
        .start(&command)
        .await
        .expect_err("it stays mute");
    assert!(error.message.contains("within 4s"), "{error}");
    assert!(error.message.contains("thinking about it"), "{error}");
    eventually("all have gone", || hives.processes().is_empty()).await;
}

#[tokio::test]
async fn a_start_that_is_dropped_leaves_no_process() {
    let hives = FakeHives::new();
    let transport = LocalTransport::new();
    let command = hives.command("mute");
    tokio::select! {
        _ = transport.start(&command) => panic!("it never gets healthy"),
        () = eventually("it runs", || hives.log().contains("thinking")) => {}
    }
    eventually("it has gone", || hives.processes().is_empty()).await;
}

#[tokio::test]
async fn a_missing_program_is_told_with_the_places_and_the_cure() {
    let hives = FakeHives::new();
    let mut command = hives.command("healthy");
    command.template[0] = "no-such-hive".into();
    let transport = LocalTransport::new();
    let preflight = transport
        .preflight(&command)
        .await
        .expect_err("it is missing");
    let start = transport.start(&command).await.expect_err("it is missing");
    assert_eq!(preflight, start);
    for part in ["/bin/no-such-hive", "hives.commands", "PATH"] {
        assert!(start.message.contains(part), "{part} in {start}");
    }
}

#[tokio::test]
async fn a_log_that_cant_be_written_is_told() {
    let hives = FakeHives::new();
    let mut command = hives.command("healthy");
    command.log_file = hives.path("fake_hive.py").join("hive.log");
    let error = LocalTransport::new()
        .start(&command)
        .await
        .expect_err("a file is no folder");
    assert!(error.message.contains("fake_hive.py/hive.log"), "{error}");
}

#[tokio::test]
async fn a_hive_that_ignores_sigterm_is_killed() {
    let hives = FakeHives::new();
    let transport = LocalTransport::new();
    let process = transport
        .start(&hives.command("stubborn"))
        .await
        .expect("it starts");
    let begun = Instant::now();
    let grace = Duration::from_millis(700);
    transport.stop(&process, grace).await.expect("it is killed");
    assert!(begun.elapsed() >= grace, "it had its grace");
    assert!(!transport.is_running(&process).await.expect("known"));
}

#[tokio::test]
async fn a_port_where_something_listens_is_skipped() {
    let hives = FakeHives::new();
    let taken = TcpListener::bind(("0.0.0.0", hives.port)).expect("it was free");
    let transport = LocalTransport::new();
    let process = transport
        .start(&hives.command("healthy"))
        .await
        .expect("on the next port");
    assert!(process.port > hives.port, "{}", process.port);
    drop(taken);
    transport.stop(&process, GRACE).await.expect("it stops");
}

#[tokio::test]
async fn a_port_that_is_lost_meanwhile_is_given_up_for_the_next() {
    let hives = FakeHives::new();
    let transport = LocalTransport::new();
    let process = transport
        .start(&hives.command("loses-port-once"))
        .await
        .expect("next port");
    assert_ne!(process.port, hives.port);
    transport.stop(&process, GRACE).await.expect("it stops");

    let thief = std::fs::read_to_string(hives.path("marker")).expect("it ran");
    let thief = HiveProcess {
        pid: thief.parse().ok(),
        pid_start_time: None,
        ..process
    };
    let error = transport
        .stop(&thief, GRACE)
        .await
        .expect_err("it can't be told from another");
    assert_eq!(error.code, Code::Conflict);
    assert_eq!(
        hives.processes().len(),
        1,
        "the other process was left alone"
    );
    let pid = thief
        .pid
        .and_then(|pid| rustix::process::Pid::from_raw(pid.cast_signed()));
    let pid = pid.expect("the marker holds its pid");
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).expect("it is ours");
    eventually("it has gone", || hives.processes().is_empty()).await;
}

#[tokio::test]
async fn hives_that_start_at_once_on_one_port_all_get_their_own() {
    let hives = FakeHives::new();
    let transport = Arc::new(LocalTransport::new());
    let starts: Vec<_> = (0..3)
        .map(|_| {
            let (transport, command) = (Arc::clone(&transport), hives.command("healthy"));
            tokio::spawn(async move { transport.start(&command).await })
        })
        .collect();
    let mut running = Vec::new();
    for start in starts {
        running.push(start.await.expect("no panic").expect("it starts"));
    }
    let mut ports: Vec<u16> = running.iter().map(|process| process.port).collect();
    for process in running {
        assert!(transport.is_running(&process).await.expect("known"));
        transport.stop(&process, GRACE).await.expect("it stops");
    }
    ports.sort_unstable();
    ports.dedup();
    assert_eq!(ports.len(), 3);
}

#[test]
fn a_hive_outlives_the_runtime_that_started_it() {
    let hives = FakeHives::new();
    let command = hives.command("healthy");
    let run = || tokio::runtime::Runtime::new().expect("a runtime");
    let runtime = run();
    let process = runtime.block_on(async { LocalTransport::new().start(&command).await });
    let process = process.expect("it starts");
    let begun = Instant::now();
    drop(runtime);
    assert!(
        begun.elapsed() < Duration::from_secs(5),
        "nothing hangs on the child"
    );

    run().block_on(async {
        let transport = LocalTransport::new();
        assert!(transport.is_running(&process).await.expect("known"));
        transport.stop(&process, GRACE).await.expect("it stops");
    });
}

#[tokio::test]
async fn an_unmanaged_hive_is_reached_and_never_touched() {
    let hives = FakeHives::new();
    let listener = TcpListener::bind(("127.0.0.1", hives.port)).expect("it was free");
    let direct = DirectTransport::new("127.0.0.1");
    let command = hives.command("healthy");
    let process = HiveProcess {
        port: hives.port,
        pid: None,
        pid_start_time: None,
        started_by_queen: false,
    };
    direct.connect(hives.port).await.expect("something listens");
    assert!(direct.is_running(&process).await.expect("known"));
    for error in [
        direct.preflight(&command).await.map(|_| ()),
        direct.start(&command).await.map(|_| ()),
        direct.stop(&process, GRACE).await,
        direct.logs(&command.log_file, 1).await.map(|_| ()),
    ] {
        let error = error.expect_err("someone else runs it");
        assert!(error.message.contains("unmanaged"), "{error}");
    }
    drop(listener);
    assert!(!direct.is_running(&process).await.expect("known"));
}
