//! Every bound and time-out, with its default. Durations read as `"60s"`, `"5min"`, `"500ms"`.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Deserializer};

use crate::domain::{ModelRef, TenantId, TenantLimits};
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
    /// What is tried again, and how often.
    pub retry: RetryConfig,
    /// When a worker that fails is left alone.
    pub breaker: BreakerConfig,
    /// How long what has ended is kept.
    pub retention: RetentionConfig,
    /// What is kept of requests.
    pub privacy: PrivacyConfig,
    /// What readers of a task's events are held to.
    pub replay: ReplayConfig,
    /// Who may use how much; with none, nobody is limited. Those of the store come beside these.
    pub tenants: BTreeMap<String, TenantLimits>,
    /// What happens to work that is over its tenant's quota.
    pub quota_policy: QuotaPolicy,
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
        for (name, limits) in &self.tenants {
            let told = |error: Error| Error::invalid(format!("tenants.{name}: {}", error.message));
            TenantId::new(name).map_err(told)?;
            if limits.weight == 0 {
                return Err(Error::invalid(format!(
                    "tenants.{name}.weight must be at least 1"
                )));
            }
        }
        let shares = [
            ("retry.budget_ratio", self.retry.budget_ratio),
            ("breaker.ratio", self.breaker.ratio),
        ];
        if let Some((key, _)) = shares
            .iter()
            .find(|(_, share)| !(0.0..=1.0).contains(share))
        {
            return Err(Error::invalid(format!("{key} must be from 0 to 1")));
        }
        let periods = [
            ("retry.budget_window", self.retry.budget_window),
            ("breaker.window", self.breaker.window),
            ("retention.interval", self.retention.interval),
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

/// How many may wait: a number, or -1 for no bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "i64")]
pub struct Capacity(Option<usize>);

impl Capacity {
    /// As many as come.
    pub const UNBOUNDED: Capacity = Capacity(None);

    /// So many.
    #[must_use]
    pub const fn of(most: usize) -> Self {
        Capacity(Some(most))
    }

    /// Whether one more may come where so many are.
    #[must_use]
    pub fn has_room(self, count: usize) -> bool {
        self.0.is_none_or(|most| count < most)
    }
}

impl TryFrom<i64> for Capacity {
    type Error = String;
    fn try_from(number: i64) -> Result<Self, String> {
        match (number, usize::try_from(number)) {
            (-1, _) => Ok(Capacity::UNBOUNDED),
            (_, Ok(most)) => Ok(Capacity::of(most)),
            _ => Err(format!("{number} is neither a number of requests nor -1")),
        }
    }
}

/// What happens to a request that comes when the queue is full.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WhenFull {
    /// It is refused with `SYSTEM_AT_CAPACITY`.
    #[default]
    Reject,
    /// An interactive one takes the place of the batch job that has waited longest, which ends
    /// with `SYSTEM_AT_CAPACITY`.
    DropOldestBatch,
}

/// What happens to work that is over its tenant's quota.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum QuotaPolicy {
    /// It is refused with `QUOTA_EXCEEDED`.
    #[default]
    Reject,
    /// It waits until the quota allows it.
    Queue,
}

/// Bounds of the queue.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct QueueConfig {
    /// Interactive requests that may wait at once.
    pub capacity_interactive: Capacity,
    /// Batch jobs that may wait at once.
    pub capacity_batch: Capacity,
    /// What the waiting requests may hold in memory, in bytes.
    pub max_bytes: u64,
    /// What happens to one more.
    pub when_full: WhenFull,
    /// A batch job that has waited this long is treated as interactive.
    #[serde(with = "humantime_serde")]
    pub promote_after: Duration,
    /// How long an interactive request waits for a worker unless it says otherwise.
    #[serde(with = "humantime_serde")]
    pub timeout: Duration,
}

impl Default for QueueConfig {
    fn default() -> Self {
        QueueConfig {
            capacity_interactive: Capacity::of(1000),
            capacity_batch: Capacity::of(1000),
            max_bytes: 256 << 20,
            when_full: WhenFull::Reject,
            promote_after: Duration::from_secs(5 * 60),
            timeout: Duration::from_secs(60),
        }
    }
}

