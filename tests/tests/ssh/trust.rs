//! Who is trusted by whom: host keys, keys, agents.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use rbee_orchestrator::transport::report::Status;
use rbee_orchestrator::transport::ssh::HostKeyPolicy;
use rbee_orchestrator::transport::{HiveTransport, SshOptions};
use rbee_orchestrator::{Code, Error};

use rbee_tests::harness::sshd::{Sshd, make_key};

async fn refusal(sshd: &Sshd, options: SshOptions) -> Error {
    let transport = sshd.transport_with(sshd.target(), options);
    let error = transport.exec(&["true"]).await.expect_err("refused");
    assert_eq!(error.code, Code::HiveUnreachable);
    error
}

#[tokio::test]
async fn an_unknown_host_is_refused_with_its_fingerprint_and_the_cure() {
    let sshd = Sshd::start();
    fs::remove_file(sshd.known_hosts()).expect("it is there");
    let error = refusal(&sshd, sshd.options()).await;
    let shown = Command::new("ssh-keygen")
        .arg("-lf")
        .arg(sshd.path("host_key.pub"))
        .output()
        .expect("ssh-keygen runs");
    let shown = String::from_utf8(shown.stdout).expect("UTF-8");
    let fingerprint = shown.split(' ').nth(1).expect("SHA256:…");
    let file = sshd.known_hosts().display().to_string();
    for part in [fingerprint, "unknown", &file, "ssh-keyscan -p"] {
        assert!(error.message.contains(part), "{part} in {error}");
    }
    assert!(!sshd.known_hosts().exists(), "nothing is trusted by itself");
}

#[tokio::test]
async fn a_changed_host_key_is_refused_even_where_new_ones_are_accepted() {
    let sshd = Sshd::start();
    let key = fs::read_to_string(sshd.path("stranger_key.pub")).expect("made");
    let known = format!("# comment\n[127.0.0.1]:{} {key}", sshd.port);
    fs::write(sshd.known_hosts(), &known).expect("written");
    for host_keys in [HostKeyPolicy::Strict, HostKeyPolicy::AcceptNew] {
        let options = SshOptions {
            host_keys,
            ..sshd.options()
        };
        let error = refusal(&sshd, options).await;
        for part in ["has changed", "known_hosts:2", "SHA256:", "ssh-keygen -R"] {
            assert!(error.message.contains(part), "{part} in {error}");
        }
    }
    let after = fs::read_to_string(sshd.known_hosts()).expect("it is there");
    assert_eq!(after, known, "the file is as it was");
}

#[tokio::test]
async fn a_new_host_is_accepted_once_where_that_is_set() {
    let sshd = Sshd::start();
    fs::remove_file(sshd.known_hosts()).expect("it is there");
    let options = SshOptions {
        host_keys: HostKeyPolicy::AcceptNew,
        ..sshd.options()
    };
    let transport = sshd.transport_with(sshd.target(), options);
    transport.exec(&["true"]).await.expect("accepted");
    let known = fs::read_to_string(sshd.known_hosts()).expect("made");
    assert!(known.starts_with(&format!("[127.0.0.1]:{} ssh-ed25519 ", sshd.port)));
    sshd.transport().exec(&["true"]).await.expect("known now");
}

#[tokio::test]
async fn a_hashed_entry_is_understood() {
    let sshd = Sshd::start();
    let hashed = Command::new("ssh-keygen")
        .args(["-q", "-H", "-f"])
        .arg(sshd.known_hosts())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .expect("ssh-keygen runs");
    assert!(hashed.success());
    let known = fs::read_to_string(sshd.known_hosts()).expect("it is there");
    assert!(known.starts_with("|1|"), "{known}");
    sshd.transport().exec(&["true"]).await.expect("known");
}

