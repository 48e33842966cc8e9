//! Commands on the machine.

use std::time::{Duration, Instant};

use rbee_orchestrator::Code;
use rbee_orchestrator::transport::SshOptions;

use rbee_tests::harness::sshd::Sshd;

use crate::eventually;

#[tokio::test]
async fn arguments_arrive_as_they_are() {
    let sshd = Sshd::start();
    let transport = sshd.transport();
    let hostile = [
        "",
        "two words",
        "it's",
        "$(touch pwned)",
        "`touch pwned`",
        "; touch pwned #",
        "line\nbreak\r",
        "\"$HOME\\",
        "-rf",
        "--",
        "*",
        "ünïcödé",
    ];
    let mut argv = vec!["printf", "%s|"];
    argv.extend(hostile);
    let output = transport.exec(&argv).await.expect("it runs");
    assert_eq!(output.status, Some(0));
    let said = String::from_utf8(output.stdout).expect("UTF-8");
    assert_eq!(said, hostile.join("|") + "|");
    let pwned = std::fs::read_dir(sshd.home()).expect("it is there").count();
    assert_eq!(pwned, 0, "nothing else was run");
    let error = transport.exec(&["echo", "a\0b"]).await.expect_err("NUL");
    assert_eq!(error.code, Code::InvalidRequest);
}

#[tokio::test]
async fn a_status_a_signal_and_both_outputs_are_told() {
    let sshd = Sshd::start();
    let transport = sshd.transport();
    let script = "echo out; echo err >&2; exit 7";
    let output = transport
        .exec(&["sh", "-c", script])
        .await
        .expect("it runs");
    assert_eq!(output.status, Some(7));
    assert_eq!(
        (&output.stdout[..], &output.stderr[..]),
        (&b"out\n"[..], &b"err\n"[..])
    );
    let missing = transport.exec(&["no-such-program"]).await.expect("told");
    assert_eq!(missing.status, Some(127));
    // The shell itself, and so all that the session runs.
    let killed = transport.exec(&["eval", "kill -9 $$"]).await.expect("told");
    assert_eq!(killed.status, None);
}

#[tokio::test]
async fn more_commands_than_sessions_wait_for_each_other() {
    let sshd = Sshd::start();
    let transport = sshd.transport();
    let begun = Instant::now();
    let many = (0..32).map(|number| {
        let transport = &transport;
        async move {
            let number = number.to_string();
            let output = transport.exec(&["echo", &number]).await.expect("it runs");
            assert_eq!(output.stdout, format!("{number}\n").as_bytes());
        }
    });
    futures_util::future::join_all(many).await;
    assert!(begun.elapsed() < Duration::from_secs(20));
}

#[tokio::test]
async fn a_machine_that_allows_few_sessions_gets_few_commands_at_once() {
    // One is the connection's own.
    let sshd = Sshd::start_with("MaxSessions 3");
    let transport = sshd.transport();
    let words = ["sleep", "0"];
    let many = (0..12).map(|_| transport.exec(&words));
    for ended in futures_util::future::join_all(many).await {
        assert_eq!(ended.expect("it runs").status, Some(0));
    }
    let sshd = Sshd::start_with("MaxSessions 1");
    let error = sshd
        .transport()
        .exec(&["true"])
        .await
        .expect_err("none is left");
    assert!(error.message.contains("MaxSessions"), "{error}");
}

#[tokio::test]
async fn a_command_that_does_not_end_is_given_up_and_hinders_no_other() {
    let sshd = Sshd::start();
    let options = SshOptions {
        command_timeout: Duration::from_secs(2),
        ..sshd.options()
    };
    let transport = sshd.transport_with(sshd.target(), options);
    transport.exec(&["true"]).await.expect("connected");
    let followed = sshd.known_hosts().display().to_string();
    let words = ["tail", "-f", &followed];
    // More than there may be at once: each gives its place back.
    for _ in 0..3 {
        let long = (0..4).map(|_| transport.exec(&words));
        for ended in futures_util::future::join_all(long).await {
            assert_eq!(ended.expect_err("long").code, Code::Timeout);
        }
    }
    transport.exec(&["true"]).await.expect("it still works");
    eventually("all have ended there", || sshd.programs().is_empty()).await;
}

#[tokio::test]
async fn a_chatty_login_shell_does_not_garble_what_commands_say() {
    let sshd = Sshd::start();
    let noise = "echo welcome; echo rbee-0 >&2\n";
    for file in [".bashrc", ".profile", ".zshenv", ".bash_profile"] {
        std::fs::write(sshd.home().join(file), noise).expect("written");
    }
    let output = sshd
        .transport()
        .exec(&["echo", "x"])
        .await
        .expect("it runs");
    assert_eq!(output.stdout, b"x\n");
}

#[tokio::test]
async fn a_user_without_a_shell_is_told_what_the_machine_said() {
    let sshd = Sshd::start_with("ForceCommand echo this account is not available; exit 1");
    let error = sshd
        .transport()
        .exec(&["true"])
        .await
        .expect_err("no shell");
    assert!(
        error.message.contains("this account is not available"),
        "{error}"
    );
    assert!(error.message.contains("login shell"), "{error}");
}

#[tokio::test]
async fn endless_output_is_cut_off() {
    let sshd = Sshd::start();
    let transport = sshd.transport();
    let error = transport.exec(&["yes"]).await.expect_err("endless");
    assert!(error.message.contains("writes more"), "{error}");
    eventually("yes has ended", || sshd.programs().is_empty()).await;
    let large = ["head", "-c", "3000000", "/dev/zero"];
    let output = transport
        .exec(&large)
        .await
        .expect("large, but not too large");
    assert_eq!(output.stdout.len(), 3_000_000);
}
