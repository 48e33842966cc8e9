//! The queen's HTTP API inside a server of one's own, here axum's, with own routes beside it.
//!
//! `HttpApi` opens no socket: it takes a request and gives a response. Everything that the server
//! has no route for goes to it, so OpenAI's clients find `/v1/chat/completions` where they expect
//! it. Ctrl-C ends it, and the hive that it started.
//!
//! ```sh
//! tests/parts.sh && . .cache/parts.env       # an engine and a small model, if you have none
//! cargo build -p rbee-hive
//! PATH=$PWD/target/debug:$PATH cargo run -p rbee-examples --example mount_http -- 8090
//!
//! curl localhost:8090/                       # the own route
//! curl -N localhost:8090/v2/tasks -d '{"model":"smollm2","prompt":"Once upon a time"}'
//! ```

use anyhow::{Context, Result};
use axum::Router;
use axum::extract::Request;
use axum::routing::get;
use axum::serve::ListenerExt;
use rbee_orchestrator::http::{Access, HttpApi};
use rbee_orchestrator::{Config, Orchestrator};

#[tokio::main]
async fn main() -> Result<()> {
    let port = match std::env::args().nth(1) {
        Some(port) => port.parse().context("the argument is the port")?,
        None => 8090,
    };
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", port)).await?;
    let address = listener.local_addr()?;

    let mut config = Config::default();
    // With it hives tell when a worker is ready; without it the queen asks them every so often.
    config.hives.queen_url = Some(format!("http://{address}"));
    let orchestrator = Orchestrator::builder().config(config).start().await?;

    // On anything but loopback: Access::token("…").
    let api = HttpApi::new(orchestrator.clone(), Access::loopback());
    let fleet = orchestrator.clone();
    let own_page = move || async move {
        let (hives, workers) = (fleet.hives().len(), fleet.workers().len());
        format!("my own service; hives: {hives}, workers: {workers}\n")
    };
    let app = Router::new()
        .route("/", get(own_page))
        .fallback(move |request: Request| async move { api.call(request).await });

    println!("listening on http://{address}");
    // Nagle's algorithm with delayed ACKs would cost each small write 40 ms.
    let listener = listener.tap_io(|stream| {
        let _ = stream.set_nodelay(true);
    });
    axum::serve(listener, app)
        .with_graceful_shutdown(async move {
            let _ = tokio::signal::ctrl_c().await;
            // Ends what runs, so that no open stream keeps the server up.
            orchestrator.shutdown().await;
        })
        .await?;
    Ok(())
}