#[tokio::test]
async fn a_host_is_asked_for_the_key_that_is_known() {
    let other = tempfile::tempdir().expect("temp dir is writable");
    let rsa = other.path().join("rsa_key");
    let made = Command::new("ssh-keygen")
        .args(["-q", "-t", "rsa", "-b", "2048", "-N", "", "-f"])
        .arg(&rsa)
        .status()
        .expect("ssh-keygen runs");
    assert!(made.success());
    let sshd = Sshd::start_with(&format!("HostKey {}", rsa.display()));
    let key = fs::read_to_string(rsa.with_extension("pub")).expect("made");
    let known = format!("[127.0.0.1]:{} {key}", sshd.port);
    fs::write(sshd.known_hosts(), known).expect("written");
    sshd.transport().exec(&["true"]).await.expect("known");
}

#[tokio::test]
async fn a_key_that_the_host_does_not_take_is_named() {
    let sshd = Sshd::start();
    let mut target = sshd.target();
    target.key_path = Some(sshd.path("stranger_key").display().to_string());
    let transport = sshd.transport_with(target.clone(), sshd.options());
    let error = transport.exec(&["true"]).await.expect_err("refused");
    for part in ["stranger_key was refused", "ssh-copy-id -i ", "127.0.0.1"] {
        assert!(error.message.contains(part), "{part} in {error}");
    }
    target.key_path = Some("/nowhere/key".into());
    let transport = sshd.transport_with(target, sshd.options());
    let error = transport.exec(&["true"]).await.expect_err("no such key");
    assert!(
        error.message.contains("/nowhere/key can't be read"),
        "{error}"
    );
}

#[tokio::test]
async fn a_key_with_a_pass_phrase_needs_its_file() {
    let sshd = Sshd::start();
    let key = sshd.path("locked_key");
    make_key(&key, "two words");
    fs::copy(key.with_extension("pub"), sshd.path("authorized_keys")).expect("copied");
    let mut target = sshd.target();
    target.key_path = Some(key.display().to_string());

    let transport = sshd.transport_with(target.clone(), sshd.options());
    let error = transport.exec(&["true"]).await.expect_err("locked");
    assert!(error.message.contains("has a pass-phrase"), "{error}");

    for (phrase, works) in [("wrong", false), ("two words\n", true)] {
        let file = sshd.path("passphrase");
        fs::write(&file, phrase).expect("written");
        let mode = <fs::Permissions as std::os::unix::fs::PermissionsExt>::from_mode(0o600);
        fs::set_permissions(&file, mode).expect("it is ours");
        let options = SshOptions {
            passphrase_file: Some(file),
            ..sshd.options()
        };
        let transport = sshd.transport_with(target.clone(), options);
        match transport.exec(&["true"]).await {
            Ok(_) => assert!(works),
            Err(error) => {
                assert!(!works, "{error}");
                assert!(
                    error.message.contains("is the pass-phrase right"),
                    "{error}"
                );
                assert!(!error.message.contains("wrong"), "{error}");
            }
        }
    }
}

#[tokio::test]
async fn without_agent_and_keys_it_is_told_where_they_were_looked_for() {
    let sshd = Sshd::start();
    let mut target = sshd.target();
    target.key_path = None;
    let transport = sshd.transport_with(target.clone(), sshd.options());
    let error = transport.exec(&["true"]).await.expect_err("no keys");
    for part in [
        "the agent is not there",
        "id_ed25519 can't be read",
        "ssh_key_path",
    ] {
        assert!(error.message.contains(part), "{part} in {error}");
    }
    let options = SshOptions {
        agent_socket: Some("/nowhere/agent".into()),
        ..sshd.options()
    };
    let transport = sshd.transport_with(target.clone(), options);
    let error = transport.exec(&["true"]).await.expect_err("no keys");
    assert!(
        error.message.contains("/nowhere/agent can't be asked"),
        "{error}"
    );

    // One with the usual name is found.
    let usual = sshd.path("client/.ssh/id_ed25519");
    fs::copy(sshd.path("client_key"), usual).expect("copied");
    let transport = sshd.transport_with(target, sshd.options());
    transport.exec(&["true"]).await.expect("the usual key");
}

