//! The life of a worker: loading, serving, ending.

use std::process::ExitStatus;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use rustix::process::Signal;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use super::launch::{EngineProcess, Launch, save};
use super::{State, Worker, probe};
use crate::callback;
use crate::hive::Hive;
use crate::logs;

const FIRST_POLL: Duration = Duration::from_millis(50);
const SLOWEST_POLL: Duration = Duration::from_millis(500);
/// A port may be taken between the hive's choice and the engine's start.
const PORT_ATTEMPTS: u32 = 3;
/// How long a failed worker stays in the list, so that the queen sees why it failed.
const FAILED_KEPT: Duration = Duration::from_secs(60);
/// The kernel may take a while to end a process that holds much memory.
const KILL_WAIT: Duration = Duration::from_secs(10);
const LAST_LINES: usize = 10;
const LONGEST_REASON: usize = 2048;

/// How a worker's life went on.
enum Turn {
    Ready,
    Exited(Option<ExitStatus>),
    TooSlow,
    AskedToStop,
}

/// Sees a new engine through to its end.
pub(super) async fn load_and_serve(
    hive: Hive,
    worker: Arc<Worker>,
    launch: Launch,
    mut process: EngineProcess,
) {
    let limit = hive.rules().load_timeout.of(worker.plan.model_bytes);
    let deadline = Instant::now() + limit;
    for attempt in 1.. {
        let log = LogFollower::start(&hive, &worker);
        match load(&hive, &worker, &mut process, deadline).await {
            Turn::Ready => {
                become_ready(&hive, &worker).await;
                return serve(&hive, &worker, process, log).await;
            }
            Turn::AskedToStop => return stop(&hive, &worker, process, log).await,
            Turn::TooSlow => {
                kill(&mut process).await;
                log.finish().await;
                let what = format!("engine did not load the model within {limit:.0?}");
                return fail(&hive, &worker, None, &what);
            }
            Turn::Exited(status) => {
                process.signal(Signal::KILL);
                log.finish().await;
                let what = format!("engine {} while loading the model", describe(status));
                if attempt == PORT_ATTEMPTS || !is_port_taken(&hive, &worker) {
                    return fail(&hive, &worker, status, &what);
                }
                match start_again(&hive, &worker, &launch) {
                    Ok(next) => process = next,
                    Err(error) => return fail(&hive, &worker, status, &error),
                }
            }
        }
    }
}

/// Sees a ready engine through to its end.
pub(super) async fn serve_adopted(hive: Hive, worker: Arc<Worker>, process: EngineProcess) {
    let log = LogFollower::start(&hive, &worker);
    become_ready(&hive, &worker).await;
    serve(&hive, &worker, process, log).await;
}

async fn load(
    hive: &Hive,
    worker: &Worker,
    process: &mut EngineProcess,
    deadline: Instant,
) -> Turn {
    let healthy = async {
        let mut pause = FIRST_POLL;
        while !probe::is_healthy(hive, worker).await {
            sleep(pause).await;
            pause = (pause * 5 / 4).min(SLOWEST_POLL);
        }
    };
    tokio::select! {
        biased;
        status = process.exited() => return Turn::Exited(status),
        () = asked_to_stop(worker) => return Turn::AskedToStop,
        () = sleep_until(deadline) => return Turn::TooSlow,
        () = healthy => {}
    }
    // Someone else may have taken the port and answered for an engine that is gone.
    match process.id().is_alive() {
        true => Turn::Ready,
        false => Turn::Exited(process.exited().await),
    }
}

async fn become_ready(hive: &Hive, worker: &Worker) {
    let slots = probe::total_slots(hive, worker).await;
    worker.set_ready(slots.unwrap_or(worker.now().slots_total));
    let now = worker.now();
    if now.state == State::Ready {
        save(hive, worker);
        tracing::info!(
            slots = now.slots_total,
            model = worker.plan.model_ref,
            "worker ready"
        );
        callback::ready(hive, worker);
    }
}

async fn serve(hive: &Hive, worker: &Arc<Worker>, mut process: EngineProcess, log: LogFollower) {
    tokio::select! {
        biased;
        () = asked_to_stop(worker) => stop(hive, worker, process, log).await,
        status = process.exited() => {
            process.signal(Signal::KILL);
            log.finish().await;
            fail(hive, worker, status, &format!("engine {}", describe(status)));
        }
    }
}

