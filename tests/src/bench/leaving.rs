//! How soon what nobody waits for is let go, and how soon clients hear that an engine died.
//!
//! Client and engine read the same clock (`CLOCK_MONOTONIC`), the engine in its journal.

use super::shape::Found;
use super::target::{ONE_SLOT, Programs, Stage, Target};
use crate::clock::monotonic_ns;
use crate::harness::{Client, StubClient, raw, until};
use crate::load::Hist;
use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use std::io::{ErrorKind, Read};
use std::net::TcpStream;
use std::thread;
use std::time::Duration;

const CHAT: &str = "/v1/chat/completions";

/// Longer than anything that is waited for here.
const LONGEST: Duration = Duration::from_secs(10);

/// Streams that one engine's death ends.
const STREAMS_A_DEATH: usize = 10;

/// Where a request is when its client leaves.
#[derive(Clone, Copy)]
enum Phase {
    BeforeHeaders,
    BeforeToken,
    Midstream,
}

impl Phase {
    const ALL: [(Phase, &'static str); 3] = [
        (Phase::BeforeHeaders, "before_headers_us"),
        (Phase::BeforeToken, "before_token_us"),
        (Phase::Midstream, "midstream_us"),
    ];

    /// How the engine has to be for a request to stay in this phase.
    fn pace(self) -> &'static str {
        match self {
            Phase::BeforeHeaders | Phase::BeforeToken => "ttft_ms=60000&itl_ms=0",
            Phase::Midstream => "ttft_ms=0&itl_ms=60000",
        }
    }

    fn streams(self) -> bool {
        !matches!(self, Phase::BeforeHeaders)
    }

    /// What the client has read by then.
    fn has_read(self) -> &'static str {
        match self {
            Phase::BeforeHeaders => "",
            Phase::BeforeToken => "\r\n\r\n",
            Phase::Midstream => "t0@",
        }
    }
}

/// `times` of everything that can be measured of the target, as a report of histograms.
pub(super) fn measure(programs: &Programs, target: Target, times: usize) -> Result<Found> {
    let mut report = json!({});
    let mut problems = Vec::new();
    let mut stage = Stage::start(programs, target, &["--journal"])?;
    for (phase, name) in Phase::ALL {
        report[name] = leave(&mut stage, phase, times).context(name)?.json();
    }
    // Only the queen has a queue.
    if target == Target::Queen {
        report["queued_us"] = leave_queue(&mut stage, times).context("queued")?.json();
    }
    problems.extend(stage.casualties());
    drop(stage);
    let mut deaths = Hist::new();
    for _ in 0..times.div_ceil(STREAMS_A_DEATH) {
        let stage = Stage::start(programs, target, &["--itl-ms", "60000"])?;
        for death in die(stage).context("death")? {
            deaths.add(death.after);
            if target == Target::Queen && !death.told {
                problems.push("a stream broke off without an error event".into());
            }
        }
    }
    report["death_us"] = deaths.json();
    Ok(Found { report, problems })
}

fn since(before_ns: u64, after_ns: u64) -> Duration {
    Duration::from_nanos(after_ns.saturating_sub(before_ns))
}

fn chat(stage: &Stage, stream: bool) -> Value {
    json!({"model": stage.model, "messages": [{"role": "user", "content": "x"}],
           "max_tokens": 4, "stream": stream})
}

/// Sends a request and reads until `text` is there.
fn open(client: &Client, path: &str, body: &Value, text: &str) -> Result<(TcpStream, String)> {
    let mut connection = raw::post(client, path, &[], &body.to_string())?;
    let mut all = String::new();
    let mut piece = [0; 4096];
    while !all.contains(text) {
        let n = connection.read(&mut piece)?;
        ensure!(n > 0, "no {text:?} in {all:?}");
        all += &String::from_utf8_lossy(&piece[..n]);
    }
    Ok((connection, all))
}

