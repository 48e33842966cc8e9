//! Scripts on the hive's machine. A script goes in as the shell's input: no value in it is seen in
//! any list of processes, and it is read by the same rules whatever the user's login shell is.

use std::time::Duration;

use bytes::Bytes;

use super::host::Host;
use crate::error::{Code, Error, Result};

/// What the scripts share.
const SHARED: &str = include_str!("remote.sh");
/// How much of an output is told in an error.
const TOLD_CHARS: usize = 500;

/// What a script came to.
#[derive(Debug)]
pub(super) struct Said {
    pub(super) status: Option<i32>,
    pub(super) stdout: String,
    pub(super) stderr: String,
}

impl Said {
    /// What it printed.
    ///
    /// # Errors
    /// `HIVE_UNREACHABLE` with its own words when it failed.
    pub(super) fn ok(self, host: &Host, what: &str) -> Result<String> {
        match self.status {
            Some(0) => Ok(self.stdout),
            _ => Err(self.error(host, what)),
        }
    }

    /// What it complained of.
    pub(super) fn error(&self, host: &Host, what: &str) -> Error {
        let host = host.name();
        let how = match self.status {
            Some(status) => format!("failed with status {status}"),
            None => "was killed".to_owned(),
        };
        let words = told(&self.stderr);
        unreachable(format!("{what} on {host} {how}: {words}"))
    }
}

/// Runs a script; `body` is made of words that were quoted.
pub(super) async fn run(host: &Host, body: &str, limit: Duration) -> Result<Said> {
    let nonce = nonce()?;
    let script = script(&nonce, body);
    let ran = host.run(Bytes::from(script), limit).await;
    let output = ran.map_err(|error| {
        let code = match error.kind() {
            std::io::ErrorKind::TimedOut => Code::Timeout,
            _ => Code::HiveUnreachable,
        };
        let said = error.downcast::<Error>();
        said.unwrap_or_else(|error| Error::new(code, error.to_string()))
    })?;
    let stdout = String::from_utf8_lossy(&output.stdout);
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    // Whatever the login shell's own files print comes before.
    let marker = format!("{nonce}\n");
    let Some((_, said)) = stdout.split_once(&marker) else {
        let name = host.name();
        let words = told(&format!("{stdout}{stderr}"));
        return Err(unreachable(format!(
            "{name} does not run /bin/sh for this user: {words}; give the user a login shell there"
        )));
    };
    Ok(Said {
        status: output.status,
        stdout: said.to_owned(),
        stderr,
    })
}

/// In braces: the shell has read everything before it runs anything, so nothing that it runs can
/// take the rest of the script for its input.
///
/// Its input stays open while it runs. sshd would let a command run on whose channel was closed, and
/// count it; so when the input ends, all that the script runs is ended, but for what it has detached.
fn script(nonce: &str, body: &str) -> String {
    format!(
        "{{\n{SHARED}\nmain() {{\n{body}\n}}\n\
         echo {nonce}\n\
         exec 3<&0\n\
         watcher=\n\
         if leads $$; then\n\
         {{ trap '' TERM; read -r _ <&3; kill -s TERM 0; sleep 1; kill -s KILL 0; }} \
         >/dev/null 2>&1 &\n\
         watcher=$!\nfi\n\
         main </dev/null 3<&-\n\
         status=$?\n\
         [ -z \"$watcher\" ] || kill -s KILL \"$watcher\"\n\
         exit \"$status\"\n}}\n"
    )
}

/// A word that nobody else says.
pub(super) fn nonce() -> Result<String> {
    let random =
        getrandom::u64().map_err(|error| Error::internal(format!("no randomness: {error}")))?;
    Ok(format!("rbee-{random:016x}"))
}

/// An output in one line, as far as a person reads on.
fn told(output: &str) -> String {
    let line = output.split_whitespace().collect::<Vec<_>>().join(" ");
    match line.is_empty() {
        true => "it said nothing".to_owned(),
        false => line.chars().take(TOLD_CHARS).collect(),
    }
}

pub(super) fn unreachable(message: String) -> Error {
    Error::new(Code::HiveUnreachable, message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::process::{Command, Stdio};

    fn said(body: &str) -> (String, Option<i32>) {
        let mut shell = Command::new("sh")
            .arg("-s")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("sh runs");
        let script = script("nonce", body);
        let mut input = shell.stdin.take().expect("piped");
        input.write_all(script.as_bytes()).expect("it reads");
        drop(input);
        let output = shell.wait_with_output().expect("it ends");
        let text = String::from_utf8(output.stdout).expect("UTF-8");
        let (_, said) = text.split_once("nonce\n").expect("the marker");
        (said.to_owned(), output.status.code())
    }

    #[test]
    fn what_a_script_runs_can_not_read_the_script() {
        let (text, status) = said("cat; echo after; return 3");
        assert_eq!((text.as_str(), status), ("after\n", Some(3)));
    }

    #[test]
    fn a_process_is_known_by_its_number_and_its_beginning() {
        let me = std::process::id();
        let body = format!(
            "start=$(started {me}) || echo ended; runs {me} \"$start\" && echo runs\n\
             runs {me} 1 || echo another; started 999999999 || echo ended\n\
             leads $$ && echo leads || echo 'does not lead'"
        );
        let (text, _) = said(&body);
        assert_eq!(text, "runs\nanother\nended\ndoes not lead\n");
    }

    #[test]
    fn a_listener_is_found_with_its_user() {
        let socket = std::net::TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
        let port = socket.local_addr().expect("it is bound").port();
        let body = format!("listens {port} && echo yes; listens 1 || echo no; listeners {port}");
        let own = rustix::process::geteuid().as_raw();
        assert_eq!(said(&body).0, format!("yes\nno\n{own}\n"));
    }

    #[test]
    fn a_program_is_looked_for_in_the_folders_first() {
        let (text, _) = said("find_program sh /nowhere; echo; find_program no-such || echo no");
        assert!(
            text.starts_with('/') && text.ends_with("/sh\nno\n"),
            "{text}"
        );
        assert_eq!(
            said("find_program test /bin || find_program cd || echo none").1,
            Some(0)
        );
    }
}
