//! The server itself, wherever it runs.

use crate::harness::wait::eventually;
use crate::proc;
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// Makes a pair of keys.
///
/// # Panics
/// When `ssh-keygen` does not work.
pub fn make_key(path: &Path, passphrase: &str) {
    let made = Command::new("ssh-keygen")
        .args(["-q", "-t", "ed25519", "-C", "a test's key"])
        .args(["-N", passphrase, "-f"])
        .arg(path)
        .status()
        .expect("ssh-keygen is missing; run: sudo apt-get install openssh-client");
    assert!(made.success(), "ssh-keygen works");
}

/// Writes the configuration of one whose `host_key`, `authorized_keys` and user's `home` are in a
/// folder. What `settings` say holds; `variables` are in the user's environment.
pub(crate) fn write_config(folder: &Path, address: &str, settings: &str, variables: &str) {
    let at = |name: &str| folder.join(name).display().to_string();
    // What is first holds.
    let config = format!(
        "{settings}\n\
         ListenAddress {address}\n\
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
    fs::write(folder.join("sshd_config"), config).expect("the folder is ours");
}

/// Starts it, by a command that is made of its program, and waits until it listens; `None` if it
/// ends before.
pub(crate) fn start(folder: &Path, command: impl FnOnce(PathBuf) -> Command) -> Option<Child> {
    if rustix::process::geteuid().is_root() {
        // Where sshd locks up the part of it that speaks with strangers.
        let separate = Path::new("/run/sshd");
        if !separate.is_dir() {
            fs::create_dir_all(separate).expect("root may make it");
            let mode = fs::Permissions::from_mode(0o755);
            fs::set_permissions(separate, mode).expect("it is ours");
        }
    }
    let mut child = command(find_sshd())
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

/// Ends it and its sessions; what they started runs on.
pub(crate) fn end(server: &mut Child) {
    let mut doomed = vec![server.id()];
    let mut at = 0;
    while at < doomed.len() {
        let children = proc::children(doomed[at]);
        doomed.extend(children.into_iter().filter(|pid| is_sshd(*pid)));
        at += 1;
    }
    doomed.iter().copied().for_each(proc::kill);
    server.wait().expect("it is our child");
    eventually("sshd has ended", Duration::from_secs(5), || {
        !doomed.iter().any(|pid| proc::is_alive(*pid))
    });
}

/// Whether a process is a server or one of its sessions.
pub(crate) fn is_sshd(pid: u32) -> bool {
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    name.starts_with("sshd")
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
