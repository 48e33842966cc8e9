//! A hive: one machine's executor, as registered, as running, and as it reports itself.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{HiveId, ModelRef, UnixMillis};

/// Whether the queen shares a machine with the hive.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HiveMode {
    /// On the queen's own machine, as a child process.
    #[default]
    Local,
    /// On another machine.
    Network,
}

/// How to reach a machine over SSH.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SshTarget {
    /// Host name, address or alias.
    pub host: String,
    /// TCP port; `None` is 22 or what the SSH configuration says.
    pub port: Option<u16>,
    /// User; `None` is the queen's own or what the SSH configuration says.
    pub user: Option<String>,
    /// Path of a private key on the queen's machine.
    pub key_path: Option<String>,
}

/// What an administrator registered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HiveSpec {
    /// Its name.
    pub id: HiveId,
    /// Local or on another machine.
    pub mode: HiveMode,
    /// Where its HTTP port and its workers are reached.
    pub hostname: String,
    /// Its HTTP port; `None` for a local hive: one is chosen.
    pub port: Option<u16>,
    /// Present when the queen reaches the machine over SSH.
    pub ssh: Option<SshTarget>,
    /// Whether the hive and its workers listen on their machine's loopback address only, and are
    /// reached through the SSH session. Without meaning for hives without `ssh`.
    pub tunnel: bool,
    /// Whether the queen may upload the hive's program over SSH where it is missing or older.
    pub install: bool,
    /// Folder of the hive's binary on its machine.
    pub install_path: Option<String>,
    /// Backends claimed at registration, for hives that can't report their own.
    pub backends: Vec<String>,
    /// Device counts by backend claimed at registration.
    pub devices: BTreeMap<String, u32>,
    /// Free-form marks.
    pub labels: BTreeMap<String, String>,
    /// Name of a command template of the configuration.
    pub command: Option<String>,
    /// Kept for older clients, otherwise unused.
    pub git_repo_url: Option<String>,
    /// Kept for older clients, otherwise unused.
    pub git_branch: Option<String>,
}

impl HiveSpec {
    /// The hive on the queen's own machine.
    #[must_use]
    pub fn local(id: HiveId) -> Self {
        HiveSpec {
            id,
            mode: HiveMode::Local,
            hostname: "127.0.0.1".into(),
            port: None,
            ssh: None,
            tunnel: false,
            install: false,
            install_path: None,
            backends: Vec::new(),
            devices: BTreeMap::new(),
            labels: BTreeMap::new(),
            command: None,
            git_repo_url: None,
            git_branch: None,
        }
    }

    /// A hive on another machine that is reached over SSH, through a tunnel, and whose program the
    /// queen may install.
    #[must_use]
    pub fn over_ssh(id: HiveId, target: SshTarget) -> Self {
        HiveSpec {
            mode: HiveMode::Network,
            hostname: target.host.clone(),
            ssh: Some(target),
            tunnel: true,
            install: true,
            ..Self::local(id)
        }
    }

    /// Whether another registration means the same process, so that what is known of it holds on.
    #[must_use]
    pub fn is_same_place(&self, other: &Self) -> bool {
        let place = |spec: &'_ Self| {
            (
                spec.mode,
                spec.hostname.clone(),
                spec.port,
                spec.ssh.clone(),
                spec.tunnel,
            )
        };
        place(self) == place(other)
    }

    /// Whether the queen may start and stop it; someone else runs an unmanaged hive.
    #[must_use]
    pub fn is_managed(&self) -> bool {
        self.mode == HiveMode::Local || self.ssh.is_some()
    }
}

/// A hive's process, as the queen remembers it over a restart of her own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HiveProcess {
    /// Its HTTP port.
    pub port: u16,
    /// Its process id; `None` when only the port is known.
    pub pid: Option<u32>,
    /// When that process started, in the platform's own unit: tells it from a later one with the
    /// same pid.
    pub pid_start_time: Option<u64>,
    /// Whether a queen started it, so that a queen may stop it.
    pub started_by_queen: bool,
}

/// Everything that is stored about a hive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HiveRecord {
    /// What was registered.
    pub spec: HiveSpec,
    /// Its last known process.
    pub process: Option<HiveProcess>,
    /// Its last report, known while it is off.
    pub capabilities: Option<Capabilities>,
    /// When it last answered.
    pub last_seen: Option<UnixMillis>,
    /// How its models were used through this queen; decides which go when its disk is short.
    pub model_use: BTreeMap<ModelRef, ModelUse>,
}

/// How a model was used on a hive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelUse {
    /// When a request ran with it last, or when it came.
    pub last_used: UnixMillis,
    /// How many requests ran with it.
    pub count: u64,
}

impl HiveRecord {
    /// A hive that was registered and never seen.
    #[must_use]
    pub fn new(spec: HiveSpec) -> Self {
        HiveRecord {
            spec,
            process: None,
            capabilities: None,
            last_seen: None,
            model_use: BTreeMap::new(),
        }
    }
}

impl HiveRecord {
    /// Notes that a request runs with a model.
    pub fn note_use(&mut self, model: &ModelRef, at: UnixMillis) {
        match self.model_use.get_mut(model) {
            Some(used) => {
                used.last_used = at;
                used.count += 1;
            }
            None => self.note_model(model, at, 1),
        }
    }

    /// Notes that a model came.
    pub fn note_arrival(&mut self, model: &ModelRef, at: UnixMillis) {
        self.note_model(model, at, 0);
    }

    fn note_model(&mut self, model: &ModelRef, last_used: UnixMillis, count: u64) {
        let used = ModelUse { last_used, count };
        self.model_use.entry(model.clone()).or_insert(used);
    }
}

/// Whether a hive can be asked for something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HiveStatus {
    /// It answers.
    Online,
    /// It does not run, or does not answer.
    Offline,
    /// It is being started.
    Starting,
    /// It could not be started, or was lost; `last_error` says why.
    Error,
}

/// A hive's report of what its machine has.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capabilities {
    /// Devices that can run a model.
    #[serde(default)]
    pub devices: Vec<Device>,
    /// Kinds of devices: `cpu`, `cuda`, `metal`, `vulkan`, …
    #[serde(default)]
    pub backends: Vec<String>,
    /// Models on its disk.
    #[serde(default)]
    pub models: Vec<HiveModel>,
    /// Free disk space where models are kept, in bytes.
    #[serde(default)]
    pub disk_free_bytes: Option<u64>,
}

/// One device of a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    /// Its number on this machine.
    pub index: u32,
    /// Its kind.
    pub backend: String,
    /// Its name for people.
    #[serde(default)]
    pub name: String,
    /// Memory in all, in bytes; 0 when unknown.
    #[serde(default)]
    pub vram_total_bytes: u64,
    /// Memory that no program uses, in bytes.
    #[serde(default)]
    pub vram_free_bytes: u64,
}

/// A model on a hive's disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HiveModel {
    /// Its identity.
    pub model_ref: ModelRef,
    /// Other names it goes by.
    #[serde(default)]
    pub aliases: Vec<String>,
    /// Size on disk in bytes.
    #[serde(default)]
    pub size_bytes: u64,
    /// Memory it needs when loaded, in bytes, if the hive can tell.
    #[serde(default)]
    pub vram_bytes: Option<u64>,
    /// Whether its removal gives its room on the disk back.
    #[serde(default = "yes")]
    pub removable: bool,
    /// Its file on the hive's machine, for a hive that must be told with each spawn: older ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub local_path: Option<String>,
}

fn yes() -> bool {
    true
}
