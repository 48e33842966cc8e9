//! A hive's process on another machine: started, found again, stopped, and what it wrote.
//!
//! The machine keeps what the queen needs to know it again: `~/.rbee/run/NAME.pid` with the
//! process's id, its beginning and its port, and `~/.rbee/logs/NAME.log`.

use std::path::Path;
use std::time::Duration;

use tokio::time::Instant;

use super::host::Host;
use super::process::{ProcessId, end_group, first_free, listens, number, runs, stop};
use super::program::Program;
use super::script::{self, unreachable};
use super::{SshTransport, quote};
use crate::domain::HiveProcess;
use crate::error::{Error, Result};
use crate::transport::{HiveCommand, probe, program};

/// How often a port that another process grabbed is given up for the next one.
const PORT_CLASHES: usize = 5;
/// Between two health checks of a hive that starts.
const HEALTH_POLL: Duration = Duration::from_millis(100);
/// Between two looks whether a process runs: each is a command there.
const PROCESS_POLL: Duration = Duration::from_millis(500);
/// How long a hive that never got healthy may clean up.
const FAILED_GRACE: Duration = Duration::from_secs(2);
/// Lines of a hive's output in an error.
const ERROR_LINES: usize = 20;
/// A larger log is put aside at the next start, in bytes.
const ROTATE_ABOVE_BYTES: u64 = 10 << 20;
/// How much of a log's end is looked at for its last lines, in bytes.
const TAIL_BYTES: u64 = 1 << 20;
/// A longer line is cut.
const LONGEST_LINE: usize = 4096;

/// How an attempt to start ended.
enum Attempt {
    Healthy(HiveProcess),
    /// Another process has the port.
    PortTaken,
}

/// The files of a hive there, as words of a script.
struct Files {
    log: String,
    pid: String,
}

impl Files {
    /// Only the name of the queen's own log file counts: the folder is the machine's.
    fn of(log_file: &Path) -> Result<Self> {
        let name = log_file.file_stem().unwrap_or_default().to_string_lossy();
        Ok(Files {
            log: quote::path(&format!(".rbee/logs/{name}.log"))?,
            pid: quote::path(&format!(".rbee/run/{name}.pid"))?,
        })
    }
}

/// Starts a hive.
pub(super) async fn start(transport: &SshTransport, command: &HiveCommand) -> Result<HiveProcess> {
    let deadline = Instant::now() + command.start_timeout;
    let files = Files::of(&command.log_file)?;
    let mut port = command.port;
    for _ in 0..PORT_CLASHES {
        port = first_free(&transport.host, port).await?;
        let start = Start::begin(transport, command, &files, port).await?;
        match start.wait(deadline, command.start_timeout).await? {
            Attempt::Healthy(process) => return Ok(process),
            Attempt::PortTaken => port = port.saturating_add(1),
        }
    }
    let host = transport.host.name();
    Err(unreachable(format!(
        "the hive on {host} lost its port to another process {PORT_CLASHES} times; register it \
         with a free one"
    )))
}

/// A process that may get healthy.
struct Start<'a> {
    transport: &'a SshTransport,
    files: &'a Files,
    process: ProcessId,
    port: u16,
    /// Where in the log this start begins.
    log_begin: u64,
}

impl<'a> Start<'a> {
    async fn begin(
        transport: &'a SshTransport,
        command: &HiveCommand,
        files: &'a Files,
        port: u16,
    ) -> Result<Self> {
        let host = &transport.host;
        let body = start_script(transport, command, files, port)?;
        let said = script::run(host, &body, host.options().command_timeout).await?;
        let said = said.ok(host, "starting the hive")?;
        let mut words = said.split_ascii_whitespace();
        let (pid, started, begin) = (words.next(), words.next(), words.next());
        let (Some(pid), Some(started), Some(log_begin)) =
            (number(pid), number(started), number(begin))
        else {
            let name = host.name();
            return Err(unreachable(format!(
                "{name} did not say which process the hive is: {said:?}"
            )));
        };
        let process = ProcessId { pid, started };
        tracing::info!(host = host.name(), port, pid, "hive started");
        Ok(Start {
            transport,
            files,
            process,
            port,
            log_begin,
        })
    }

    async fn wait(&self, deadline: Instant, limit: Duration) -> Result<Attempt> {
        let healthy = async {
            while !probe::answers_health(self.transport, self.port).await {
                tokio::time::sleep(HEALTH_POLL).await;
            }
        };
        let ended = async {
            while runs(&self.transport.host, self.process).await? {
                tokio::time::sleep(PROCESS_POLL).await;
            }
            Ok::<_, Error>(())
        };
        let host = &self.transport.host;
        tokio::select! {
            () = healthy => {}
            ended = ended => {
                ended?;
                // What it started must not keep the log or a port.
                end_group(host, self.process).await?;
                if listens(host, self.port).await? {
                    return Ok(Attempt::PortTaken);
                }
                return Err(self.error("ended before its health check answered").await);
            }
            () = tokio::time::sleep_until(deadline) => {
                let port = self.port;
                let problem = format!(
                    "did not answer its health check on port {port} within {limit:?}"
                );
                // Before the log is read: its last words shall be in it.
                let stopped = async {
                    stop(host, self.process, FAILED_GRACE).await?;
                    end_group(host, self.process).await
                };
                if let Err(error) = stopped.await {
                    tracing::warn!(host = host.name(), %error, "a failed hive could not be stopped");
                }
                return Err(self.error(&problem).await);
            }
        }
        // It may be another's answer, on a port that ours did not get.
        match runs(host, self.process).await? {
            true => Ok(Attempt::Healthy(known(self.process, self.port))),
            false => Ok(Attempt::PortTaken),
        }
    }

