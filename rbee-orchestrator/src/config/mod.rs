//! Every bound and time-out, with its default. Durations read as `"60s"`, `"5min"`, `"500ms"`.

mod bounds;
mod hives;
mod jobs;
mod ssh;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::domain::{
    AllowedOrigin, ModelRef, Reach, TenantId, TenantLimits, WorkerId, host_and_port,
};
use crate::error::{Error, Result};

pub use bounds::{Limits, Timeouts};
pub(crate) use hives::OWN_VARIABLES;
pub use hives::{HivesConfig, ModelEviction, OnShutdown, StaticWorker};
pub use jobs::{
    BreakerConfig, Capacity, PrivacyConfig, QueueConfig, QuotaPolicy, ReplayConfig,
    RetentionConfig, RetryConfig, WhenFull,
};
pub use ssh::{HostKeyPolicy, SshOptions};

/// A batch job that begins anew more often than that does not get on.
const MOST_GIVE_BACKS: u32 = 100;

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
    /// How machines are reached over SSH.
    pub ssh: SshOptions,
    /// Servers that no hive owns, registered at the start.
    pub workers: Vec<StaticWorker>,
    /// Names beside `localhost` by which this machine may be called without a token.
    pub allowed_hosts: Vec<String>,
    /// Origins whose pages may call, beside those of this machine.
    pub allowed_origins: Vec<AllowedOrigin>,
    /// Link-local and metadata addresses at which hives, workers and models may be all the same.
    pub allowed_addresses: Vec<IpAddr>,
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

    /// Which addresses may be connected to.
    #[must_use]
    pub fn reach(&self) -> Reach {
        Reach::allowing(&self.allowed_addresses)
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
        let mut passed = self.hives.pass_env.iter();
        if let Some(own) = passed.find(|name| name.starts_with(OWN_VARIABLES)) {
            return Err(Error::invalid(format!(
                "hives.pass_env names {own:?}, which is the queen's own; hives get no {OWN_VARIABLES}…"
            )));
        }
        let share = self.queue.batch_share;
        if !(0.0..=1.0).contains(&share) {
            return Err(Error::invalid(format!(
                "queue.batch_share is {share}, and must be from 0 to 1"
            )));
        }
        let gives_back = self.queue.batch_gives_back;
        if gives_back > MOST_GIVE_BACKS {
            return Err(Error::invalid(format!(
                "queue.batch_gives_back is {gives_back}, and must be from 0 to {MOST_GIVE_BACKS}"
            )));
        }
        for name in &self.hives.pinned_models {
            let told =
                |error: Error| Error::invalid(format!("hives.pinned_models: {}", error.message));
            ModelRef::from_name(name).map_err(told)?;
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
        for worker in &self.workers {
            let url = &worker.url;
            let Some((host, _)) = host_and_port(url) else {
                return Err(Error::invalid(format!(
                    "workers: url {url:?} must be http://host:port"
                )));
            };
            let told = |error: Error| Error::invalid(format!("workers: {}", error.message));
            self.reach().check_host(&host).map_err(told)?;
            if let Some(id) = &worker.worker_id {
                WorkerId::new(id)?;
            }
            ModelRef::from_name(&worker.model_ref)?;
        }
        if self.replay.max_bytes < self.limits.max_response_bytes as u64 {
            return Err(Error::invalid(
                "replay.max_bytes must be at least limits.max_response_bytes, the longest answer",
            ));
        }
        if self.limits.max_answers_bytes < self.limits.max_response_bytes {
            return Err(Error::invalid(
                "limits.max_answers_bytes must be at least limits.max_response_bytes, the longest \
                 answer",
            ));
        }
        if self.limits.max_bodies_bytes < self.limits.max_body_bytes {
            return Err(Error::invalid(
                "limits.max_bodies_bytes must be at least limits.max_body_bytes, the longest body",
            ));
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
        let counts = [
            (
                "limits.max_connections",
                self.limits.max_connections.unwrap_or(1),
            ),
            (
                "limits.max_connections_per_address",
                self.limits.max_connections_per_address.unwrap_or(1),
            ),
            ("ssh.keep_alive_misses", self.ssh.keep_alive_misses as usize),
            ("ssh.max_streams", self.ssh.max_streams),
            ("ssh.max_commands", self.ssh.max_commands),
            ("ssh.max_sessions", self.ssh.max_sessions),
            ("ssh.read_buffer_bytes", self.ssh.read_buffer_bytes),
            ("ssh.write_buffer_bytes", self.ssh.write_buffer_bytes),
        ];
        if let Some((key, _)) = counts.iter().find(|(_, count)| *count == 0) {
            return Err(Error::invalid(format!("{key} must be at least 1")));
        }
        let periods = [
            ("retry.budget_window", self.retry.budget_window),
            ("breaker.window", self.breaker.window),
            ("retention.interval", self.retention.interval),
            ("timeouts.keep_alive", self.timeouts.keep_alive),
            ("timeouts.first_request", self.timeouts.first_request),
            ("timeouts.idle_connection", self.timeouts.idle_connection),
            ("hives.check_interval", self.hives.check_interval),
            ("hives.loading_interval", self.hives.loading_interval),
            ("ssh.connect_timeout", self.ssh.connect_timeout),
            ("ssh.keep_alive", self.ssh.keep_alive),
        ];
        match periods.iter().find(|(_, period)| period.is_zero()) {
            Some((key, _)) => Err(Error::invalid(format!("{key} must be longer than 0"))),
            None => Ok(()),
        }
    }
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
            (r#"{"queue": {"batch_share": 1.5}}"#, "queue.batch_share"),
            (r#"{"hives": {"pass_env": ["QUEEN_X"]}}"#, "hives.pass_env"),
            (
                r#"{"queue": {"batch_gives_back": 101}}"#,
                "queue.batch_gives_back",
            ),
            (
                r#"{"timeouts": {"keep_alive": "0s"}}"#,
                "timeouts.keep_alive",
            ),
            (r#"{"ssh": {"max_commands": 0}}"#, "ssh.max_commands"),
        ] {
            let error = read(json).check().expect_err(json);
            assert!(error.message.contains(key), "{error}");
        }
    }
}
