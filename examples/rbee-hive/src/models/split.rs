//! Models that are split over several files.

use std::path::{Path, PathBuf};

/// The place of a file in a split model, `NAME-00001-of-00003.gguf`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Split {
    pub(super) number: u32,
    pub(super) count: u32,
}

impl Split {
    pub(super) fn of(path: &Path) -> Option<Self> {
        let stem = path.file_stem()?.to_str()?;
        let (rest, count) = stem.rsplit_once("-of-")?;
        let (_, number) = rest.rsplit_once('-')?;
        let digits = |text: &str| match text.len() {
            5 => text.parse().ok(),
            _ => None,
        };
        Some(Split {
            number: digits(number)?,
            count: digits(count)?,
        })
    }

    /// All files of the model that `path` belongs to, the first part first.
    pub(crate) fn files(path: &Path) -> Vec<PathBuf> {
        match Split::of(path) {
            Some(split) => (1..=split.count).map(|n| split.part(path, n)).collect(),
            None => vec![path.to_owned()],
        }
    }

    pub(super) fn part(self, path: &Path, number: u32) -> PathBuf {
        let extension = path.extension().unwrap_or_default().to_string_lossy();
        let count = self.count;
        path.with_file_name(format!(
            "{}-{number:05}-of-{count:05}.{extension}",
            stem(path)
        ))
    }
}

/// The file's name without extension and part number.
pub(super) fn stem(path: &Path) -> String {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    match Split::of(path) {
        Some(_) => stem[..stem.len() - "-00001-of-00002".len()].to_owned(),
        None => stem.into_owned(),
    }
}
