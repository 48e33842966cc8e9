//! Log lines on standard error.

use std::io::IsTerminal;

use anyhow::{Context, Result, anyhow};
use clap::ValueEnum;
use tracing_subscriber::EnvFilter;

/// How log lines look.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum LogFormat {
    /// For people.
    Human,
    /// One JSON object a line.
    Json,
}

/// Begins logging; `RUST_LOG` says what (default: `info`).
pub(crate) fn begin(format: LogFormat) -> Result<()> {
    let filter = match std::env::var("RUST_LOG") {
        Ok(wanted) if !wanted.is_empty() => {
            EnvFilter::try_new(&wanted).with_context(|| format!("RUST_LOG {wanted:?}"))?
        }
        _ => EnvFilter::new("info"),
    };
    let lines = tracing_subscriber::fmt()
        .with_env_filter(filter)
        // Standard error may be a terminal that has gone, and to complain there would be a panic.
        .log_internal_errors(false)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr);
    let begun = match format {
        LogFormat::Human => lines.with_target(false).try_init(),
        LogFormat::Json => lines.json().flatten_event(true).try_init(),
    };
    begun.map_err(|error| anyhow!("logging could not begin: {error}"))
}
