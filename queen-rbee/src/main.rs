//! `queen-rbee`: the daemon around [`rbee_orchestrator`]. Flags, configuration, logs,
//! signals, and nothing else.

mod logs;
mod settings;

use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use clap::Parser;
use rbee_orchestrator::Orchestrator;
use rbee_orchestrator::http::{HttpApi, Server, raise_open_files};
use rbee_orchestrator::store::SqliteStore;
use tokio::signal::unix::{SignalKind, signal};

use settings::{Flags, Settings};

fn main() -> ExitCode {
    let flags = Flags::parse();
    if let Err(error) = logs::begin(flags.log_format) {
        eprintln!("queen-rbee: {error:#}");
        return ExitCode::FAILURE;
    }
    match Settings::read(flags).and_then(run) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(settings: Settings) -> Result<()> {
    raise_open_files();
    let listener = bind(settings.address)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        // Requests run on lanes of their own (`Server`); what is left is little.
        .worker_threads(1)
        .thread_name("queen")
        .build()
        .context("the async runtime could not be started")?;
    let result = runtime.block_on(live(settings, listener));
    // A blocking call to a hive that hangs must not hold the exit up.
    runtime.shutdown_timeout(Duration::from_secs(2));
    result
}

fn bind(address: SocketAddr) -> Result<TcpListener> {
    TcpListener::bind(address).map_err(|error| match error.kind() {
        ErrorKind::AddrInUse => anyhow!(
            "port {} on {} is in use; stop what listens there, or take another with --port",
            address.port(),
            address.ip()
        ),
        _ => anyhow!("{address} can't be listened on: {error}"),
    })
}

async fn live(mut settings: Settings, listener: TcpListener) -> Result<()> {
    let address = listener.local_addr()?;
    settings.config.fill_in(address, &settings.database);
    let store = SqliteStore::open(&settings.database).await?;
    let orchestrator = Orchestrator::builder()
        .config(settings.config.clone())
        .store(store)
        .hive_token(settings.hive_token()?)
        .start()
        .await?;
    let api = HttpApi::new(orchestrator.clone(), settings.access());
    let server = Server::start(listener, api)?;
    tracing::info!("listening on http://{address}");
    let again = end_of_life().await?;
    let down = async {
        orchestrator.shutdown().await;
        server.finish().await;
    };
    tokio::select! {
        () = down => tracing::info!("shut down"),
        () = again => tracing::warn!("a second signal: leaving at once"),
    }
    Ok(())
}

/// Waits for SIGTERM or SIGINT; returns a future that waits for one more.
async fn end_of_life() -> Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut either = async move || {
        tokio::select! {
            _ = terminate.recv() => "SIGTERM",
            _ = interrupt.recv() => "SIGINT",
        }
    };
    let name = either().await;
    tracing::info!("{name}: finishing what runs, then stopping what this queen started");
    Ok(async move {
        either().await;
    })
}
