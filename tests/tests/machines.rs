//! The machines that the tests of fleets run on are what they seem to be.

use rbee_tests::harness::eventually;
use rbee_tests::machines::{Network, SlowLink};
use std::io::Read;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::time::{Duration, Instant};

fn connects(address: &str, port: u16) -> bool {
    let address: SocketAddr = format!("{address}:{port}").parse().expect("an address");
    TcpStream::connect_timeout(&address, Duration::from_millis(500)).is_ok()
}

/// What sshd says to whoever connects.
fn greeting(port: u16) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).expect("it listens");
    let mut greeting = [0; 8];
    stream.read_exact(&mut greeting).expect("sshd greets");
    String::from_utf8_lossy(&greeting).into_owned()
}

#[test]
fn a_machine_is_reached_over_ssh_with_the_persons_key() {
    let network = Network::new();
    let machines = ["one", "two"].map(|name| network.machine(name));
    for machine in &machines {
        let said = Command::new("ssh")
            .args(["-o", "BatchMode=yes", "-o"])
            .arg(format!(
                "UserKnownHostsFile={}",
                network.known_hosts().display()
            ))
            .arg("-i")
            .arg(network.person().join(".ssh/id_ed25519"))
            .args([
                "-p",
                &machine.registration()["ssh_port"]
                    .as_u64()
                    .unwrap_or(22)
                    .to_string(),
            ])
            .args([machine.address(), "echo $HOME"])
            .output()
            .expect("ssh runs");
        let home = machine.user_home().display().to_string();
        let text = String::from_utf8_lossy(&said.stdout);
        assert_eq!(
            text.trim(),
            home,
            "{}",
            String::from_utf8_lossy(&said.stderr)
        );
    }
}

#[test]
fn firewalls_cables_and_switches_do_what_they_say() {
    let network = Network::new();
    if !network.is_real() {
        eprintln!("SKIPPED: needs network namespaces");
        return;
    }
    let mut machine = network.machine("one");
    assert_eq!(machine.sh("hostname").trim(), "one");
    let address = machine.address().to_owned();
    machine.sh(
        "python3 -m http.server 8000 >/dev/null 2>&1 & for i in $(seq 100); do \
                python3 -c 'import socket; socket.create_connection((\"127.0.0.1\", 8000))' \
                2>/dev/null && exit; sleep 0.1; done; exit 1",
    );
    assert!(connects(&address, 8000) && connects(&address, 22));

    machine.let_in_ssh_only();
    assert!(!connects(&address, 8000) && connects(&address, 22));
    machine.unplug();
    assert!(!connects(&address, 22));
    machine.plug_in();
    let is_back = || connects(&address, 22);
    eventually("the cable is in", Duration::from_secs(10), is_back);
    machine.kill_sshd();
    assert!(!connects(&address, 22));
    machine.start_sshd();

    machine.power_off();
    assert!(!connects(&address, 22));
    machine.power_on();
    assert!(connects(&address, 22));
    let listening = machine.sh("cat /proc/net/tcp").matches(":1F40 ").count();
    assert_eq!(listening, 0, "what ran before has ended");
    assert!(
        !connects(&address, 8000),
        "the firewall is set at each start"
    );

    machine.replace("date", "echo \"not $($REAL +%Y)\"");
    assert!(machine.sh("date").starts_with("not 20"));
}

#[test]
fn a_slow_link_is_slow_and_this_machine_is_not_on_the_network() {
    let host = TcpListener::bind(("127.0.0.1", 0)).expect("there is a port");
    let host = host.local_addr().expect("it is bound").port();
    let network = Network::new();
    let machine = network.machine("one");
    let ssh_port = machine.registration()["ssh_port"].as_u64().unwrap_or(22);
    let ssh = format!("{}:{ssh_port}", machine.address());
    let link = SlowLink::to(ssh.parse().expect("an address"), Duration::from_millis(100));
    let began = Instant::now();
    assert_eq!(greeting(link.port()), "SSH-2.0-");
    assert!(began.elapsed() >= Duration::from_millis(100));
    if network.is_real() {
        assert!(!connects("127.0.0.1", host));
    }
    drop(link);
    drop(machine);
    drop(network);
    assert!(connects("127.0.0.1", host), "the thread is back");
}
