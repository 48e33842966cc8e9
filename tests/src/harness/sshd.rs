//! A throw-away sshd with its own keys and home, run as the user of the tests.

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use rbee_orchestrator::domain::SshTarget;
use rbee_orchestrator::transport::{HiveCommand, SshOptions, SshTransport};
use rustix::process::{Pid, Signal, kill_process};

use super::home::Home;
use super::ports;

/// A hive of a few lines, in one of its modes.
const FAKE_HIVE: &str = include_str!("../../../rbee-orchestrator/tests/hives/fake_hive.py");

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
            write_config(folder.path(), port, settings, variables);
            if let Some(child) = spawn(folder.path()) {
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
        let mut doomed = vec![self.child.id()];
        let all = processes();
        let mut index = 0;
        while index < doomed.len() {
            let parent = doomed[index];
            let children = all.iter().filter(|p| p.parent == parent && p.is_sshd());
            doomed.extend(children.map(|process| process.pid));
            index += 1;
        }
        for pid in doomed {
            kill(pid);
        }
        self.child.wait().expect("it is our child");
    }

    /// Starts it again on the same port, with the same keys.
    pub fn start_again(&mut self) {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            if let Some(child) = spawn(self.folder.path()) {
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
        let folder = self.folder.path().display().to_string();
        Self::those(|process| process.line.contains(&folder))
    }

    /// All that runs on the machine, the shells of commands too.
    pub fn everything(&self) -> Vec<u32> {
        let home = format!("HOME={}", self.home().display());
        Self::those(|process| process.environment().contains(&home))
    }

    fn those(which: impl Fn(&Process) -> bool) -> Vec<u32> {
        let all = processes().into_iter();
        let found = all.filter(|process| !process.is_sshd() && which(process));
        found.map(|process| process.pid).collect()
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
        left.iter().copied().for_each(kill);
        if !std::thread::panicking() {
            assert_eq!(left, Vec::<u32>::new(), "processes are left behind");
        }
    }
}

/// Makes a pair of keys.
///
/// # Panics
/// When `ssh-keygen` does not work.
pub fn make_key(path: &Path, passphrase: &str) {
    let made = Command::new("ssh-keygen")
        .args([
            "-q",
            "-t",
            "ed25519",
            "-C",
            "a test's key",
            "-N",
            passphrase,
            "-f",
        ])
        .arg(path)
        .status()
        .expect("ssh-keygen is missing; run: sudo apt-get install openssh-client");
    assert!(made.success(), "ssh-keygen works");
}

fn write_config(folder: &Path, port: u16, settings: &str, variables: &str) {
    let at = |name: &str| folder.join(name).display().to_string();
    // What is first holds.
    let config = format!(
        "{settings}\n\
         ListenAddress 127.0.0.1:{port}\n\
         HostKey {}\n\
         AuthorizedKeysFile {}\n\
         SetEnv HOME={} {variables}\n\
         PidFile none\n\
         StrictModes no\n\
         UsePAM no\n\
         PasswordAuthentication no\n\
         KbdInteractiveAuthentication no\n\
         PermitRootLogin yes\n\
         MaxStartups 100\n\
         Subsystem sftp internal-sftp\n",
        at("host_key"),
        at("authorized_keys"),
        at("home"),
    );
    fs::write(folder.join("sshd_config"), config).expect("written");
}

/// Starts sshd and waits until it listens; `None` if it ends before.
fn spawn(folder: &Path) -> Option<Child> {
    let program = find_sshd();
    if rustix::process::geteuid().is_root() {
        // Where sshd locks up the part of it that speaks with strangers.
        let separate = Path::new("/run/sshd");
        if !separate.is_dir() {
            fs::create_dir_all(separate).expect("root may make it");
            let mode = fs::Permissions::from_mode(0o755);
            fs::set_permissions(separate, mode).expect("it is ours");
        }
    }
    let mut child = Command::new(program)
        .args(["-D", "-e", "-f"])
        .arg(folder.join("sshd_config"))
        .process_group(0)
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("sshd runs");
    let said = child.stderr.take().expect("it is piped");
    let mut lines = BufReader::new(said).lines();
    let listens = lines.any(|line| line.is_ok_and(|line| line.contains("Server listening")));
    // What it says later must not fill the pipe.
    std::thread::spawn(move || lines.for_each(drop));
    if listens {
        return Some(child);
    }
    child.wait().expect("it is our child");
    None
}

fn find_sshd() -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders =
        std::env::split_paths(&path).chain(["/usr/sbin".into(), "/usr/local/sbin".into()]);
    let mut found = folders.map(|folder| folder.join("sshd"));
    found
        .find(|file| file.is_file())
        .expect("sshd is missing; run: sudo apt-get install openssh-server")
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

struct Process {
    pid: u32,
    parent: u32,
    name: String,
    line: String,
}

impl Process {
    fn is_sshd(&self) -> bool {
        self.name.starts_with("sshd")
    }

    /// Empty for a zombie, and for another user's.
    fn environment(&self) -> String {
        let bytes = fs::read(format!("/proc/{}/environ", self.pid)).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

fn processes() -> Vec<Process> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter_map(process).collect()
}

fn process(pid: u32) -> Option<Process> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (before, after) = stat.rsplit_once(')')?;
    let (_, name) = before.split_once('(')?;
    // A zombie's command line is empty.
    let line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    Some(Process {
        pid,
        parent: after.split_ascii_whitespace().nth(1)?.parse().ok()?,
        name: name.to_owned(),
        line: String::from_utf8_lossy(&line).replace('\0', " "),
    })
}

fn kill(pid: u32) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        let _ = kill_process(pid, Signal::KILL);
    }
}
