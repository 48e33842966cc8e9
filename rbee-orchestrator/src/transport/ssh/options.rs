//! Where the files of an SSH client are.

use std::path::PathBuf;

use crate::config::SshOptions;

impl SshOptions {
    /// The user's home.
    pub(super) fn home(&self) -> Option<PathBuf> {
        let from_environment = || std::env::var_os("HOME").map(PathBuf::from);
        self.home.clone().or_else(from_environment)
    }

    /// A file in the user's `.ssh`.
    pub(super) fn in_ssh_folder(&self, name: &str) -> Option<PathBuf> {
        Some(self.home()?.join(".ssh").join(name))
    }

    /// The agent's socket, if there is one.
    pub(super) fn agent(&self) -> Option<PathBuf> {
        let from_environment = || std::env::var_os("SSH_AUTH_SOCK").map(PathBuf::from);
        let socket = self.agent_socket.clone().or_else(from_environment)?;
        (!socket.as_os_str().is_empty()).then_some(socket)
    }

    /// The files of known host keys, the one for new keys first.
    pub(super) fn known_hosts_files(&self) -> Vec<PathBuf> {
        if !self.known_hosts.is_empty() {
            return self.known_hosts.clone();
        }
        let own = self.in_ssh_folder("known_hosts");
        let all = own.into_iter().chain(["/etc/ssh/ssh_known_hosts".into()]);
        all.collect()
    }
}
