//! How machines are reached over SSH.

use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;

use crate::domain::Reach;

/// Which host keys are trusted. There is no way to trust any.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HostKeyPolicy {
    /// Those that a `known_hosts` file has.
    #[default]
    Strict,
    /// Those, and the first key that a machine without one shows: it is appended to the user's
    /// `known_hosts`. A key that has changed is refused all the same.
    AcceptNew,
}

/// How machines are reached over SSH.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SshOptions {
    /// The user's home; `None` is `$HOME`. Default keys, `config` and `known_hosts` are in its
    /// `.ssh`.
    pub home: Option<PathBuf>,
    /// The configuration for SSH clients; `None` is `~/.ssh/config`.
    pub config_file: Option<PathBuf>,
    /// Files of known host keys; empty is `~/.ssh/known_hosts` and `/etc/ssh/ssh_known_hosts`.
    /// New keys are appended to the first.
    pub known_hosts: Vec<PathBuf>,
    /// Which host keys are trusted.
    pub host_keys: HostKeyPolicy,
    /// A file, readable by its owner only, with the pass-phrase of the private keys.
    pub passphrase_file: Option<PathBuf>,
    /// The agent's socket; `None` is `$SSH_AUTH_SOCK`.
    pub agent_socket: Option<PathBuf>,
    /// From the name to an authenticated session.
    #[serde(with = "humantime_serde")]
    pub connect_timeout: Duration,
    /// From the request for a connection through the tunnel to its beginning.
    #[serde(with = "humantime_serde")]
    pub open_timeout: Duration,
    /// A tunnelled connection that takes longer than this to begin holds up no other: the others
    /// get a new session.
    #[serde(with = "humantime_serde")]
    pub open_patience: Duration,
    /// A command on the machine, from the request to its last word.
    #[serde(with = "humantime_serde")]
    pub command_timeout: Duration,
    /// An upload may take this long without any progress.
    #[serde(with = "humantime_serde")]
    pub upload_stall: Duration,
    /// Between two keep-alives on a silent session.
    #[serde(with = "humantime_serde")]
    pub keep_alive: Duration,
    /// Keep-alives in a row without an answer after which a session is dead.
    pub keep_alive_misses: u32,
    /// After the first failed connection attempt in a row, how long none is made; doubles with
    /// each.
    #[serde(with = "humantime_serde")]
    pub backoff_first: Duration,
    /// The longest time without an attempt.
    #[serde(with = "humantime_serde")]
    pub backoff_max: Duration,
    /// Tunnelled connections at once on one session.
    pub max_streams: usize,
    /// Commands at once on one session; more wait. OpenSSH allows 10 sessions (`MaxSessions`), one
    /// of which is the connection's own.
    pub max_commands: usize,
    /// What one connection holds for a slow reader, in bytes, beside libssh2's own window of
    /// 2 MiB.
    pub read_buffer_bytes: usize,
    /// What one connection takes from a writer before the network does, in bytes.
    pub write_buffer_bytes: usize,
    /// What the kernel takes of a session's bytes before the network does: with more, uploads are
    /// faster over long distances, and small things wait longer behind large ones.
    pub socket_buffer_bytes: usize,
    /// What a command may write in all, in bytes.
    pub max_output_bytes: usize,
    /// Which of the reserved addresses machines may have; a queen's are her `allowed_addresses`.
    #[serde(skip)]
    pub reach: Reach,
    /// Sessions to one machine at once: the pooled one, and older ones on which connections that
    /// never began hold up new ones.
    pub max_sessions: usize,
}

impl Default for SshOptions {
    fn default() -> Self {
        let secs = Duration::from_secs;
        SshOptions {
            home: None,
            config_file: None,
            known_hosts: Vec::new(),
            host_keys: HostKeyPolicy::Strict,
            passphrase_file: None,
            agent_socket: None,
            connect_timeout: secs(8),
            open_timeout: secs(10),
            open_patience: secs(1),
            command_timeout: secs(30),
            upload_stall: secs(30),
            keep_alive: secs(10),
            keep_alive_misses: 3,
            backoff_first: Duration::from_millis(500),
            backoff_max: secs(30),
            max_streams: 1024,
            max_commands: 8,
            read_buffer_bytes: 1 << 20,
            write_buffer_bytes: 256 << 10,
            socket_buffer_bytes: 512 << 10,
            max_output_bytes: 4 << 20,
            reach: Reach::default(),
            max_sessions: 4,
        }
    }
}
