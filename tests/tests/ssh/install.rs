//! A program is brought to the machine.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering::Relaxed};
use std::time::{Duration, SystemTime};

use rbee_orchestrator::Code;
use rbee_orchestrator::transport::report::Status;
use rbee_orchestrator::transport::{HiveCommand, HiveTransport};

use crate::proxy::Proxy;
use rbee_tests::harness::sshd::Sshd;

/// A program of this machine that answers `--version`, whatever it is called.
fn binary(sshd: &Sshd) -> PathBuf {
    let cat = fs::canonicalize("/bin/cat").expect("it is there");
    // A file that takes a while to send.
    let mut bytes = fs::read(cat).expect("readable");
    bytes.resize(8 << 20, 0);
    let path = sshd.path("program");
    fs::write(&path, bytes).expect("temp dir is writable");
    path
}

fn command(sshd: &Sshd, install_path: Option<&str>) -> HiveCommand {
    let mut command = sshd.hive("healthy");
    command.template = vec!["a hive's name".into(), "daemon".into()];
    command.install_path = install_path.map(PathBuf::from);
    command
}

fn names(folder: &std::path::Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect()
}

#[tokio::test]
async fn a_program_is_put_where_it_is_found_and_replaces_an_older_one() {
    let sshd = Sshd::start();
    let transport = sshd.transport();
    let hostile = sshd.path("it's $(touch pwned); -x");
    let missing = transport.preflight(&command(&sshd, hostile.to_str())).await;
    let missing = missing.expect_err("missing");
    assert!(missing.message.contains("was not found"), "{missing}");
    for install_path in [None, hostile.to_str(), Some("-rel; touch pwned")] {
        let command = command(&sshd, install_path);
        for _ in 0..2 {
            let arrived = Arc::new(AtomicU8::new(0));
            let told = Arc::clone(&arrived);
            let told = Arc::new(move |percent| told.store(percent, Relaxed));
            let place = transport
                .install(&binary(&sshd), &command, told)
                .await
                .expect("installed");
            assert_eq!(arrived.load(Relaxed), 100);
            let there = fs::read(&place).expect("it is there");
            assert!(there == fs::read(binary(&sshd)).expect("readable"));
            let mode = fs::metadata(&place).expect("there").permissions().mode();
            assert_eq!(mode & 0o777, 0o755);
            let folder = place.parent().expect("in a folder");
            assert_eq!(names(folder), ["a hive's name"], "no upload is left");
        }
        let found = transport.preflight(&command).await.expect("found");
        assert!(found.version.contains("cat"), "{found:?}");
    }
    assert!(!sshd.home().join("pwned").exists());
}

#[tokio::test]
async fn an_upload_that_is_cut_leaves_the_older_program_in_place() {
    let sshd = Sshd::start();
    let proxy = Proxy::to(sshd.port).await;
    sshd.trust(proxy.port);
    let mut target = sshd.target();
    target.port = Some(proxy.port);
    let transport = sshd.transport_with(target, sshd.options());
    let folder = sshd.home().join(".rbee/bin");
    fs::create_dir_all(&folder).expect("made");
    fs::write(folder.join("a hive's name"), "the older one").expect("written");
    let command = command(&sshd, None);
    transport.exec(&["true"]).await.expect("connected");

    proxy.cut_after(3 << 20);
    let error = transport
        .install(&binary(&sshd), &command, Arc::new(|_| {}))
        .await
        .expect_err("cut");
    assert_eq!(error.code, Code::HiveUnreachable, "{error}");
    assert!(error.message.contains("broke off"), "{error}");
    let kept = fs::read_to_string(folder.join("a hive's name")).expect("there");
    assert_eq!(kept, "the older one");

    let [young, old] = [".a hive's name.1.upload", ".a hive's name.2.upload"];
    fs::write(folder.join(young), "another's").expect("written");
    let left = fs::File::create(folder.join(old)).expect("it is ours");
    let long_ago = SystemTime::now() - Duration::from_secs(3600);
    left.set_modified(long_ago).expect("it is ours");
    transport
        .install(&binary(&sshd), &command, Arc::new(|_| {}))
        .await
        .expect("again");
    let installed = fs::read(folder.join("a hive's name")).expect("there");
    assert!(installed == fs::read(binary(&sshd)).expect("readable"));
    let left = names(&folder);
    let has = |name: &str| left.iter().any(|left| left == name);
    assert!(
        has(young) && !has(old),
        "only what is nobody's goes: {left:?}"
    );
}

#[tokio::test]
async fn another_architecture_is_refused_with_both_names() {
    let sshd = Sshd::start();
    let transport = sshd.transport();
    let file = sshd.path("foreign");
    let mut header = b"\x7fELF\x02\x01".to_vec();
    header.resize(64, 0);
    header[18] = 243;
    fs::write(&file, header).expect("written");
    let error = transport
        .install(&file, &command(&sshd, None), Arc::new(|_| {}))
        .await
        .expect_err("riscv64 does not run here");
    assert_eq!(error.code, Code::InvalidRequest);
    for part in ["riscv64", std::env::consts::ARCH] {
        assert!(error.message.contains(part), "{part} in {error}");
    }
    assert_eq!(names(&sshd.home().join(".rbee/bin")), Vec::<String>::new());
}

#[tokio::test]
async fn the_report_tells_what_is_missing_and_what_is_there() {
    let sshd = Sshd::start();
    let transport = sshd.transport();
    let command = command(&sshd, None);
    let report = transport.inspect(&command).await;
    assert_eq!(report.failure(), None);
    let names: Vec<&str> = report.items.iter().map(|item| item.name).collect();
    let expected = [
        "reachable",
        "host_key",
        "authenticated",
        "architecture",
        "hive",
        "engine",
        "devices",
        "disk",
        "port",
        "clock",
    ];
    assert_eq!(names, expected);
    let hive = report.item("hive").expect("told");
    assert_eq!(hive.status, Status::Warning);
    for name in [
        "reachable",
        "host_key",
        "authenticated",
        "architecture",
        "port",
        "clock",
    ] {
        let item = report.item(name).expect("told");
        assert_eq!(item.status, Status::Ok, "{item:?}");
    }
    transport
        .install(&binary(&sshd), &command, Arc::new(|_| {}))
        .await
        .expect("installed");
    let report = transport.inspect(&command).await;
    assert_eq!(report.item("hive").expect("told").status, Status::Ok);
}