/// What is tried again, and how often.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RetryConfig {
    /// Attempts of an interactive request, all before its first byte was relayed.
    pub attempts_interactive: u32,
    /// Attempts of an asynchronous task.
    pub attempts_async: u32,
    /// The longest pause before the second attempt of an asynchronous task; doubles with each.
    #[serde(with = "humantime_serde")]
    pub backoff_first: Duration,
    /// The longest pause before any attempt.
    #[serde(with = "humantime_serde")]
    pub backoff_max: Duration,
    /// Retries that are allowed, as a share of the requests in the window.
    pub budget_ratio: f64,
    /// The window.
    #[serde(with = "humantime_serde")]
    pub budget_window: Duration,
    /// Retries in the window that are allowed however few requests there are.
    pub budget_min: u32,
}

impl Default for RetryConfig {
    fn default() -> Self {
        RetryConfig {
            attempts_interactive: 3,
            attempts_async: 5,
            backoff_first: Duration::from_secs(1),
            backoff_max: Duration::from_secs(60),
            budget_ratio: 0.2,
            budget_window: Duration::from_secs(10),
            budget_min: 10,
        }
    }
}

/// When a worker that fails is left alone.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BreakerConfig {
    /// Failures in a row after which a worker gets no more work for a while.
    pub failures: u32,
    /// The same for this share of failures in the window.
    pub ratio: f64,
    /// Attempts in the window below which the share says nothing.
    pub min_attempts: u32,
    /// The window.
    #[serde(with = "humantime_serde")]
    pub window: Duration,
    /// How long it is left alone the first time; doubles each time in a row.
    #[serde(with = "humantime_serde")]
    pub open_first: Duration,
    /// The longest time.
    #[serde(with = "humantime_serde")]
    pub open_max: Duration,
    /// Attempts at once that try afterwards whether it works again.
    pub probes: u32,
}

impl Default for BreakerConfig {
    fn default() -> Self {
        BreakerConfig {
            failures: 5,
            ratio: 0.5,
            min_attempts: 10,
            window: Duration::from_secs(10),
            open_first: Duration::from_secs(5),
            open_max: Duration::from_secs(60),
            probes: 1,
        }
    }
}

/// How long what has ended is kept.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RetentionConfig {
    /// Jobs, with their results, from their end on.
    #[serde(with = "humantime_serde")]
    pub jobs: Duration,
    /// Idempotency keys, from the submission on.
    #[serde(with = "humantime_serde")]
    pub idempotency_keys: Duration,
    /// Between two purges.
    #[serde(with = "humantime_serde")]
    pub interval: Duration,
}

impl Default for RetentionConfig {
    fn default() -> Self {
        const HOUR: Duration = Duration::from_secs(60 * 60);
        RetentionConfig {
            jobs: HOUR * 24 * 7,
            idempotency_keys: HOUR * 24,
            interval: Duration::from_secs(60),
        }
    }
}

/// What is kept of requests.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PrivacyConfig {
    /// Whether the requests of interactive tasks are stored, and not only their digests.
    /// Asynchronous tasks need theirs until they have ended.
    pub store_prompts: bool,
}

/// What readers of a task's events are held to.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ReplayConfig {
    /// Text of running tasks that is kept in memory in all, in bytes.
    pub max_bytes: u64,
    /// How far a reader may fall behind, in bytes of text, before it is dropped.
    pub max_lag_bytes: usize,
}

impl Default for ReplayConfig {
    fn default() -> Self {
        ReplayConfig {
            max_bytes: 256 << 20,
            max_lag_bytes: 1 << 20,
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
    /// From the dispatch to the first token; `None` leaves it to the total.
    #[serde(with = "humantime_serde")]
    pub first_token: Option<Duration>,
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
    /// A model's way to a hive, without a byte more.
    #[serde(with = "humantime_serde")]
    pub download_stall: Duration,
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
            first_token: None,
            between_tokens: secs(60),
            client_stall: secs(60),
            connect: secs(5),
            stream_status: secs(5),
            keep_alive: secs(10),
            load: secs(5 * 60),
            load_per_gib: secs(20),
            download_stall: secs(5 * 60),
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
    /// After a failed start of a hive or load of a model, how long until the next is tried; for a
    /// device that had no room, how long it is left out.
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
