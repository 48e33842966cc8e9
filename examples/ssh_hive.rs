//! From a machine with SSH to the first token: a program that registers it as a hive and asks it.
//!
//! The machine needs sshd, `llama-server` and a model (`~/.local/share/rbee/models`); `rbee-hive` is
//! uploaded if it is missing. Hive and engine listen on the machine's loopback address only, and are
//! stopped at the end.
//!
//! ```sh
//! ssh-keyscan gpu-0.lan >> ~/.ssh/known_hosts    # compare the fingerprint with the machine's own
//! cargo build -p rbee-hive
//! cargo run -p rbee-examples --example ssh_hive -- \
//!     gpu-0.lan smollm2 "What is the capital of France?"
//! ```

use std::io::Write;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use rbee_orchestrator::domain::{HiveId, HiveSpec, SshTarget, TaskEvent, TaskRequest};
use rbee_orchestrator::{Config, Orchestrator};

#[tokio::main]
async fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let host = args
        .next()
        .context("usage: ssh_hive HOST [MODEL] [PROMPT]")?;
    let model = args.next().unwrap_or_else(|| "smollm2".into());
    let prompt = args.next().unwrap_or_else(|| "Once upon a time".into());

    let mut config = Config::default();
    // This machine shall compute nothing itself.
    config.hives.local = false;
    config.hives.upload_dir = built_programs();
    let orchestrator = Orchestrator::builder().config(config).start().await?;
    let answered = tokio::select! {
        answered = register_and_ask(&orchestrator, host, &model, &prompt) => answered,
        _ = tokio::signal::ctrl_c() => Ok(()),
    };
    // Always: a hive that was started outlives a program that just exits.
    orchestrator.shutdown().await;
    answered
}

/// Where cargo puts `rbee-hive`: one folder above its examples.
fn built_programs() -> Option<PathBuf> {
    let own = std::env::current_exe().ok()?;
    Some(own.parent()?.parent()?.to_path_buf())
}

async fn register_and_ask(
    orchestrator: &Orchestrator,
    host: String,
    model: &str,
    prompt: &str,
) -> Result<()> {
    // Port, user and key are those of ~/.ssh/config, the agent and the usual files.
    let target = SshTarget {
        host,
        ..SshTarget::default()
    };
    let hive = HiveSpec::over_ssh(HiveId::new("far")?, target);
    let report = orchestrator.inspect_and_add_hive(hive).await?;
    for item in &report.items {
        println!("[{}: {:?}: {}]", item.name, item.status, item.message);
    }
    if let Some(failed) = report.failure() {
        bail!(
            "no hive can work there: {}",
            failed.cure.as_deref().unwrap_or_default()
        );
    }
    let task = TaskRequest::prompt(model, prompt).max_tokens(40);
    let mut events = orchestrator.submit(task).await?;
    while let Some(event) = events.next().await {
        match event {
            TaskEvent::Narration(told) => println!("[{}]", told.human),
            TaskEvent::Token { text, .. } => {
                print!("{text}");
                std::io::stdout().flush()?;
            }
            TaskEvent::End { tokens_out, .. } => println!("\n[{tokens_out} tokens]"),
            TaskEvent::Error { error, .. } => return Err(error.into()),
            _ => {}
        }
    }
    Ok(())
}
