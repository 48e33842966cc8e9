//! What a model is called, and which one is meant.

use std::collections::BTreeMap;

use crate::domain::{HiveId, HiveModel, ModelRef};
use crate::error::Result;
use crate::hashing::IdMap;

/// Which model a name means.
pub(super) enum Meaning {
    /// This one.
    Certain(ModelRef),
    /// This one, unless a hive has or gets something of that name.
    Fallback(ModelRef),
}

/// The aliases of the configuration and of the hives.
#[derive(Debug, Default)]
pub(super) struct Names {
    configured: IdMap<String, ModelRef>,
    /// What each hive calls so, by hive.
    reported: IdMap<String, Vec<(HiveId, ModelRef)>>,
    /// What hives call a model, and how many of them.
    aliases: IdMap<ModelRef, BTreeMap<String, usize>>,
    /// Models of workers that showed themselves.
    running: IdMap<String, ModelRef>,
}

impl Names {
    pub(super) fn new(aliases: &BTreeMap<String, String>) -> Self {
        let mut names = Names::default();
        names.configure(aliases);
        names
    }

    /// Takes other aliases in place of those of the configuration.
    pub(super) fn configure(&mut self, aliases: &BTreeMap<String, String>) {
        let configured = aliases.iter().filter_map(|(alias, name)| {
            let model = ModelRef::from_name(name).ok()?;
            Some((alias.clone(), model))
        });
        self.configured = configured.collect();
        self.running.clear();
    }

    /// Learns the names of models that a hive has. Where two hives use an alias for different
    /// models, the first hive by name wins.
    pub(super) fn learn(&mut self, hive: &HiveId, models: &[HiveModel]) {
        self.running.clear();
        for model in models {
            for name in names_of(model) {
                let owners = self.reported.entry(name.to_owned()).or_default();
                if let Err(at) = owners.binary_search_by(|(owner, _)| owner.cmp(hive)) {
                    owners.insert(at, (hive.clone(), model.model_ref.clone()));
                }
                let aliases = self.aliases.entry(model.model_ref.clone()).or_default();
                *aliases.entry(name.to_owned()).or_default() += 1;
            }
        }
    }

    /// Forgets the names of models that a hive had: of all that it had, or of such as shared no name
    /// with another.
    pub(super) fn forget(&mut self, hive: &HiveId, models: &[HiveModel]) {
        self.running.clear();
        for model in models {
            for name in names_of(model) {
                if let Some(owners) = self.reported.get_mut(name) {
                    owners.retain(|(owner, _)| owner != hive);
                    if owners.is_empty() {
                        self.reported.remove(name);
                    }
                }
                self.forget_alias(&model.model_ref, name);
            }
        }
    }

    fn forget_alias(&mut self, model: &ModelRef, name: &str) {
        let Some(aliases) = self.aliases.get_mut(model) else {
            return;
        };
        if let Some(count) = aliases.get_mut(name) {
            *count -= 1;
            if *count == 0 {
                aliases.remove(name);
            }
        }
        if aliases.is_empty() {
            self.aliases.remove(model);
        }
    }

    /// Remembers the model of a worker that shows itself, so that its name need not be checked
    /// again with each request.
    pub(super) fn learn_ref(&mut self, model: &ModelRef) {
        if self.known(model.as_str()).is_none() {
            self.running
                .insert(model.as_str().to_owned(), model.clone());
        }
    }

    fn known(&self, name: &str) -> Option<&ModelRef> {
        let reported = self.reported.get(name).and_then(|owners| owners.first());
        let reported = reported.map(|(_, model)| model);
        reported.or_else(|| self.running.get(name))
    }

    pub(super) fn resolve(&self, name: &str) -> Result<Meaning> {
        let name = self.configured.get(name).map_or(name, ModelRef::as_str);
        if let Some(model) = self.known(name) {
            return Ok(Meaning::Certain(model.clone()));
        }
        let model = ModelRef::from_name(name)?;
        if let Some(meant) = self.known(model.as_str()) {
            return Ok(Meaning::Certain(meant.clone()));
        }
        // A repository becomes one of its files once a hive has fetched it.
        Ok(match model.as_str() == name && !model.is_fetchable() {
            true => Meaning::Certain(model),
            false => Meaning::Fallback(model),
        })
    }

    /// Aliases of a model, sorted.
    pub(super) fn aliases(&self, model: &ModelRef) -> Vec<String> {
        let configured = self.configured.iter().filter(|(_, meant)| *meant == model);
        let configured = configured.map(|(name, _)| name);
        let reported = self.aliases.get(model).into_iter().flat_map(BTreeMap::keys);
        let reported = reported.filter(|name| self.known(name) == Some(model));
        let mut found: Vec<String> = configured.chain(reported).cloned().collect();
        found.retain(|name| name != model.as_str());
        found.sort_unstable();
        found.dedup();
        found
    }
}

fn names_of(model: &HiveModel) -> impl Iterator<Item = &str> {
    let aliases = model.aliases.iter().map(String::as_str);
    aliases.chain([model.model_ref.as_str()])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model(name: &str, aliases: &[&str]) -> HiveModel {
        HiveModel {
            model_ref: ModelRef::from_name(name).unwrap(),
            aliases: aliases.iter().map(|&alias| alias.to_owned()).collect(),
            size_bytes: 0,
            vram_bytes: None,
            removable: true,
            local_path: None,
        }
    }

    fn meant(names: &Names, name: &str) -> String {
        match names.resolve(name).unwrap() {
            Meaning::Certain(model) => model.to_string(),
            Meaning::Fallback(model) => format!("{model}?"),
        }
    }

    #[test]
    fn the_first_hive_that_uses_a_name_says_what_it_means_until_it_is_forgotten() {
        let (a, b) = (HiveId::new("a").unwrap(), HiveId::new("b").unwrap());
        let of_a = [model("file:x", &["smol"]), model("file:y", &["smol", "y"])];
        let of_b = [model("file:z", &["smol", "z"])];
        let mut names = Names::default();
        names.learn(&b, &of_b);
        assert_eq!(meant(&names, "smol"), "file:z");
        names.learn(&a, &of_a);
        assert_eq!(meant(&names, "smol"), "file:x");
        let aliases = |names: &Names, model: &HiveModel| names.aliases(&model.model_ref);
        assert_eq!(aliases(&names, &of_a[0]), ["smol"]);
        assert_eq!(aliases(&names, &of_a[1]), ["y"]);
        assert_eq!(aliases(&names, &of_b[0]), ["z"]);
        names.forget(&a, &of_a);
        assert_eq!(meant(&names, "smol"), "file:z");
        assert_eq!(meant(&names, "y"), "hf:y?");
        names.forget(&b, &of_b);
        assert!(names.reported.is_empty() && names.aliases.is_empty());
    }

    #[test]
    fn a_name_that_was_written_in_another_way_means_what_hives_call_so() {
        let mut names = Names::default();
        let repo = model("hf:org/repo/m.gguf", &["hf:org/repo"]);
        names.learn(&HiveId::new("a").unwrap(), &[repo]);
        for name in ["org/repo", "hf:org/repo@main", "org/repo::file=m.gguf"] {
            assert_eq!(meant(&names, name), "hf:org/repo/m.gguf", "{name}");
        }
    }
}
