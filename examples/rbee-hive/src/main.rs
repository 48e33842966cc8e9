//! `rbee-hive`: runs on a machine with devices and models, and does what a queen asks: starts
//! inference engines, watches them, reports them, ends them. It decides nothing.
//!
//! `http/` is what the queen calls; `worker/` is the life of one engine process; `models/` is what
//! the disk holds; `state_dir` is what a later life of the hive must know.

mod callback;
mod cli;
mod config;
mod devices;
mod door;
mod engine;
mod error;
mod hive;
mod http;
mod logs;
mod models;
mod process;
mod registry;
mod rules;
mod signals;
mod state_dir;
mod worker;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    let outcome = match cli::Cli::parse().command {
        cli::Command::Daemon(args) => daemon(args).map(|()| true),
        cli::Command::Fetch(args) => fetch(args),
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("rbee-hive: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn fetch(args: cli::FetchArgs) -> anyhow::Result<bool> {
    let folder = config::models_folder(args.models)?;
    Ok(models::fetch(
        &args.model_ref,
        &folder,
        args.keep_free_bytes,
    ))
}

fn daemon(args: cli::DaemonArgs) -> anyhow::Result<()> {
    let settings = config::Settings::read(args)?;
    let book = logs::LogBook::new();
    logs::init_tracing(settings.log_format, &book);
    door::raise_open_files();
    let runtime = tokio::runtime::Runtime::new()?;
    let outcome = runtime.block_on(hive::run(settings, book));
    // A blocking call that hangs (a dead network mount) must not keep the process.
    runtime.shutdown_timeout(std::time::Duration::from_secs(1));
    outcome
}