async fn stop(hive: &Hive, worker: &Arc<Worker>, mut process: EngineProcess, log: LogFollower) {
    let mut stop = worker.stop.subscribe();
    process.signal(Signal::TERM);
    loop {
        let until = stop.borrow_and_update().unwrap_or_else(Instant::now);
        tokio::select! {
            _ = process.exited() => break,
            () = sleep_until(until) => break,
            _ = stop.changed() => {}
        }
    }
    kill(&mut process).await;
    log.finish().await;
    hive.state_dir.remove(&worker.id);
    forget(hive, worker);
    tracing::info!("worker stopped");
}

/// Ends what is left of the engine and its children.
async fn kill(process: &mut EngineProcess) {
    process.signal(Signal::KILL);
    if timeout(KILL_WAIT, process.exited()).await.is_err() {
        tracing::error!(pid = process.id().pid, "the engine can't be killed");
    }
}

fn fail(hive: &Hive, worker: &Arc<Worker>, status: Option<ExitStatus>, what: &str) {
    let reason = with_last_lines(hive, worker, what);
    tracing::warn!(reason, "worker failed");
    hive.state_dir.remove(&worker.id);
    worker.set_failed(reason.clone());
    hive.registry.failures.fetch_add(1, Relaxed);
    callback::failed(
        hive,
        worker,
        status.and_then(|status| status.code()),
        &reason,
    );
    let (hive, worker) = (hive.clone(), worker.clone());
    hive.clone().tasks.spawn(async move {
        let kept = sleep(FAILED_KEPT);
        hive.stopping.run_until_cancelled(kept).await;
        forget(&hive, &worker);
    });
}

/// Takes a worker that is gone out of the list.
pub(crate) fn forget(hive: &Hive, worker: &Arc<Worker>) {
    if hive.registry.remove(worker) {
        hive.book.forget(&worker.id);
        let living = hive.registry.all().into_iter();
        hive.state_dir
            .prune_logs(living.map(|worker| worker.id.clone()));
    }
}

fn start_again(hive: &Hive, worker: &Worker, launch: &Launch) -> Result<EngineProcess, String> {
    let port = hive.free_port().map_err(|error| error.message)?;
    tracing::warn!(
        port,
        "the engine's port was taken; starting it on another one"
    );
    let started = launch.start(hive, worker, port);
    started.map_err(|error| error.message)
}

async fn asked_to_stop(worker: &Worker) {
    let mut stop = worker.stop.subscribe();
    // The sender lives as long as the worker.
    let _ = stop.wait_for(Option::is_some).await;
}

fn is_port_taken(hive: &Hive, worker: &Worker) -> bool {
    const SIGNS: [&str; 4] = [
        "address already in use",
        "address in use",
        "couldn't bind",
        "eaddrinuse",
    ];
    let lines = hive.book.tail(Some(&worker.id), 50);
    lines.iter().any(|line| {
        let line = line.text.to_lowercase();
        SIGNS.iter().any(|sign| line.contains(sign))
    })
}

fn describe(status: Option<ExitStatus>) -> String {
    use std::os::unix::process::ExitStatusExt;
    match status.map(|status| (status.code(), status.signal())) {
        Some((Some(code), _)) => format!("exited with code {code}"),
        Some((None, Some(signal))) => format!("was killed by signal {signal}"),
        _ => "is gone".into(),
    }
}

fn with_last_lines(hive: &Hive, worker: &Worker, what: &str) -> String {
    let mut reason = what.to_owned();
    for line in hive.book.tail(Some(&worker.id), LAST_LINES) {
        reason.push('\n');
        reason.push_str(&line.text);
    }
    let end = reason.floor_char_boundary(LONGEST_REASON);
    reason.truncate(end);
    reason
}

/// Copies the engine's output into the book while the engine runs.
struct LogFollower {
    task: JoinHandle<()>,
    end: CancellationToken,
}

impl LogFollower {
    fn start(hive: &Hive, worker: &Worker) -> Self {
        let end = CancellationToken::new();
        let path = hive.state_dir.log_path(&worker.id);
        let secret = worker.now().api_key.map(|key| key.expose().to_owned());
        let source = logs::Source {
            path,
            worker: worker.id.clone(),
            secret,
        };
        let follow = logs::follow(source, hive.book.clone(), end.clone());
        LogFollower {
            task: tokio::spawn(follow),
            end,
        }
    }

    /// Returns once the engine's last words are in the book.
    async fn finish(self) {
        self.end.cancel();
        let _ = self.task.await;
    }
}
