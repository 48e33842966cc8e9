//! What the machine does to a queen: a full disk, a locked or read-only database, a clock that
//! steps back, a hive that is killed under a stream.

use rbee_tests::harness::events::{assert_task_completed, assert_task_failed};
use rbee_tests::harness::{
    Home, Queen, Reply, SmallDisk, StubEngine, assert_error, eventually, first_database, until,
};
use rusqlite::Connection;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use std::env;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

const SECOND: Duration = Duration::from_secs(1);
const MODEL: &str = "file:m";

fn stub(home: &Home, queen: &Queen) -> StubEngine {
    let stub = home.stub(&["--itl-ms", "1"]);
    queen.register(&stub, MODEL, &json!({"slots_total": 8}));
    stub
}

fn task(tokens: u64) -> Value {
    json!({"model": MODEL, "prompt": "x", "max_tokens": tokens})
}

/// Submits until one is refused, as the log may have some room of its own left; returns those that
/// were accepted and the refusal.
fn submit_until_refused(queen: &Queen) -> (Vec<String>, Reply) {
    let mut accepted = Vec::new();
    loop {
        let reply = queen.try_submit(&task(4));
        match reply.status {
            202 => accepted.push(reply.accepted()),
            _ => return (accepted, reply),
        }
        assert!(accepted.len() < 10_000, "a full disk refuses nothing");
    }
}

#[test]
fn on_a_full_disk_nothing_is_accepted_that_could_be_lost_and_streams_go_on() {
    let home = Home::new();
    let Some(disk) = SmallDisk::mount(&home.path().join("disk"), 4) else {
        return;
    };
    let database = disk.path().join("queen.db");
    let queen = home.queen().database(&database).start();
    let _stub = stub(&home, &queen);
    let before = queen.submit(&task(4));
    queen.assert_task_ends(&before, "complete");

    disk.fill();
    let (accepted, refused) = submit_until_refused(&queen);
    let named = ["no room on the disk of", "queen.db", "free space"];
    assert_error(&refused, 500, "STORE_FAILED", &named);
    assert!(!refused.header("retry-after").is_empty(), "{refused:?}");
    let health = queen.look("/health");
    assert_eq!(
        (health.status, &health.json()["database"]),
        (200, &json!("full"))
    );
    for list in [
        "/v2/workers/list",
        "/v2/models/list",
        "/v2/registry/beehives/list",
        "/v1/models",
    ] {
        assert_eq!(queen.look(list).status, 200, "{list}");
    }
    assert_eq!(queen.task(&before)["state"], "complete");
    // Nothing of an interactive stream has to be on the disk before it flows.
    let stream = queen.stream("/v2/tasks", &task(4)).expect("an answer");
    assert_task_completed(&stream.rest());

    disk.free();
    let again = until(15 * SECOND, || {
        let reply = queen.try_submit(&task(4));
        (reply.status == 202).then(|| reply.accepted())
    });
    let again = again.expect("with room on the disk it is accepted again");
    let health = queen.look("/health").json();
    assert_eq!(
        (&health["status"], health.get("database")),
        (&json!("ok"), None)
    );
    for job_id in accepted.iter().chain([&again]) {
        queen.assert_task_ends(job_id, "complete");
    }
    queen.kill();
    let queen = home.queen().database(&database).start();
    for job_id in accepted.iter().chain([&before, &again]) {
        let task = queen.task(job_id);
        assert_eq!(task["state"], "complete", "{task}");
    }
}