#[tokio::test]
async fn an_agent_s_key_is_taken() {
    let sshd = Sshd::start();
    let agent = Agent::with(&sshd);
    let mut target = sshd.target();
    target.key_path = None;
    let options = SshOptions {
        agent_socket: Some(agent.socket.clone()),
        ..sshd.options()
    };
    let transport = sshd.transport_with(target, options);
    let report = transport.inspect(&sshd.hive("healthy")).await;
    let login = report.item("authenticated").expect("it is told");
    assert_eq!(login.status, Status::Ok);
    assert!(login.message.contains("the agent's key"), "{login:?}");
}

#[tokio::test]
async fn an_alias_of_the_ssh_configuration_is_enough() {
    let sshd = Sshd::start();
    let config = format!(
        "Host gpu\n  HostName 127.0.0.1\n  Port {}\n  IdentityFile {}\n",
        sshd.port,
        sshd.path("client_key").display()
    );
    fs::write(sshd.path("client/.ssh/config"), config).expect("written");
    let mut target = sshd.target();
    (target.host, target.port, target.key_path) = ("gpu".into(), None, None);
    let transport = sshd.transport_with(target, sshd.options());
    transport.exec(&["true"]).await.expect("it is reached");
}

#[tokio::test]
async fn the_report_ends_where_trust_does() {
    let sshd = Sshd::start();
    let command = sshd.hive("healthy");
    let mut target = sshd.target();
    target.key_path = Some(sshd.path("stranger_key").display().to_string());
    let refused = sshd.transport_with(target.clone(), sshd.options());
    let failure = refused.inspect(&command).await;
    assert_eq!(
        failure.failure().map(|item| item.name),
        Some("authenticated")
    );

    fs::write(sshd.known_hosts(), "").expect("written");
    let failure = refused.inspect(&command).await;
    assert_eq!(failure.failure().map(|item| item.name), Some("host_key"));

    target.port = Some(rbee_tests::harness::ports::free().expect("there is one"));
    let nobody = sshd.transport_with(target, sshd.options());
    let failure = nobody.inspect(&command).await;
    assert_eq!(failure.failure().map(|item| item.name), Some("reachable"));
    assert_eq!(failure.items.len(), 1);
}

#[tokio::test]
async fn a_server_that_speaks_no_ssh_is_told_in_time() {
    let sshd = Sshd::start();
    let mute = std::net::TcpListener::bind(("127.0.0.1", 0)).expect("a port");
    let mut target = sshd.target();
    target.port = Some(mute.local_addr().expect("bound").port());
    let options = SshOptions {
        connect_timeout: Duration::from_millis(500),
        ..sshd.options()
    };
    let transport = sshd.transport_with(target, options);
    let error = transport.exec(&["true"]).await.expect_err("mute");
    assert!(error.in_full().contains("speaks no SSH"), "{error}");
}

struct Agent {
    child: std::process::Child,
    socket: PathBuf,
}

impl Agent {
    fn with(sshd: &Sshd) -> Self {
        let socket = sshd.path("agent");
        let child = Command::new("ssh-agent")
            .args(["-D", "-a"])
            .arg(&socket)
            .stdout(Stdio::null())
            .spawn()
            .expect("ssh-agent runs");
        let agent = Agent { child, socket };
        let deadline = std::time::Instant::now() + Duration::from_secs(10);
        while !agent.socket.exists() {
            assert!(std::time::Instant::now() < deadline, "the agent listens");
            #[expect(clippy::disallowed_methods, reason = "a plain test of a process")]
            std::thread::sleep(Duration::from_millis(5));
        }
        let added = Command::new("ssh-add")
            .arg("-q")
            .arg(sshd.path("client_key"))
            .env("SSH_AUTH_SOCK", &agent.socket)
            .status()
            .expect("ssh-add runs");
        assert!(added.success());
        agent
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
