//! The models in the folder and the aliases of the configuration. A worker can only be given what
//! is listed here, so no reference reaches a file outside.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use super::gguf::{self, Header};
use super::hub::HubRef;
use super::known::{Current, Known};
use super::memory;
use super::naming::{self, by_address, by_repository};
use super::removal::{self, Home};
use super::source::{SourceRef, check_name};
use super::split::Split;
use super::web::{self, WebRef};
use crate::error::{ApiError, Result};

/// Folders below the models folder that are looked into.
const DEPTH: usize = 3;
/// The same below `hf` and `https`: repositories and hosts have folders of their own.
const HUB_DEPTH: usize = 6;
const MOST_FILES: usize = 10_000;
/// Models named in an error message.
const NAMED: usize = 20;

/// A model that an engine could serve.
#[derive(Debug, Clone)]
pub(crate) struct Model {
    pub(crate) model_ref: String,
    pub(crate) aliases: Vec<String>,
    /// The first file of a split model.
    pub(crate) path: PathBuf,
    pub(crate) size_bytes: u64,
    /// Whether its removal gives its room back.
    pub(crate) removable: bool,
    header: Option<Header>,
}

impl Model {
    /// Tokens of context for each slot: what is wanted, but no more than it was trained with.
    pub(crate) fn context(&self, wanted: u64) -> u64 {
        let trained = self
            .header
            .as_ref()
            .and_then(|header| header.context_length);
        trained.map_or(wanted, |trained| wanted.min(trained))
    }

    /// Memory it takes, in bytes, with that many slots.
    pub(crate) fn memory(&self, slots: u32, wanted_context: u64) -> u64 {
        let context_total = self.context(wanted_context) * u64::from(slots);
        memory::estimate(self.size_bytes, self.header.as_ref(), context_total)
    }
}

/// Headers by file; size and time tell when one must be read again.
type Headers = HashMap<PathBuf, (u64, Option<SystemTime>, Option<Header>)>;

/// Methods read the disk: call them where blocking is allowed.
#[derive(Debug)]
pub(crate) struct Catalog {
    folder: PathBuf,
    known: Current,
    headers: Mutex<Headers>,
}

impl Catalog {
    pub(crate) fn new(
        folder: PathBuf,
        aliases: BTreeMap<String, String>,
        extensions: Vec<String>,
    ) -> anyhow::Result<Self> {
        let catalog = Catalog {
            folder,
            known: Current::default(),
            headers: Mutex::default(),
        };
        catalog.set(aliases, extensions)?;
        Ok(catalog)
    }

    /// Takes other aliases and extensions in place of those that there were.
    pub(crate) fn set(
        &self,
        aliases: BTreeMap<String, String>,
        extensions: Vec<String>,
    ) -> anyhow::Result<()> {
        self.known.set(aliases, extensions)
    }

    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Every model, sorted by reference; a name belongs to one model only.
    pub(crate) fn models(&self) -> Vec<Model> {
        let mut files = Vec::new();
        let mut take = |path: &Path| {
            if self.is_model(path) && files.len() < MOST_FILES {
                files.push(path.to_owned());
            }
        };
        walk(&self.folder, DEPTH, &mut take);
        walk(&self.folder.join("hf"), HUB_DEPTH, &mut take);
        walk(&WebRef::root(&self.folder), HUB_DEPTH, &mut take);
        files.sort();
        files.dedup();
        let parts: HashSet<PathBuf> = files.iter().cloned().collect();
        let mut models: Vec<Model> = files
            .iter()
            .filter_map(|path| self.model(path, &naming::reference(&self.folder, path)?, &parts))
            .collect();
        self.add_files_of_aliases(&mut models);
        let mut home = Home::of(&self.folder);
        for model in &mut models {
            model.removable = home.gets_room_of(&model.path);
        }
        naming::name(&mut models, &self.known.get().aliases, &self.folder);
        models.sort_by(|a, b| a.model_ref.cmp(&b.model_ref));
        models
    }

    /// The model that a queen means.
    ///
    /// A `model_path` decides alone, as older queens name a model as they like beside it.
    pub(crate) fn find(&self, model_ref: &str, model_path: &str) -> Result<Model> {
        check_name(model_ref)?;
        let models = self.models();
        let found = if !model_path.is_empty() {
            check_name(model_path)?;
            self.by_path(&models, model_path)?
        } else if let Some(path) = model_ref.strip_prefix("file:") {
            self.by_path(&models, path)?
        } else if let Some(reference) = HubRef::parse(model_ref) {
            // What was put here by hand has no revision.
            by_repository(&models, &reference).or_else(|| {
                let revision = None;
                by_repository(
                    &models,
                    &HubRef {
                        revision,
                        ..reference
                    },
                )
            })
        } else if let Some(reference) = WebRef::parse(model_ref) {
            by_address(&models, &reference)
        } else {
            let is_named = |model: &&Model| model.aliases.iter().any(|alias| alias == model_ref);
            models.iter().find(is_named)
        };
        found
            .cloned()
            .ok_or_else(|| self.not_found(model_ref, &models))
    }

