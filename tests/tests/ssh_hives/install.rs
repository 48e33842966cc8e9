//! The hive's program on the machine: missing, old, and brought there.

use crate::far::{Far, added, but, item, serves, task};
use rbee_tests::harness::events::{assert_task_completed, assert_task_failed};
use rbee_tests::harness::programs;
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::PermissionsExt;

#[test]
fn a_missing_program_is_uploaded_before_the_first_start() {
    let far = Far::new();
    let queen = far.queen().start();
    let install = json!({"install": true, "install_path": null});
    let told = added(&queen, &but(far.hive("gpu-0"), &install));
    let hive = item(&told, "hive");
    assert_eq!(hive["status"], "ok", "{told}");
    let message = hive["message"].as_str().unwrap_or_default();
    assert!(
        message.contains("not found") && message.contains("uploads"),
        "{told}"
    );
    let stream = queen.stream("/v2/tasks", &task()).expect("an answer");
    let events = stream.rest();
    assert_task_completed(&events);
    let told = |event: &Value| event["action"] == "install_hive";
    assert!(events.iter().any(told), "{events:?}");
    let program = far.sshd.home().join(".rbee/bin/rbee-hive");
    let mode = program.metadata().expect("it was brought").permissions();
    assert_eq!(mode.mode() & 0o777, 0o755);
}

#[test]
fn a_program_of_an_old_version_is_replaced() {
    let far = Far::new();
    let folder = far.sshd.home().join("it's mine");
    fs::create_dir(&folder).expect("it is ours");
    let program = folder.join("rbee-hive");
    programs::script(&program, "#!/bin/sh\necho rbee-hive 0.0.1\n");
    let queen = far.queen().start();
    let old = but(far.hive("gpu-0"), &json!({"install_path": folder}));
    let told = added(&queen, &old);
    assert_eq!(item(&told, "hive")["status"], "warning", "{told}");
    assert!(told["warnings"].to_string().contains("older"), "{told}");

    let told = added(&queen, &but(old, &json!({"install": true})));
    assert_eq!(item(&told, "hive")["status"], "ok", "{told}");
    serves(&queen);
    let replaced = fs::read(&program).expect("it is there");
    assert!(replaced.starts_with(b"\x7fELF"));
}

#[test]
fn a_missing_program_that_may_not_be_uploaded_is_told_twice() {
    let far = Far::new();
    let queen = far.queen().start();
    let nowhere = json!({"install_path": "/opt/nowhere"});
    let told = added(&queen, &but(far.hive("gpu-0"), &nowhere));
    assert_eq!(item(&told, "hive")["status"], "warning", "{told}");
    assert!(
        told["warnings"].to_string().contains("/opt/nowhere"),
        "{told}"
    );
    let events = queen
        .stream("/v2/tasks", &task())
        .expect("an answer")
        .rest();
    let parts = &["rbee-hive", "was not found", "/opt/nowhere"];
    assert_task_failed(&events, "HIVE_UNREACHABLE", parts);
}

#[test]
fn a_program_that_the_queen_lacks_too_is_told_with_both_places() {
    let far = Far::new();
    let queen = far
        .queen()
        .config("hives.upload_dir = \"/nowhere\"")
        .start();
    let install = json!({"install": true, "install_path": null});
    let told = added(&queen, &but(far.hive("gpu-0"), &install));
    assert!(
        told["warnings"].to_string().contains("/nowhere/rbee-hive"),
        "{told}"
    );
    let events = queen
        .stream("/v2/tasks", &task())
        .expect("an answer")
        .rest();
    let parts = &["was not found", "/nowhere/rbee-hive", "upload_dir"];
    assert_task_failed(&events, "HIVE_UNREACHABLE", parts);
}
