//! A throw-away sshd with its own keys and home, run as the user of the tests.

pub(crate) mod server;

use std::fs;
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use rbee_orchestrator::domain::SshTarget;
use rbee_orchestrator::transport::{HiveCommand, SshOptions, SshTransport};

pub use server::make_key;

use super::home::Home;
use super::ports;
use crate::proc;

/// A hive of a few lines, in one of its modes.
const FAKE_HIVE: &str = include_str!("../../../../rbee-orchestrator/tests/hives/fake_hive.py");

/// Another process may take a port between its choice and its use.
const PORT_TRIES: usize = 10;

/// It ends when it is dropped, which fails if anything of it is left behind.
#[derive(Debug)]
pub struct Sshd {
    folder: tempfile::TempDir,
    /// Where it listens, on 127.0.0.1
    pub port: u16,
    child: Child,
}

impl Sshd {
    /// A machine with an empty home.
    ///
    /// # Panics
    /// When it does not come up.
    #[must_use]
    pub fn start() -> Self {
        Self::start_with("")
    }

    /// One whose hives find the models and the settings of a queen's home, and end with it.
    ///
    /// # Panics
    /// When it does not come up.
    #[must_use]
    pub fn start_for(home: &Home) -> Self {
        Self::start_in("", &home.hive_variables())
    }

    /// One with more lines in its configuration.
    ///
    /// # Panics
    /// When it does not come up.
    #[must_use]
    pub fn start_with(settings: &str) -> Self {
        Self::start_in(settings, "")
    }

    fn start_in(settings: &str, variables: &str) -> Self {
        let folder = tempfile::tempdir().expect("temp dir is writable");
        for name in ["host_key", "client_key", "stranger_key"] {
            make_key(&folder.path().join(name), "");
        }
        for name in ["home", "client/.ssh"] {
            fs::create_dir_all(folder.path().join(name)).expect("made");
        }
        fs::copy(
            folder.path().join("client_key.pub"),
            folder.path().join("authorized_keys"),
        )
        .expect("copied");
        for _ in 0..PORT_TRIES {
            let port = ports::free().expect("there is a free port");
            let address = format!("127.0.0.1:{port}");
            server::write_config(folder.path(), &address, settings, variables);
            if let Some(child) = server::start(folder.path(), Command::new) {
                let sshd = Sshd {
                    folder,
                    port,
                    child,
                };
                sshd.trust(port);
                return sshd;
            }
        }
        panic!("sshd got no port in {PORT_TRIES} tries");
    }

    /// A file or folder of it: `host_key`, `client_key`, `stranger_key`, `authorized_keys`.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The home of the user on the machine.
    pub fn home(&self) -> PathBuf {
        self.path("home")
    }

    /// Where the client notes the keys of hosts.
    #[must_use]
    pub fn known_hosts(&self) -> PathBuf {
        self.path("client/.ssh/known_hosts")
    }

    /// Notes the machine's key for a port.
    pub fn trust(&self, port: u16) {
        let key = fs::read_to_string(self.path("host_key.pub")).expect("it was made");
        let known = fs::read_to_string(self.known_hosts()).unwrap_or_default();
        let line = format!("[127.0.0.1]:{port} {key}");
        fs::write(self.known_hosts(), known + &line).expect("written");
    }

    /// A client's settings who knows this machine.
    #[must_use]
    pub fn options(&self) -> SshOptions {
        SshOptions {
            home: Some(self.path("client")),
            known_hosts: vec![self.known_hosts()],
            // No agent of the person who runs the tests.
            agent_socket: Some(PathBuf::new()),
            backoff_first: Duration::from_millis(50),
            backoff_max: Duration::from_millis(200),
            ..SshOptions::default()
        }
    }

    /// The way to it, with the right key.
    #[must_use]
    pub fn target(&self) -> SshTarget {
        SshTarget {
            host: "127.0.0.1".into(),
            port: Some(self.port),
            user: None,
            key_path: Some(self.path("client_key").display().to_string()),
        }
    }

    /// A client of its own.
    #[must_use]
    pub fn transport(&self) -> SshTransport {
        self.transport_with(self.target(), self.options())
    }

    /// A client with other settings, through a tunnel.
    #[must_use]
    pub fn transport_with(&self, target: SshTarget, options: SshOptions) -> SshTransport {
        SshTransport::new(target, "127.0.0.1", true, Arc::new(options))
    }

    /// Ends every session, and the server too.
    pub fn kill(&mut self) {
        server::end(&mut self.child);
    }

    /// Starts it again on the same port, with the same keys.
    pub fn start_again(&mut self) {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            if let Some(child) = server::start(self.folder.path(), Command::new) {
                self.child = child;
                return;
            }
            assert!(Instant::now() < deadline, "sshd does not get its port back");
        }
    }

    /// A hive's start: `fake_hive.py` in one of its modes.
    pub fn hive(&self, mode: &str) -> HiveCommand {
        let program = self.path("fake_hive.py");
        fs::write(&program, FAKE_HIVE).expect("written");
        let words = ["python3", "PROGRAM", "--port", "{port}", "--mode", mode];
        let template = words.map(|word| match word {
            "PROGRAM" => program.display().to_string(),
            other => other.to_owned(),
        });
        HiveCommand {
            template: template.to_vec(),
            install_path: None,
            port: hive_port(),
            queen_url: None,
            env: vec![
                ("RBEE_API_TOKEN".into(), "t0ken".into()),
                ("LLORCH_API_TOKEN".into(), "t0ken".into()),
            ],
            log_file: "/nowhere/gpu-0.log".into(),
            start_timeout: Duration::from_secs(30),
        }
    }

    /// Processes that name this folder in their command line, but for sshd's own.
    pub fn programs(&self) -> Vec<u32> {
        but_sshd(proc::with_word(&self.folder.path().display().to_string()))
    }

    /// All that runs on the machine, the shells of commands too.
    pub fn everything(&self) -> Vec<u32> {
        but_sshd(proc::with_env("HOME", &self.home().display().to_string()))
    }
}

impl Drop for Sshd {
    fn drop(&mut self) {
        self.kill();
        // What a cut-off command was running ends within a second or so.
        let deadline = Instant::now() + Duration::from_secs(10);
        while !self.everything().is_empty() && Instant::now() < deadline {
            #[expect(clippy::disallowed_methods, reason = "a drop can't wait otherwise")]
            std::thread::sleep(Duration::from_millis(20));
        }
        let mut left = self.everything();
        left.extend(self.programs());
        left.iter().copied().for_each(proc::kill);
        if !std::thread::panicking() {
            assert_eq!(left, Vec::<u32>::new(), "processes are left behind");
        }
    }
}

fn but_sshd(mut all: Vec<proc::Process>) -> Vec<u32> {
    all.retain(|process| !server::is_sshd(process.pid));
    all.into_iter().map(|process| process.pid).collect()
}

/// A free port, with free ones behind it, that no outgoing connection is given by chance.
pub fn hive_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let own = u16::try_from(std::process::id() % 100).expect("below 100");
    loop {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let port = 15_000 + (own * 100 + number * 10) % 10_000;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}
