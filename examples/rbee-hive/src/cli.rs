//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

/// The reference hive: supervises inference engines on one machine for a queen.
#[derive(Debug, Parser)]
#[command(name = "rbee-hive", version)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Serve the hive's HTTP API until told to stop.
    Daemon(DaemonArgs),
    /// Fetch a model from the hub or the web into the models folder; says how far it is in JSON lines.
    Fetch(FetchArgs),
}

#[derive(Debug, Args)]
pub(crate) struct FetchArgs {
    /// hf:org/repo, hf:org/repo/file.gguf, hf:org/repo@revision::file=path or
    /// https://host/path/file.gguf, optionally with #sha256=HEX
    pub(crate) model_ref: String,

    /// Folder with the models [default: ~/.local/share/rbee/models]
    #[arg(long, value_name = "DIR", env = "RBEE_HIVE_MODELS")]
    pub(crate) models: Option<PathBuf>,

    /// What must stay free on the disk
    #[arg(long, value_name = "BYTES", default_value_t = 1 << 30)]
    pub(crate) keep_free_bytes: u64,
}

#[derive(Debug, Args)]
pub(crate) struct DaemonArgs {
    /// Port to listen on
    #[arg(long, default_value_t = 9200)]
    pub(crate) port: u16,

    /// Address to listen on; anything but loopback needs a token (RBEE_API_TOKEN)
    #[arg(long, env = "RBEE_HIVE_HOST", default_value = "127.0.0.1")]
    pub(crate) host: String,

    /// HOST:PORT in one, instead of --host and --port
    #[arg(long, value_name = "HOST:PORT", conflicts_with_all = ["host", "port"])]
    pub(crate) addr: Option<String>,

    /// Folder with the models [default: ~/.local/share/rbee/models]
    #[arg(long, value_name = "DIR", env = "RBEE_HIVE_MODELS")]
    pub(crate) models: Option<PathBuf>,

    /// Folder for state and logs; this hive uses the one in it that is named for its port
    /// [default: ~/.local/state/rbee-hive]
    #[arg(long, value_name = "DIR", env = "RBEE_HIVE_STATE")]
    pub(crate) state: Option<PathBuf>,

    /// Configuration file (TOML): engines, aliases, limits
    #[arg(long, value_name = "FILE", env = "RBEE_HIVE_CONFIG")]
    pub(crate) config: Option<PathBuf>,

    /// How log lines look on standard error
    #[arg(long, value_enum, default_value_t = LogFormat::Human)]
    pub(crate) log_format: LogFormat,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    /// For people
    Human,
    /// One JSON object a line
    Json,
}
