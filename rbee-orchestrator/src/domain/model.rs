//! Which model: `provider:reference`.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// A model's identity: `hf:org/repo…`, `https://host/path` or `file:path`. What a repository's file
/// may be written as in several ways has one spelling here: `hf:org/repo/file` on the main branch,
/// `hf:org/repo@revision::file=path` on another.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ModelRef(Arc<str>);

const PROVIDERS: [&str; 3] = ["hf:", "https:", "file:"];
const LONGEST: usize = 512;
/// What stands between a repository and one of its files.
const FILE: &str = "::file=";

impl ModelRef {
    /// Checks and takes a full reference.
    ///
    /// # Errors
    /// `INVALID_REQUEST` for a name that [`ModelRef::check_name`] refuses or that has no provider.
    pub fn new(text: impl AsRef<str>) -> Result<Self> {
        let text = text.as_ref();
        Self::check_name(text)?;
        let has_reference = |p: &str| {
            text.strip_prefix(p)
                .is_some_and(|reference| !reference.is_empty())
        };
        if PROVIDERS.iter().any(|p| has_reference(p)) {
            return Ok(Self(one_spelling(text).as_ref().into()));
        }
        Err(Error::invalid(format!(
            "model {text:?} must be of the form hf:org/repo, https://host/path or file:path"
        ))
        .param("model"))
    }

    /// Reads what a client wrote: a full reference as it is, anything else as a Hugging Face
    /// repository.
    ///
    /// # Errors
    /// `INVALID_REQUEST` for a name that [`ModelRef::check_name`] refuses.
    pub fn from_name(name: &str) -> Result<Self> {
        if PROVIDERS.iter().any(|p| name.starts_with(p)) {
            return Self::new(name);
        }
        Self::check_name(name)?;
        Self::new(format!("hf:{name}"))
    }

    /// Refuses names that no model may have.
    ///
    /// # Errors
    /// `INVALID_REQUEST` for an empty name, more than 512 characters, control characters or `..`
    /// as a path segment.
    pub fn check_name(name: &str) -> Result<()> {
        let is_plain = !name.is_empty() && name.len() <= LONGEST;
        if is_plain && name.bytes().all(|b| b.is_ascii_graphic()) && !name.contains("..") {
            return Ok(());
        }
        let problem = if name.trim().is_empty() {
            "is empty"
        } else if name.chars().count() > LONGEST {
            "is longer than 512 characters"
        } else if name.chars().any(char::is_control) {
            "has control characters"
        } else if name
            .split(['/', '\\', ':', '='])
            .any(|segment| segment == "..")
        {
            "has a '..' path segment"
        } else {
            return Ok(());
        };
        let shown: String = name.chars().take(80).collect();
        Err(Error::invalid(format!("model {shown:?} {problem}")).param("model"))
    }

    /// The name that a server knows the model by unless somebody says otherwise: engines that
    /// check it are started with a repository's own name.
    #[must_use]
    pub fn served_name(&self) -> &str {
        self.0.strip_prefix("hf:").unwrap_or(&self.0)
    }

    /// Whether a hive could get it from elsewhere: a repository of the hub, which always has an
    /// organisation before its name, or an address. A file is where it is.
    #[must_use]
    pub fn is_fetchable(&self) -> bool {
        let is_word = |text: &str| {
            let is_allowed = |c: char| c.is_ascii_alphanumeric() || "._-@:=".contains(c);
            !text.is_empty() && !text.starts_with('.') && text.chars().all(is_allowed)
        };
        if let Some(repository) = self.0.strip_prefix("hf:") {
            let mut words = repository.split('/');
            return words.next().is_some_and(is_word) && words.next().is_some_and(is_word);
        }
        let host = self
            .0
            .strip_prefix("https://")
            .and_then(|address| address.split_once('/'));
        host.is_some_and(|(host, path)| !host.is_empty() && !path.is_empty())
    }

    /// The reference as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

fn one_spelling(text: &str) -> Cow<'_, str> {
    match text.split_once(':') {
        Some(("hf", reference)) if reference.contains('@') || reference.contains(FILE) => {
            of_repository(text, reference)
        }
        Some(("https", address)) => of_address(text, address),
        _ => text.into(),
    }
}

