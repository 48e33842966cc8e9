//! What `~/.ssh/config` says of one machine (ssh_config(5)).
//!
//! Five keywords are of interest; everything else is passed over, however it is written, since a
//! file that OpenSSH takes must not stop a queen.

use std::io;
use std::path::{Path, PathBuf};

use super::wildcard;
use crate::error::{Code, Error, Result};

/// How deep files may include others.
const DEEPEST: usize = 16;
/// A larger file is none that a person wrote.
const LARGEST_BYTES: u64 = 1 << 20;

/// The settings for one machine; what comes first in the file holds.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct ClientConfig {
    pub(super) host_name: Option<String>,
    pub(super) port: Option<u16>,
    pub(super) user: Option<String>,
    pub(super) identity_files: Vec<String>,
    /// The name under which `known_hosts` has it.
    pub(super) host_key_alias: Option<String>,
    /// A way round that is not supported here, by its keyword.
    pub(super) proxy: Option<&'static str>,
}

impl ClientConfig {
    /// Reads the settings for `alias`; nothing from a file that is not there.
    ///
    /// # Errors
    /// `HIVE_UNREACHABLE` for a file that can't be read or a setting that makes no sense.
    pub(super) fn read(file: &Path, home: &Path, alias: &str) -> Result<Self> {
        let mut reader = Reader {
            alias,
            home,
            found: ClientConfig::default(),
        };
        reader.file(file, true, 0)?;
        Ok(reader.found)
    }
}

struct Reader<'a> {
    alias: &'a str,
    home: &'a Path,
    found: ClientConfig,
}

impl Reader<'_> {
    fn file(&mut self, file: &Path, mut applies: bool, depth: usize) -> Result<()> {
        let outer = applies;
        for (number, line) in read(file)?.lines().enumerate() {
            let mut words = words(line);
            if words.is_empty() {
                continue;
            }
            let keyword = words.remove(0).to_ascii_lowercase();
            match keyword.as_str() {
                "host" => {
                    let patterns = words.iter().map(String::as_str);
                    applies = outer && wildcard::any_fits(patterns, self.alias);
                }
                "match" => applies = outer && self.matches(&words),
                "include" if applies && depth < DEEPEST => {
                    for pattern in &words {
                        for file in self.included(pattern) {
                            self.file(&file, true, depth + 1)?;
                        }
                    }
                }
                _ if applies => self.setting(&keyword, words).map_err(|what| {
                    let (file, line) = (file.display(), number + 1);
                    unreachable(format!("{file}:{line}: {what}"))
                })?,
                _ => {}
            }
        }
        Ok(())
    }

    fn setting(&mut self, keyword: &str, words: Vec<String>) -> Result<(), String> {
        let found = &mut self.found;
        let value = words.into_iter().next();
        let Some(value) = value.filter(|value| !value.is_empty()) else {
            return Ok(());
        };
        match keyword {
            "hostname" => {
                found.host_name.get_or_insert(value);
            }
            "user" => {
                found.user.get_or_insert(value);
            }
            "hostkeyalias" => {
                found.host_key_alias.get_or_insert(value);
            }
            "identityfile" => found.identity_files.push(value),
            "port" => {
                let port = value.parse().ok().filter(|port| *port > 0);
                let port = port.ok_or_else(|| format!("{value:?} is no port"))?;
                found.port.get_or_insert(port);
            }
            "proxyjump" if value != "none" => found.proxy = found.proxy.or(Some("ProxyJump")),
            "proxycommand" if value != "none" => {
                found.proxy = found.proxy.or(Some("ProxyCommand"));
            }
            _ => {}
        }
        Ok(())
    }

    /// Conditions on the name are understood; a block with any other is not for us.
    fn matches(&self, words: &[String]) -> bool {
        let mut words = words.iter().map(|word| word.to_ascii_lowercase());
        while let Some(condition) = words.next() {
            let fits = match condition.as_str() {
                "all" => true,
                "host" | "originalhost" => {
                    let patterns = words.next().unwrap_or_default();
                    wildcard::any_fits(patterns.split(','), &self.alias.to_ascii_lowercase())
                }
                _ => false,
            };
            if !fits {
                return false;
            }
        }
        true
    }

    /// The files of an `Include`; patterns are understood in the last part of the path.
    fn included(&self, pattern: &str) -> Vec<PathBuf> {
        let path = match pattern.strip_prefix("~/") {
            Some(rest) => self.home.join(rest),
            None => self.home.join(".ssh").join(pattern),
        };
        let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else {
            return Vec::new();
        };
        let name = name.to_string_lossy();
        if !name.contains(['*', '?']) {
            return vec![path.clone()];
        }
        let entries = folder.read_dir().into_iter().flatten().flatten();
        let fitting = entries.filter(|entry| {
            let entry = entry.file_name();
            wildcard::fits(&name, &entry.to_string_lossy())
        });
        let mut files: Vec<PathBuf> = fitting.map(|entry| entry.path()).collect();
        files.sort();
        files
    }
}

