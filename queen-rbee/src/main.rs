//! `queen-rbee`: the daemon around [`rbee_orchestrator`]. Flags, configuration, logs,
//! signals, and nothing else.

mod logs;
mod settings;
mod signals;

use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use clap::Parser;
use rbee_orchestrator::Orchestrator;
use rbee_orchestrator::http::{Access, HttpApi, Server, raise_open_files};
use rbee_orchestrator::store::SqliteStore;

use settings::{Flags, Settings};
use signals::{Ends, Hangup, Hangups};

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
    let mut hangups = Hangups::watch()?;
    let address = listener.local_addr()?;
    settings.config.fill_in(address, &settings.database);
    let store = SqliteStore::open(&settings.database).await?;
    let hive_token = settings.hive_token()?;
    let orchestrator = Orchestrator::builder()
        .config(settings.config.clone())
        .store(store)
        .hive_token(hive_token)
        .start()
        .await?;
    let access = settings.access();
    let api = HttpApi::new(orchestrator.clone(), access.clone());
    let server = Server::start(listener, api)?;
    tracing::info!("listening on http://{address}");
    let mut ends = Ends::watch()?;
    loop {
        let reason = tokio::select! {
            signal = ends.next() => signal,
            hangup = hangups.next() => match hangup {
                Hangup::Reload => {
                    reload(&settings, &orchestrator, &access).await;
                    continue;
                }
                Hangup::TerminalGone => "the terminal has gone",
            },
        };
        tracing::info!("{reason}: finishing what runs, then stopping what this queen started");
        break;
    }
    let down = async {
        orchestrator.shutdown().await;
        server.finish().await;
    };
    tokio::select! {
        () = down => tracing::info!("shut down"),
        _ = ends.next() => tracing::warn!("a second signal: leaving at once"),
    }
    Ok(())
}

/// Takes in what can change while the queen runs; a file that can't be read changes nothing.
async fn reload(settings: &Settings, orchestrator: &Orchestrator, access: &Access) {
    let config = match settings.read_again() {
        Ok(Some(config)) => config,
        Ok(None) => return tracing::info!("SIGHUP: there is no configuration file to read again"),
        Err(error) => return tracing::error!("SIGHUP: nothing is changed: {error:#}"),
    };
    match orchestrator.reload(&config).await {
        Ok(()) => {
            access.set_hosts(config.allowed_hosts);
            access.set_origins(config.allowed_origins);
            tracing::info!(
                "SIGHUP: aliases, tenants, allowed_hosts and allowed_origins are read again; the \
                 rest of the configuration takes a restart"
            );
        }
        Err(error) => tracing::error!("SIGHUP: nothing is changed: {error}"),
    }
}
