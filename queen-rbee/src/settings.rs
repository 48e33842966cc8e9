//! Flags, environment and the configuration file.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;
use rbee_orchestrator::Config;
use rbee_orchestrator::hives::{HiveToken, read_secret};
use rbee_orchestrator::http::Access;
use serde::de::DeserializeOwned;

use crate::logs::LogFormat;

/// One inference endpoint over the machines that you own.
#[derive(Debug, Parser)]
#[command(name = "queen-rbee", version)]
pub(crate) struct Flags {
    /// Port to listen on; 0 takes a free one and logs it
    #[arg(long, env = "QUEEN_PORT", default_value_t = 8080)]
    port: u16,
    /// Address to listen on; anything but loopback needs a token
    #[arg(long, env = "QUEEN_BIND", default_value = "127.0.0.1")]
    bind: IpAddr,
    /// SQLite database; made when missing
    #[arg(long, env = "QUEEN_DATABASE", default_value = "queen.db")]
    database: PathBuf,
    /// Configuration file (TOML); docs/operations.md lists the keys
    #[arg(long, env = "QUEEN_CONFIG")]
    config: Option<PathBuf>,
    /// File with the bearer token that callers must show, mode 0600 or stricter; the token itself
    /// may stand in QUEEN_TOKEN
    #[arg(long, env = "QUEEN_TOKEN_FILE")]
    token_file: Option<PathBuf>,
    /// How log lines look; RUST_LOG says which there are
    #[arg(long, env = "QUEEN_LOG_FORMAT", value_enum, default_value = "human")]
    pub(crate) log_format: LogFormat,
}

/// The configuration file's keys that are the daemon's own; all others are the library's.
#[derive(Debug, Default)]
struct File {
    /// Names beside `localhost` by which this machine may be called without a token.
    allowed_hosts: Vec<String>,
    /// File with the token between queen and hives, mode 0600 or stricter.
    hive_token_file: Option<PathBuf>,
}

/// All that the daemon was told.
#[derive(Debug)]
pub(crate) struct Settings {
    pub(crate) address: SocketAddr,
    pub(crate) database: PathBuf,
    pub(crate) orchestrator: Config,
    pub(crate) hive_token: Option<HiveToken>,
    token: Option<String>,
    allowed_hosts: Vec<String>,
}

impl Settings {
    pub(crate) fn read(flags: Flags) -> Result<Self> {
        let (orchestrator, file) = match &flags.config {
            Some(path) => read_file(path).with_context(|| path.display().to_string())?,
            None => (Config::default(), File::default()),
        };
        let token = secret("QUEEN_TOKEN", flags.token_file.as_deref())?;
        if !flags.bind.is_loopback() && token.is_none() {
            bail!(
                "listening on {} needs a token: set QUEEN_TOKEN or --token-file, or bind 127.0.0.1",
                flags.bind
            );
        }
        let hive_token = secret("QUEEN_HIVE_TOKEN", file.hive_token_file.as_deref())?;
        Ok(Settings {
            address: SocketAddr::new(flags.bind, flags.port),
            database: flags.database,
            orchestrator,
            hive_token: hive_token.map(|token| HiveToken::new(&token)).transpose()?,
            token,
            allowed_hosts: file.allowed_hosts,
        })
    }

    /// What is known only when the socket is bound.
    pub(crate) fn fill_in(&mut self, address: SocketAddr) -> Result<()> {
        let hives = &mut self.orchestrator.hives;
        let host = match address.ip() {
            ip if ip.is_unspecified() => IpAddr::from([127, 0, 0, 1]),
            ip => ip,
        };
        let url = || format!("http://{}", SocketAddr::new(host, address.port()));
        hives.queen_url.get_or_insert_with(url);
        if hives.log_dir.is_none() {
            let beside = std::path::absolute(&self.database)?;
            hives.log_dir = beside.parent().map(|folder| folder.join("logs"));
        }
        Ok(())
    }

    pub(crate) fn access(&self) -> Access {
        let access = self
            .token
            .as_ref()
            .map_or_else(Access::loopback, Access::token);
        access.hosts(self.allowed_hosts.clone())
    }

    /// Where the random token between queen and hives is kept.
    pub(crate) fn hive_token_file(&self) -> PathBuf {
        let mut name = self.database.clone().into_os_string();
        name.push(".hive-token");
        name.into()
    }
}

fn read_file(path: &Path) -> Result<(Config, File)> {
    let text = std::fs::read_to_string(path).context("the configuration can't be read")?;
    let mut keys: toml::Table = toml::from_str(&text)?;
    let file = File {
        allowed_hosts: take(&mut keys, "allowed_hosts")?.unwrap_or_default(),
        hive_token_file: take(&mut keys, "hive_token_file")?,
    };
    let orchestrator: Config = keys.try_into()?;
    orchestrator.check()?;
    Ok((orchestrator, file))
}

fn take<T: DeserializeOwned>(keys: &mut toml::Table, key: &str) -> Result<Option<T>> {
    let value = keys.remove(key).map(toml::Value::try_into).transpose();
    value.with_context(|| key.to_owned())
}

/// A secret from the environment, else from a file.
fn secret(variable: &str, file: Option<&Path>) -> Result<Option<String>> {
    match std::env::var(variable).ok().filter(|text| !text.is_empty()) {
        Some(text) => Ok(Some(text)),
        None => file.map(read_token).transpose(),
    }
}

fn read_token(path: &Path) -> Result<String> {
    let text = read_secret(path)?;
    ensure!(
        !text.is_empty(),
        "the token's file {} is empty",
        path.display()
    );
    Ok(text)
}
