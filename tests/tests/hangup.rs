//! SIGHUP: a terminal that closes, a service manager that wants the configuration read again, and
//! `nohup`.

use std::fs;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::Duration;

use rbee_tests::harness::{Home, Launch, Queen, assert_error, eventually, programs, raw};
use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use serde_json::json;

/// A script that starts the queen by these words of the shell.
fn started_by(home: &Home, words: &str) -> PathBuf {
    let script = home.path().join("start-queen");
    let queen = programs::queen();
    let text = words.replace("QUEEN", &format!("{} \"$@\"", queen.display()));
    programs::script(&script, &format!("#!/bin/sh\n{text}\n"));
    script
}

fn hang_up(queen: &Queen) {
    let pid = i32::try_from(queen.pid()).ok().and_then(Pid::from_raw);
    kill_process(pid.expect("a pid"), Signal::HUP).expect("she runs");
}

fn is_let_in_as(queen: &Queen, host: &str) -> bool {
    is_let_in_with(queen, &format!("host: {host}\r\n"))
}

fn is_let_in_with(queen: &Queen, headers: &str) -> bool {
    let mut stream = raw::connect(queen).expect("the queen listens");
    let request = format!("GET /v2/workers/list HTTP/1.1\r\n{headers}\r\n");
    stream.write_all(request.as_bytes()).expect("it is read");
    raw::answer(&mut stream).expect("an answer").0 == 200
}

#[test]
fn without_a_terminal_it_reads_the_configuration_again() {
    let home = Home::new();
    let config = home.path().join("my.toml");
    let write = |text: &str| fs::write(&config, text).expect("the folder is ours");
    write("allowed_hosts = [\"old.lan\"]\n[aliases]\nold = \"file:m\"\n");
    let queen = home
        .queen()
        .program(&started_by(&home, "exec setsid QUEEN"))
        .arg("--config")
        .arg(&config.to_string_lossy())
        .start();
    let stub = home.stub(&[]);
    queen.register(&stub, "file:m", &json!({}));
    let ask = |model: &str, tenant: &str| {
        let task = json!({"model": model, "prompt": "x", "max_tokens": 1, "stream": false,
                          "tenant_id": tenant});
        queen.ask("/v2/tasks", &task)
    };
    assert_eq!(ask("old", "anybody").status, 200);
    assert!(is_let_in_as(&queen, "old.lan") && !is_let_in_as(&queen, "new.lan"));
    let app = "host: localhost\r\norigin: app://obsidian.md\r\n";
    assert!(!is_let_in_with(&queen, app));

    write(
        "allowed_hosts = [\"new.lan\"]\nallowed_origins = [\"app://\"]\n[aliases]\nnew = \"file:m\"\n\
         [tenants.acme]\nmodels = [\"new\"]\n",
    );
    hang_up(&queen);
    eventually("it is read again", Duration::from_secs(30), || {
        is_let_in_as(&queen, "new.lan")
    });
    assert!(!is_let_in_as(&queen, "old.lan") && is_let_in_with(&queen, app));
    assert_eq!(ask("new", "acme").status, 200);
    assert_error(&ask("new", "anybody"), 403, "FORBIDDEN", &[]);
    let listed = queen.look("/v2/tenants/list").text;
    assert!(listed.contains("acme"), "{listed}");
    let models = queen.look("/v1/models").text;
    assert!(!models.contains("old"), "{models}");

    // A file that is wrong is told, and nothing changes.
    write("allowed_hosts = [\"old.lan\"]\n[aliases]\nnew = 5\n");
    hang_up(&queen);
    eventually("it is told", Duration::from_secs(30), || {
        queen.log().contains("nothing is changed") && queen.log().contains("my.toml")
    });
    assert!(is_let_in_as(&queen, "new.lan") && !is_let_in_as(&queen, "old.lan"));
    assert_eq!(ask("new", "acme").status, 200);
}

#[test]
fn ignored_it_stays_ignored() {
    let home = Home::new();
    let script = started_by(&home, "trap '' HUP\nexec setsid QUEEN");
    let mut queen = home.queen().program(&script).start();
    hang_up(&queen);
    assert!(queen.ended(Duration::from_secs(1)).is_none());
    assert!(!queen.log().contains("SIGHUP"), "{}", queen.log());
    assert_eq!(queen.look("/health").status, 200);
}

/// A queen on a terminal of her own, which closes when the other end is dropped.
fn on_a_terminal<'h>(home: &'h Home, queen: Launch<'h>) -> (Launch<'h>, OwnedFd) {
    let terminal =
        openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).expect("a terminal");
    grantpt(&terminal).expect("it is ours");
    unlockpt(&terminal).expect("it is ours");
    let name = ptsname(&terminal, Vec::new()).expect("it has a name");
    let name = name.to_str().expect("names of terminals are ASCII");
    let words = format!("exec setsid --ctty QUEEN < {name}");
    (queen.program(&started_by(home, &words)), terminal)
}

fn ends_in_order(queen: &mut Queen) {
    let status = queen.ended(Duration::from_secs(30)).expect("she ends");
    assert!(status.success(), "{status}");
    for said in ["the terminal has gone", "shut down"] {
        assert!(queen.log().contains(said), "no {said:?}: {}", queen.log());
    }
}

fn serves(queen: &Queen) {
    let task = json!({"model": "m", "prompt": "x", "max_tokens": 1, "stream": false});
    let reply = queen.ask("/v2/tasks", &task);
    assert_eq!(reply.status, 200, "{}", reply.text);
}

#[test]
fn a_terminal_that_closes_ends_queen_hive_and_engine_in_order() {
    let home = Home::new();
    home.add_model("m.stub", "");
    let (launch, terminal) = on_a_terminal(&home, home.queen());
    let mut queen = launch.start();
    serves(&queen);
    drop(terminal);
    ends_in_order(&mut queen);
    home.assert_nothing_runs();
    // It was asked to end, and did not fall with the terminal.
    let hive = home.path().join("logs/hive-localhost.log");
    let hive = fs::read_to_string(hive).expect("the hive's log");
    for said in ["worker stopped", "hive ended"] {
        assert!(hive.contains(said), "no {said:?}: {hive}");
    }
}

#[test]
fn a_hive_that_is_left_outlives_the_terminal() {
    let home = Home::new();
    home.add_model("m.stub", "");
    let leaves = || home.queen().config("hives.on_shutdown = \"leave\"");
    let (launch, terminal) = on_a_terminal(&home, leaves());
    let mut queen = launch.start();
    serves(&queen);
    let before = home.engines();
    assert_eq!(before.len(), 1);
    drop(terminal);
    ends_in_order(&mut queen);
    let next = home.queen().start();
    serves(&next);
    assert_eq!(home.engines(), before, "the same engine serves on");
}
