//! `make chaos`: a queen under load from several clients, killed with SIGKILL at each of the steps
//! that durability hangs on and at any time between, and started again on the same database. In the
//! lives that end at any time her worker refuses what it is given for a while, and her clock jumps by days;
//! and every so often her only worker is away, over several of her lives.
//! Tasks come as prompts and as messages that are nested as deep as can be.
//!
//! What is promised is judged by what the clients wrote down and what the HTTP API says in the
//! end. The seed decides who does what and where the queen dies; what meets what is up to the
//! machine.

mod check;
mod client;
mod killer;
mod log;
mod report;
mod stage;
mod weather;

use crate::harness::{Client, Home, Launch, StubEngine, first_database, ports, until};
use crate::random::Random;
use crate::token::now_us;
use anyhow::{Context, Result, ensure};
use clap::Parser;
use client::{TENANTS, Visitor};
use killer::Kills;
use log::{Evidence, Task, UsageRow};
use report::Report;
use serde::Deserialize;
use serde_json::{Value, json};
use stage::Stage;
use std::thread;
use std::time::{Duration, Instant};
use weather::Weather;

/// Kills the queen again and again, and checks that she keeps her promises.
#[derive(Parser, Debug, Clone)]
pub struct Args {
    /// How often she is killed
    #[arg(long, default_value_t = 200)]
    pub kills: usize,
    /// Decides what happens; a run says which it had
    #[arg(long)]
    pub seed: Option<u64>,
    /// After that many minutes she is not killed any more
    #[arg(long, default_value_t = 20.0)]
    pub minutes: f64,
    /// Clients of each kind: some submit, some stream, some read along
    #[arg(long, default_value_t = 2)]
    pub clients: u64,
}

const MODEL: &str = "file:chaos";

/// Requests that the worker computes at once.
const SLOTS: usize = 8;

/// Jobs of the old database for each death in the middle of a purge: more than a purge deletes in
/// one step, so that some are left for the next life.
const OLD_JOBS: usize = 1000;

/// How long the last tasks may take to end when nobody kills any more.
const SETTLING: Duration = Duration::from_secs(60);

/// Every line of the queen's configuration: what is tried again is so soon, what is old is purged soon.
fn configured<'h>(home: &'h Home, stub: &StubEngine, port: u16) -> Launch<'h> {
    let mut launch = home.queen().port(port).worker(stub, MODEL, SLOTS);
    for line in [
        "hives.local = false",
        "retry.backoff_first = \"10ms\"",
        "retry.backoff_max = \"100ms\"",
        "retry.budget_ratio = 1.0",
        "retention.interval = \"1s\"",
        "queue.batch_quiet = \"0s\"",
        "hives.check_interval = \"100ms\"",
        "tenants.red.weight = 1",
        "tenants.blue.weight = 2",
    ] {
        launch = launch.config(line);
    }
    launch
}

/// Runs it, and tells what was found.
///
/// # Errors
/// When a promise was broken, the queen ended by herself, or did not come up again.
pub fn run(args: &Args) -> Result<Report> {
    let seed = args.seed.unwrap_or_else(now_us);
    eprintln!("chaos: seed {seed}");
    let mut random = Random::new(seed);
    let lives = killer::plan(args.kills, &mut random);
    let home = Home::new();
    let old_jobs = OLD_JOBS * (1 + killer::purges(args.kills));
    first_database::write(&home.path().join("queen.db"), old_jobs)?;
    // The first token comes at once: readers may have it before the dispatch is on the disk.
    let pace = ["--itl-ms", "4", "--words", "--journal"];
    let stub = home.stub(&pace);
    let port = ports::free()?;
    let weather = Weather::new(&stub, home.path())?;
    let launch = || weather.over(configured(&home, &stub, port));
    let client = Client::new(&format!("http://127.0.0.1:{port}"));
    let stage = Stage::new(client.clone(), random);
    let mut kills = Kills::default();
    let deadline = Instant::now() + Duration::from_secs_f64(args.minutes * 60.0);

    let mut evidence = Evidence::default();
    let queen = thread::scope(|scope| {
        let visitors: Vec<_> = (0..3 * args.clients)
            .map(|number| {
                let visitor = Visitor::new(&stage, number);
                scope.spawn(move || match number % 3 {
                    0 => visitor.submit_and_follow(),
                    1 => visitor.stream(),
                    _ => visitor.read_along(),
                })
            })
            .collect();
        let queen = kills.carry_out(&lives, launch, &weather, deadline);
        stage.close(if queen.is_ok() {
            SETTLING
        } else {
            Duration::ZERO
        });
        for visitor in visitors {
            let visitor = visitor.join().expect("a client does not panic");
            evidence.wishes.extend(visitor.wishes);
            evidence.readings.extend(visitor.readings);
            evidence.complaints.extend(visitor.complaints);
        }
        queen
    })?;
    settle(&client);
    evidence.tasks = tasks(&client)?;
    evidence.usage = usage(&client)?;
    evidence.away_ns.clone_from(&kills.away_ns);
    let violations = check::check(&evidence);
    let (arrivals, _) = stub.journal(0)?;
    let report = Report::new(seed, &kills, &evidence, &arrivals);
    for violation in violations.iter().take(40) {
        eprintln!("chaos: BROKEN: {violation}");
    }
    let n = violations.len();
    ensure!(
        n == 0,
        "{n} promises were broken; seed {seed}\n{report}\nthe queen's last words:\n{}",
        queen.log()
    );
    Ok(report)
}

/// Waits until nothing is open; what still is then, the checker tells.
fn settle(client: &Client) {
    let is_empty = |state: &str| {
        let list = client.get(&format!("/v2/tasks?state={state}&limit=1"));
        list.is_ok_and(|list| list.json()["tasks"] == json!([]))
    };
    let settled = until(SETTLING, || {
        (is_empty("queued") && is_empty("running")).then_some(())
    });
    if settled.is_none() {
        eprintln!("chaos: not everything ended within {SETTLING:?}");
    }
}

/// Every task of the clients, each as it is asked for by its id.
fn tasks(client: &Client) -> Result<Vec<Task>> {
    let mut tasks = Vec::new();
    for tenant in TENANTS {
        let mut after = String::new();
        loop {
            let path = format!("/v2/tasks?tenant={tenant}&limit=500{after}");
            let page = ask(client, &path)?;
            let listed = page["tasks"].as_array().context("a list of tasks")?;
            for task in listed {
                let id = task["job_id"].as_str().context("a task has an id")?;
                tasks.push(Task::read(&ask(client, &format!("/v2/tasks/{id}"))?)?);
            }
            match page["next"].as_str() {
                Some(next) => after = format!("&after={next}"),
                None => break,
            }
        }
    }
    Ok(tasks)
}

fn usage(client: &Client) -> Result<Vec<UsageRow>> {
    #[derive(Deserialize)]
    struct Usage {
        usage: Vec<UsageRow>,
    }
    let mut rows = Vec::new();
    for tenant in TENANTS {
        let told = ask(client, &format!("/v2/usage?tenant={tenant}"))?;
        let told: Usage = serde_json::from_value(told).context("usage")?;
        rows.extend(told.usage);
    }
    Ok(rows)
}

fn ask(client: &Client, path: &str) -> Result<Value> {
    let reply = client.get(path)?;
    ensure!(
        reply.status == 200,
        "{path}: {} {}",
        reply.status,
        reply.text
    );
    Ok(reply.json())
}
