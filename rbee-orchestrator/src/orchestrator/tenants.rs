//! Tenants: who is known, and what they used.

use std::collections::BTreeMap;

use super::Orchestrator;
use crate::brain::Brain;
use crate::config::Config;
use crate::domain::{Tenant, TenantId, UnixMillis, UsageFilter, UsageRow};
use crate::error::{Code, Error, Result};
use crate::store::Store;

/// What the brain is told about tenants when it begins.
pub(super) struct Known {
    pub(super) stored: Vec<Tenant>,
    pub(super) used_today: Vec<(TenantId, u64)>,
}

/// Reads what is known.
pub(super) async fn known(store: &dyn Store) -> Result<Known> {
    let today = UsageFilter {
        since_day: Some(UnixMillis::now().day()),
        ..UsageFilter::default()
    };
    let mut used = BTreeMap::<TenantId, u64>::new();
    for row in store.usage(&today).await? {
        let tokens = used.entry(row.tenant).or_default();
        *tokens = tokens
            .saturating_add(row.tokens_in)
            .saturating_add(row.tokens_out);
    }
    Ok(Known {
        stored: store.tenants().await?,
        used_today: used.into_iter().collect(),
    })
}

/// The tenants of the configuration.
fn configured(brain: &Brain) -> impl Iterator<Item = Tenant> {
    brain
        .configured_tenants()
        .iter()
        .filter_map(|(name, limits)| {
            let id = TenantId::new(name).ok()?;
            let limits = limits.clone();
            Some(Tenant { id, limits })
        })
}

impl Orchestrator {
    /// All tenants, by name: those of the configuration, and beside them those of the store.
    ///
    /// # Errors
    /// `STORE_FAILED`.
    pub async fn tenants(&self) -> Result<Vec<Tenant>> {
        let mut all: Vec<Tenant> = self.driver.look(|brain, _| configured(brain).collect());
        let stored = self.driver.store.tenants().await?;
        for tenant in stored {
            if !all.iter().any(|known| known.id == tenant.id) {
                all.push(tenant);
            }
        }
        all.sort_unstable_by(|a, b| a.id.cmp(&b.id));
        Ok(all)
    }

    /// Makes a tenant known, in place of an older one of its name; durable when it returns. Goes on to
    /// its end when it is dropped.
    ///
    /// # Errors
    /// `CONFLICT` when the configuration has one of that name, `INVALID_REQUEST`, `STORE_FAILED`.
    pub async fn put_tenant(&self, tenant: Tenant) -> Result<()> {
        self.check_is_stored(&tenant.id)?;
        if tenant.limits.weight == 0 {
            return Err(Error::invalid("weight must be at least 1").param("weight"));
        }
        let this = self.clone();
        self.to_its_end(async move {
            let _alone = this.driver.tenants.lock().await;
            this.driver.store.put_tenant(tenant).await?;
            this.tell_tenants().await
        })
        .await
    }

    /// Forgets a tenant; what it has open goes on. Goes on to its end when it is dropped.
    ///
    /// # Errors
    /// `NOT_FOUND`, `CONFLICT` when it is of the configuration, `STORE_FAILED`.
    pub async fn remove_tenant(&self, id: &TenantId) -> Result<()> {
        self.check_is_stored(id)?;
        let (this, id) = (self.clone(), id.clone());
        self.to_its_end(async move {
            let _alone = this.driver.tenants.lock().await;
            if !this.driver.store.remove_tenant(&id).await? {
                let message = format!("there is no tenant {id}");
                return Err(Error::new(Code::NotFound, message).param("tenant_id"));
            }
            this.tell_tenants().await
        })
        .await
    }

    /// Takes the aliases and tenants of another configuration in place of those it has; all else stays
    /// as it was at the start, in [`Orchestrator::config`] too. What waits or runs goes on as it was
    /// taken in, its tenant's limits apart.
    ///
    /// # Errors
    /// Those of [`Config::check`], and `STORE_FAILED`; nothing has changed then.
    pub async fn reload(&self, config: &Config) -> Result<()> {
        config.check()?;
        let _alone = self.driver.tenants.lock().await;
        // Asked before anything changes.
        let Known { stored, used_today } = known(self.driver.store.as_ref()).await?;
        self.driver.decide(|brain, now, out| {
            brain.configure(&config.aliases, &config.tenants);
            brain.set_tenants(now, stored, &used_today, out);
        });
        Ok(())
    }

    /// What was used, by day, tenant and model.
    ///
    /// # Errors
    /// `STORE_FAILED`.
    pub async fn usage(&self, filter: &UsageFilter) -> Result<Vec<UsageRow>> {
        self.driver.store.usage(filter).await
    }

    fn check_is_stored(&self, id: &TenantId) -> Result<()> {
        let is_configured = |brain: &Brain| brain.configured_tenants().contains_key(id.as_str());
        if !self.driver.look(|brain, _| is_configured(brain)) {
            return Ok(());
        }
        let message = format!(
            "tenant {id} is in the configuration file, which wins: change it there and reload it"
        );
        Err(Error::new(Code::Conflict, message))
    }

    async fn tell_tenants(&self) -> Result<()> {
        let Known { stored, used_today } = known(self.driver.store.as_ref()).await?;
        self.driver
            .decide(|brain, now, out| brain.set_tenants(now, stored, &used_today, out));
        Ok(())
    }
}