/// From a client's leaving to the engine seeing its own connection closed.
fn leave(stage: &mut Stage, phase: Phase, times: usize) -> Result<Hist> {
    let client = Client::new(&stage.url);
    let body = chat(stage, phase.streams());
    let engine: &StubClient = stage.engine();
    engine.control(phase.pace())?;
    let mut hist = Hist::new();
    for _ in 0..times {
        let (_, next) = engine.journal(0)?;
        let (connection, _) = open(&client, CHAT, &body, phase.has_read())?;
        let noted = |what: &str| {
            let entries = || engine.journal(next).ok();
            let is_it = |what: &str| entries()?.0.into_iter().find(|noted| noted.what == what);
            until(LONGEST, || is_it(what)).with_context(|| format!("never {what}"))
        };
        noted("arrived")?;
        let left = monotonic_ns();
        drop(connection);
        hist.add(since(left, noted("closed")?.at_ns));
    }
    Ok(hist)
}

/// From a waiting client's leaving to its task being told as cancelled.
fn leave_queue(stage: &mut Stage, times: usize) -> Result<Hist> {
    stage.add_one_slot()?;
    stage.engine().control(Phase::Midstream.pace())?;
    let client = Client::new(&stage.url);
    let task = json!({"model": ONE_SLOT, "prompt": "x", "max_tokens": 4});
    let (_holder, _) = open(&client, "/v2/tasks", &task, "t0@")?;
    let mut hist = Hist::new();
    for _ in 0..times {
        let (connection, said) = open(&client, "/v2/tasks", &task, "\"type\":\"queued\"")?;
        let job_id = said.split("\"job_id\":\"").nth(1);
        let job_id = job_id.and_then(|rest| rest.split('"').next());
        let path = format!("/v2/tasks/{}", job_id.context("an event names its job")?);
        let left = monotonic_ns();
        drop(connection);
        hist.add(cancelled_after(&client, &path, left)?);
    }
    Ok(hist)
}

/// Asks without a pause, as that would be in the result.
fn cancelled_after(client: &Client, path: &str, left: u64) -> Result<Duration> {
    loop {
        let task = client.get(path)?.json();
        let waited = since(left, monotonic_ns());
        if task["state"] == "cancelled" {
            return Ok(waited);
        }
        ensure!(waited < LONGEST, "never cancelled: {task}");
    }
}

/// How a stream ended whose engine died.
struct Death {
    after: Duration,
    /// Whether an error event said so
    told: bool,
}

/// Kills the engine under its streams.
fn die(mut stage: Stage) -> Result<Vec<Death>> {
    let client = Client::new(&stage.url);
    let body = chat(&stage, true);
    let mut open_streams = Vec::new();
    for _ in 0..STREAMS_A_DEATH {
        open_streams.push(open(&client, CHAT, &body, "t0@")?.0);
    }
    thread::scope(|scope| {
        let reading: Vec<_> = open_streams
            .into_iter()
            .map(|stream| scope.spawn(|| read_to_the_end(stream)))
            .collect();
        let died = monotonic_ns();
        stage.engine().daemon().kill();
        let ended = reading.into_iter().map(|reader| match reader.join() {
            Ok(ended) => {
                let (at_ns, told) = ended?;
                let after = since(died, at_ns);
                Ok(Death { after, told })
            }
            Err(_) => bail!("a reader panicked"),
        });
        ended.collect()
    })
}

/// When the stream's ending was there, and whether it was an error event.
fn read_to_the_end(mut stream: TcpStream) -> Result<(u64, bool)> {
    let mut all = String::new();
    let mut piece = [0; 4096];
    loop {
        let read = stream.read(&mut piece);
        let now = monotonic_ns();
        match read {
            Ok(0) => return Ok((now, false)),
            Ok(n) => all += &String::from_utf8_lossy(&piece[..n]),
            Err(e) if e.kind() == ErrorKind::ConnectionReset => return Ok((now, false)),
            Err(e) => return Err(e.into()),
        }
        if all.contains("\"error\":{") && all.ends_with('\n') {
            return Ok((now, true));
        }
    }
}
