//! What models are called: by where their files are, by the configuration, and by what follows from both.

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};

use super::catalog::Model;
use super::hub::{self, HubRef};
use super::source::check_name;
use super::split::stem;
use super::web::{self, WebRef};

/// `None` for a name that no reference may have.
pub(super) fn reference(folder: &Path, path: &Path) -> Option<String> {
    let relative = path.strip_prefix(folder).ok()?;
    let names: Option<Vec<&str>> = relative.iter().map(|name| name.to_str()).collect();
    let names = names?;
    let hub = HubRef::at(&names).map(|reference| reference.to_string());
    let web = || WebRef::at(&names).map(|reference| reference.to_string());
    let reference = hub
        .or_else(web)
        .unwrap_or_else(|| format!("file:{}", names.join("/")));
    check_name(&reference).is_ok().then_some(reference)
}

/// Configured aliases first, then names that follow from the file's.
pub(super) fn name(models: &mut [Model], aliases: &BTreeMap<String, String>, folder: &Path) {
    let mut taken = HashSet::new();
    for (alias, target) in aliases {
        let path = target.strip_prefix("file:").map(|path| folder.join(path));
        let is_target =
            |model: &&mut Model| model.model_ref == *target || path.as_ref() == Some(&model.path);
        if let Some(model) = models.iter_mut().find(is_target) {
            model.aliases.push(alias.clone());
            taken.insert(alias.clone());
        }
    }
    let repositories: Vec<HubRef> = models
        .iter()
        .filter_map(|model| HubRef::parse(&model.model_ref))
        .map(|reference| HubRef {
            file: None,
            ..reference
        })
        .collect();
    let mut names: Vec<(String, PathBuf)> = models
        .iter()
        .map(|model| (stem(&model.path).to_lowercase(), model.path.clone()))
        .collect();
    for repository in repositories {
        if let Some(model) = by_repository(models, &repository) {
            names.push((repository.repository_at(), model.path.clone()));
            names.push((repository.to_string(), model.path.clone()));
        }
    }
    for model in models
        .iter()
        .filter(|model| model.model_ref.starts_with("https:"))
    {
        if let Some(sha256) = web::known_sha256(&model.path) {
            let name = format!("{}#sha256={sha256}", model.model_ref);
            names.push((name, model.path.clone()));
        }
    }
    for (name, path) in names {
        if taken.insert(name.clone())
            && let Some(model) = models.iter_mut().find(|model| model.path == path)
        {
            model.aliases.push(name);
        }
    }
}

pub(super) fn by_address<'m>(models: &'m [Model], wanted: &WebRef) -> Option<&'m Model> {
    let address = wanted.to_string();
    models.iter().find(|model| model.model_ref == address)
}

/// Of several files of a repository, the best.
pub(super) fn by_repository<'m>(models: &'m [Model], wanted: &HubRef) -> Option<&'m Model> {
    let covered = models.iter().filter_map(|model| {
        let reference = HubRef::parse(&model.model_ref)?;
        wanted.covers(&reference).then_some(model)
    });
    let covered: Vec<&Model> = covered.collect();
    let best = hub::best(covered.iter().map(|model| model.model_ref.as_str()))?;
    covered.into_iter().find(|model| model.model_ref == best)
}
