//! Values that want to be more than values, and secrets.

use crate::far::{ADD, Far, added, but, hive_pids, node, serves};
use rbee_orchestrator::domain::HiveId;
use rbee_orchestrator::hives::HiveToken;
use serde_json::{Value, json};
use std::fs;

/// Every text of a registration that reaches a machine, a file or a message.
const FIELDS: [&str; 9] = [
    "node_name",
    "ssh_host",
    "ssh_user",
    "ssh_key_path",
    "hostname",
    "install_path",
    "command",
    "git_repo_url",
    "git_branch",
];

#[test]
fn no_value_of_a_registration_becomes_shell() {
    let far = Far::new();
    let queen = far.queen().start();
    let canary = far.home.path().join("canary");
    let touch = format!("touch {}", canary.display());
    let long = "x".repeat(100_000);
    let values = [
        format!("'; {touch}; '"),
        format!("\"; {touch}; \""),
        format!("$({touch})"),
        format!("`{touch}`"),
        format!("a\n{touch}\n"),
        format!("-oProxyCommand={touch}"),
        "nul\0here".to_owned(),
        long,
    ];
    for field in FIELDS {
        for value in &values {
            let hive = but(far.hive("gpu-0"), &json!({field: value}));
            let reply = queen.ask(ADD, &hive);
            let told = reply.json();
            let shown = &reply.text[..reply.text.len().min(2000)];
            match reply.status {
                // Carried as it is.
                200 => {
                    let name = told["node_name"].as_str().unwrap_or_default();
                    assert_eq!(node(&queen, name)[field], json!(value), "{shown}");
                }
                400 => {
                    assert_eq!(told["success"], false, "{shown}");
                    let code = told["error"]["code"].as_str().unwrap_or_default();
                    let known = ["INVALID_REQUEST", "PREFLIGHT_FAILED"];
                    assert!(known.contains(&code), "{field}: {shown}");
                    assert!(reply.text.len() < 10_000, "{field} {}", reply.text.len());
                }
                status => panic!("{field} is answered with {status}: {shown}"),
            }
            assert!(!canary.exists(), "{field}: {value:?} was run");
        }
    }
    // Those that a start carries to the machine.
    let hostile = format!("/opt/it's $({touch}) `{touch}`; {touch}");
    let labels: Value = json!({"a": hostile, "$(b)": "`c`"});
    let hive = json!({"install_path": hostile, "labels": labels, "git_branch": hostile});
    added(&queen, &but(far.hive("gpu-0"), &hive));
    assert_eq!(node(&queen, "gpu-0")["labels"], labels);
    let wish = json!({"model": "file:m.stub", "prompt": "x", "stream": false});
    let reply = queen.ask("/v2/tasks", &wish);
    assert_eq!(reply.status, 503, "{}", reply.text);
    assert!(reply.text.contains("was not found"), "{}", reply.text);
    assert!(!canary.exists());
}

#[test]
fn secrets_are_in_no_log_no_argument_and_no_answer() {
    let far = Far::new();
    let secret = "corr3ct-h0rse";
    let key = far.sshd.path("locked_key");
    rbee_tests::harness::sshd::make_key(&key, secret);
    let public = fs::read(key.with_extension("pub")).expect("it was made");
    fs::write(far.sshd.path("authorized_keys"), public).expect("it is ours");
    let file = far.sshd.path("passphrase");
    fs::write(&file, secret).expect("it is ours");
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    fs::set_permissions(&file, mode).expect("it is ours");
    let queen = far
        .queen()
        .config(&format!("ssh.passphrase_file = {file:?}"))
        .env("RUST_LOG", "trace")
        .start();
    let hive = but(far.hive("gpu-0"), &json!({"ssh_key_path": key}));
    let told = added(&queen, &hive);
    serves(&queen);
    let token = fs::read_to_string(far.home.path().join("queen.db.hive-token"));
    let secret_of_all = token.expect("she made one").trim().to_owned();
    let token = HiveToken::new(&secret_of_all).expect("a token");
    let token = token.for_hive(&HiveId::new("gpu-0").expect("an id"));
    let token = token.expose().to_owned();
    let hives = hive_pids(&far.home);
    let environment = fs::read(format!("/proc/{}/environ", hives[0])).expect("ours");
    let environment = String::from_utf8_lossy(&environment).into_owned();
    assert!(environment.contains(&token), "the hive has it");
    assert!(!environment.contains(&secret_of_all), "and not that of all");
    assert!(
        !environment.contains("QUEEN_CALLBACK_URL"),
        "nobody can call through a tunnel"
    );
    assert!(environment.contains("RBEE_WORKER_HOST=127.0.0.1"));

    let unknown = but(
        hive,
        &json!({"ssh_user": "nobody-of-that-name", "node_name": "x"}),
    );
    let refused = queen.ask(ADD, &unknown).text;
    let answers = [
        told.to_string(),
        refused,
        queen.look("/v2/registry/beehives/list").text,
        queen.look("/v2/logs?node=gpu-0&tail=100").text,
        queen.log(),
    ];
    for secret in [secret, &token] {
        for answer in &answers {
            assert!(!answer.contains(secret), "a secret is told: {answer}");
        }
        let all = far.home.processes().into_iter();
        let lines: Vec<String> = all.map(|process| process.command).collect();
        assert!(
            !lines.iter().any(|line| line.contains(secret)),
            "{lines:#?}"
        );
        let logs = fs::read_dir(far.sshd.home().join(".rbee/logs")).expect("made");
        for log in logs.flatten() {
            let text = fs::read_to_string(log.path()).unwrap_or_default();
            assert!(!text.contains(secret), "{}", log.path().display());
        }
    }
}