#[test]
fn a_backlog_waits_for_room_on_the_disk_and_loses_nothing() {
    let home = Home::new();
    let Some(disk) = SmallDisk::mount(&home.path().join("disk"), 4) else {
        return;
    };
    let database = disk.path().join("queen.db");
    let queen = home.queen().database(&database).start();
    let stub = home.stub(&["--itl-ms", "20"]);
    queen.register(&stub, MODEL, &json!({"slots_total": 2}));
    let mut backlog: Vec<String> = (0..8).map(|_| queen.submit(&task(50))).collect();
    eventually("two run", SECOND, || stub.count("in_flight") == 2);

    disk.fill();
    let (accepted, refused) = submit_until_refused(&queen);
    assert_error(&refused, 500, "STORE_FAILED", &["full"]);
    backlog.extend(accepted);
    // What runs comes to its end; nothing begins that is not on the disk.
    eventually("nothing runs", 15 * SECOND, || stub.count("in_flight") == 0);
    let told: Vec<Value> = backlog.iter().map(|job_id| queen.task(job_id)).collect();
    let is_open = |task: &&Value| task["state"] != "complete";
    assert!(told.iter().filter(is_open).count() >= 6, "{told:#?}");

    disk.free();
    for job_id in &backlog {
        queen.assert_task_ends(job_id, "complete");
    }
    assert_eq!(stub.count("requests"), backlog.len() as u64);
    queen.assert_no_slot_leaked();
    queen.kill();
    let queen = home.queen().database(&database).start();
    for job_id in &backlog {
        let task = queen.task(job_id);
        assert_eq!(task["state"], "complete", "{task}");
    }
}

/// Overwrites the first page of a table or an index in a database that nobody has open.
fn damage(database: &Path, table: &str) {
    let db = Connection::open(database).expect("it is a database");
    let root = "SELECT rootpage FROM sqlite_schema WHERE name = ?";
    let root: u32 = db
        .query_row(root, [table], |row| row.get(0))
        .expect("a table");
    let size: u32 = db
        .pragma_query_value(None, "page_size", |row| row.get(0))
        .expect("a number");
    drop(db);
    let file = fs::OpenOptions::new().write(true).open(database);
    let page = vec![0xa5; usize::try_from(size).expect("it is small")];
    file.and_then(|file| file.write_all_at(&page, u64::from(root - 1) * u64::from(size)))
        .expect("the file is ours");
}

#[test]
fn a_damaged_database_is_told_and_what_does_not_need_the_damaged_part_is_served() {
    let home = Home::new();
    let database = home.path().join("queen.db");
    home.queen().start().stop(Signal::TERM);
    damage(&database, "idempotency");
    let queen = home.queen().start();
    let _stub = stub(&home, &queen);
    let damaged = || queen.look("/health").json()["database"] == "damaged";
    eventually("the damage is found", 15 * SECOND, damaged);
    let health = queen.look("/health");
    assert_eq!(
        (health.status, &health.json()["status"]),
        (200, &json!("ok"))
    );
    let log = queen.log();
    for told in ["the database is damaged", ".recover", "backup"] {
        assert!(log.contains(told), "no {told:?} in {log}");
    }
    let mut keyed = task(4);
    keyed["idempotency_key"] = json!("a-key");
    let refused = queen.try_submit(&keyed);
    assert_error(
        &refused,
        500,
        "STORE_FAILED",
        &["malformed", "backup", "queen.db"],
    );
    let stream = queen.stream("/v2/tasks", &task(4)).expect("an answer");
    assert_task_completed(&stream.rest());
    let whole = queen.submit(&task(4));
    queen.assert_task_ends(&whole, "complete");
    assert_eq!(queen.look("/v2/workers/list").status, 200);
}

#[test]
fn a_queen_does_not_start_where_she_can_not_read_her_hives_or_open_tasks() {
    for part in ["hives", "jobs_open"] {
        let home = Home::new();
        let database = home.path().join("queen.db");
        home.queen().start().stop(Signal::TERM);
        damage(&database, part);
        let (status, printed) = home.queen().start_in_vain();
        assert!(!status.success(), "{printed}");
        for told in ["STORE_FAILED", "queen.db", "malformed", "backup"] {
            assert!(printed.contains(told), "no {told:?} in: {printed}");
        }
    }
}

