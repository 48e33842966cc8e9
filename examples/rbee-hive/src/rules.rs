//! Rules: what the configuration file says of engines and models. SIGHUP has it read again, and what is
//! started or fetched from then on follows it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::engine::{EngineConfig, Engines};

/// Most slots that a worker may be asked to have.
pub(crate) const MAX_SLOTS: u32 = 256;

/// The configuration file. Every key is optional; an unknown one is an error.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct ConfigFile {
    models: Option<PathBuf>,
    slots: u32,
    context: u64,
    load_timeout_secs: u64,
    load_timeout_secs_per_gib: u64,
    stop_grace_secs: u64,
    download_stall_secs: u64,
    keep_free_mib: u64,
    head_timeout_secs: u64,
    aliases: BTreeMap<String, String>,
    /// Arguments that a queen may add to an engine's command, such as "--cache-ram".
    allowed_args: Vec<String>,
    engines: BTreeMap<String, EngineConfig>,
}

impl Default for ConfigFile {
    fn default() -> Self {
        ConfigFile {
            models: None,
            slots: 4,
            context: 4096,
            load_timeout_secs: 300,
            load_timeout_secs_per_gib: 20,
            stop_grace_secs: 10,
            download_stall_secs: 120,
            keep_free_mib: 1024,
            head_timeout_secs: 30,
            aliases: BTreeMap::new(),
            allowed_args: Vec::new(),
            engines: BTreeMap::new(),
        }
    }
}

/// How long a model may take to load.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LoadTimeout {
    base: Duration,
    per_gib: Duration,
}

impl LoadTimeout {
    pub(crate) fn of(&self, model_bytes: u64) -> Duration {
        let gib = model_bytes as f64 / (1u64 << 30) as f64;
        self.base + self.per_gib.mul_f64(gib)
    }
}

#[derive(Debug)]
pub(crate) struct Rules {
    pub(crate) aliases: BTreeMap<String, String>,
    /// What a queen may add to the command of an engine that has no such list of its own.
    pub(crate) allowed_args: Vec<String>,
    pub(crate) engines: Engines,
    pub(crate) slots: u32,
    /// Tokens of context for each slot.
    pub(crate) context: u64,
    pub(crate) load_timeout: LoadTimeout,
    pub(crate) stop_grace: Duration,
    /// A download that brings nothing for so long has failed.
    pub(crate) download_stall: Duration,
    /// What a download leaves of the disk.
    pub(crate) keep_free_bytes: u64,
    /// These two are taken at the start alone.
    pub(crate) models: Option<PathBuf>,
    pub(crate) head_timeout: Duration,
    /// The file's own words.
    table: toml::Table,
}

/// Keys whose values are taken at the start alone.
const AT_START: [&str; 2] = ["models", "head_timeout_secs"];

impl Rules {
    /// Those of the file, or of an empty one.
    pub(crate) fn read(path: Option<&Path>) -> Result<Self> {
        let Some(path) = path else {
            return Self::new("");
        };
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("can't read the configuration file {}", path.display()))?;
        Self::new(&text).with_context(|| format!("in the configuration file {}", path.display()))
    }

    fn new(text: &str) -> Result<Self> {
        let file: ConfigFile = toml::from_str(text)?;
        if !(1..=MAX_SLOTS).contains(&file.slots) {
            bail!("slots = {}: must be 1 to {MAX_SLOTS}", file.slots);
        }
        if !(1..=1 << 24).contains(&file.context) {
            bail!("context = {}: must be 1 to 16777216 tokens", file.context);
        }
        Ok(Rules {
            aliases: file.aliases,
            allowed_args: file.allowed_args,
            engines: Engines::new(&file.engines)?,
            slots: file.slots,
            context: file.context,
            load_timeout: LoadTimeout {
                base: Duration::from_secs(file.load_timeout_secs),
                per_gib: Duration::from_secs(file.load_timeout_secs_per_gib),
            },
            stop_grace: Duration::from_secs(file.stop_grace_secs),
            download_stall: Duration::from_secs(file.download_stall_secs.max(1)),
            keep_free_bytes: file.keep_free_mib.saturating_mul(1 << 20),
            models: file.models,
            head_timeout: Duration::from_secs(file.head_timeout_secs.max(1)),
            table: toml::from_str(text)?,
        })
    }

    /// The keys that are not as in the other rules, but for those that are taken at the start alone.
    pub(crate) fn news<'r>(&'r self, old: &'r Rules) -> Vec<&'r str> {
        let mut changed = self.changed(old);
        changed.retain(|key| !AT_START.contains(key));
        changed
    }

    /// The keys that are not as at the start, where they alone count.
    pub(crate) fn for_a_restart<'r>(&'r self, at_start: &'r Rules) -> Vec<&'r str> {
        let mut changed = self.changed(at_start);
        changed.retain(|key| AT_START.contains(key));
        changed
    }

    fn changed<'r>(&'r self, other: &'r Rules) -> Vec<&'r str> {
        let keys = self.table.keys().chain(other.table.keys());
        let keys: BTreeSet<&str> = keys.map(String::as_str).collect();
        let differs = |key: &&str| self.table.get(*key) != other.table.get(*key);
        keys.into_iter().filter(differs).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_key_is_named() {
        let error = Rules::new("slot = 3").unwrap_err();
        assert!(error.to_string().contains("slot"), "{error}");
    }

    #[test]
    fn it_is_told_what_has_changed_and_what_takes_a_restart() {
        let rules = |text: &str| Rules::new(text).unwrap();
        let old = rules("slots = 2\nmodels = \"/a\"\n[aliases]\na = \"file:a\"");
        let new = rules("slots = 3\nmodels = \"/b\"\ncontext = 64\n[aliases]\na = \"file:a\"");
        assert_eq!(new.news(&old), ["context", "slots"]);
        assert_eq!(old.news(&new), ["context", "slots"]);
        assert_eq!(new.for_a_restart(&old), ["models"]);
        assert!(new.news(&new).is_empty() && new.for_a_restart(&new).is_empty());
    }

    #[test]
    fn a_bigger_model_may_load_longer() {
        let timeout = LoadTimeout {
            base: Duration::from_secs(300),
            per_gib: Duration::from_secs(20),
        };
        assert_eq!(timeout.of(3 << 30), Duration::from_secs(360));
    }
}
