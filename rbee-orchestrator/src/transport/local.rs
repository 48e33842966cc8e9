//! Hives on this machine: child processes that may outlive the queen.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::Mutex;
use std::time::Duration;

use async_trait::async_trait;
use tokio::process::{Child, Command};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::process::{ProcessId, kill_group_of_child};
use super::{HiveCommand, HiveStream, HiveTransport, Preflight, connect_tcp, own_trouble};
use super::{log_file, ports, probe, program};
use crate::domain::{HiveProcess, Reach};
use crate::error::{Code, Error, Result};

const HOST: &str = "127.0.0.1";
/// How often a port that another process grabbed is given up for the next one.
const PORT_CLASHES: usize = 5;
/// Where nothing tells who listens on a port, the child must live on for this long after the first
/// healthy answer: a child that lost its port to another hive exits meanwhile.
const SETTLE: Duration = Duration::from_secs(2);
/// How long a hive that never got healthy may clean up.
const FAILED_GRACE: Duration = Duration::from_secs(2);
const POLL: Duration = Duration::from_millis(50);
/// How long a process may take to vanish after SIGKILL.
const KILL_TIMEOUT: Duration = Duration::from_secs(10);
/// Lines of a hive's output in an error.
const ERROR_LINES: usize = 20;

/// Starts hives as child processes, each in its own process group, with their output in a file.
/// Dropping it stops none of them.
#[derive(Debug, Default)]
pub struct LocalTransport {
    /// More variables of this process that its hives get.
    pass_env: Vec<String>,
    /// Tasks that wait for children, so that none stays a zombie. They end with this transport.
    reapers: Mutex<JoinSet<()>>,
}

/// How an attempt to start ended.
enum Attempt {
    Healthy(HiveProcess),
    /// Another process has the port.
    PortTaken,
}

impl LocalTransport {
    /// A transport without any children.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Gives hives these variables of this process too. Without it they get those that they and their
    /// engines need to run and to fetch models; `QUEEN_…` they never get.
    #[must_use]
    pub fn passing(mut self, names: Vec<String>) -> Self {
        self.pass_env = names;
        self
    }

    async fn start_on(
        &self,
        port: u16,
        program: &Path,
        command: &HiveCommand,
        deadline: Instant,
    ) -> Result<Attempt> {
        let arguments = program::arguments(command, HOST, port)?;
        let log = OpenLog::open(&command.log_file).await?;
        let mut builder = program::in_its_environment(program, &self.pass_env);
        builder
            .args(arguments)
            .envs(command.env.iter().map(|(name, value)| (name, value)));
        let mut child = Starting::spawn(program, builder, &log)?;
        let process = child.id()?;
        tracing::info!(port, pid = process.pid, program = %program.display(), "hive started");

        let settled = async {
            wait_for_health(self, port).await;
            let served = move || ports::is_served_by_group(port, process.pid);
            if !blocking(served).await {
                tokio::time::sleep(SETTLE).await;
            }
        };
        let problem = tokio::select! {
            biased;
            status = child.wait() => {
                // What it started must not keep the log or a port.
                kill_group_of_child(process.pid);
                let failed = !status.as_ref().is_ok_and(ExitStatus::success);
                if failed && blocking(move || ports::is_taken(port)).await {
                    return Ok(Attempt::PortTaken);
                }
                format!("exited with {} before its health check answered", shown(status))
            }
            () = settled => {
                self.reap(child.healthy(), process.pid);
                return Ok(Attempt::Healthy(HiveProcess {
                    port,
                    pid: Some(process.pid),
                    pid_start_time: Some(process.start_time),
                    started_by_queen: true,
                }));
            }
            () = tokio::time::sleep_until(deadline) => {
                let limit = command.start_timeout;
                format!("did not answer its health check on port {port} within {limit:?}")
            }
        };
        // Before the log is read: the child's last words shall be in it.
        child.end(process).await;
        Err(log.error(program, &problem).await)
    }