    /// What went wrong, with the output of this start.
    async fn error(&self, problem: &str) -> Error {
        let host = &self.transport.host;
        let read = tail(host, &self.files.log, self.log_begin, ERROR_LINES).await;
        let lines = read.unwrap_or_default();
        let output = match lines.is_empty() {
            true => "it wrote nothing".to_owned(),
            false => format!("its last output:\n{}", lines.join("\n")),
        };
        let name = host.name();
        unreachable(format!("the hive on {name} {problem}; {output}")).detail("log_lines", lines)
    }
}

/// Secrets among the variables are seen by nobody: the script is the shell's input, and a process's
/// environment is its user's.
fn start_script(
    transport: &SshTransport,
    command: &HiveCommand,
    files: &Files,
    port: u16,
) -> Result<String> {
    let wanted = Program::of(command)?;
    let find = wanted.find()?;
    let missing = quote::word(&wanted.missing(transport.host.name()))?;
    let arguments = program::arguments(command, transport.listens_on(), port)?;
    let arguments = quote::words(arguments.iter().map(String::as_str))?;
    let variables: Result<Vec<String>> = command
        .env
        .iter()
        // Through a tunnel nobody can call her back.
        .filter(|(name, _)| !(transport.tunnel && name == "QUEEN_CALLBACK_URL"))
        .map(|(name, value)| quote::export(name, value))
        .collect();
    let mut variables = variables?;
    let names_host = command.template.iter().any(|word| word.contains("{host}"));
    if !transport.tunnel && !names_host {
        // Else it would listen where only its own machine reaches it.
        variables.push(quote::export("RBEE_HIVE_HOST", transport.listens_on())?);
    }
    let variables = variables.join("\n");
    let Files { log, pid } = files;
    Ok(format!(
        "{find}\n\
         [ -n \"$program\" ] || {{ echo {missing} >&2; return 1; }}\n\
         mask=$(umask); umask 077\n\
         mkdir -p \"$HOME/.rbee/logs\" \"$HOME/.rbee/run\" || return 1\n\
         log={log}; pidfile={pid}\n\
         size=0; [ ! -f \"$log\" ] || size=$(($(wc -c <\"$log\")))\n\
         if [ \"$size\" -gt {ROTATE_ABOVE_BYTES} ]; then mv -f -- \"$log\" \"$log.1\"; size=0; fi\n\
         : >>\"$log\" || return 1\n\
         umask \"$mask\"\n\
         cd \"$HOME\" || return 1\n\
         {variables}\n\
         set -- {arguments}\n\
         detached \"$log\" \"$program\" \"$@\" || return 1\n\
         started=$(started \"$pid\") || started=0\n\
         umask 077\n\
         echo \"$pid $started {port}\" >\"$pidfile.new\" && mv -f -- \"$pidfile.new\" \"$pidfile\"\n\
         echo \"$pid $started $size\""
    ))
}

/// The hive that an earlier start has left.
pub(super) async fn left_running(host: &Host, log_file: &Path) -> Result<Option<HiveProcess>> {
    let pid_file = Files::of(log_file)?.pid;
    let body = format!(
        "read -r pid started port 2>/dev/null <{pid_file} || return 0\n\
         case \"$pid$started$port\" in *[!0-9]*) return 0 ;; esac\n\
         ! runs \"$pid\" \"$started\" || echo \"$pid $started $port\""
    );
    let said = script::run(host, &body, host.options().command_timeout).await?;
    let said = said.ok(host, "looking for a hive that runs")?;
    let mut words = said.split_ascii_whitespace();
    let (pid, started, port) = (words.next(), words.next(), words.next());
    Ok(match (number(pid), number(started), number(port)) {
        (Some(pid), Some(started), Some(port)) => Some(known(ProcessId { pid, started }, port)),
        _ => None,
    })
}

fn known(process: ProcessId, port: u16) -> HiveProcess {
    HiveProcess {
        port,
        pid: Some(process.pid),
        pid_start_time: Some(process.started),
        started_by_queen: true,
    }
}

/// The last lines of a hive's output; none if there is no such file.
pub(super) async fn logs(host: &Host, log_file: &Path, lines: usize) -> Result<Vec<String>> {
    tail(host, &Files::of(log_file)?.log, 0, lines).await
}

/// The last lines that were written behind the byte `from`, oldest first.
async fn tail(host: &Host, log: &str, from: u64, lines: usize) -> Result<Vec<String>> {
    let first = from.saturating_add(1);
    let body = format!(
        "log={log}; [ -e \"$log\" ] || return 0\n\
         tail -c +{first} <\"$log\" | tail -c {TAIL_BYTES} | tail -n {lines}"
    );
    let said = script::run(host, &body, host.options().command_timeout).await?;
    let text = said.ok(host, "reading the hive's log")?;
    let cut = |line: &str| line.chars().take(LONGEST_LINE).collect();
    Ok(text.lines().map(cut).collect())
}
