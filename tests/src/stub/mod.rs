//! An inference engine that costs next to nothing: it makes no text, only numbered tokens at a set
//! pace, and every fault that an engine can have, on demand.
//!
//! ```text
//! GET  /health                                503 while loading, then 200
//! GET  /v1/models /props /slots               what it serves
//! POST /v1/chat/completions /v1/completions /v1/embeddings      protocol openai
//! POST /v1/execute, POST /cancel {"job_id"}                     protocol rbee
//! POST /v1/inference, GET /v1/ready                             protocol old_rbee
//! GET  /stats                                 counters of the port that is asked
//! GET  /journal?from=N                        when requests came and ended, with --journal
//! GET  /last-request                          headers and body of the last request for tokens
//! POST /control?tokens=&ttft_ms=&itl_ms=&flush_each=&fault=&fault_times=&health=
//! POST /reset                                 zero the counters
//! ```
//!
//! On SIGUSR1 it is away, as an engine is whose machine went down: its connections break and nobody
//! listens. On SIGUSR2 it is back, and remembers all.
//!
//! With a key, everything but what only tests call (the last five) is 401 without it.

pub mod behaviour;
mod body;
mod engine;
mod form;
mod generate;
mod journal;

use crate::harness::ports;
use behaviour::{Behaviour, Protocol};
use body::{Stream, Whole};
use bytes::Bytes;
use clap::Parser;
use engine::Engine;
use form::Form;
use generate::{Closed, generate};
use http_body_util::{BodyExt, Either, Full};
use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use rustix::net::Shutdown;
use serde_json::{Value, json};
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// What the command line may hold. It wins over the behaviour file.
#[derive(Parser, Debug)]
pub struct Args {
    /// Ports to listen on; each is an engine of its own
    #[arg(long, value_delimiter = ',', default_value = "9101")]
    port: Vec<u16>,
    #[arg(long, default_value = "127.0.0.1")]
    host: String,
    /// The name under which it serves its model
    #[arg(long, default_value = "stub-model")]
    model: String,
    /// A TOML file that says how the engine behaves
    #[arg(long)]
    behaviour_file: Option<PathBuf>,
    #[arg(long, value_parser = protocol)]
    protocol: Option<Protocol>,
    /// Requests computed at once; without it there is no bound
    #[arg(long)]
    slots: Option<usize>,
    /// Tokens of an answer when the request sets no max_tokens
    #[arg(long)]
    tokens: Option<u64>,
    /// Wait before the first token
    #[arg(long)]
    ttft_ms: Option<f64>,
    /// Wait between tokens; 0: as fast as they can be sent
    #[arg(long)]
    itl_ms: Option<f64>,
    /// With no wait between tokens, still send each in a write of its own, as an engine does
    #[arg(long)]
    flush_each: bool,
    /// Answer in words that follow from the prompt, for whoever checks the text
    #[arg(long)]
    words: bool,
    /// Note when each request comes and ends
    #[arg(long)]
    journal: bool,
    /// The key that callers must show
    #[arg(long, env = "LLAMA_API_KEY", hide_env_values = true)]
    api_key: Option<String>,
    #[arg(long, default_value_t = 1)]
    pub threads: usize,
}

fn protocol(name: &str) -> Result<Protocol, String> {
    match name {
        "openai" => Ok(Protocol::Openai),
        "rbee" => Ok(Protocol::Rbee),
        "old_rbee" => Ok(Protocol::OldRbee),
        _ => Err("one of openai, rbee, old_rbee".into()),
    }
}

type Answer = Either<Stream, Either<Whole, Full<Bytes>>>;

fn reply(status: StatusCode, body: impl Into<Bytes>) -> Response<Answer> {
    let mut res = Response::new(Either::Right(Either::Right(Full::new(body.into()))));
    *res.status_mut() = status;
    let json = HeaderValue::from_static("application/json");
    res.headers_mut().insert(CONTENT_TYPE, json);
    res
}

fn ok(body: &Value) -> Response<Answer> {
    reply(StatusCode::OK, body.to_string())
}