    fn reap(&self, mut child: Child, pid: u32) {
        let mut reapers = self
            .reapers
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        while reapers.try_join_next().is_some() {}
        reapers.spawn(async move {
            let status = shown(child.wait().await);
            tracing::info!(pid, status, "hive's process ended");
        });
    }
}

#[async_trait]
impl HiveTransport for LocalTransport {
    fn host(&self) -> &str {
        HOST
    }

    async fn preflight(&self, command: &HiveCommand) -> Result<Preflight> {
        program::version(find(command).await?, &self.pass_env).await
    }

    async fn start(&self, command: &HiveCommand) -> Result<HiveProcess> {
        let deadline = Instant::now() + command.start_timeout;
        let program = find(command).await?;
        let mut port = command.port;
        for _ in 0..PORT_CLASHES {
            let from = port;
            port = blocking(move || ports::first_free(from)).await?;
            match self.start_on(port, &program, command, deadline).await? {
                Attempt::Healthy(process) => return Ok(process),
                Attempt::PortTaken => {
                    tracing::info!(
                        port,
                        "another process took the hive's port; trying the next"
                    );
                    port = port.saturating_add(1);
                }
            }
        }
        Err(Error::new(
            Code::HiveUnreachable,
            format!(
                "hive {} lost its port to another process {PORT_CLASHES} times; set a free one \
                 in [hives]",
                program.display()
            ),
        ))
    }

    async fn stop(&self, process: &HiveProcess, grace: Duration) -> Result<()> {
        let Some(process) = process_id(process)? else {
            return Ok(());
        };
        blocking(move || process.terminate()).await?;
        if ends_within(process, grace).await {
            return Ok(());
        }
        tracing::warn!(
            pid = process.pid,
            ?grace,
            "a hive ignored SIGTERM and is killed"
        );
        blocking(move || process.kill()).await?;
        match ends_within(process, KILL_TIMEOUT).await {
            true => Ok(()),
            false => Err(Error::new(
                Code::Timeout,
                format!(
                    "process {} lives on after SIGKILL; is its disk stuck?",
                    process.pid
                ),
            )),
        }
    }

    async fn is_running(&self, process: &HiveProcess) -> Result<bool> {
        match (process.pid, process.pid_start_time) {
            (Some(pid), Some(start_time)) => {
                let process = ProcessId { pid, start_time };
                Ok(blocking(move || process.is_running()).await)
            }
            _ => {
                let port = process.port;
                Ok(blocking(move || ports::is_taken(port)).await)
            }
        }
    }

    async fn logs(&self, log_file: &Path, lines: usize) -> Result<Vec<String>> {
        let path = log_file.to_path_buf();
        let read = blocking(move || log_file::tail(&path, 0, lines)).await;
        read.map_err(|error| {
            let path = log_file.display();
            Error::new(
                Code::HiveUnreachable,
                format!("the hive's log {path}: {error}"),
            )
        })
    }

    async fn may_be_ours(&self, port: u16) -> Result<bool> {
        Ok(blocking(move || ports::is_served_by_own_user(port)).await)
    }

    async fn connect(&self, port: u16) -> std::io::Result<Box<dyn HiveStream>> {
        connect_tcp(HOST, port, &Reach::default()).await
    }
}

/// A child that is not known to be healthy. Dropping it kills it and its group.
struct Starting(Option<Child>);

impl Starting {
    fn spawn(program: &Path, mut command: Command, log: &OpenLog) -> Result<Self> {
        let failed = |error: std::io::Error| {
            let program = program.display();
            let message = format!("hive {program} can't be run: {error}");
            own_trouble(&error).unwrap_or_else(|| Error::new(Code::HiveUnreachable, message))
        };
        command
            .stdout(log.file.try_clone().map_err(failed)?)
            .stderr(log.file.try_clone().map_err(failed)?);
        let child = command.spawn().map_err(failed)?;
        Ok(Starting(Some(child)))
    }

    fn child(&mut self) -> &mut Child {
        self.0.as_mut().expect("it is taken out only by value")
    }