#[test]
fn a_database_on_a_read_only_disk_is_refused_by_name() {
    let home = Home::new();
    let Some(disk) = SmallDisk::mount(&home.path().join("disk"), 4) else {
        return;
    };
    let database = disk.path().join("queen.db");
    let launch = home.queen().database(&database);
    launch.start().stop(Signal::TERM);
    disk.make_read_only();
    let (status, printed) = launch.start_in_vain();
    assert!(!status.success(), "{printed}");
    for told in ["queen.db", "writable"] {
        assert!(printed.contains(told), "no {told:?} in: {printed}");
    }
}

#[test]
fn while_another_program_locks_the_database_nothing_is_accepted() {
    let home = Home::new();
    let database = home.path().join("queen.db");
    let queen = home.queen().start();
    let _stub = stub(&home, &queen);
    let before = queen.submit(&task(4));
    queen.assert_task_ends(&before, "complete");

    let other = Connection::open(&database).expect("it is a database");
    other
        .execute_batch("BEGIN IMMEDIATE")
        .expect("nobody else writes just now");
    let refused = queen.try_submit(&task(4));
    assert_error(&refused, 500, "STORE_FAILED", &["locked", "other program"]);
    // Reading goes on, and so do streams.
    assert_eq!(queen.task(&before)["state"], "complete");
    let stream = queen.stream("/v2/tasks", &task(4)).expect("an answer");
    assert_task_completed(&stream.rest());

    other.execute_batch("ROLLBACK").expect("it was begun");
    let again = until(15 * SECOND, || {
        let reply = queen.try_submit(&task(4));
        (reply.status == 202).then(|| reply.accepted())
    });
    let again = again.expect("it is accepted again");
    queen.assert_task_ends(&again, "complete");
}

#[test]
fn a_database_of_the_first_version_is_brought_up_to_date_although_that_was_cut_off() {
    let home = Home::new();
    first_database::write(&home.path().join("queen.db"), 10).expect("the folder is ours");
    let launch = || {
        let launch = home.queen().config("retention.jobs = \"100years\"");
        launch.config("hives.local = false")
    };
    let killed = launch().env("QUEEN_TEST_KILL_AT", "migrating").try_start();
    let fallen = killed.expect_err("she kills herself while she migrates");
    assert!(!fallen.status.success(), "{}", fallen.log);
    let queen = launch().start();
    let list = |state| queen.tasks(&format!("state={state}&model={}", first_database::MODEL));
    assert_eq!(list("complete").len(), 10);
    let failed = list("failed");
    assert_eq!(failed.len(), 1, "{failed:#?}");
    assert_eq!(failed[0]["error"]["code"], "INTERRUPTED", "{failed:#?}");
}

/// A clock that a file sets, by the library that Debian's package `faketime` has.
fn with_clock(file: &Path, queen: rbee_tests::harness::Launch<'_>) -> Queen {
    let library = env::var("RBEE_TEST_FAKETIME").unwrap_or_else(|_| {
        panic!(
            "RBEE_TEST_FAKETIME is not set: run `make test`, or `tests/parts.sh --tests` and \
             source .cache/parts.env"
        )
    });
    queen
        .env("LD_PRELOAD", &library)
        .env("FAKETIME_TIMESTAMP_FILE", &file.to_string_lossy())
        .env("FAKETIME_NO_CACHE", "1")
        .env("FAKETIME_DONT_FAKE_MONOTONIC", "1")
        .start()
}

