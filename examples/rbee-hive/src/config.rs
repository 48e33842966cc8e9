//! Settings: what the command line and the environment say, and the configuration file leaves open.

use std::env;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::cli::{DaemonArgs, LogFormat};
use crate::rules::Rules;
use crate::worker::WorkerHost;

#[derive(Debug)]
pub(crate) struct Settings {
    pub(crate) host: String,
    pub(crate) port: u16,
    pub(crate) token: Option<String>,
    pub(crate) log_format: LogFormat,
    pub(crate) models: PathBuf,
    /// Parent of the folders of all hives of this user; each is named for its port.
    pub(crate) state_root: PathBuf,
    /// The configuration file, to be read again.
    config: Option<PathBuf>,
    /// What it said at the start.
    pub(crate) rules: Arc<Rules>,
    /// What a connection may take from its beginning, or an answer's end, to the next whole head.
    pub(crate) head_timeout: Duration,
    pub(crate) callback_url: Option<String>,
    pub(crate) worker_host: WorkerHost,
}

impl Settings {
    /// Takes the command line and what it leaves open from the environment and the file.
    pub(crate) fn read(args: DaemonArgs) -> Result<Self> {
        let (host, port) = match &args.addr {
            Some(addr) => split_addr(addr)?,
            None => (args.host, args.port),
        };
        let token = match secret("RBEE_API_TOKEN")? {
            Some(token) => Some(token),
            None => secret("LLORCH_API_TOKEN")?,
        };
        if token.is_none() && !is_loopback(&host) {
            bail!(
                "TOKEN_REQUIRED: {host} can be reached from other machines; set RBEE_API_TOKEN \
                 to the token that callers must send, or listen on 127.0.0.1"
            );
        }
        let rules = Rules::read(args.config.as_deref())?;
        Ok(Settings {
            host,
            port,
            token,
            log_format: args.log_format,
            models: models_folder(args.models.or(rules.models.clone()))?,
            state_root: absolute(
                &args
                    .state
                    .unwrap_or_else(|| in_home(".local/state/rbee-hive")),
            )?,
            config: args.config.map(|path| absolute(&path)).transpose()?,
            head_timeout: rules.head_timeout,
            rules: Arc::new(rules),
            callback_url: variable("QUEEN_CALLBACK_URL")
                .map(|url| url.trim_end_matches('/').to_owned()),
            worker_host: WorkerHost::new(variable("RBEE_WORKER_HOST").as_deref()),
        })
    }
}

impl Settings {
    /// What the configuration file says now; `None` without a file.
    pub(crate) fn rules_again(&self) -> Result<Option<Rules>> {
        let path = self.config.as_deref();
        path.map(|path| Rules::read(Some(path))).transpose()
    }
}

/// Whether only this machine can reach a server that listens there.
pub(crate) fn is_loopback(host: &str) -> bool {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    bare.eq_ignore_ascii_case("localhost")
        || bare.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// The folder with the models: the given one, else the user's.
pub(crate) fn models_folder(given: Option<PathBuf>) -> Result<PathBuf> {
    absolute(&given.unwrap_or_else(|| in_home(".local/share/rbee/models")))
}

fn in_home(below: &str) -> PathBuf {
    match variable("HOME") {
        Some(home) => Path::new(&home).join(below),
        None => env::temp_dir().join("rbee").join(below),
    }
}

fn split_addr(addr: &str) -> Result<(String, u16)> {
    let parts = addr.rsplit_once(':');
    let Some((host, Ok(port))) = parts.map(|(host, port)| (host, port.parse())) else {
        bail!("--addr {addr}: must be HOST:PORT, such as 127.0.0.1:9200");
    };
    let host = host.trim_start_matches('[').trim_end_matches(']');
    Ok((host.to_owned(), port))
}

fn variable(name: &str) -> Option<String> {
    env::var(name).ok().filter(|value| !value.is_empty())
}

/// A token from the environment without white space around it. One that no caller could send is an
/// error; an empty variable is none.
fn secret(name: &str) -> Result<Option<String>> {
    match env::var_os(name).filter(|value| !value.is_empty()) {
        Some(value) => sendable(name, value.to_str()).map(Some),
        None => Ok(None),
    }
}

fn sendable(name: &str, value: Option<&str>) -> Result<String> {
    let token = value.unwrap_or("\u{fffd}").trim();
    if token.is_empty() {
        bail!(
            "TOKEN_INVALID: {name} is blank; set it to the token that callers must send, or unset it"
        );
    }
    if !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        bail!(
            "TOKEN_INVALID: {name} has characters that a header can't carry; use printable ASCII \
             without spaces, such as the output of `openssl rand -hex 32`"
        );
    }
    Ok(token.to_owned())
}

fn absolute(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path).with_context(|| format!("path {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_trimmed_and_one_that_no_caller_could_send_is_refused() {
        assert_eq!(sendable("T", Some(" s3cret\r\n")).unwrap(), "s3cret");
        for odd in [
            Some(" \n"),
            Some("a b"),
            Some("a\nb"),
            Some("t\u{f6}ken"),
            None,
        ] {
            let error = sendable("T", odd).unwrap_err().to_string();
            assert!(error.contains("TOKEN_INVALID: T "), "{error}");
        }
    }

    #[test]
    fn an_address_may_be_ipv6() {
        assert_eq!(split_addr("[::1]:9200").unwrap(), ("::1".into(), 9200));
        assert!(split_addr("9200").is_err());
    }
}
