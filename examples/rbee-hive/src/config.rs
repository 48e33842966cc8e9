//! Settings: the command line, the environment and the configuration file in one.

use std::collections::BTreeMap;
use std::env;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::cli::{DaemonArgs, LogFormat};
use crate::engine::{EngineConfig, Engines};
use crate::worker::WorkerHost;

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
pub(crate) struct Settings {
    pub(crate) host: String,
    pub(crate) port: u16,
    pub(crate) token: Option<String>,
    pub(crate) log_format: LogFormat,
    pub(crate) models: PathBuf,
    /// Parent of the folders of all hives of this user; each is named for its port.
    pub(crate) state_root: PathBuf,
    /// The configuration file, to be read again.
    config: Option<PathBuf>,
    pub(crate) aliases: BTreeMap<String, String>,
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
    /// What a connection may take from its beginning, or an answer's end, to the next whole head.
    pub(crate) head_timeout: Duration,
    pub(crate) callback_url: Option<String>,
    pub(crate) worker_host: WorkerHost,
}

impl Settings {
    /// Takes the command line and what it leaves open from the environment and the file.
    pub(crate) fn read(args: DaemonArgs) -> Result<Self> {
        let (host, port) = match &args.addr {
            Some(addr) => split_addr(addr)?,
            None => (args.host, args.port),
        };
        let token = match secret("RBEE_API_TOKEN")? {
            Some(token) => Some(token),
            None => secret("LLORCH_API_TOKEN")?,
        };
        if token.is_none() && !is_loopback(&host) {
            bail!(
                "TOKEN_REQUIRED: {host} can be reached from other machines; set RBEE_API_TOKEN \
                 to the token that callers must send, or listen on 127.0.0.1"
            );
        }
        let file = match &args.config {
            Some(path) => read_file(path)?,
            None => ConfigFile::default(),
        };
        if !(1..=MAX_SLOTS).contains(&file.slots) {
            bail!("slots = {}: must be 1 to {MAX_SLOTS}", file.slots);
        }
        if !(1..=1 << 24).contains(&file.context) {
            bail!("context = {}: must be 1 to 16777216 tokens", file.context);
        }
        Ok(Settings {
            host,
            port,
            token,
            log_format: args.log_format,
            models: models_folder(args.models.or(file.models))?,
            state_root: absolute(
                &args
                    .state
                    .unwrap_or_else(|| in_home(".local/state/rbee-hive")),
            )?,
            config: args.config.map(|path| absolute(&path)).transpose()?,
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
            head_timeout: Duration::from_secs(file.head_timeout_secs.max(1)),
            keep_free_bytes: file.keep_free_mib.saturating_mul(1 << 20),
            callback_url: variable("QUEEN_CALLBACK_URL")
                .map(|url| url.trim_end_matches('/').to_owned()),
            worker_host: WorkerHost::new(variable("RBEE_WORKER_HOST").as_deref()),
        })
    }
}

impl Settings {
    /// The aliases as the configuration file has them now; `None` without a file.
    pub(crate) fn aliases_again(&self) -> Result<Option<BTreeMap<String, String>>> {
        let path = self.config.as_deref();
        path.map(|path| Ok(read_file(path)?.aliases)).transpose()
    }
}

/// Whether only this machine can reach a server that listens there.
pub(crate) fn is_loopback(host: &str) -> bool {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    bare.eq_ignore_ascii_case("localhost")
        || bare.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// The folder with the models: the given one, else the user's.
pub(crate) fn models_folder(given: Option<PathBuf>) -> Result<PathBuf> {
    absolute(&given.unwrap_or_else(|| in_home(".local/share/rbee/models")))
}

fn in_home(below: &str) -> PathBuf {
    match variable("HOME") {
        Some(home) => Path::new(&home).join(below),
        None => env::temp_dir().join("rbee").join(below),
    }
}

fn read_file(path: &Path) -> Result<ConfigFile> {
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("can't read the configuration file {}", path.display()))?;
    toml::from_str(&text).with_context(|| format!("in the configuration file {}", path.display()))
}

fn split_addr(addr: &str) -> Result<(String, u16)> {
    let parts = addr.rsplit_once(':');
    let Some((host, Ok(port))) = parts.map(|(host, port)| (host, port.parse())) else {
        bail!("--addr {addr}: must be HOST:PORT, such as 127.0.0.1:9200");
    };
    let host = host.trim_start_matches('[').trim_end_matches(']');
    Ok((host.to_owned(), port))
}

fn variable(name: &str) -> Option<String> {
    env::var(name).ok().filter(|value| !value.is_empty())
}

/// A token from the environment without white space around it. One that no caller could send is an
/// error; an empty variable is none.
fn secret(name: &str) -> Result<Option<String>> {
    match env::var_os(name).filter(|value| !value.is_empty()) {
        Some(value) => sendable(name, value.to_str()).map(Some),
        None => Ok(None),
    }
}

fn sendable(name: &str, value: Option<&str>) -> Result<String> {
    let token = value.unwrap_or("\u{fffd}").trim();
    if token.is_empty() {
        bail!(
            "TOKEN_INVALID: {name} is blank; set it to the token that callers must send, or unset it"
        );
    }
    if !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        bail!(
            "TOKEN_INVALID: {name} has characters that a header can't carry; use printable ASCII \
             without spaces, such as the output of `openssl rand -hex 32`"
        );
    }
    Ok(token.to_owned())
}

fn absolute(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path).with_context(|| format!("path {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_key_is_named() {
        let error = toml::from_str::<ConfigFile>("slot = 3").unwrap_err();
        assert!(error.to_string().contains("slot"), "{error}");
    }

    #[test]
    fn a_token_is_trimmed_and_one_that_no_caller_could_send_is_refused() {
        assert_eq!(sendable("T", Some(" s3cret\r\n")).unwrap(), "s3cret");
        for odd in [
            Some(" \n"),
            Some("a b"),
            Some("a\nb"),
            Some("t\u{f6}ken"),
            None,
        ] {
            let error = sendable("T", odd).unwrap_err().to_string();
            assert!(error.contains("TOKEN_INVALID: T "), "{error}");
        }
    }

    #[test]
    fn an_address_may_be_ipv6() {
        assert_eq!(split_addr("[::1]:9200").unwrap(), ("::1".into(), 9200));
        assert!(split_addr("9200").is_err());
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