#[test]
fn a_clock_that_steps_back_an_hour_delays_nothing_and_loses_nothing() {
    let home = Home::new();
    let clock = home.path().join("clock");
    let set = |offset: &str| fs::write(&clock, offset).expect("the folder is ours");
    set("+0");
    let launch = home.queen().config("retry.backoff_first = \"200ms\"");
    let queen = with_clock(&clock, launch);
    let stub = stub(&home, &queen);
    stub.control("itl_ms=20").expect("a known key");
    let mut stream = queen.stream("/v2/tasks", &task(50)).expect("an answer");
    let mut events = vec![stream.until_type("started"), stream.until_type("token")];
    let before = queen.submit(&task(4));
    // It waits for its second attempt when the clock steps.
    stub.control("fault=drop_mid_stream=1&fault_times=1")
        .expect("a known fault");
    let waits = queen.submit(&task(4));

    set("-3600");
    events.extend(stream.rest());
    assert_task_completed(&events);
    let after = queen.submit(&task(4));
    for job_id in [&before, &waits, &after] {
        queen.assert_task_ends(job_id, "complete");
    }
    let task = queen.task(&before);
    for key in ["inference_ms", "slot_ms"] {
        let ms = task[key].as_u64().expect("a number");
        assert!(ms < 60_000, "an hour was charged: {task}");
    }
    // A deadline that counts from the submission is one of the clock that does not step.
    stub.control("fault=none&fault=stall_after=1")
        .expect("a known fault");
    let mut short = crate::task(4);
    short["timeout_ms"] = json!(1000);
    let stream = queen.stream("/v2/tasks", &short).expect("an answer");
    set("-7200");
    assert_task_failed(&stream.rest(), "TIMEOUT", &["timeout_ms"]);
    let tasks = queen.tasks("limit=2");
    assert_eq!(tasks.len(), 5, "each is listed once: {tasks:#?}");
}

#[test]
fn a_clock_that_jumps_by_days_for_a_moment_deletes_nothing_and_forgets_no_key() {
    let home = Home::new();
    let clock = home.path().join("clock");
    let set = |offset: &str| fs::write(&clock, offset).expect("the folder is ours");
    set("+0");
    let launch = home.queen().config("retention.interval = \"100ms\"");
    let queen = with_clock(&clock, launch);
    let _stub = stub(&home, &queen);
    let mut keyed = task(2);
    keyed["idempotency_key"] = json!("a-key");
    let first = queen.submit(&keyed);
    queen.assert_task_ends(&first, "complete");
    for (days, key) in [(8, "b"), (-8, "c"), (30, "d"), (-30, "e")] {
        set(&format!("{:+}", days * 24 * 3600));
        // Submitted while the clock is wrong, and kept when it is right again.
        keyed["idempotency_key"] = json!(key);
        let within = queen.submit(&keyed);
        queen.assert_task_ends(&within, "complete");
        keyed["idempotency_key"] = json!("a-key");
        assert_eq!(queen.submit(&keyed), first, "{days} days");
        // Purges come ten times a second.
        let another = queen.submit(&task(2));
        queen.assert_task_ends(&another, "complete");
        set("+0");
        keyed["idempotency_key"] = json!(key);
        assert_eq!(queen.submit(&keyed), within, "{days} days");
    }
    let kept = queen.tasks("state=complete");
    assert_eq!(kept.len(), 9, "{kept:#?}");
    let jumps = queen.log().matches("clock has jumped").count();
    assert!((4..=8).contains(&jumps), "{jumps} jumps were told");
}

#[test]
fn a_stream_does_not_notice_that_its_hive_was_killed() {
    let home = Home::new();
    home.add_model("m.stub", "itl_ms = 20");
    let queen = home.queen().start();
    let long = json!({"model": "m", "prompt": "x", "max_tokens": 50});
    let mut stream = queen.stream("/v2/tasks", &long).expect("an answer");
    let mut events = vec![stream.until_type("started"), stream.until_type("token")];
    let processes = home.processes();
    let hive = processes.iter().find(|p| p.command.contains("rbee-hive"));
    let hive = i32::try_from(hive.expect("a hive runs").pid).expect("a process id");
    let hive = Pid::from_raw(hive).expect("not zero");
    kill_process(hive, Signal::KILL).expect("it is ours");
    events.extend(stream.rest());
    assert_task_completed(&events);
    let whole = json!({"model": "m", "prompt": "x", "max_tokens": 2, "stream": false});
    assert_eq!(queen.ask("/v2/tasks", &whole).status, 200);
    queen.assert_no_slot_leaked();
}
