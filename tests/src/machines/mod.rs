//! Several machines on one: network namespaces with an address, sshd, processes and home each.
//!
//! Nothing of them is left when a test ends, however it ends: namespaces live as long as the
//! processes in them, and those end when their standard input does.

mod machine;
mod slow_link;

pub use machine::Machine;
pub use slow_link::SlowLink;

use crate::harness::Launch;
use crate::harness::sshd::make_key;
use crate::proc;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::marker::PhantomData;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU8, Ordering};

/// The queen's address on the network.
pub const QUEEN: &str = "10.77.0.1";

/// A network with the machine of a person who runs a queen, and others. Where namespaces are not
/// permitted, the others are several sshd on ports of this machine.
#[derive(Debug)]
pub struct Network {
    person: tempfile::TempDir,
    lan: Option<Lan>,
    machines: AtomicU8,
    // The thread that made it is on it.
    _not_send: PhantomData<*const ()>,
}

#[derive(Debug)]
struct Lan {
    holder: Child,
    before: File,
}

impl Network {
    /// A new one. The calling thread, and all that it starts from now on, is on the queen's
    /// machine until the network is dropped.
    ///
    /// # Panics
    /// When namespaces are permitted and yet can't be made.
    #[must_use]
    pub fn new() -> Self {
        let person = tempfile::Builder::new().prefix("rbee-test-").tempdir();
        let person = person.expect("there is a writable temporary folder");
        std::fs::create_dir(person.path().join(".ssh")).expect("the folder is ours");
        make_key(&person.path().join(".ssh/id_ed25519"), "");
        let lan = Lan::new();
        if lan.is_none() {
            eprintln!(
                "NO NAMESPACES: this user may not make them (root may); the machines are several \
                 sshd on ports of this machine, and what needs a network of its own is left out"
            );
        }
        Network {
            person,
            lan,
            machines: AtomicU8::new(0),
            _not_send: PhantomData,
        }
    }

    /// Whether its machines have addresses of their own: without, no cable can be pulled and no
    /// firewall set.
    #[must_use]
    pub fn is_real(&self) -> bool {
        self.lan.is_some()
    }

    /// The home of the person who runs the queen, with the key that the machines let in.
    #[must_use]
    pub fn person(&self) -> &Path {
        self.person.path()
    }

    fn public_key(&self) -> PathBuf {
        self.person().join(".ssh/id_ed25519.pub")
    }

    /// Her file of known hosts.
    #[must_use]
    pub fn known_hosts(&self) -> PathBuf {
        self.person().join(".ssh/known_hosts")
    }

    /// A machine that runs, has a hive's program, and whose host key is known to the person.
    ///
    /// # Panics
    /// When it can't be made.
    #[must_use]
    pub fn machine(&self, name: &str) -> Machine<'_> {
        let machine = self.bare_machine(name);
        machine.install_hive();
        machine
    }

    /// The same without a hive's program.
    ///
    /// # Panics
    /// When it can't be made.
    #[must_use]
    pub fn bare_machine(&self, name: &str) -> Machine<'_> {
        let number = self.machines.fetch_add(1, Ordering::Relaxed);
        let machine = Machine::new(self, name, number);
        machine.make_known();
        machine
    }

    /// A queen whom that person starts.
    #[must_use]
    pub fn queen<'h>(&self, launch: Launch<'h>) -> Launch<'h> {
        launch
            .env("HOME", &self.person().display().to_string())
            .env("SSH_AUTH_SOCK", "")
    }

    /// Runs a command on the queen's machine.
    ///
    /// # Panics
    /// When it fails.
    pub(crate) fn must(line: &str) {
        must(Command::new("sh").args(["-ec", line]));
    }
}

impl Default for Network {
    fn default() -> Self {
        Network::new()
    }
}

impl Lan {
    /// A network namespace with a bridge, and this thread in it; nothing where that is not
    /// permitted.
    fn new() -> Option<Self> {
        let (mut holder, said) = keep(&["--net"], "ip link set lo up")?;
        let before = File::open("/proc/thread-self/ns/net").expect("Linux tells");
        if !said {
            holder.wait().expect("it is our child");
            return None;
        }
        enter(&File::open(format!("/proc/{}/ns/net", holder.id())).expect("it runs"));
        Network::must(&format!(
            "ip link add lan type bridge; ip addr add {QUEEN}/24 dev lan; ip link set lan up"
        ));
        Some(Lan { holder, before })
    }
}

impl Drop for Lan {
    fn drop(&mut self) {
        enter(&self.before);
        // Its standard input ends, and it with that.
        drop(self.holder.stdin.take());
        let _ = self.holder.wait();
    }
}

fn enter(namespace: &File) {
    let network = Some(LinkNameSpaceType::Network);
    move_into_link_name_space(namespace.as_fd(), network).expect("root may");
}

/// A process that keeps new namespaces alive until its standard input ends, once it has run
/// `first` in them. Says whether it could; `None` without the program for it.
fn keep(namespaces: &[&str], first: &str) -> Option<(Child, bool)> {
    let mut keeper = Command::new("unshare")
        .args(namespaces)
        .args(["sh", "-ec", &format!("{first}; echo up; cat >/dev/null")])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .ok()?;
    let mut said = String::new();
    let stdout = keeper.stdout.take().expect("it is piped");
    BufReader::new(stdout).read_line(&mut said).ok()?;
    Some((keeper, said == "up\n"))
}

/// The process that was started for a keeper.
fn child_of(keeper: &Child) -> u32 {
    let tree = proc::tree(&[keeper.id()]);
    *tree.get(1).expect("it said that it is there")
}

/// Runs a command and gives what it printed.
#[track_caller]
fn must(command: &mut Command) -> String {
    let done = command.output();
    let done = done.unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(
        done.status.success(),
        "{command:?}: {}: {}{}",
        done.status,
        text(&done.stdout),
        text(&done.stderr)
    );
    text(&done.stdout)
}
