//! Every bound and time-out, with its default. Durations read as `"60s"`, `"5min"`, `"500ms"`.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Deserializer};

use crate::domain::ModelRef;
use crate::error::{Error, Result};

const GIB: u64 = 1 << 30;

/// Configuration of an orchestrator. Unknown keys are refused.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Names for models: `smollm2 = "file:smollm2.gguf"`. They win over the hives' own aliases.
    pub aliases: BTreeMap<String, String>,
    /// Waiting requests.
    pub queue: QueueConfig,
    /// How long things may take.
    pub timeouts: Timeouts,
    /// How large things may be.
    pub limits: Limits,
    /// Hives: how they are started and watched.
    pub hives: HivesConfig,
    /// Servers that no hive owns, registered at the start.
    pub workers: Vec<StaticWorker>,
    /// Names beside `localhost` by which this machine may be called without a token.
    pub allowed_hosts: Vec<String>,
    /// File with the token between queen and hives, mode 0600 or stricter; one is made beside the
    /// database when absent.
    pub hive_token_file: Option<PathBuf>,
}

impl Config {
    /// Reads a TOML file and checks it. Blocks on the file system.
    ///
    /// # Errors
    /// `INVALID_REQUEST`, naming the file and the key.
    pub fn read(path: &Path) -> Result<Self> {
        let wrong = |why: String| Error::invalid(format!("{}: {why}", path.display()));
        let text = std::fs::read_to_string(path)
            .map_err(|error| wrong(format!("the configuration can't be read: {error}")))?;
        let config: Config = toml::from_str(&text).map_err(|error| wrong(error.to_string()))?;
        config.check().map_err(|error| wrong(error.message))?;
        Ok(config)
    }

    /// Fills in what follows from where the API listens and where the database is: the URL that
    /// hives call back, and a folder for their logs.
    pub fn fill_in(&mut self, address: SocketAddr, database: &Path) {
        let host = match address.ip() {
            ip if ip.is_unspecified() => IpAddr::from([127, 0, 0, 1]),
            ip => ip,
        };
        let url = || format!("http://{}", SocketAddr::new(host, address.port()));
        self.hives.queen_url.get_or_insert_with(url);
        let logs = || database.with_file_name("logs");
        self.hives.log_dir.get_or_insert_with(logs);
    }

    /// Refuses values that make no sense.
    ///
    /// # Errors
    /// `INVALID_REQUEST`, naming the key.
    pub fn check(&self) -> Result<()> {
        for (alias, model) in &self.aliases {
            let told = |error: Error| Error::invalid(format!("aliases.{alias}: {}", error.message));
            ModelRef::check_name(alias).map_err(told)?;
            ModelRef::from_name(model).map_err(told)?;
        }
        for (name, command) in &self.hives.commands {
            if command.first().is_none_or(String::is_empty) {
                return Err(Error::invalid(format!(
                    "hives.commands.{name} must begin with a program"
                )));
            }
        }
        let periods = [
            ("timeouts.keep_alive", self.timeouts.keep_alive),
            ("hives.check_interval", self.hives.check_interval),
            ("hives.loading_interval", self.hives.loading_interval),
        ];
        match periods.iter().find(|(_, period)| period.is_zero()) {
            Some((key, _)) => Err(Error::invalid(format!("{key} must be longer than 0"))),
            None => Ok(()),
        }
    }
}

/// Bounds of the queue.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct QueueConfig {
    /// Requests that may wait at once; one more is refused with `SYSTEM_AT_CAPACITY`.
    pub capacity: usize,
    /// How long an interactive request waits for a worker unless it says otherwise.
    #[serde(with = "humantime_serde")]
    pub timeout: Duration,
}

impl Default for QueueConfig {
    fn default() -> Self {
        QueueConfig {
            capacity: 1000,
            timeout: Duration::from_secs(60),
        }
    }
}

