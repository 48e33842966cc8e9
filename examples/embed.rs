//! The library inside a service of one's own: no daemon, no HTTP server, nothing kept on disk.
//!
//! Asks a model one question and prints what comes back, event by event. The hive is started as a
//! child process for it and stopped at the end.
//!
//! ```sh
//! tests/parts.sh && . .cache/parts.env       # an engine and a small model, if you have none
//! cargo build -p rbee-hive
//! PATH=$PWD/target/debug:$PATH cargo run -p rbee-examples --example embed -- \
//!     smollm2 "What is the capital of France?"
//! ```

use std::io::Write;

use anyhow::Result;
use rbee_orchestrator::Orchestrator;
use rbee_orchestrator::domain::{TaskEvent, TaskRequest};
use rbee_orchestrator::store::MemoryStore;

#[tokio::main]
async fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let model = args.next().unwrap_or_else(|| "smollm2".into());
    let prompt = args.next().unwrap_or_else(|| "Once upon a time".into());

    // Everything has a default. A service that must remember its tasks takes a SqliteStore.
    let orchestrator = Orchestrator::builder()
        .store(MemoryStore::new())
        .start()
        .await?;
    let answered = tokio::select! {
        answered = ask(&orchestrator, &model, &prompt) => answered,
        _ = tokio::signal::ctrl_c() => Ok(()),
    };
    // Always: a hive that was started outlives a program that just exits.
    orchestrator.shutdown().await;
    answered
}

async fn ask(orchestrator: &Orchestrator, model: &str, prompt: &str) -> Result<()> {
    let task = TaskRequest::prompt(model, prompt)
        .max_tokens(40)
        .temperature(0.0);
    // What is known at once (a full queue, a model that no one has) is an error here; what comes
    // later is the stream's last event. Dropping the stream cancels the task.
    let mut events = orchestrator.submit(task).await?;
    let job = events.job();
    while let Some(event) = events.next().await {
        match event {
            TaskEvent::Queued { position, .. } => println!("[waits behind {position}]"),
            TaskEvent::Narration(told) => println!("[{}]", told.human),
            TaskEvent::Started { model, worker, .. } => println!("[{model} on {worker}]"),
            TaskEvent::Thinking { text } | TaskEvent::Token { text, .. } => {
                print!("{text}");
                std::io::stdout().flush()?;
            }
            TaskEvent::Metrics { tokens_per_sec, .. } => {
                println!("\n[{tokens_per_sec:.0} tokens/s]");
            }
            TaskEvent::End {
                tokens_out,
                stop_reason,
                ..
            } => println!("\n[{tokens_out} tokens, ended by {stop_reason:?}]"),
            TaskEvent::Error { error, .. } => return Err(error.into()),
        }
    }
    // The record of the task is complete once the stream has settled.
    events.settled().await;
    let record = orchestrator.task(job).await?;
    let usage = record.usage.unwrap_or_default();
    println!("[task {job}: {} tokens in]", usage.tokens_in);
    Ok(())
}
