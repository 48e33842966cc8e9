//! A machine with sshd, and what a queen needs to use it.

use rbee_tests::harness::events::assert_task_completed;
use rbee_tests::harness::sshd::hive_port;
use rbee_tests::harness::{Home, Launch, Queen, Reply, Sshd, programs, until};
use serde_json::{Value, json};
use std::time::Duration;

pub(crate) const ADD: &str = "/v2/registry/beehives/add";
pub(crate) const REMOVE: &str = "/v2/registry/beehives/remove";

pub(crate) struct Far {
    // In the order in which they end.
    pub(crate) sshd: Sshd,
    pub(crate) home: Home,
    /// The first port that its hive tries
    pub(crate) port: u16,
}

impl Far {
    pub(crate) fn new() -> Self {
        let home = Home::new();
        home.add_model("m.stub", "");
        Far {
            sshd: Sshd::start_for(&home),
            home,
            port: hive_port(),
        }
    }

    /// A queen who knows the machine's key, and has no hive of her own.
    pub(crate) fn queen(&self) -> Launch<'_> {
        let client = self.sshd.path("client");
        let known = self.sshd.known_hosts();
        self.home
            .queen()
            .env("HOME", &client.display().to_string())
            .env("SSH_AUTH_SOCK", "")
            .config("hives.local = false")
            .config(&format!("ssh.known_hosts = [{known:?}]"))
            .config("ssh.backoff_first = \"50ms\"")
            .config("ssh.backoff_max = \"200ms\"")
    }

    /// A registration whose hive's program is there.
    pub(crate) fn hive(&self, name: &str) -> Value {
        let programs = programs::hive();
        let folder = programs.parent().expect("it is in a folder");
        json!({
            "node_name": name, "ssh_host": "127.0.0.1", "ssh_port": self.sshd.port,
            "ssh_key_path": self.sshd.path("client_key"), "port": self.port,
            "install_path": folder, "install": false,
        })
    }
}

/// The same registration with other values.
pub(crate) fn but(mut registration: Value, other: &Value) -> Value {
    for (key, value) in other.as_object().into_iter().flatten() {
        registration[key] = value.clone();
    }
    registration
}

#[track_caller]
pub(crate) fn added(queen: &Queen, registration: &Value) -> Value {
    let reply = queen.ask(ADD, registration);
    assert_eq!(reply.status, 200, "{}", reply.text);
    assert_eq!(reply.json()["success"], true, "{}", reply.text);
    reply.json()
}

pub(crate) fn task() -> Value {
    json!({"model": "file:m.stub", "prompt": "x", "max_tokens": 5})
}

/// Asks for five tokens, and checks them event by event.
#[track_caller]
pub(crate) fn serves(queen: &Queen) {
    let stream = queen.stream("/v2/tasks", &task()).expect("an answer");
    assert_eq!(stream.status, 200);
    let events = stream.rest();
    let text = assert_task_completed(&events);
    assert_eq!(text.split_ascii_whitespace().count(), 5, "{text}");
}

pub(crate) fn nodes(queen: &Queen) -> Vec<Value> {
    let list = queen.look("/v2/registry/beehives/list").json();
    list["nodes"].as_array().expect("a list").clone()
}

pub(crate) fn node(queen: &Queen, name: &str) -> Value {
    let all = nodes(queen).into_iter();
    let mut named = all.filter(|node| node["node_name"] == name);
    named.next().expect("it is registered")
}

/// Waits until a hive is in a state.
#[track_caller]
pub(crate) fn becomes(queen: &Queen, name: &str, status: &str) -> Value {
    let there = until(Duration::from_secs(20), || {
        let node = node(queen, name);
        (node["status"] == status).then_some(node)
    });
    there.unwrap_or_else(|| panic!("not {status}: {}\n{}", node(queen, name), queen.log()))
}

pub(crate) fn worker_ids(queen: &Queen) -> Vec<Value> {
    let workers = queen.workers().into_iter();
    workers.map(|worker| worker["worker_id"].clone()).collect()
}

/// The hives that run on the machine.
pub(crate) fn hive_pids(home: &Home) -> Vec<u32> {
    let all = home.processes().into_iter();
    let hives = all.filter(|process| process.command.contains("rbee-hive daemon"));
    hives.map(|process| process.pid).collect()
}

pub(crate) fn item<'r>(reply: &'r Value, name: &str) -> &'r Value {
    let items = reply["preflight"]["items"].as_array();
    let mut named = items
        .into_iter()
        .flatten()
        .filter(|item| item["name"] == name);
    named.next().unwrap_or(&Value::Null)
}

/// Checks that a registration was refused for `check`, and is told so as older clients read it.
#[track_caller]
pub(crate) fn assert_refused(queen: &Queen, reply: &Reply, check: &str, message_has: &[&str]) {
    rbee_tests::harness::assert_error(reply, 400, "PREFLIGHT_FAILED", message_has);
    let body = reply.json();
    assert_eq!(body["success"], false, "{body}");
    assert_eq!(body["message"], body["error"]["message"], "{body}");
    assert_eq!(body["error"]["details"]["check"], check, "{body}");
    let failed = item(&body, check);
    assert_eq!(failed["status"], "failed", "{body}");
    assert_eq!(nodes(queen), Vec::<Value>::new(), "nothing is stored");
}