/// How long things may take.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Timeouts {
    /// A request in all, unless it says otherwise.
    #[serde(with = "humantime_serde")]
    pub total: Duration,
    /// The most that a request may ask for.
    #[serde(with = "humantime_serde")]
    pub total_max: Duration,
    /// Silence between two pieces of a stream after the first.
    #[serde(with = "humantime_serde")]
    pub between_tokens: Duration,
    /// A client that takes no byte for this long has gone.
    #[serde(with = "humantime_serde")]
    pub client_stall: Duration,
    /// A TCP connection to a worker.
    #[serde(with = "humantime_serde")]
    pub connect: Duration,
    /// How long the status line of an OpenAI stream waits for the worker's own.
    #[serde(with = "humantime_serde")]
    pub stream_status: Duration,
    /// Between two keep-alive comments while a client waits.
    #[serde(with = "humantime_serde")]
    pub keep_alive: Duration,
    /// The load of a model, whatever its size.
    #[serde(with = "humantime_serde")]
    pub load: Duration,
    /// The load of a model, more for each GiB of its size.
    #[serde(with = "humantime_serde")]
    pub load_per_gib: Duration,
    /// A hive's start, until its health check answers.
    #[serde(with = "humantime_serde")]
    pub hive_start: Duration,
    /// A call to a hive.
    #[serde(with = "humantime_serde")]
    pub hive_call: Duration,
    /// A health check of a hive or a worker.
    #[serde(with = "humantime_serde")]
    pub health: Duration,
    /// Between SIGTERM and SIGKILL.
    #[serde(with = "humantime_serde")]
    pub stop_grace: Duration,
    /// Running requests at shutdown, before they are cut off.
    #[serde(with = "humantime_serde")]
    pub drain: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        let secs = Duration::from_secs;
        Timeouts {
            total: secs(5 * 60),
            total_max: secs(30 * 60),
            between_tokens: secs(60),
            client_stall: secs(60),
            connect: secs(5),
            stream_status: secs(5),
            keep_alive: secs(10),
            load: secs(5 * 60),
            load_per_gib: secs(20),
            hive_start: secs(30),
            hive_call: secs(15),
            health: secs(5),
            stop_grace: secs(30),
            drain: secs(30),
        }
    }
}

impl Timeouts {
    /// How long the load of a model of `size_bytes` may take.
    #[must_use]
    pub fn load_deadline(&self, size_bytes: u64) -> Duration {
        let gib = size_bytes as f64 / GIB as f64;
        self.load + self.load_per_gib.mul_f64(gib)
    }
}

/// How large things may be.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// A request's body, in bytes.
    pub max_body_bytes: usize,
    /// A worker's unstreamed answer, in bytes.
    pub max_response_bytes: usize,
    /// One event of a worker's stream, in bytes.
    pub max_event_bytes: usize,
    /// Idle connections kept to one worker by one thread.
    pub max_idle_connections: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            max_body_bytes: 16 << 20,
            max_response_bytes: 64 << 20,
            max_event_bytes: 1 << 20,
            max_idle_connections: 1024,
        }
    }
}

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
    /// After a failed start, how long until the next is tried; for a device that had no room,
    /// how long it is left out.
    #[serde(with = "humantime_serde")]
    pub retry_after: Duration,
    /// Slots asked for when a worker is spawned; `None` leaves it to the hive.
    pub worker_slots: Option<u32>,
}

impl Default for HivesConfig {
    fn default() -> Self {
        HivesConfig {
            local: true,
            port: 9200,
            commands: BTreeMap::from([("default".to_owned(), default_command())]),
            queen_url: None,
            log_dir: None,
            check_interval: Duration::from_secs(15),
            loading_interval: Duration::from_millis(500),
            offline_after: 3,
            retry_after: Duration::from_secs(15),
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
    pub protocol: crate::domain::WorkerProtocol,
    /// Requests it serves at once.
    #[serde(default = "one")]
    pub slots_total: u32,
}

fn one() -> u32 {
    1
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> Config {
        serde_json::from_str(json).expect("every key is known")
    }

    #[test]
    fn a_command_of_ones_own_leaves_the_default_there() {
        let commands = read(r#"{"hives": {"commands": {"old": ["hive"]}}}"#)
            .hives
            .commands;
        assert_eq!(commands["old"], ["hive"]);
        assert_eq!(commands["default"][0], "rbee-hive");
    }

    #[test]
    fn what_makes_no_sense_is_refused_by_its_key() {
        assert_eq!(Config::default().check(), Ok(()));
        for (json, key) in [
            (r#"{"aliases": {"a": "file:../x"}}"#, "aliases.a"),
            (r#"{"hives": {"commands": {"c": []}}}"#, "hives.commands.c"),
            (
                r#"{"timeouts": {"keep_alive": "0s"}}"#,
                "timeouts.keep_alive",
            ),
        ] {
            let error = read(json).check().expect_err(json);
            assert!(error.message.contains(key), "{error}");
        }
    }
}
