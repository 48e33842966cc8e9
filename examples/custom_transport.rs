//! A transport of one's own that wraps `LocalTransport`: it counts connections, and says what is
//! started and stopped and how long that took.
//!
//! ```sh
//! tests/parts.sh && . .cache/parts.env       # an engine and a small model, if you have none
//! cargo build -p rbee-hive
//! PATH=$PWD/target/debug:$PATH cargo run -p rbee-examples --example custom_transport
//! ```

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use anyhow::Result;
use async_trait::async_trait;
use rbee_orchestrator::domain::{HiveProcess, TaskRequest};
use rbee_orchestrator::transport::{
    DirectTransport, HiveCommand, HiveStream, HiveTransport, LocalTransport, Preflight,
    SshTransport,
};
use rbee_orchestrator::{Orchestrator, Result as RbeeResult, TransportFactory};

#[derive(Default)]
struct Watched {
    local: LocalTransport,
    connections: AtomicU64,
}

#[async_trait]
impl HiveTransport for Watched {
    fn host(&self) -> &str {
        self.local.host()
    }

    async fn preflight(&self, command: &HiveCommand) -> RbeeResult<Preflight> {
        self.local.preflight(command).await
    }

    async fn start(&self, command: &HiveCommand) -> RbeeResult<HiveProcess> {
        let begun = Instant::now();
        let process = self.local.start(command).await?;
        println!("[hive {} up in {:?}]", process.port, begun.elapsed());
        Ok(process)
    }

    async fn stop(&self, process: &HiveProcess, grace: Duration) -> RbeeResult<()> {
        let begun = Instant::now();
        self.local.stop(process, grace).await?;
        println!("[hive {} gone in {:?}]", process.port, begun.elapsed());
        Ok(())
    }

    async fn is_running(&self, process: &HiveProcess) -> RbeeResult<bool> {
        self.local.is_running(process).await
    }

    async fn logs(&self, log_file: &Path, lines: usize) -> RbeeResult<Vec<String>> {
        self.local.logs(log_file, lines).await
    }

    // It has a default that says yes. A wrapper must pass it on: else the queen's token would be
    // shown to whatever listens where a hive could be, another user's program included.
    async fn may_be_ours(&self, port: u16) -> RbeeResult<bool> {
        self.local.may_be_ours(port).await
    }

    // Called for hives and for workers: a request may wait for it.
    async fn connect(&self, port: u16) -> std::io::Result<Box<dyn HiveStream>> {
        self.connections.fetch_add(1, Relaxed);
        self.local.connect(port).await
    }
}

#[tokio::main]
async fn main() -> Result<()> {
    let watched = Arc::new(Watched::default());
    let local = watched.clone();
    // Asked once for each hive. Those of other machines are reached by SSH or TCP, as by default.
    let factory: TransportFactory = Arc::new(move |spec| match spec.ssh.clone() {
        Some(far) => {
            let way = SshTransport::new(far, &spec.hostname, spec.tunnel, Default::default());
            Ok(Arc::new(way))
        }
        None if spec.is_managed() => Ok(local.clone()),
        None => Ok(Arc::new(DirectTransport::new(&spec.hostname))),
    });
    let orchestrator = Orchestrator::builder().transports(factory).start().await?;
    let answered = tokio::select! {
        answered = ask(&orchestrator) => answered,
        _ = tokio::signal::ctrl_c() => Ok(()),
    };
    orchestrator.shutdown().await;
    println!("[{} connections]", watched.connections.load(Relaxed));
    answered
}

async fn ask(orchestrator: &Orchestrator) -> Result<()> {
    let task = TaskRequest::prompt("smollm2", "Once upon a time").max_tokens(20);
    orchestrator.submit(task).await?.finished().await?;
    Ok(())
}
