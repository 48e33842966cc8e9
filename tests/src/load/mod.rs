//! A load generator for endpoints served by the stub engine, directly or through a proxy. One
//! thread, one pool of HTTP/1.1 keep-alive connections, one JSON object on stdout.
//!
//! What it counts. The window is what follows `--warmup`: `rps` and `tokens_per_s` count what
//! arrives inside it. Latencies and errors are of the requests that start inside it, whenever they
//! end; those still open `--drain` seconds after it are cut off and counted as `unfinished`.
//! A request has at most one error: the first thing that went wrong with it.

mod check;
mod client;
mod stats;
mod watch;

pub(crate) use stats::Hist;

use anyhow::{Context, Result, bail};
use clap::Parser;
use client::Sender;
use hyper::Uri;
use hyper::header::{HeaderName, HeaderValue};
use memchr::memmem::Finder;
use serde_json::{Value, json};
use stats::{Stats, round};
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;
use tokio::task::{JoinSet, spawn_local};
use tokio::time::{Instant, sleep, sleep_until, timeout_at};
use watch::{Watched, watch};

/// The command line.
#[derive(Parser, Debug)]
pub struct Args {
    /// Base URL, http://host:port; several are balanced over by this program
    #[arg(long, required = true, value_delimiter = ',')]
    url: Vec<Uri>,
    /// How to choose among several URLs
    #[arg(long, default_value = "rr", value_parser = ["rr", "least"])]
    balance: String,
    #[arg(long, default_value = "/v1/chat/completions")]
    path: String,
    /// Requests in flight (closed loop); with --rate, the most there may be
    #[arg(long, default_value_t = 1)]
    concurrency: usize,
    /// Stop after this many requests (no warm-up then)
    #[arg(
        long,
        conflicts_with = "duration",
        required_unless_present = "duration"
    )]
    requests: Option<u64>,
    /// Seconds measured, after the warm-up
    #[arg(long)]
    duration: Option<f64>,
    #[arg(long, default_value_t = 0.0)]
    warmup: f64,
    /// Open loop: this many requests start per second, and latency counts from the planned start
    /// (this program's own timer is up to 1 ms late: start_lag_us)
    #[arg(long)]
    rate: Option<f64>,
    /// Spread the first --concurrency starts over this time, so that streams are not in step
    #[arg(long, default_value_t = 0.0)]
    ramp_ms: f64,
    #[arg(long)]
    stream: bool,
    #[arg(long, default_value = "stub-model")]
    model: String,
    /// Tokens asked for (max_tokens) and expected
    #[arg(long, default_value_t = 16)]
    tokens: u64,
    #[arg(long, default_value_t = 32)]
    prompt_bytes: usize,
    /// K:V, any number of them
    #[arg(long)]
    header: Vec<String>,
    /// Seconds a request may take
    #[arg(long, default_value_t = 60.0)]
    timeout: f64,
    /// Seconds to wait for open requests after the window
    #[arg(long, default_value_t = 10.0)]
    drain: f64,
    /// NAME=PID: report CPU and memory of this process and its descendants (needs --duration)
    #[arg(long, value_delimiter = ',')]
    watch: Vec<String>,
}

/// A URL and its idle connections, most recently used last.
struct Target {
    authority: String,
    host: HeaderValue,
    idle: RefCell<Vec<Sender>>,
    in_flight: Cell<u64>,
}

struct Run {
    args: Args,
    path: Uri,
    targets: Vec<Target>,
    turn: Cell<usize>,
    headers: Vec<(HeaderName, HeaderValue)>,
    /// What stands around the number that begins the prompt and tells requests apart.
    body: (Vec<u8>, Vec<u8>),
    sent: Cell<u64>,
    /// The JSON key that the text stands under
    key: Finder<'static>,
    stats: RefCell<Stats>,
    begin: Instant,
    from: Instant,
    to: Option<Instant>,
}

impl Run {
    fn new(args: Args) -> Result<Self> {
        let begin = Instant::now();
        let warmup = match args.requests {
            Some(_) => 0.0,
            None => args.warmup,
        };
        let from = begin + Duration::from_secs_f64(warmup);
        Ok(Run {
            path: args.path.parse().context("--path")?,
            targets: args.url.iter().map(target).collect::<Result<_>>()?,
            turn: Cell::new(0),
            headers: args
                .header
                .iter()
                .map(|h| header(h))
                .collect::<Result<_>>()?,
            body: body(&args),
            sent: Cell::new(0),
            key: Finder::new(text_key(&args.path)),
            stats: RefCell::new(Stats::new(begin)),
            begin,
            from,
            to: args.duration.map(|d| from + Duration::from_secs_f64(d)),
            args,
        })
    }

    fn is_in_window(&self, at: Instant) -> bool {
        at >= self.from && self.to.is_none_or(|to| at < to)
    }

    fn is_over(&self, now: Instant) -> bool {
        self.to.is_some_and(|to| now >= to)
    }

    fn pick(&self) -> &Target {
        let n = self.targets.len();
        let turn = self.turn.get();
        self.turn.set((turn + 1) % n);
        if self.args.balance == "rr" {
            return &self.targets[turn];
        }
        let order = (0..n).map(|i| &self.targets[(turn + i) % n]);
        let least = order.min_by_key(|t| t.in_flight.get());
        least.unwrap_or(&self.targets[turn])
    }

