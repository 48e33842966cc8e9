//! What is told of an address that the queen tried: whoever sees to the fleet learns how it answered,
//! whoever has work for the fleet does not.

use rbee_tests::harness::{Home, Queen, ports, until};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SocketFlags, SocketType, bind, connect, listen, socket_with, sockopt,
};
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::time::Duration;

const SECOND: Duration = Duration::from_secs(1);

/// Takes no connection and refuses none: whoever tries waits.
struct Silent {
    port: u16,
    _sockets: Vec<OwnedFd>,
}

impl Silent {
    fn at(port: u16) -> Self {
        let new = || {
            let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
            socket_with(AddressFamily::INET, SocketType::STREAM, flags, None).expect("a socket")
        };
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        let listener = new();
        sockopt::set_socket_reuseaddr(&listener, true).expect("an option");
        bind(&listener, &address).expect("the port is free");
        listen(&listener, 0).expect("it listens");
        let mut sockets = vec![listener];
        // These fill its queue.
        for _ in 0..4 {
            let waiting = new();
            let began = connect(&waiting, &address);
            assert!(
                matches!(began, Ok(()) | Err(Errno::INPROGRESS)),
                "{began:?}"
            );
            sockets.push(waiting);
        }
        Silent {
            port,
            _sockets: sockets,
        }
    }
}

/// The error that a request gets, with what differs anyway left out.
fn told(queen: &Queen, body: &Value, names: &[&str]) -> String {
    let reply = queen.ask("/v2/tasks", body);
    assert!(reply.status >= 500, "{}", reply.text);
    let error = &reply.json()["error"];
    let mut told = format!("{} {}", error["code"], error["message"]);
    for name in names {
        told = told.replace(name, "…");
    }
    told
}

fn task(model: &str, node: Option<&str>) -> Value {
    json!({"model": model, "prompt": "x", "stream": false, "node": node})
}

#[test]
fn how_a_hives_address_answered_is_told_to_administrators_alone() {
    let home = Home::new();
    let queen = home
        .queen()
        .config("timeouts.health = \"500ms\"")
        .config("queue.timeout = \"2s\"")
        .start();
    let silent = Silent::at(ports::free().expect("a port"));
    let closed = ports::free().expect("a port");
    let seen = [
        ("gpu-a", closed, "refused"),
        ("gpu-b", silent.port, "no answer"),
    ]
    .map(|(name, port, why)| {
        let hive =
            json!({"node_name": name, "hostname": "127.0.0.1", "port": port, "mode": "network"});
        let reply = queen.ask("/v2/registry/beehives/add", &hive);
        assert_eq!(reply.status, 200, "{}", reply.text);
        let found = until(10 * SECOND, || {
            let list = queen.look("/v2/registry/beehives/list").json();
            let mut nodes = list["nodes"].as_array()?.iter();
            let node = nodes.find(|node| node["node_name"] == name)?;
            let error = node["last_error"]["message"].as_str()?;
            error.to_lowercase().contains(why).then_some(())
        });
        assert!(
            found.is_some(),
            "{}",
            queen.look("/v2/registry/beehives/list").text
        );
        let port = port.to_string();
        told(&queen, &task("file:m", Some(name)), &[name, &port])
    });
    assert_eq!(seen[0], seen[1]);
    assert!(!seen[0].contains("refused"), "{}", seen[0]);
}

#[test]
fn how_a_workers_address_answered_is_told_to_administrators_alone() {
    let home = Home::new();
    let queen = home
        .queen()
        .config("timeouts.connect = \"500ms\"")
        .env("RUST_LOG", "debug")
        .start();
    let seen = [false, true].map(|is_silent| {
        let mut stub = home.stub(&[]);
        let (model, port) = (format!("file:m{is_silent}"), stub.port());
        queen.register(
            &stub,
            &model,
            &json!({"worker_id": model.replace(':', "-")}),
        );
        stub.daemon().kill();
        drop(stub);
        let _silent = is_silent.then(|| Silent::at(port));
        told(
            &queen,
            &task(&model, None),
            &[&is_silent.to_string(), &port.to_string()],
        )
    });
    assert_eq!(seen[0], seen[1]);
    let log = queen.log();
    for why in ["refused", "timed out"] {
        assert!(!seen[0].contains(why), "{}", seen[0]);
        assert!(log.contains(why), "no {why} in {log}");
    }
}