/// Neither a host nor a checksum is another one in capitals.
fn of_address<'t>(text: &'t str, address: &str) -> Cow<'t, str> {
    let whole = address.strip_prefix("//");
    let Some((host, path)) = whole.and_then(|whole| whole.split_once('/')) else {
        return text.into();
    };
    let checksum = path
        .split_once("#sha256=")
        .map_or("", |(_, checksum)| checksum);
    let has_capitals = |part: &str| part.contains(|c: char| c.is_ascii_uppercase());
    if !has_capitals(host) && !has_capitals(checksum) {
        return text.into();
    }
    let path = path.strip_suffix(checksum).unwrap_or(path);
    let (host, checksum) = (host.to_ascii_lowercase(), checksum.to_ascii_lowercase());
    format!("https://{host}/{path}{checksum}").into()
}

/// The main branch goes without saying.
fn of_repository<'t>(text: &'t str, reference: &'t str) -> Cow<'t, str> {
    let (name, file) = match reference.split_once(FILE) {
        Some((name, file)) => (name, Some(file)),
        None => match reference.match_indices('/').nth(1) {
            Some((at, _)) => (&reference[..at], Some(&reference[at + 1..])),
            None => (reference, None),
        },
    };
    if name.matches('/').count() != 1 || file == Some("") {
        return text.into();
    }
    match (name.strip_suffix("@main").unwrap_or(name), file) {
        (name, None) => format!("hf:{name}").into(),
        (name, Some(file)) if name.contains('@') => format!("hf:{name}{FILE}{file}").into(),
        (name, Some(file)) => format!("hf:{name}/{file}").into(),
    }
}

impl fmt::Display for ModelRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for ModelRef {
    type Error = Error;
    fn try_from(text: String) -> Result<Self> {
        Self::new(text)
    }
}

impl From<ModelRef> for String {
    fn from(model: ModelRef) -> String {
        model.as_str().to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_names_a_repository_or_an_address_can_be_fetched() {
        let fetchable = |name| ModelRef::from_name(name).unwrap().is_fetchable();
        for name in [
            "org/repo",
            "hf:org/repo/a.gguf",
            "hf:org/repo@v1::file=Q4/a.gguf",
            "https://host:8443/a.gguf",
        ] {
            assert!(fetchable(name), "{name}");
        }
        for name in [
            "smollm2",
            "hf:repo",
            "hf:/repo",
            "hf:org/",
            "hf:http://x/y",
            "file:org/repo",
            "https://host",
            "https:///a.gguf",
        ] {
            assert!(!fetchable(name), "{name}");
        }
    }

    #[test]
    fn what_may_be_written_in_several_ways_is_one_model() {
        let read = |name| ModelRef::from_name(name).unwrap().to_string();
        for (written, kept) in [
            ("org/repo@main", "hf:org/repo"),
            ("hf:org/repo@main::file=Q4/a.gguf", "hf:org/repo/Q4/a.gguf"),
            ("hf:org/repo::file=a.gguf", "hf:org/repo/a.gguf"),
            ("hf:org/repo@main/a.gguf", "hf:org/repo/a.gguf"),
            ("hf:org/repo@v1/a.gguf", "hf:org/repo@v1::file=a.gguf"),
            ("hf:org/repo@v1::file=a.gguf", "hf:org/repo@v1::file=a.gguf"),
            ("hf:org/repo@mainline", "hf:org/repo@mainline"),
            ("hf:org/repo::file=", "hf:org/repo::file="),
            ("hf:repo@main", "hf:repo@main"),
            ("file:a@main::file=b", "file:a@main::file=b"),
            ("https://Host:8443/A.gguf", "https://host:8443/A.gguf"),
            ("https://h/A.gguf#sha256=AB", "https://h/A.gguf#sha256=ab"),
            ("https://h/A.gguf", "https://h/A.gguf"),
            ("https://H", "https://H"),
        ] {
            assert_eq!(read(written), kept, "{written}");
            assert_eq!(read(kept), kept);
        }
    }

    #[test]
    fn names_without_a_provider_are_hugging_face_repositories() {
        let read = |name| ModelRef::from_name(name).map(|m| m.to_string());
        assert_eq!(read("org/repo").unwrap(), "hf:org/repo");
        assert_eq!(read("hf:org/repo").unwrap(), "hf:org/repo");
        assert_eq!(read("file:a/b.gguf").unwrap(), "file:a/b.gguf");
        for bad in [
            "",
            " ",
            "a\nb",
            "file:../x",
            "file:a/../b",
            "file:",
            "x@r::file=..",
            &"x".repeat(513),
        ] {
            assert!(read(bad).is_err(), "{bad:?}");
        }
    }
}
