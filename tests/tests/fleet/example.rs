//! The example program that registers a machine and asks it.

use super::running;
use rbee_tests::harness::{Home, programs, until};
use rbee_tests::machines::Network;
use std::process::Command;
use std::time::Duration;

#[test]
fn the_example_asks_a_machine_and_leaves_nothing_running_there() {
    let network = Network::new();
    if !network.is_real() {
        eprintln!("SKIPPED: the example knows no other port than 22, which needs namespaces");
        return;
    }
    let home = Home::new();
    let machine = network.machine("far");
    machine.home().add_model("m.stub", "itl_ms = 1");
    let example = programs::queen()
        .with_file_name("examples")
        .join("ssh_hive");
    let asked = Command::new(example)
        .args([machine.address(), "file:m.stub", "Once upon a time"])
        .env("HOME", network.person())
        .env("SSH_AUTH_SOCK", "")
        .env("XDG_STATE_HOME", home.path())
        .output()
        .expect("`make test` builds the examples");
    let told = String::from_utf8_lossy(&asked.stderr);
    assert!(asked.status.success(), "{told}");
    let text = String::from_utf8_lossy(&asked.stdout);
    assert!(
        text.contains("t0@") && text.contains("t3@"),
        "{text}\n{told}"
    );
    let gone = until(Duration::from_secs(10), || {
        running(&machine, "").is_empty().then_some(())
    });
    assert!(gone.is_some(), "{:#?}", machine.processes());
}
