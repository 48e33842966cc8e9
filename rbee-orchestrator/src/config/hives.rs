//! Hives, and the servers that no hive owns.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Deserializer};

use crate::domain::WorkerProtocol;

/// Begin of the names of the queen's own variables, which no hive gets.
pub(crate) const OWN_VARIABLES: &str = "QUEEN_";

/// How hives are started and watched.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HivesConfig {
    /// Whether there is a hive `localhost`, started when a request needs it.
    pub local: bool,
    /// The first port that a local hive tries.
    pub port: u16,
    /// Command templates by name; `default` starts every hive that names none, and is there
    /// without being named.
    #[serde(deserialize_with = "with_default_command")]
    pub commands: BTreeMap<String, Vec<String>>,
    /// Variables of this process that local hives get beside those that they and their engines need.
    pub pass_env: Vec<String>,
    /// Folder of the programs that are uploaded to machines whose hives have `install`; that of the
    /// queen's own executable by default.
    pub upload_dir: Option<PathBuf>,
    /// What becomes of the hives that the queen started when she shuts down.
    pub on_shutdown: OnShutdown,
    /// Where hives call the queen back; the daemon fills in its own address.
    pub queen_url: Option<String>,
    /// Folder for the logs of local hives. The daemon's default is `logs` beside the database, an
    /// embedder's `rbee/logs` in the user's folder for state.
    pub log_dir: Option<PathBuf>,
    /// Between two health checks of a hive.
    #[serde(with = "humantime_serde")]
    pub check_interval: Duration,
    /// The same while one of its workers loads.
    #[serde(with = "humantime_serde")]
    pub loading_interval: Duration,
    /// Missed checks in a row after which a hive is offline.
    pub offline_after: u32,
    /// After a failed start of a hive or load of a model, how long until the next is tried; for a
    /// device that had no room, how long it is left out.
    #[serde(with = "humantime_serde")]
    pub retry_after: Duration,
    /// The longest pause before a hive is started again that the queen had started and that ended;
    /// doubles with each time.
    #[serde(with = "humantime_serde")]
    pub restart_first: Duration,
    /// The longest that pause gets.
    #[serde(with = "humantime_serde")]
    pub restart_max: Duration,
    /// How often it is started again within `restart_window` before it is given up.
    pub restart_limit: u32,
    /// A hive that did not end for this long is as good as new.
    #[serde(with = "humantime_serde")]
    pub restart_window: Duration,
    /// Whether a request for a model that no hive has makes a hive fetch it.
    pub auto_download: bool,
    /// Which models go when a hive's disk is short of room for another.
    pub model_eviction: ModelEviction,
    /// Models that stay, by any of their names.
    pub pinned_models: Vec<String>,
    /// Whether hives that someone else runs are shown the secret itself in place of a token of their
    /// own, as those need that were given it. `None`: no, but the daemon says yes where both the
    /// secret and a token of her clients are configured.
    pub shared_token: Option<bool>,
    /// Slots asked for when a worker is spawned; `None` leaves it to the hive.
    pub worker_slots: Option<u32>,
}

/// What becomes of the hives that the queen started when she shuts down.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnShutdown {
    /// They are stopped, with their workers.
    #[default]
    Stop,
    /// They run on, with their workers; her next life takes them in.
    Leave,
}

/// Which models go first when a disk is short. Only such as can be fetched again go at all.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ModelEviction {
    /// Those that were used least recently.
    #[default]
    Lru,
    /// Those that were used least often.
    Lfu,
    /// None.
    Off,
}

impl Default for HivesConfig {
    fn default() -> Self {
        HivesConfig {
            local: true,
            port: 9200,
            commands: BTreeMap::from([("default".to_owned(), default_command())]),
            pass_env: Vec::new(),
            upload_dir: None,
            on_shutdown: OnShutdown::default(),
            queen_url: None,
            log_dir: None,
            check_interval: Duration::from_secs(15),
            loading_interval: Duration::from_millis(500),
            offline_after: 3,
            retry_after: Duration::from_secs(15),
            restart_first: Duration::from_secs(1),
            restart_max: Duration::from_secs(60),
            restart_limit: 5,
            restart_window: Duration::from_secs(600),
            auto_download: true,
            model_eviction: ModelEviction::default(),
            pinned_models: Vec::new(),
            shared_token: None,
            worker_slots: None,
        }
    }
}

fn default_command() -> Vec<String> {
    ["rbee-hive", "daemon", "--port", "{port}"]
        .map(str::to_owned)
        .to_vec()
}

fn with_default_command<'de, D: Deserializer<'de>>(
    from: D,
) -> Result<BTreeMap<String, Vec<String>>, D::Error> {
    let mut commands = BTreeMap::<String, Vec<String>>::deserialize(from)?;
    commands
        .entry("default".to_owned())
        .or_insert_with(default_command);
    Ok(commands)
}

/// A server that no hive owns, as the configuration names it.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StaticWorker {
    /// Its id; made from the URL when absent.
    pub worker_id: Option<String>,
    /// Its base URL, `http://host:port`.
    pub url: String,
    /// The model it serves.
    pub model_ref: String,
    /// The name by which it knows the model; `model_ref` without `hf:` when absent.
    pub served_model: Option<String>,
    /// `openai` (default) or `rbee`.
    #[serde(default)]
    pub protocol: WorkerProtocol,
    /// Requests it serves at once.
    #[serde(default = "one")]
    pub slots_total: u32,
}

fn one() -> u32 {
    1
}
