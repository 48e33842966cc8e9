//! What a body of `beehives/add` says, and what it may not say.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::Context;
use crate::config::SshOptions;
use crate::domain::{HiveId, HiveMode, HiveSpec, SshTarget, is_loopback};
use crate::error::{Error, Result};
use crate::relay::openai::missing;

/// A longer name of a machine or of a user is nobody's (RFC 1035, section 2.3.4).
const LONGEST_NAME: usize = 255;
/// The longest text of any other field, in bytes; Linux takes no longer paths.
const LONGEST_TEXT: usize = 4096;
/// The most labels, backends or kinds of devices.
const MOST_ENTRIES: usize = 256;

/// The body of `add`.
#[derive(Deserialize)]
pub(super) struct Registration {
    pub(super) hive_id: Option<String>,
    pub(super) node_name: Option<String>,
    hostname: Option<String>,
    port: Option<u16>,
    mode: Option<HiveMode>,
    ssh_host: Option<String>,
    ssh_port: Option<u16>,
    ssh_user: Option<String>,
    ssh_key_path: Option<String>,
    tunnel: Option<bool>,
    install: Option<bool>,
    /// Whether the machine is looked at first.
    pub(super) preflight: Option<bool>,
    install_path: Option<String>,
    backends: Option<Value>,
    devices: Option<Value>,
    labels: Option<BTreeMap<String, String>>,
    command: Option<String>,
    git_repo_url: Option<String>,
    git_branch: Option<String>,
}

impl Registration {
    /// Everything is quoted where it meets a shell. What is refused here is nobody's name or path,
    /// and would only confuse whoever reads it.
    fn check(&self) -> Result<()> {
        let names = [
            ("ssh_host", &self.ssh_host),
            ("hostname", &self.hostname),
            ("ssh_user", &self.ssh_user),
        ];
        for (field, value) in names {
            let value = value.as_deref().unwrap_or_default();
            let is_odd = |c: char| {
                c.is_whitespace()
                    || c.is_control()
                    || (field != "ssh_user" && "'\"`$;&|<>(){}*?!\\".contains(c))
            };
            // A dash in front would be an option to the commands that errors tell to run.
            if value.len() > LONGEST_NAME || value.starts_with('-') || value.contains(is_odd) {
                return Err(Error::invalid(format!(
                    "{field} {:?} is no name: blanks, control characters, a dash in front and more \
                     than {LONGEST_NAME} bytes are not allowed, nor are a shell's special \
                     characters in a host",
                    shortened(value)
                ))
                .param(field));
            }
        }
        let texts = [
            ("ssh_key_path", &self.ssh_key_path),
            ("install_path", &self.install_path),
            ("command", &self.command),
            ("git_repo_url", &self.git_repo_url),
            ("git_branch", &self.git_branch),
        ];
        for (field, value) in texts {
            check_text(field, value.as_deref().unwrap_or_default())?;
        }
        let labels = self.labels.iter().flatten();
        for text in labels.flat_map(|(key, value)| [key, value]) {
            check_text("labels", text)?;
        }
        check_count("labels", self.labels.as_ref().map_or(0, BTreeMap::len))
    }
}

fn check_text(field: &'static str, text: &str) -> Result<()> {
    if text.len() <= LONGEST_TEXT && !text.contains(char::is_control) {
        return Ok(());
    }
    Err(Error::invalid(format!(
        "{field} {:?} has control characters, or more than {LONGEST_TEXT} bytes",
        shortened(text)
    ))
    .param(field))
}

fn check_count(field: &'static str, count: usize) -> Result<()> {
    match count > MOST_ENTRIES {
        true => Err(Error::invalid(format!(
            "{field} has {count} entries, and may have {MOST_ENTRIES}"
        ))
        .param(field)),
        false => Ok(()),
    }
}

fn shortened(text: &str) -> String {
    text.chars().take(80).collect()
}