    /// One request, from `start` (planned, in the open loop) to its entry in the statistics.
    async fn one(self: Rc<Self>, start: Instant) {
        let measured = self.is_in_window(start);
        self.stats.borrow_mut().requests += u64::from(measured);
        let target = self.pick();
        target.in_flight.set(target.in_flight.get() + 1);
        let drain = Duration::from_secs_f64(self.args.drain);
        let cut = self.to.map(|to| to + drain);
        let limit = Instant::now() + Duration::from_secs_f64(self.args.timeout);
        let until = cut.map_or(limit, |cut| cut.min(limit));
        let outcome = timeout_at(until, self.exchange(target, start)).await;
        target.in_flight.set(target.in_flight.get() - 1);
        let stats = &mut *self.stats.borrow_mut();
        stats.last = Instant::now();
        let kind = match outcome {
            Ok(Ok(())) => {
                stats.ok += u64::from(measured);
                return;
            }
            Err(_) if until < limit => {
                stats.unfinished += u64::from(measured);
                stats.warmup_unfinished += u64::from(!measured);
                return;
            }
            Err(_) => "timeout".into(),
            Ok(Err(kind)) => kind,
        };
        if measured {
            *stats.errors.entry(kind).or_default() += 1;
        } else {
            stats.warmup_errors += 1;
        }
    }

    async fn closed_loop(self: &Rc<Self>) {
        let left = Rc::new(Cell::new(self.args.requests.unwrap_or(u64::MAX)));
        let mut clients = JoinSet::new();
        for i in 0..self.args.concurrency {
            let (run, left) = (self.clone(), left.clone());
            let wait_ms = self.args.ramp_ms * i as f64 / self.args.concurrency as f64;
            clients.spawn_local(async move {
                sleep_until(run.begin + Duration::from_secs_f64(wait_ms / 1e3)).await;
                while left.get() > 0 && !run.is_over(Instant::now()) {
                    left.set(left.get() - 1);
                    let before = run.stats.borrow().all_errors();
                    run.clone().one(Instant::now()).await;
                    let after = run.stats.borrow().all_errors();
                    if after > before {
                        sleep(Duration::from_millis(1)).await; // no spinning on a dead target
                    }
                }
            });
        }
        clients.join_all().await;
    }

    async fn open_loop(self: &Rc<Self>, rate: f64) {
        let mut requests = JoinSet::new();
        for i in 0..self.args.requests.unwrap_or(u64::MAX) {
            let planned = self.begin + Duration::from_secs_f64(i as f64 / rate);
            if self.is_over(planned) {
                break;
            }
            sleep_until(planned).await;
            let lag = Instant::now().saturating_duration_since(planned);
            self.stats.borrow_mut().lag.add(lag);
            while requests.try_join_next().is_some() {}
            if requests.len() >= self.args.concurrency {
                self.stats.borrow_mut().shed += 1;
                continue;
            }
            requests.spawn_local(self.clone().one(planned));
        }
        requests.join_all().await;
    }

    fn report(&self, used: Value) -> Value {
        let stats = self.stats.borrow();
        let end = self.to.unwrap_or(stats.last);
        let window = end.duration_since(self.from).as_secs_f64();
        let mut out = stats.json(window);
        let args = &self.args;
        out["concurrency"] = args.concurrency.into();
        out["rate"] = json!(args.rate);
        out["stream"] = args.stream.into();
        out["tokens"] = args.tokens.into();
        out["window_s"] = json!(round(window, 3));
        out["elapsed_s"] = json!(round(self.begin.elapsed().as_secs_f64(), 2));
        out["use"] = used;
        out
    }
}

fn target(uri: &Uri) -> Result<Target> {
    let authority = uri.authority().with_context(|| format!("--url {uri}"))?;
    Ok(Target {
        authority: authority.to_string(),
        host: authority.as_str().parse()?,
        idle: RefCell::default(),
        in_flight: Cell::new(0),
    })
}

fn header(pair: &str) -> Result<(HeaderName, HeaderValue)> {
    let Some((key, value)) = pair.split_once(':') else {
        bail!("--header {pair}: no colon");
    };
    Ok((key.trim().try_into()?, value.trim().try_into()?))
}

fn text_key(path: &str) -> &'static str {
    match path {
        "/v1/completions" => r#""text""#,
        "/v1/execute" | "/v1/inference" | "/v2/tasks" => r#""t""#,
        _ => r#""content""#,
    }
}

fn body(args: &Args) -> (Vec<u8>, Vec<u8>) {
    const MARK: &str = "NUMBER";
    let prompt = format!("{MARK} {}", "x".repeat(args.prompt_bytes));
    let mut body = json!({"model": args.model, "max_tokens": args.tokens, "stream": args.stream});
    if args.path.ends_with("/chat/completions") {
        body["messages"] = json!([{"role": "user", "content": prompt}]);
    } else {
        body["prompt"] = prompt.into();
        body["job_id"] = "load".into();
    }
    let body = body.to_string();
    let (before, after) = body.split_once(MARK).expect("the prompt holds the mark");
    (before.into(), after.into())
}

/// Runs the load and returns the report.
///
/// # Errors
/// What is wrong with the arguments. What goes wrong with requests is in the report.
pub async fn run(args: Args) -> Result<Value> {
    let mut watched = vec![Watched {
        name: "load".into(),
        pid: std::process::id(),
    }];
    for pair in &args.watch {
        let (name, pid) = pair.split_once('=').context("--watch NAME=PID")?;
        watched.push(Watched {
            name: name.into(),
            pid: pid.parse().context("--watch NAME=PID")?,
        });
    }
    let run = Rc::new(Run::new(args)?);
    let watching = spawn_local(watch(run.clone(), watched));
    match run.args.rate {
        Some(rate) => run.open_loop(rate).await,
        None => run.closed_loop().await,
    }
    // Without a fixed window the watcher would not know when to stop.
    let used = match run.to {
        Some(_) => watching.await.context("the watcher")?,
        None => Value::Null,
    };
    Ok(run.report(used))
}
