//! What a model is called, and which one is meant.

use std::collections::BTreeMap;

use crate::domain::ModelRef;
use crate::error::Result;
use crate::hashing::IdMap;
use crate::scheduler::Hive;

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
    reported: IdMap<String, ModelRef>,
}

impl Names {
    pub(super) fn new(aliases: &BTreeMap<String, String>) -> Self {
        let configured = aliases.iter().filter_map(|(alias, name)| {
            let model = ModelRef::from_name(name).ok()?;
            Some((alias.clone(), model))
        });
        Names {
            configured: configured.collect(),
            reported: IdMap::default(),
        }
    }

    /// Learns the names from the hives' reports. Where two hives use an alias for different
    /// models, the first hive by name wins.
    pub(super) fn learn<'a>(&mut self, hives: impl Iterator<Item = &'a Hive>) {
        self.reported.clear();
        for model in hives
            .filter_map(Hive::capabilities)
            .flat_map(|report| &report.models)
        {
            let names = model.aliases.iter().map(String::as_str);
            for name in names.chain([model.model_ref.as_str()]) {
                if !self.reported.contains_key(name) {
                    self.reported
                        .insert(name.to_owned(), model.model_ref.clone());
                }
            }
        }
    }

    /// Remembers the model of a worker that shows itself, so that its name need not be checked
    /// again with each request.
    pub(super) fn learn_ref(&mut self, model: &ModelRef) {
        if !self.reported.contains_key(model.as_str()) {
            self.reported
                .insert(model.as_str().to_owned(), model.clone());
        }
    }

    pub(super) fn resolve(&self, name: &str) -> Result<Meaning> {
        let name = self.configured.get(name).map_or(name, ModelRef::as_str);
        if let Some(model) = self.reported.get(name) {
            return Ok(Meaning::Certain(model.clone()));
        }
        let model = ModelRef::from_name(name)?;
        if let Some(meant) = self.reported.get(model.as_str()) {
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
        let all = self.configured.iter().chain(&self.reported);
        let mut found: Vec<String> = all
            .filter(|(name, meant)| *meant == model && name.as_str() != model.as_str())
            .map(|(name, _)| name.clone())
            .collect();
        found.sort_unstable();
        found.dedup();
        found
    }
}
