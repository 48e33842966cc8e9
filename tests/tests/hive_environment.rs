//! What a hive that the queen starts sees of her environment.

use rbee_tests::harness::{Home, programs};
use serde_json::json;
use std::fs;

/// Whether a variable has this value in an environment as `/proc` or `env -0` shows it.
fn has(environment: &[u8], variable: &str) -> bool {
    let mut variables = environment.split(|byte| *byte == 0);
    variables.any(|one| one == variable.as_bytes())
}

#[test]
fn a_hive_gets_what_it_needs_and_none_of_the_queens_secrets() {
    const NEEDED: [&str; 5] = [
        "HF_TOKEN=for-the-hub",
        "https_proxy=http://proxy.lan:1",
        "RBEE_HIVE_OF_MINE=1",
        "CUDA_VISIBLE_DEVICES=0",
        "WANTED_BY_ENGINE=s3cret",
    ];
    const HIDDEN: [&str; 5] = [
        "QUEEN_TOKEN=of-the-clients",
        "QUEEN_HIVE_TOKEN=of-all-hives",
        "SSH_AUTH_SOCK=/run/agent",
        "DATABASE_URL=postgres://u:p@h",
        "AWS_SECRET_ACCESS_KEY=cloud",
    ];
    let home = Home::new();
    home.add_model("m.stub", "");
    // Its look before the start says what it sees, as the hive's process does by itself.
    let (seen, script) = (home.path().join("seen"), home.path().join("hive-of-mine"));
    let text = format!(
        "#!/bin/sh\n[ \"$1\" != --version ] || env -0 > {}\nexec {} \"$@\"\n",
        seen.display(),
        programs::hive().display()
    );
    programs::script(&script, &text);
    let command = json!([script, "daemon", "--port", "{port}"]);
    let mut launch = home
        .queen()
        .config(&format!("hives.commands.default = {command}"))
        .config("hives.pass_env = [\"WANTED_BY_ENGINE\"]");
    for variable in NEEDED.iter().chain(&HIDDEN) {
        let (name, value) = variable.split_once('=').expect("a variable");
        launch = launch.env(name, value);
    }
    let queen = launch.start();
    let client = queen.header("authorization", "Bearer of-the-clients");
    let task = json!({"model": "m", "prompt": "x", "max_tokens": 1, "stream": false});
    let reply = client.post("/v2/tasks", &task).expect("an answer");
    assert_eq!(reply.status, 200, "{}", reply.text);

    let processes = home.processes();
    let hive = processes.iter().find(|p| p.command.contains("rbee-hive"));
    let hive = hive.unwrap_or_else(|| panic!("no hive: {processes:#?}"));
    let running = fs::read(format!("/proc/{}/environ", hive.pid)).expect("it is ours");
    let look = fs::read(&seen).expect("the script wrote it");
    for environment in [running, look] {
        let shown = String::from_utf8_lossy(&environment).replace('\0', "\n");
        for variable in NEEDED {
            assert!(has(&environment, variable), "no {variable} in:\n{shown}");
        }
        for variable in HIDDEN {
            assert!(!has(&environment, variable), "{variable} in:\n{shown}");
        }
    }
}
