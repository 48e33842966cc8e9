//! What the configuration says of models, which may change while the hive runs.

use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, PoisonError, RwLock};

use super::source::check_name;

#[derive(Debug, Default)]
pub(super) struct Known {
    pub(super) aliases: BTreeMap<String, String>,
    /// Of files that some engine serves.
    pub(super) extensions: HashSet<String>,
}

#[derive(Debug, Default)]
pub(super) struct Current(RwLock<Arc<Known>>);

impl Current {
    /// Takes these in place of what there was, unless a name is wrong.
    pub(super) fn set(
        &self,
        aliases: BTreeMap<String, String>,
        extensions: Vec<String>,
    ) -> anyhow::Result<()> {
        for (alias, target) in &aliases {
            check_name(target).map_err(|error| {
                anyhow::anyhow!("alias {alias} = {target:?}: {}", error.message)
            })?;
        }
        let extensions = extensions.into_iter().collect();
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(Known {
            aliases,
            extensions,
        });
        Ok(())
    }

    pub(super) fn get(&self) -> Arc<Known> {
        self.0
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}
