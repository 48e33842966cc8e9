//! What can keep a queen or her hive from starting, and what the user reads then.

use rbee_tests::harness::{
    Client, Home, Queen, assert_error, events::assert_task_failed, eventually, ports, programs, raw,
};
use rustix::process::Signal;
use serde_json::json;
use std::fs;
use std::io::Write;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

/// She refuses with a failing exit status and tells these things, without a panic.
#[track_caller]
fn refuses(launch: &rbee_tests::harness::Launch<'_>, told: &[&str]) {
    let (status, printed) = launch.start_in_vain();
    assert!(!status.success(), "{printed}");
    assert!(!printed.contains("panicked"), "{printed}");
    for told in told {
        assert!(printed.contains(told), "no {told:?} in: {printed}");
    }
}

#[test]
fn a_database_that_cannot_be_written_is_named() {
    let home = Home::new();
    let file = home.path().join("a-file");
    fs::write(&file, "no folder").expect("the folder is ours");
    let database = file.join("queen.db");
    let named = database.to_string_lossy().into_owned();
    refuses(&home.queen().database(&database), &[&named]);
    let not_sqlite = home.path().join("not-sqlite.db");
    fs::write(&not_sqlite, "x".repeat(4096)).expect("the folder is ours");
    refuses(&home.queen().database(&not_sqlite), &["not-sqlite.db"]);
}

#[test]
fn a_port_in_use_is_named() {
    let home = Home::new();
    let taken = TcpListener::bind(("127.0.0.1", 0)).expect("the system has a port");
    let port = taken.local_addr().expect("it is bound").port();
    refuses(&home.queen().port(port), &[&port.to_string(), "in use"]);
}

#[test]
fn a_mistake_in_the_configuration_is_named() {
    let home = Home::new();
    refuses(
        &home.queen().config("timeuots.drain = \"1s\""),
        &["timeuots"],
    );
    refuses(&home.queen().config("timeouts.drian = \"1s\""), &["drian"]);
    refuses(
        &home.queen().config("timeouts.drain = \"soon\""),
        &["drain"],
    );
    refuses(&home.queen().config("timeouts ="), &["toml"]);
    let absent = home.path().join("absent.toml");
    let absent = absent.to_string_lossy();
    refuses(&home.queen().arg("--config").arg(&absent), &["absent.toml"]);
}

#[test]
fn a_second_queen_on_the_same_database_is_refused() {
    let home = Home::new();
    let first = home.queen().start();
    refuses(&home.queen(), &["DATABASE_IN_USE", "queen.db"]);
    // Nor by another name of the same file, in another folder.
    let other = Home::new();
    let database = home.path().join("queen.db");
    let (hard, symbolic) = (other.path().join("hard.db"), other.path().join("sym.db"));
    fs::hard_link(&database, &hard).expect("both are on one disk");
    std::os::unix::fs::symlink(&hard, &symbolic).expect("the folder is ours");
    for name in [&hard, &symbolic] {
        refuses(
            &other.queen().database(name),
            &["DATABASE_IN_USE", "hard.db"],
        );
    }
    assert_eq!(first.look("/health").status, 200);
}

#[test]
fn a_file_that_is_no_database_is_refused_with_what_to_do() {
    let home = Home::new();
    let text = b"no database".to_vec();
    for content in [text.repeat(1000), text, vec![0; 8192]] {
        fs::write(home.path().join("queen.db"), &content).expect("the folder is ours");
        let told = ["STORE_FAILED", "queen.db", "not a database", "backup"];
        refuses(&home.queen(), &told);
        let kept = fs::read(home.path().join("queen.db")).expect("it is there");
        assert!(kept == content, "it is left alone");
    }
}

#[test]
fn a_queen_that_others_can_reach_needs_a_token() {
    let home = Home::new();
    refuses(&home.queen().arg("--bind").arg("0.0.0.0"), &["token"]);
}

#[test]
fn a_token_that_is_none_is_refused_by_where_it_stands() {
    let home = Home::new();
    let mangled = ["", "  ", "\n", "two words", "a\u{1}b", "schlüssel"];
    for variable in ["QUEEN_TOKEN", "QUEEN_HIVE_TOKEN"] {
        for token in mangled {
            refuses(&home.queen().env(variable, token), &[variable]);
        }
    }
    let file = home.path().join("mangled-token");
    let path = file.to_string_lossy().into_owned();
    for token in mangled {
        fs::write(&file, token).expect("the folder is ours");
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).expect("it is ours");
        let launch = home.queen().arg("--token-file").arg(&path);
        refuses(&launch, &["mangled-token"]);
    }
}

#[test]
fn blanks_around_a_token_are_no_part_of_it() {
    let home = Home::new();
    let queen = home.queen().env("QUEEN_TOKEN", " a-token\n").start();
    let mut stream = raw::connect(&queen).expect("the queen listens");
    let request = "GET /v2/workers/list HTTP/1.1\r\nhost: localhost\r\n\
                   authorization: Bearer a-token\r\n\r\n";
    stream.write_all(request.as_bytes()).expect("it is read");
    assert_eq!(raw::answer(&mut stream).expect("an answer").0, 200);
}