fn read(file: &Path) -> Result<String> {
    let refused = |why: String| unreachable(format!("{} {why}", file.display()));
    match file.metadata() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(String::new()),
        Err(error) => return Err(refused(format!("can't be read: {error}"))),
        Ok(meta) if meta.len() > LARGEST_BYTES => {
            return Err(refused("is larger than any SSH configuration".into()));
        }
        Ok(_) => {}
    }
    let bytes = std::fs::read(file).map_err(|error| refused(format!("can't be read: {error}")))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn unreachable(message: String) -> Error {
    Error::new(Code::HiveUnreachable, message)
}

/// A line's words: between blanks or one `=`, or within double quotes; a `#` begins a comment.
fn words(line: &str) -> Vec<String> {
    let mut words: Vec<String> = Vec::new();
    let mut rest = line.trim();
    while !rest.is_empty() && !rest.starts_with('#') {
        let (word, after) = match rest.strip_prefix('"') {
            Some(quoted) => quoted.split_once('"').unwrap_or((quoted, "")),
            None => {
                let is_first = words.is_empty();
                let ends = |c: char| c.is_whitespace() || (is_first && c == '=');
                rest.split_at(rest.find(ends).unwrap_or(rest.len()))
            }
        };
        let is_keyword = words.is_empty();
        words.push(word.to_owned());
        rest = after.trim_start();
        if is_keyword {
            rest = rest.strip_prefix('=').unwrap_or(rest).trim_start();
        }
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_text(text: &str, alias: &str) -> Result<ClientConfig> {
        let home = tempfile::tempdir().expect("temp dir is writable");
        let folder = home.path().join(".ssh");
        std::fs::create_dir(&folder).expect("made");
        let file = folder.join("config");
        std::fs::write(&file, text).expect("written");
        let more = "User of-an-included-file\nHost other\n  Port 1\n";
        std::fs::write(folder.join("more.conf"), more).expect("written");
        ClientConfig::read(&file, home.path(), alias)
    }

    #[test]
    fn an_alias_stands_for_its_settings_and_the_first_one_holds() {
        let text = "
            # a comment
            Host gpu-* !gpu-9
                HostName = 10.0.0.7 # the rack
                Port=2222
                IdentityFile \"~/.ssh/two words\"
                ServerAliveInterval what ever
                AddKeysToAgent 1h
            Match exec \"true\"
                User of-an-unknown-condition
            Match host gpu-1,gpu-2
                User of-a-match
            Host *
                HostName 10.0.0.8
                User of-all
                IdentityFile ~/.ssh/third
                ProxyJump none
        ";
        let found = read_text(text, "gpu-1").expect("it is readable");
        assert_eq!(
            found,
            ClientConfig {
                host_name: Some("10.0.0.7".into()),
                port: Some(2222),
                user: Some("of-a-match".into()),
                identity_files: vec!["~/.ssh/two words".into(), "~/.ssh/third".into()],
                host_key_alias: None,
                proxy: None,
            }
        );
        let other = read_text(text, "gpu-9").expect("it is readable");
        assert_eq!(other.host_name.as_deref(), Some("10.0.0.8"));
        assert_eq!(other.user.as_deref(), Some("of-all"));
        assert_eq!(other.port, None);
    }

    #[test]
    fn files_are_included_where_they_apply() {
        let text = "Host gpu\n Include mo*.conf\n Port 5\nHost *\n User late\n";
        let found = read_text(text, "gpu").expect("it is readable");
        assert_eq!(found.user.as_deref(), Some("of-an-included-file"));
        assert_eq!(found.port, Some(5));
        let other = read_text(text, "other").expect("it is readable");
        assert_eq!(other.user.as_deref(), Some("late"));
        assert_eq!(other.port, None);
        // A file that includes itself ends.
        read_text("Include config\nUser me\n", "gpu").expect("it ends");
    }

    #[test]
    fn what_makes_no_sense_is_told_by_its_place() {
        let error = read_text("Host gpu\n  Port many\n", "gpu").expect_err("no number");
        assert!(error.message.contains("config:2"), "{error}");
        let none = ClientConfig::read(Path::new("/nowhere"), Path::new("/"), "gpu");
        assert_eq!(none.expect("no file, no settings"), ClientConfig::default());
        let proxied = read_text("ProxyJump bastion\n", "gpu").expect("it is readable");
        assert_eq!(proxied.proxy, Some("ProxyJump"));
    }
}
