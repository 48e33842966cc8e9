//! References to files on the web, and where they lie below the models folder.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use super::hub::is_file_name;

/// The scheme, which is also the folder's name.
const HTTPS: &str = "https";
const MOST_SEGMENTS: usize = 6;

/// `https://host/path/model.gguf`, with `#sha256=…` if it is to be checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct WebRef {
    /// With the port, if it is not the usual one.
    pub(super) host: String,
    pub(super) path: String,
    /// In lower-case hex.
    pub(super) sha256: Option<String>,
}

impl WebRef {
    /// Reads a reference; `None` when it is not of this form. No credentials, no query: a
    /// reference is shown to people, and its path becomes one on the disk.
    pub(crate) fn parse(model_ref: &str) -> Option<Self> {
        let (address, fragment) = match model_ref.split_once('#') {
            Some((address, fragment)) => (address, Some(fragment)),
            None => (model_ref, None),
        };
        let (host, path) = address.strip_prefix("https://")?.split_once('/')?;
        let is_hex = |hash: &&str| hash.len() == 64 && hash.chars().all(|c| c.is_ascii_hexdigit());
        let sha256 = match fragment {
            Some(fragment) => Some(fragment.strip_prefix("sha256=").filter(is_hex)?),
            None => None,
        };
        let mut segments = path.split('/');
        let is_good =
            is_host(host) && path.split('/').count() <= MOST_SEGMENTS && segments.all(is_file_name);
        is_good.then(|| WebRef {
            host: host.to_ascii_lowercase(),
            path: path.to_owned(),
            sha256: sha256.map(str::to_ascii_lowercase),
        })
    }

    /// What is at `path`, relative to the models folder.
    pub(super) fn at(path: &[&str]) -> Option<Self> {
        let [HTTPS, host, file @ ..] = path else {
            return None;
        };
        Self::parse(&format!("https://{host}/{}", file.join("/")))
    }

    /// The folder of all hosts.
    pub(super) fn root(models: &Path) -> PathBuf {
        models.join(HTTPS)
    }

    /// Where the file goes.
    pub(crate) fn file(&self, models: &Path) -> PathBuf {
        Self::root(models).join(&self.host).join(&self.path)
    }

    /// Whether a model with the reference `other` may be meant by this one.
    pub(super) fn covers(&self, other: &WebRef) -> bool {
        (&self.host, &self.path) == (&other.host, &other.path)
    }
}

/// Without the checksum: the same file, checked or not, is the same model.
impl fmt::Display for WebRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "https://{}/{}", self.host, self.path)
    }
}

/// Keeps the checksum that a file was checked against.
pub(super) fn remember_sha256(file: &Path, sha256: &str) -> std::io::Result<()> {
    fs::write(beside(file), sha256)
}

/// The checksum that a file was checked against, if it was.
pub(super) fn known_sha256(file: &Path) -> Option<String> {
    fs::read_to_string(beside(file)).ok()
}

/// Where a file's checksum is kept: hidden, so that it is no model.
pub(super) fn beside(file: &Path) -> PathBuf {
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    file.with_file_name(format!(".{name}.sha256"))
}

fn is_host(host: &str) -> bool {
    let (name, port) = match host.split_once(':') {
        Some((name, port)) => (name, Some(port)),
        None => (host, None),
    };
    let is_allowed = |c: char| c.is_ascii_alphanumeric() || ".-".contains(c);
    !name.is_empty()
        && !name.starts_with('.')
        && name.chars().all(is_allowed)
        && port.is_none_or(|port| port.parse::<u16>().is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_and_what_must_not_be_in_one_is_refused() {
        let hash = "A".repeat(64);
        let read = WebRef::parse(&format!("https://Host:8443/a/m.gguf#sha256={hash}")).unwrap();
        assert_eq!(read.to_string(), "https://host:8443/a/m.gguf");
        assert_eq!(read.sha256, Some("a".repeat(64)));
        let path = read.file(Path::new("/models"));
        assert_eq!(path, Path::new("/models/https/host:8443/a/m.gguf"));
        let found = WebRef::at(&["https", "host:8443", "a", "m.gguf"]).unwrap();
        assert!(read.covers(&found));
        for bad in [
            "http://host/m.gguf",
            "https://host",
            "https://host/",
            "https://user:secret@host/m.gguf",
            "https://host/m.gguf?token=secret",
            "https://host/../m.gguf",
            "https://host/a//m.gguf",
            "https://host/.m.gguf",
            "https://host/%2e%2e/m.gguf",
            "https://../m.gguf",
            "https://host/m.gguf#sha256=12",
            "https://host/m.gguf#md5=12",
            "https://host/a/b/c/d/e/f/m.gguf",
        ] {
            assert_eq!(WebRef::parse(bad), None, "{bad}");
        }
    }
}