#[test]
fn a_token_that_others_can_read_is_refused() {
    let home = Home::new();
    let file = home.path().join("token");
    fs::write(&file, "a-secret-token\n").expect("the folder is ours");
    let mode = |bits| fs::set_permissions(&file, fs::Permissions::from_mode(bits));
    let path = file.to_string_lossy().into_owned();
    let launch = home.queen().arg("--token-file").arg(&path);
    mode(0o644).expect("the file is ours");
    refuses(&launch, &[&path, "chmod 600"]);
    mode(0o600).expect("the file is ours");
    let queen = launch.start();
    let reply = queen.look("/v2/workers/list");
    assert_error(&reply, 401, "UNAUTHORIZED", &[]);
    let wrong = queen.header("authorization", "Bearer a-secret-toke");
    let reply = wrong.get("/v2/workers/list").expect("an answer");
    assert_error(&reply, 401, "UNAUTHORIZED", &[]);
    assert!(!reply.text.contains("a-secret"), "{}", reply.text);
    let right = queen.header("authorization", "Bearer a-secret-token");
    let reply = right.get("/v2/workers/list").expect("an answer");
    assert_eq!(reply.status, 200, "{}", reply.text);
    assert_eq!(queen.look("/health").status, 200);
    assert!(!queen.log().contains("a-secret-token"), "{}", queen.log());
}

/// A queen whose hive's program is `script`, or missing.
fn with_hive(home: &Home, script: Option<&str>) -> Queen {
    let bin = home.path().join("bin");
    fs::create_dir(&bin).expect("the folder is ours");
    let queen = bin.join("queen-rbee");
    programs::copy(&programs::queen(), &queen);
    if let Some(script) = script {
        programs::script(&bin.join("rbee-hive"), script);
    }
    let port = ports::free().expect("the system has a port");
    let launch = home.queen().program(&queen).env("PATH", "/usr/bin:/bin");
    launch
        .config("timeouts.hive_start = \"2s\"")
        .config("timeouts.stop_grace = \"2s\"")
        .config(&format!("hives.port = {port}"))
        .start()
}

/// Both an unstreamed and a streamed task are told, soon, that the hive cannot be used, and why.
#[track_caller]
fn assert_unreachable(queen: &Queen, why: &[&str]) {
    let asked = Instant::now();
    let task = json!({"model": "any", "prompt": "x", "stream": false});
    let reply = queen.ask("/v2/tasks", &task);
    assert_error(&reply, 503, "HIVE_UNREACHABLE", why);
    let task = json!({"model": "any", "prompt": "x"});
    let stream = queen.stream("/v2/tasks", &task).expect("an answer");
    if stream.status == 200 {
        assert_task_failed(&stream.rest(), "HIVE_UNREACHABLE", why);
    } else {
        assert_eq!(stream.status, 503);
    }
    let took = asked.elapsed();
    assert!(took < Duration::from_secs(15), "{took:?}");
    let hives = queen.look("/v2/registry/beehives/list").json();
    let local = &hives["nodes"][0];
    assert_eq!(local["node_name"], "localhost", "{hives}");
    assert_eq!(local["last_error"]["code"], "HIVE_UNREACHABLE", "{hives}");
    queen.assert_no_slot_leaked();
}

#[test]
fn a_hive_whose_program_is_missing_is_reported_with_where_it_was_looked_for() {
    let home = Home::new();
    let queen = with_hive(&home, None);
    assert_unreachable(&queen, &["rbee-hive", "PATH"]);
    queen.stop(Signal::TERM);
    home.assert_nothing_runs();
}

#[test]
fn a_hive_that_crashes_at_start_is_reported_with_its_last_words() {
    let home = Home::new();
    let script = "#!/bin/sh\n[ \"$1\" = daemon ] || { echo rbee-hive 0; exit; }\n\
                  echo no VRAM on this moon >&2\nexit 3\n";
    let queen = with_hive(&home, Some(script));
    assert_unreachable(&queen, &["3", "no VRAM on this moon"]);
    queen.stop(Signal::TERM);
    home.assert_nothing_runs();
}

#[test]
fn a_hive_that_never_becomes_healthy_is_given_up_and_ended() {
    let home = Home::new();
    let script = "#!/bin/sh\n[ \"$1\" = daemon ] || { echo rbee-hive 0; exit; }\n\
                  sleep 600 &\nwait\n";
    let queen = with_hive(&home, Some(script));
    assert_unreachable(&queen, &["2s"]);
    let only_the_queen = || home.processes().iter().all(|p| p.pid == queen.pid());
    eventually("its group is ended", Duration::from_secs(5), only_the_queen);
    queen.stop(Signal::TERM);
    home.assert_nothing_runs();
}

#[test]
fn nothing_is_started_before_a_request_needs_it() {
    let home = Home::new();
    let queen = home.queen().start();
    let hives = queen.look("/v2/registry/beehives/list").json();
    assert_eq!(hives["nodes"][0]["node_name"], "localhost");
    assert_eq!(hives["nodes"][0]["status"], "offline");
    assert_eq!(home.processes().len(), 1);
    let client = Client::new(queen.base());
    queen.stop(Signal::INT);
    assert!(client.get("/health").is_err());
}