    fn id(&mut self) -> Result<ProcessId> {
        let pid = self.child().id();
        // A zombie has no id any more: it has exited at once.
        let id = pid.map(|pid| ProcessId::of(pid).unwrap_or(ProcessId { pid, start_time: 0 }));
        id.ok_or_else(|| Error::internal("a child has no pid before it was waited for"))
    }

    async fn wait(&mut self) -> std::io::Result<ExitStatus> {
        self.child().wait().await
    }

    /// Lets it clean up for a moment, then kills it and its group.
    async fn end(mut self, process: ProcessId) {
        if let Err(error) = blocking(move || process.terminate()).await {
            tracing::debug!(%error, "a failed hive got no SIGTERM");
        }
        let _ = tokio::time::timeout(FAILED_GRACE, self.wait()).await;
        kill_group_of_child(process.pid);
        let _ = tokio::time::timeout(KILL_TIMEOUT, self.wait()).await;
    }

    fn healthy(mut self) -> Child {
        self.0.take().expect("it is taken out only here")
    }
}

impl Drop for Starting {
    fn drop(&mut self) {
        // Without a pid it has exited and was waited for.
        if let Some(pid) = self.0.as_ref().and_then(Child::id) {
            kill_group_of_child(pid);
        }
    }
}

/// A hive's log, and where in it this start begins.
struct OpenLog {
    path: PathBuf,
    file: File,
    begin: u64,
}

impl OpenLog {
    async fn open(path: &Path) -> Result<Self> {
        let path = path.to_path_buf();
        let shown = path.display().to_string();
        let opened = blocking(move || {
            let file = log_file::open(&path)?;
            let begin = file.metadata()?.len();
            Ok::<_, std::io::Error>(OpenLog { path, file, begin })
        });
        opened.await.map_err(|error| {
            Error::new(
                Code::HiveUnreachable,
                format!("the hive's log {shown} can't be written: {error}; set log_dir in [hives]"),
            )
        })
    }

    /// What went wrong with a start, with the output of that start.
    async fn error(&self, program: &Path, problem: &str) -> Error {
        let (path, begin) = (self.path.clone(), self.begin);
        let read = blocking(move || log_file::tail(&path, begin, ERROR_LINES)).await;
        let lines = read.unwrap_or_default();
        let output = match lines.is_empty() {
            true => "it wrote nothing".to_owned(),
            false => format!("its last output:\n{}", lines.join("\n")),
        };
        let (program, log) = (program.display(), self.path.display());
        Error::new(
            Code::HiveUnreachable,
            format!("hive {program} {problem}; {output}\n(log: {log})"),
        )
        .detail("log_lines", lines)
    }
}

/// The process that may be signalled; `None` when nothing runs there.
fn process_id(process: &HiveProcess) -> Result<Option<ProcessId>> {
    match (process.pid, process.pid_start_time) {
        (None, _) => Ok(None),
        (Some(pid), Some(start_time)) => Ok(Some(ProcessId { pid, start_time })),
        (Some(pid), None) => Err(Error::new(
            Code::Conflict,
            format!("process {pid} may be another one by now: when it started is not known"),
        )),
    }
}

async fn wait_for_health(transport: &LocalTransport, port: u16) {
    while !probe::answers_health(transport, port).await {
        tokio::time::sleep(POLL).await;
    }
}

async fn ends_within(process: ProcessId, limit: Duration) -> bool {
    let ended = async {
        while blocking(move || process.is_running()).await {
            tokio::time::sleep(POLL).await;
        }
    };
    tokio::time::timeout(limit, ended).await.is_ok()
}

async fn find(command: &HiveCommand) -> Result<PathBuf> {
    let command = command.clone();
    blocking(move || program::find(&command)).await
}

fn shown(status: std::io::Result<ExitStatus>) -> String {
    match status {
        Ok(status) => status.to_string(),
        Err(error) => format!("an unknown status ({error})"),
    }
}

/// Runs what blocks on a thread that may block.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(value) => value,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // The runtime goes down, and this future with it.
            Err(_) => std::future::pending().await,
        },
    }
}