/// A hive over SSH is where its SSH host is, unless it says otherwise. The user's SSH configuration
/// may have another name for that.
pub(super) async fn fill_in_hostname(
    context: &Context<'_>,
    asked: &mut Registration,
) -> Result<()> {
    let is_given = |text: &Option<String>| text.as_ref().is_some_and(|text| !text.is_empty());
    let Some(host) = asked.ssh_host.as_ref().filter(|host| !host.is_empty()) else {
        return Ok(());
    };
    asked.check()?;
    if is_given(&asked.hostname) {
        return Ok(());
    }
    let (host, options) = (host.clone(), context.orchestrator.config().ssh.clone());
    let resolved = tokio::task::spawn_blocking(move || host_of(host, &options)).await;
    asked.hostname = resolved.ok().flatten();
    Ok(())
}

/// What a machine's SSH host is called, if the user's configuration can be read: what is wrong with it is
/// told when it is connected to.
#[cfg(feature = "ssh")]
fn host_of(host: String, options: &SshOptions) -> Option<String> {
    let target = SshTarget {
        host,
        ..SshTarget::default()
    };
    crate::transport::ssh::host_of(&target, options).ok()
}

#[cfg(not(feature = "ssh"))]
fn host_of(host: String, _options: &SshOptions) -> Option<String> {
    Some(host)
}

/// What a registration means.
pub(super) fn spec(asked: Registration) -> Result<HiveSpec> {
    let name = asked.node_name.as_ref().or(asked.hive_id.as_ref());
    let name = name.ok_or_else(|| missing("node_name"))?;
    let id = HiveId::new(name.as_str()).map_err(|error| error.param("node_name"))?;
    let filled = |text: Option<String>| text.filter(|text| !text.is_empty());
    asked.check()?;
    let ssh_host = filled(asked.ssh_host);
    let hostname = filled(asked.hostname);
    let is_far = |host: &String| !is_loopback(host);
    let network = ssh_host.is_some() || hostname.as_ref().is_some_and(is_far);
    let mode = match (network, asked.mode) {
        (true, _) => HiveMode::Network,
        (false, Some(HiveMode::Network)) if hostname.is_some() => HiveMode::Network,
        (false, Some(HiveMode::Network)) => {
            return Err(
                Error::invalid("a network hive needs a hostname or an ssh_host").param("hostname"),
            );
        }
        (false, _) => HiveMode::Local,
    };
    if mode == HiveMode::Network && ssh_host.is_none() && asked.port.is_none() {
        return Err(Error::invalid("a hive that someone else runs needs its port").param("port"));
    }
    let tunnel = ssh_host.is_some() && asked.tunnel.unwrap_or(true);
    let install = ssh_host.is_some() && asked.install.unwrap_or(true);
    let ssh = ssh_host.map(|host| SshTarget {
        host,
        port: asked.ssh_port,
        user: filled(asked.ssh_user),
        key_path: filled(asked.ssh_key_path),
    });
    let backends: Vec<String> = either("backends", asked.backends)?;
    let devices: BTreeMap<String, u32> = either("devices", asked.devices)?;
    check_count("backends", backends.len())?;
    check_count("devices", devices.len())?;
    let host = hostname.or_else(|| ssh.as_ref().map(|ssh| ssh.host.clone()));
    Ok(HiveSpec {
        id,
        mode,
        hostname: host.unwrap_or_else(|| "127.0.0.1".to_owned()),
        port: asked.port,
        ssh,
        tunnel,
        install,
        install_path: filled(asked.install_path),
        backends,
        devices,
        labels: asked.labels.unwrap_or_default(),
        command: filled(asked.command),
        git_repo_url: filled(asked.git_repo_url),
        git_branch: filled(asked.git_branch),
    })
}

/// A JSON value, or the same as a JSON text, as older clients send it.
fn either<T: DeserializeOwned + Default>(field: &'static str, value: Option<Value>) -> Result<T> {
    let read = match value {
        None | Some(Value::Null) => return Ok(T::default()),
        Some(Value::String(text)) if text.trim().is_empty() => return Ok(T::default()),
        Some(Value::String(text)) => serde_json::from_str(&text),
        Some(value) => serde_json::from_value(value),
    };
    read.map_err(|error| Error::invalid(format!("{field}: {error}")).param(field))
}
