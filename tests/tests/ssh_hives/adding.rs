//! What a registration looks at, says and stores.

use crate::far::{
    ADD, Far, added, assert_refused, becomes, but, hive_pids, item, node, nodes, serves, task,
};
use rbee_tests::harness::events::assert_task_failed;
use rbee_tests::harness::ports;
use rbee_tests::harness::sshd::make_key;
use serde_json::{Value, json};
use std::fs;
use std::net::{TcpListener, UdpSocket};

#[test]
fn one_registration_is_all_that_a_machine_with_ssh_needs() {
    let far = Far::new();
    let queen = far.queen().start();
    let told = added(&queen, &far.hive("gpu-0"));
    for name in [
        "reachable",
        "host_key",
        "authenticated",
        "architecture",
        "hive",
    ] {
        assert_eq!(item(&told, name)["status"], "ok", "{told}");
    }
    assert_eq!(told["node_name"], "gpu-0");
    assert!(told["warnings"].is_array(), "{told}");
    let listed = node(&queen, "gpu-0");
    assert_eq!(
        (&listed["tunnel"], &listed["install"]),
        (&json!(true), &json!(false))
    );
    assert_eq!(listed["mode"], "network");
    assert_eq!(listed["hostname"], "127.0.0.1");
    assert_eq!(listed["status"], "offline", "it starts when it is needed");

    serves(&queen);
    let listed = becomes(&queen, "gpu-0", "online");
    assert_eq!(listed["port"], far.port);
    let worker = &queen.workers()[0];
    let url = worker["url"].as_str().unwrap_or_default();
    assert!(url.starts_with("http://127.0.0.1:"), "{worker}");
    assert_eq!(
        listening_ports(queen.pid()),
        [queen.port()],
        "she opens nothing else"
    );
    drop(queen);
    far.home.assert_nothing_runs();
}

/// The TCP ports on which a process listens.
fn listening_ports(pid: u32) -> Vec<u16> {
    let files = fs::read_dir(format!("/proc/{pid}/fd")).expect("it is ours");
    let targets = files
        .flatten()
        .filter_map(|file| fs::read_link(file.path()).ok());
    let sockets: Vec<String> = targets.map(|target| target.display().to_string()).collect();
    let table = fs::read_to_string(format!("/proc/{pid}/net/tcp")).expect("it is ours");
    let listening = table.lines().filter_map(|line| {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        let (local, state, inode) = (fields.get(1)?, fields.get(3)?, fields.get(9)?);
        let is_own = sockets.contains(&format!("socket:[{inode}]"));
        let port = local.rsplit_once(':')?.1;
        (*state == "0A" && is_own).then(|| u16::from_str_radix(port, 16).ok())?
    });
    listening.collect()
}

#[test]
fn what_makes_a_hive_impossible_is_told_with_the_cure_and_not_stored() {
    let far = Far::new();
    let queen = far.queen().start();
    let hive = far.hive("gpu-0");
    let refused = |other: Value, check, message_has: &[&str]| {
        let reply = queen.ask(ADD, &but(hive.clone(), &other));
        assert_refused(&queen, &reply, check, message_has);
    };

    let stranger = far.sshd.path("stranger_key");
    refused(
        json!({"ssh_key_path": stranger}),
        "authenticated",
        &["ssh-copy-id -i "],
    );
    let agent = &["the agent", "is not there", "ssh_key_path"];
    refused(json!({"ssh_key_path": null}), "authenticated", agent);
    let scan = &format!("ssh-keyscan -p {} 'localhost' >> ", far.sshd.port)[..];
    refused(
        json!({"ssh_host": "localhost"}),
        "host_key",
        &["unknown", scan],
    );
    let closed = ports::free().expect("there is one");
    refused(json!({"ssh_port": closed}), "reachable", &["ssh_port"]);

    let another = far.sshd.path("another_key");
    make_key(&another, "");
    let key = fs::read_to_string(another.with_extension("pub")).expect("it was made");
    let line = format!("[127.0.0.1]:{} {key}", far.sshd.port);
    fs::write(far.sshd.known_hosts(), line).expect("it is ours");
    refused(json!({}), "host_key", &["has changed", "ssh-keygen -R"]);

    let unchecked = but(hive, &json!({"preflight": false}));
    let told = added(&queen, &unchecked);
    assert!(told.get("preflight").is_none(), "{told}");
    assert_eq!(nodes(&queen).len(), 1);
    let events = queen
        .stream("/v2/tasks", &task())
        .expect("an answer")
        .rest();
    assert_task_failed(&events, "HIVE_UNREACHABLE", &["has changed"]);
}

#[test]
fn the_first_key_of_a_machine_is_taken_where_that_is_the_policy() {
    let far = Far::new();
    fs::remove_file(far.sshd.known_hosts()).expect("it was there");
    let queen = far.queen().config("ssh.host_keys = \"accept-new\"").start();
    let told = added(&queen, &far.hive("gpu-0"));
    let key = item(&told, "host_key")["message"]
        .as_str()
        .unwrap_or_default();
    assert!(key.contains("is new and was added"), "{told}");
    assert!(far.sshd.known_hosts().exists());
}

#[test]
fn a_hive_without_a_tunnel_is_reached_at_its_hostname() {
    let far = Far::new();
    let queen = far.queen().start();
    let address = own_address();
    let plain = json!({"tunnel": false, "hostname": address});
    added(&queen, &but(far.hive("gpu-0"), &plain));
    serves(&queen);
    let worker = &queen.workers()[0];
    let url = worker["url"].as_str().unwrap_or_default();
    assert!(url.starts_with(&format!("http://{address}:")), "{worker}");
    assert_eq!(node(&queen, "gpu-0")["hostname"], address);
    let hive = fs::read(format!("/proc/{}/environ", hive_pids(&far.home)[0])).expect("ours");
    let told = String::from_utf8_lossy(&hive).contains("QUEEN_CALLBACK_URL");
    assert!(!told, "her loopback address is not hers there");
}

/// An address of this machine that is not loopback, if it has one.
fn own_address() -> String {
    let socket = UdpSocket::bind(("0.0.0.0", 0)).expect("there is a free port");
    // Nothing is sent: an address for documentation (RFC 5737) only chooses the way out.
    let own = socket
        .connect("192.0.2.1:9")
        .and_then(|()| socket.local_addr());
    own.map_or("127.0.0.1".to_owned(), |own| own.ip().to_string())
}

#[test]
fn a_taken_port_is_passed_over() {
    let far = Far::new();
    let taken = TcpListener::bind(("127.0.0.1", far.port)).expect("it is free");
    let queen = far.queen().start();
    let told = added(&queen, &far.hive("gpu-0"));
    assert_eq!(item(&told, "port")["status"], "warning", "{told}");
    let warnings = told["warnings"].to_string();
    assert!(warnings.contains("something listens on port"), "{told}");
    serves(&queen);
    let port = becomes(&queen, "gpu-0", "online")["port"].as_u64();
    assert!(port > Some(u64::from(far.port)), "{port:?}");
    drop(taken);
}
