//! References to models on the hub, and where their files lie below the models folder.

use std::cmp::Reverse;
use std::fmt;
use std::path::{Path, PathBuf};

use super::split::Split;

/// The branch that a reference without a revision means.
pub(crate) const MAIN: &str = "main";
/// Of several files of a repository, the one that people usually want.
const USUAL: &str = "Q4_K_M";

/// `org/repo`, `org/repo/file`, or `org/repo@revision::file=path`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HubRef {
    /// `org/repo`.
    pub(crate) repository: String,
    /// `None` is the main branch.
    pub(crate) revision: Option<String>,
    /// `None` leaves the choice to whoever has the list of files.
    pub(crate) file: Option<String>,
}

impl HubRef {
    /// Reads a reference with its `hf:`; `None` when it is not of this form.
    pub(crate) fn parse(model_ref: &str) -> Option<Self> {
        let reference = model_ref.strip_prefix("hf:")?;
        let (name, file) = match reference.split_once("::file=") {
            Some((name, file)) => (name, Some(file)),
            None => match reference.match_indices('/').nth(1) {
                Some((at, _)) => (&reference[..at], Some(&reference[at + 1..])),
                None => (reference, None),
            },
        };
        let (repository, revision) = match name.split_once('@') {
            Some((repository, revision)) => (repository, Some(revision)),
            None => (name, None),
        };
        let (org, repo) = repository.split_once('/')?;
        let is_good = is_word(org)
            && is_word(repo)
            && revision.is_none_or(is_word)
            && file.is_none_or(|file| file.split('/').all(is_file_name));
        is_good.then(|| HubRef {
            repository: repository.to_owned(),
            revision: revision
                .filter(|revision| *revision != MAIN)
                .map(str::to_owned),
            file: file.map(str::to_owned),
        })
    }

    /// The repository's folder below the models folder; a revision has one of its own.
    pub(crate) fn folder(&self) -> PathBuf {
        Path::new("hf").join(self.repository_at())
    }

    /// What is at `path`, relative to the models folder.
    pub(super) fn at(path: &[&str]) -> Option<Self> {
        let ["hf", org, repo, file @ ..] = path else {
            return None;
        };
        let file = file.join("/");
        Self::parse(&format!("hf:{org}/{repo}::file={file}"))
    }

    /// Whether a model with the reference `other` may be meant by this one.
    pub(super) fn covers(&self, other: &HubRef) -> bool {
        self.repository == other.repository
            && self.revision == other.revision
            && (self.file.is_none() || self.file == other.file)
    }

    /// `org/repo`, with its revision if that is not the main branch.
    pub(super) fn repository_at(&self) -> String {
        match &self.revision {
            Some(revision) => format!("{}@{revision}", self.repository),
            None => self.repository.clone(),
        }
    }
}

impl fmt::Display for HubRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "hf:{}", self.repository_at())?;
        match (&self.file, &self.revision) {
            (None, _) => Ok(()),
            (Some(file), None) => write!(f, "/{file}"),
            (Some(file), Some(_)) => write!(f, "::file={file}"),
        }
    }
}

/// The usual quantisation first, else the first by name.
pub(crate) fn best<'f>(files: impl Iterator<Item = &'f str>) -> Option<&'f str> {
    files.min_by_key(|file| (Reverse(file.to_ascii_uppercase().contains(USUAL)), *file))
}

/// The model files of a repository's list, of split ones the first part.
pub(crate) fn model_files<'f>(
    files: impl Iterator<Item = &'f str>,
) -> impl Iterator<Item = &'f str> {
    files.filter(|file| {
        let path = Path::new(file);
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let extension = path.extension().unwrap_or_default();
        extension.eq_ignore_ascii_case("gguf")
            && !name.starts_with("mmproj")
            && Split::of(path).is_none_or(|split| split.number == 1)
            && file.split('/').all(is_file_name)
    })
}

/// What may be an organisation, a repository or a revision: no separator of references or paths.
fn is_word(text: &str) -> bool {
    let is_allowed = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    !text.is_empty() && !text.starts_with('.') && text.chars().all(is_allowed)
}

pub(super) fn is_file_name(text: &str) -> bool {
    let is_allowed = |c: char| !c.is_control() && !"\\?#%:".contains(c);
    !text.is_empty() && !text.starts_with('.') && text.chars().all(is_allowed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_have_three_forms_and_keep_them() {
        for (written, kept) in [
            ("hf:org/repo", "hf:org/repo"),
            ("hf:org/repo/a.gguf", "hf:org/repo/a.gguf"),
            ("hf:org/repo/Q4/a.gguf", "hf:org/repo/Q4/a.gguf"),
            ("hf:org/repo@v1", "hf:org/repo@v1"),
            (
                "hf:org/repo@v1::file=Q4/a.gguf",
                "hf:org/repo@v1::file=Q4/a.gguf",
            ),
            ("hf:org/repo@main::file=a.gguf", "hf:org/repo/a.gguf"),
        ] {
            assert_eq!(HubRef::parse(written).unwrap().to_string(), kept);
        }
        for bad in [
            "org/repo",
            "hf:repo",
            "hf:org/",
            "hf:org/repo/",
            "hf:org/re po",
            "hf:org/repo/../x.gguf",
            "hf:org/repo@../x::file=a.gguf",
            "hf:org/repo/a.gguf?x=y",
        ] {
            assert_eq!(HubRef::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn the_usual_quantisation_is_taken_before_the_first_by_name() {
        let files = [
            "README.md",
            "mmproj-a.gguf",
            "m-Q8_0.gguf",
            "m-q4_k_m-00002-of-00002.gguf",
            "m-q4_k_m-00001-of-00002.gguf",
            "m-IQ2.gguf",
        ];
        let pick = |files: &[&'static str]| best(model_files(files.iter().copied()));
        assert_eq!(pick(&files), Some("m-q4_k_m-00001-of-00002.gguf"));
        assert_eq!(pick(&["b.gguf", "a.gguf"]), Some("a.gguf"));
        assert_eq!(pick(&["README.md"]), None);
    }
}
