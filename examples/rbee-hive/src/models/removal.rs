//! Deleting models. Only what is really in the models folder is the hive's to delete: a folder in it may be a
//! link to anywhere, and an alias may name any file.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use axum::http::StatusCode;

use super::catalog::Model;
use super::split::Split;
use super::web;
use crate::error::{ApiError, Result};

/// The models folder, as far as it is the hive's.
pub(super) struct Home<'a> {
    folder: &'a Path,
    real: Option<PathBuf>,
    /// Folders below it, and whether they are really in it.
    known: HashMap<PathBuf, bool>,
}

impl<'a> Home<'a> {
    pub(super) fn of(folder: &'a Path) -> Self {
        Home {
            folder,
            real: fs::canonicalize(folder).ok(),
            known: HashMap::new(),
        }
    }

    /// Whether removing the model with this first file gives its room back: none of its files lies elsewhere,
    /// is a link or has another name.
    pub(super) fn gets_room_of(&mut self, path: &Path) -> bool {
        self.has(path)
            && Split::files(path)
                .iter()
                .all(|file| room_of(file).is_some())
    }

    /// Whether a file is in the folder; one that is a link itself is so as a link.
    fn has(&mut self, path: &Path) -> bool {
        let Some(parent) = path.parent().filter(|_| path.starts_with(self.folder)) else {
            return false;
        };
        if let Some(known) = self.known.get(parent) {
            return *known;
        }
        let real = fs::canonicalize(parent).ok().zip(self.real.as_ref());
        let is_inside = real.is_some_and(|(parent, home)| parent.starts_with(home));
        self.known.insert(parent.to_owned(), is_inside);
        is_inside
    }
}

/// The bytes that a file's removal frees, if it frees any.
fn room_of(file: &Path) -> Option<u64> {
    let about = fs::symlink_metadata(file).ok()?;
    (about.is_file() && about.nlink() == 1).then_some(about.len())
}

/// Deletes a model's files; gives the bytes that this frees.
pub(super) fn remove(folder: &Path, model: &Model) -> Result<u64> {
    if !Home::of(folder).has(&model.path) {
        return Err(outside(folder, model));
    }
    let _ = fs::remove_file(web::beside(&model.path));
    let mut freed = 0;
    for file in Split::files(&model.path) {
        let room = room_of(&file);
        fs::remove_file(&file).map_err(|error| {
            ApiError::internal(format!("can't delete {}: {error}", file.display()))
        })?;
        freed += room.unwrap_or(0);
    }
    let above = model.path.ancestors().skip(1);
    for above in above.take_while(|above| *above != folder) {
        // Fails, as it should, for a folder with something in it.
        if fs::remove_dir(above).is_err() {
            break;
        }
    }
    Ok(freed)
}

fn outside(folder: &Path, model: &Model) -> ApiError {
    let is_link = |path: &&Path| fs::symlink_metadata(path).is_ok_and(|about| about.is_symlink());
    let above = model.path.ancestors().skip(1);
    let mut below_folder = above.take_while(|above| above.starts_with(folder) && *above != folder);
    let way = match below_folder.find(is_link) {
        Some(link) => format!(
            "to which the link {} leads: delete the file there yourself, or take the link away",
            link.display()
        ),
        None => {
            "and is known by an alias of the hive's configuration: delete the file yourself, or \
                 take the alias out"
                .to_owned()
        }
    };
    let real = fs::canonicalize(&model.path).unwrap_or_else(|_| model.path.clone());
    let message = format!(
        "{} is not removed: its file {} lies outside of the models folder {}, {way}",
        model.model_ref,
        real.display(),
        folder.display()
    );
    ApiError::new(StatusCode::CONFLICT, "CONFLICT", message)
}