async fn health(engine: &Engine) -> Response<Answer> {
    if engine.protocol == Protocol::OldRbee {
        drop(engine.computing.lock().await);
    }
    match engine.health() {
        StatusCode::OK => reply(StatusCode::OK, r#"{"status":"ok"}"#),
        status => reply(
            status,
            r#"{"error":{"message":"Loading model","type":"unavailable_error","code":503}}"#,
        ),
    }
}

async fn cancel(engine: &Engine, req: Request<Incoming>) -> Response<Answer> {
    let body = match req.into_body().collect().await {
        Ok(body) => body.to_bytes(),
        Err(_) => return reply(StatusCode::BAD_REQUEST, "{}"),
    };
    let body: Value = serde_json::from_slice(&body).unwrap_or_default();
    match body["job_id"].as_str() {
        Some(job_id) => ok(&json!({"cancelled": engine.cancel(job_id)})),
        None => reply(
            StatusCode::BAD_REQUEST,
            r#"{"error":{"message":"no job_id"}}"#,
        ),
    }
}

fn control(engine: &Engine, req: &Request<Incoming>) -> Response<Answer> {
    match engine.control(req.uri().query().unwrap_or("")) {
        Ok(()) => reply(StatusCode::OK, "{}"),
        Err(e) => reply(StatusCode::BAD_REQUEST, json!({"error": e}).to_string()),
    }
}

fn journal(engine: &Engine, req: &Request<Incoming>) -> Response<Answer> {
    let query = req.uri().query().unwrap_or("");
    let from = query.strip_prefix("from=").unwrap_or("0").parse();
    match (&engine.journal, from) {
        (Some(journal), Ok(from)) => ok(&journal.json(from)),
        (None, _) => reply(
            StatusCode::NOT_FOUND,
            r#"{"error":"start it with --journal"}"#,
        ),
        (_, Err(_)) => reply(StatusCode::BAD_REQUEST, r#"{"error":"from is no number"}"#),
    }
}

fn not_found(engine: &Engine, req: &Request<Incoming>) -> Response<Answer> {
    if engine.counters.not_found.fetch_add(1, Relaxed) < 20 {
        let (method, path) = (req.method(), req.uri().path());
        eprintln!("{}: no such route: {method} {path}", engine.port);
    }
    reply(
        StatusCode::NOT_FOUND,
        r#"{"error":{"message":"no such route"}}"#,
    )
}

/// As llama-server says it, and for `/health` too, as LiteLLM's proxy has it.
fn no_key() -> Response<Answer> {
    let error = json!({"message": "Invalid API Key", "type": "authentication_error", "code": 401});
    let body = json!({ "error": error }).to_string();
    reply(StatusCode::UNAUTHORIZED, body)
}

async fn serve(engine: Arc<Engine>, req: Request<Incoming>) -> Result<Response<Answer>, Closed> {
    use Protocol::{OldRbee, Openai, Rbee};
    const TESTS_ONLY: [&str; 5] = ["/stats", "/journal", "/last-request", "/control", "/reset"];
    if !engine.lets_in(&req) && !TESTS_ONLY.contains(&req.uri().path()) {
        return Ok(no_key());
    }
    let form = match (engine.protocol, req.method(), req.uri().path()) {
        (Openai, &Method::POST, "/v1/chat/completions") => Form::Chat,
        (Openai, &Method::POST, "/v1/completions") => Form::Text,
        (Openai, &Method::POST, "/v1/embeddings") => Form::Embeddings,
        (Rbee, &Method::POST, "/v1/execute") | (OldRbee, &Method::POST, "/v1/inference") => {
            Form::Task
        }
        (_, &Method::GET | &Method::HEAD, "/health") => return Ok(health(&engine).await),
        (OldRbee, &Method::GET, "/v1/ready") => {
            drop(engine.computing.lock().await);
            return Ok(ok(&json!({"ready": !engine.is_loading(), "state": "idle"})));
        }
        (Rbee, &Method::POST, "/cancel") => return Ok(cancel(&engine, req).await),
        (Openai, &Method::GET, "/v1/models") => {
            let model = json!({"id": engine.model, "object": "model", "created": 1_700_000_000,
                               "owned_by": "stub"});
            return Ok(ok(&json!({"object": "list", "data": [model]})));
        }
        (Openai, &Method::GET, "/props") => return Ok(ok(&engine.props())),
        (_, &Method::GET, "/stats") => return Ok(ok(&engine.stats())),
        (_, &Method::GET, "/journal") => return Ok(journal(&engine, &req)),
        (_, &Method::GET, "/last-request") => return Ok(ok(&engine.last_request())),
        (_, &Method::POST, "/control") => return Ok(control(&engine, &req)),
        (_, &Method::POST, "/reset") => {
            engine.reset();
            return Ok(reply(StatusCode::OK, "{}"));
        }
        _ => return Ok(not_found(&engine, &req)),
    };
    generate(engine, form, req).await
}

async fn connection(tcp: TcpStream, engine: Arc<Engine>) {
    // Without it Nagle and delayed ACKs cost 40 ms; a socket that refuses is closing anyway.
    let _ = tcp.set_nodelay(true);
    engine.counters.connections.fetch_add(1, Relaxed);
    let service = hyper::service::service_fn(move |req| serve(engine.clone(), req));
    // One buffer and one write for what is ready, not a list of small pieces.
    let mut http = hyper::server::conn::http1::Builder::new();
    let served = http.writev(false);
    // A client that goes away is counted by its flight.
    let _ = served.serve_connection(TokioIo::new(tcp), service).await;
}

/// Listens on a port of its own, if it is not told on which: one that the system chooses for a listener
/// is the system's again when that does not listen.
async fn listen(host: &str, port: u16) -> io::Result<TcpListener> {
    loop {
        let own = match port {
            0 => ports::free()?,
            port => port,
        };
        match TcpListener::bind((host, own)).await {
            Err(error) if port == 0 && error.kind() == io::ErrorKind::AddrInUse => {}
            bound => return bound,
        }
    }
}

/// Connections that may be asked for while none is taken.
const BACKLOG: i32 = 1024;

async fn accept(
    mut listener: TcpListener,
    engine: Arc<Engine>,
    mut away: watch::Receiver<bool>,
) -> io::Result<()> {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((tcp, _)) => drop(connections.spawn(connection(tcp, engine.clone()))),
                Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            },
            Some(_) = connections.join_next() => {}
            left = becomes(&mut away, true) => {
                left?;
                let socket = listener.into_std()?;
                // The port stays ours: nobody else can take it meanwhile.
                rustix::net::shutdown(&socket, Shutdown::Read)?;
                connections.shutdown().await;
                becomes(&mut away, false).await?;
                rustix::net::listen(&socket, BACKLOG)?;
                listener = TcpListener::from_std(socket)?;
            }
        }
    }
}