    /// The model of exactly this revision, or with exactly this checksum, if it is here.
    pub(crate) fn fetched(&self, reference: &SourceRef) -> Option<Model> {
        let models = self.models();
        match reference {
            SourceRef::Hub(reference) => by_repository(&models, reference).cloned(),
            SourceRef::Web(reference) => {
                let is_it = |model: &&Model| {
                    let wanted = reference.sha256.as_ref();
                    wanted.is_none() || wanted == web::known_sha256(&model.path).as_ref()
                };
                by_address(&models, reference).filter(is_it).cloned()
            }
        }
    }

    /// Whether an engine serves such files.
    pub(crate) fn could_be_served(&self, reference: &SourceRef) -> bool {
        match reference {
            SourceRef::Hub(_) => true,
            SourceRef::Web(reference) => self.is_model(&reference.file(&self.folder)),
        }
    }

    /// Deletes a model's files; gives the bytes that this frees.
    pub(crate) fn remove(&self, model: &Model) -> Result<u64> {
        removal::remove(&self.folder, model)
    }

    fn by_path<'m>(&self, models: &'m [Model], path: &str) -> Result<Option<&'m Model>> {
        // Joining takes an absolute path as it is; components drop single dots.
        let wanted: PathBuf = self.folder.join(path).components().collect();
        let real = |path: &Path| fs::canonicalize(path).ok();
        let wanted_real = real(&wanted);
        let is_there = |model: &&Model| model.path == wanted;
        let is_same = |model: &&Model| wanted_real.is_some() && real(&model.path) == wanted_real;
        let found = models.iter().find(is_there);
        let found = found.or_else(|| models.iter().find(is_same));
        let is_inside = wanted.starts_with(&self.folder)
            || real(&self.folder).is_some_and(|folder| wanted.starts_with(folder));
        if found.is_none() && !is_inside {
            return Err(ApiError::invalid(format!(
                "{path} is outside of the models folder {}; move the file there, or give it an \
                 alias in the hive's configuration",
                self.folder.display()
            )));
        }
        Ok(found)
    }

    fn not_found(&self, model_ref: &str, models: &[Model]) -> ApiError {
        let names: Vec<&str> = models
            .iter()
            .take(NAMED)
            .map(|model| model.model_ref.as_str())
            .collect();
        let has = match names.len() {
            0 => format!("put its file into {}", self.folder.display()),
            n if n < models.len() => format!("it has {} and more", names.join(", ")),
            _ => format!("it has {}", names.join(", ")),
        };
        ApiError::model_not_found(format!("model {model_ref:?} is not on this hive; {has}"))
    }

    fn is_model(&self, path: &Path) -> bool {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let extension = path.extension().unwrap_or_default().to_string_lossy();
        // A projector belongs to a vision model and can't be served alone.
        let is_part_of_another = name.starts_with("mmproj") || name.starts_with('.');
        let is_served = |known: &Known| known.extensions.contains(&extension.to_ascii_lowercase());
        !is_part_of_another && is_served(&self.known.get())
    }

    /// `None` for a later part of a split model, and for one whose parts are not all there.
    fn model(&self, path: &Path, reference: &str, files: &HashSet<PathBuf>) -> Option<Model> {
        let first = fs::metadata(path).ok()?;
        let mut size_bytes = first.len();
        if let Some(split) = Split::of(path) {
            if split.number != 1 {
                return None;
            }
            for number in 2..=split.count {
                let part = split.part(path, number);
                files.get(&part)?;
                size_bytes += fs::metadata(&part).ok()?.len();
            }
        }
        Some(Model {
            model_ref: reference.to_owned(),
            aliases: Vec::new(),
            path: path.to_owned(),
            size_bytes,
            removable: false,
            header: self.header(path, first.len(), first.modified().ok()),
        })
    }

    fn header(&self, path: &Path, size: u64, modified: Option<SystemTime>) -> Option<Header> {
        let lock = || self.headers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((known_size, known_modified, header)) = lock().get(path)
            && (*known_size, *known_modified) == (size, modified)
        {
            return header.clone();
        }
        let header = gguf::read(path).ok();
        lock().insert(path.to_owned(), (size, modified, header.clone()));
        header
    }

    /// An alias may name a file anywhere: the machine's owner wrote it.
    fn add_files_of_aliases(&self, models: &mut Vec<Model>) {
        for target in self.known.get().aliases.values() {
            let Some(path) = target.strip_prefix("file:").map(Path::new) else {
                continue;
            };
            let is_new = !models.iter().any(|model| model.path == path);
            if path.is_absolute() && is_new && self.is_model(path) {
                let parts = Split::files(path).into_iter().collect();
                models.extend(self.model(path, target, &parts));
            }
        }
    }
}

/// Follows links: whoever may write into the folder decides what is served. Hidden folders hold
/// what is not whole yet.
fn walk(folder: &Path, depth: usize, found: &mut impl FnMut(&Path)) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        let is_hidden = entry.file_name().as_encoded_bytes().starts_with(b".");
        match fs::metadata(&path) {
            Ok(about) if about.is_dir() && depth > 0 && !is_hidden => {
                walk(&path, depth - 1, found);
            }
            Ok(about) if about.is_file() => found(&path),
            _ => {}
        }
    }
}

#[cfg(test)]
#[path = "catalog_tests.rs"]
mod tests;
