//! Where a session goes: what was registered, with what `~/.ssh/config` adds.

use std::path::PathBuf;

use super::client_config::ClientConfig;
use super::known_hosts::HostName;
use crate::config::SshOptions;
use crate::domain::SshTarget;
use crate::error::{Code, Error, Result};

const DEFAULT_PORT: u16 = 22;

/// A machine, a user and his keys.
#[derive(Debug)]
pub(super) struct Target {
    pub(super) host: String,
    pub(super) port: u16,
    pub(super) user: String,
    pub(super) keys: Keys,
    /// The name of its host keys.
    pub(super) known_as: HostName,
}

/// Which private keys are tried.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(super) enum Keys {
    /// This one; the agent only for want of its pass-phrase.
    Named(PathBuf),
    /// Those of the configuration, then the agent's.
    Configured(Vec<PathBuf>),
    /// The agent's, then those with the usual names.
    Usual,
}

impl Target {
    /// What was registered wins over the configuration. Reads files.
    ///
    /// # Errors
    /// `HIVE_UNREACHABLE` when the configuration can't be read or leads another way, or nobody
    /// says which user it is.
    pub(super) fn resolve(registered: &SshTarget, options: &SshOptions) -> Result<Self> {
        let alias = &registered.host;
        let config = read_config(alias, options)?;
        if let Some(proxy) = config.proxy {
            return Err(unreachable(format!(
                "the SSH configuration leads to {alias} by {proxy}, which is not supported; make \
                 it reachable directly (a VPN, or a forwarded port as ssh_host and ssh_port)"
            )));
        }
        let port = registered.port.or(config.port).unwrap_or(DEFAULT_PORT);
        let host = match &config.host_name {
            Some(name) => expand(name, &[('h', alias)]),
            None => alias.clone(),
        };
        let user = match registered.user.clone().or(config.user) {
            Some(user) => user,
            None => own_user()?,
        };
        let home = options.home().unwrap_or_default();
        let file = |path: &str| {
            let folder = home.to_string_lossy();
            let tokens = [('d', &*folder), ('h', &host), ('r', &user)];
            let path = expand(path, &tokens);
            match path.strip_prefix("~/") {
                Some(below_home) => home.join(below_home),
                None => PathBuf::from(path),
            }
        };
        let configured = config.identity_files.iter().filter(|name| *name != "none");
        let keys = match &registered.key_path {
            Some(path) => Keys::Named(file(path)),
            None if config.identity_files.is_empty() => Keys::Usual,
            None => Keys::Configured(configured.map(|path| file(path)).collect()),
        };
        let known_as = match &config.host_key_alias {
            Some(alias) => HostName::alias(alias),
            None => HostName::new(&host, port),
        };
        Ok(Target {
            host,
            port,
            user,
            keys,
            known_as,
        })
    }
}

fn read_config(alias: &str, options: &SshOptions) -> Result<ClientConfig> {
    let usual = || options.in_ssh_folder("config");
    match options.config_file.clone().or_else(usual) {
        Some(file) => {
            let home = options.home().unwrap_or_default();
            ClientConfig::read(&file, &home, alias)
        }
        None => Ok(ClientConfig::default()),
    }
}

/// The tokens of ssh_config(5): `%` and a letter, `%%` for a percent sign.
fn expand(text: &str, tokens: &[(char, &str)]) -> String {
    let mut expanded = String::new();
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        if character != '%' {
            expanded.push(character);
            continue;
        }
        match characters.next() {
            Some('%') | None => expanded.push('%'),
            Some(letter) => match tokens.iter().find(|(token, _)| *token == letter) {
                Some((_, value)) => expanded.push_str(value),
                None => expanded.extend(['%', letter]),
            },
        }
    }
    expanded
}

/// The name of the user that the queen runs as. Containers often have no variable for it.
fn own_user() -> Result<String> {
    let from_environment = ["USER", "LOGNAME"].into_iter();
    let mut set = from_environment.filter_map(|name| std::env::var(name).ok());
    if let Some(user) = set.find(|user| !user.is_empty()) {
        return Ok(user);
    }
    let asked = std::process::Command::new("id").arg("-un").output();
    let said = asked.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
    said.ok().filter(|user| !user.is_empty()).ok_or_else(|| {
        unreachable("no user is known to log in as; register the hive with ssh_user".into())
    })
}

fn unreachable(message: String) -> Error {
    Error::new(Code::HiveUnreachable, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(config: &str, registered: &SshTarget) -> Result<Target> {
        let home = tempfile::tempdir().expect("temp dir is writable");
        let file = home.path().join("config");
        std::fs::write(&file, config).expect("written");
        let options = SshOptions {
            home: Some("/home/me".into()),
            config_file: Some(file),
            ..SshOptions::default()
        };
        Target::resolve(registered, &options)
    }

    fn named(host: &str) -> SshTarget {
        SshTarget {
            host: host.into(),
            ..SshTarget::default()
        }
    }

    #[test]
    fn an_alias_is_resolved_and_what_was_registered_wins() {
        let config = "Host gpu\n HostName %h.lan\n Port 2222\n User of-config\n \
                      IdentityFile ~/.ssh/%r-at-%h\n";
        let target = resolve(config, &named("gpu")).expect("resolved");
        assert_eq!((target.host.as_str(), target.port), ("gpu.lan", 2222));
        assert_eq!(target.user, "of-config");
        let key = PathBuf::from("/home/me/.ssh/of-config-at-gpu.lan");
        assert_eq!(target.keys, Keys::Configured(vec![key]));
        assert_eq!(target.known_as.full, "[gpu.lan]:2222");

        let registered = SshTarget {
            port: Some(22),
            user: Some("registered".into()),
            key_path: Some("~/key".into()),
            ..named("gpu")
        };
        let target = resolve(config, &registered).expect("resolved");
        assert_eq!((target.host.as_str(), target.port), ("gpu.lan", 22));
        assert_eq!(target.user, "registered");
        assert_eq!(target.keys, Keys::Named("/home/me/key".into()));
        assert_eq!(target.known_as.full, "gpu.lan");
    }

    #[test]
    fn a_machine_without_settings_is_itself_and_a_way_round_is_refused() {
        let target = resolve("", &named("10.0.0.7")).expect("resolved");
        assert_eq!((target.host.as_str(), target.port), ("10.0.0.7", 22));
        assert_eq!(target.keys, Keys::Usual);
        assert!(!target.user.is_empty());
        let error = resolve("ProxyJump bastion", &named("gpu")).expect_err("not supported");
        assert!(error.message.contains("ProxyJump"), "{error}");
    }
}