async fn becomes(away: &mut watch::Receiver<bool>, wanted: bool) -> io::Result<()> {
    let came = away.wait_for(|away| *away == wanted).await;
    came.map(drop).map_err(io::Error::other)
}

/// Whether it is away: not at first.
fn told_by_signals() -> io::Result<watch::Receiver<bool>> {
    let mut leave = signal(SignalKind::user_defined1())?;
    let mut come_back = signal(SignalKind::user_defined2())?;
    let (tell, away) = watch::channel(false);
    tokio::spawn(async move {
        loop {
            let is_away = tokio::select! {
                Some(()) = leave.recv() => true,
                Some(()) = come_back.recv() => false,
                else => break,
            };
            tell.send_replace(is_away);
        }
    });
    Ok(away)
}

fn read_behaviour(args: &Args) -> anyhow::Result<Behaviour> {
    use anyhow::Context;
    let Some(path) = &args.behaviour_file else {
        return Ok(Behaviour::default());
    };
    let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
    toml::from_str(&text).with_context(|| path.display().to_string())
}

/// Serves until it is killed.
///
/// # Errors
/// A behaviour file that cannot be read, or a port that is taken.
pub async fn run(args: Args) -> anyhow::Result<()> {
    use anyhow::Context;
    let behaviour = read_behaviour(&args)?;
    if behaviour.ignore_sigterm {
        // With a handler the signal no longer ends the process; the handler does nothing.
        let mut term = signal(SignalKind::terminate())?;
        tokio::spawn(async move { while term.recv().await.is_some() {} });
    }
    let away = told_by_signals()?;
    let mut accepting = JoinSet::new();
    for port in &args.port {
        let listener = listen(&args.host, *port).await;
        let listener = listener.with_context(|| format!("port {port}"))?;
        let bound: SocketAddr = listener.local_addr()?;
        let engine = Arc::new(Engine::new(bound.port(), &args, &behaviour));
        eprintln!("stub-engine: listening on {bound}");
        accepting.spawn(accept(listener, engine, away.clone()));
    }
    if let Some(code) = behaviour.exit_while_loading {
        tokio::time::sleep(Duration::from_millis(behaviour.load_ms)).await;
        eprintln!("stub-engine: exiting with {code} while loading, as asked");
        std::process::exit(code);
    }
    match accepting.join_next().await {
        Some(ended) => Ok(ended??),
        None => Ok(()),
    }
}
