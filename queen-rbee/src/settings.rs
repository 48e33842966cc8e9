//! Flags and environment.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use clap::Parser;
use rbee_orchestrator::Config;
use rbee_orchestrator::hives::{HiveToken, secret};
use rbee_orchestrator::http::Access;

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

/// All that the daemon was told.
#[derive(Debug)]
pub(crate) struct Settings {
    pub(crate) address: SocketAddr,
    pub(crate) database: PathBuf,
    pub(crate) config: Config,
    token: Option<String>,
    config_file: Option<PathBuf>,
}

impl Settings {
    pub(crate) fn read(flags: Flags) -> Result<Self> {
        let config_file = flags.config.map(std::path::absolute).transpose()?;
        let config = config_file.as_deref().map(Config::read).transpose()?;
        let token = secret("QUEEN_TOKEN", flags.token_file.as_deref())?;
        ensure!(
            flags.bind.is_loopback() || token.is_some(),
            "listening on {} needs a token: set QUEEN_TOKEN or --token-file, or bind 127.0.0.1",
            flags.bind
        );
        Ok(Settings {
            address: SocketAddr::new(flags.bind, flags.port),
            database: std::path::absolute(flags.database)?,
            config: config.unwrap_or_default(),
            token,
            config_file,
        })
    }

    /// Reads the configuration file again; none where none was given.
    pub(crate) fn read_again(&self) -> Result<Option<Config>> {
        Ok(self.config_file.as_deref().map(Config::read).transpose()?)
    }

    /// The secret between queen and hives. Where somebody chose it and nobody can register hives
    /// without a token, it is what hives were given that others run.
    pub(crate) fn hive_token(&mut self) -> Result<HiveToken> {
        let file: Option<&Path> = self.config.hive_token_file.as_deref();
        let is_chosen = file.is_some() || std::env::var_os("QUEEN_HIVE_TOKEN").is_some();
        let is_shared = is_chosen && self.token.is_some();
        self.config.hives.shared_token.get_or_insert(is_shared);
        Ok(HiveToken::find("QUEEN_HIVE_TOKEN", file, &self.database)?)
    }

    pub(crate) fn access(&self) -> Access {
        let token = self.token.as_ref();
        let access = token.map_or_else(Access::loopback, Access::token);
        let access = access.hosts(self.config.allowed_hosts.clone());
        access.origins(self.config.allowed_origins.clone())
    }
}
