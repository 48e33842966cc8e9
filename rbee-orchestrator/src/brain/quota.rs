//! What tenants may do: entitlements, quotas, and jobs that are held back until these allow them.

use std::collections::BTreeMap;

use crate::config::QuotaPolicy;
use crate::domain::{
    JobId, ModelRef, Narration, Now, Outcome, Tenant, TenantId, TenantLimits, Usage,
};
use crate::error::{Code, Error, Result};

use super::Brain;
use super::action::Action;
use super::event::JobRequest;
use super::job::{Due, Job, Phase};
use super::names::Meaning;
use super::places::{QueuePlace, within_reason};
use super::tenants::{Midnight, Over, to_midnight};

/// A job that no quota of its tenant will ever allow.
fn never(tenant: &TenantId, why: &str) -> Error {
    let message = format!(
        "tenant {tenant} can't have this: {why}; ask for less, with max_tokens or fewer answers, or \
         have the tenant's limits raised"
    );
    Error::invalid(message).param("max_tokens")
}

impl Brain {
    /// The tenants of the configuration, by name.
    #[must_use]
    pub fn configured_tenants(&self) -> &BTreeMap<String, TenantLimits> {
        &self.config.tenants
    }

    /// Takes other aliases and tenants in place of those of the configuration; of tenants it makes use
    /// with [`Brain::set_tenants`], which must follow.
    pub fn configure(
        &mut self,
        aliases: &BTreeMap<String, String>,
        tenants: &BTreeMap<String, TenantLimits>,
    ) {
        self.config.aliases.clone_from(aliases);
        self.config.tenants.clone_from(tenants);
        self.names.configure(aliases);
    }

    /// Takes the tenants of the store in, beside those of the configuration (these win), with the
    /// tokens that tenants have used today (UTC). Called again when they have changed.
    pub fn set_tenants(
        &mut self,
        now: Now,
        stored: Vec<Tenant>,
        used_today: &[(TenantId, u64)],
        out: &mut Vec<Action>,
    ) {
        self.tenants.move_on(now);
        let mut free = self.tenants.replace(&self.config.tenants, stored);
        for (tenant, used) in used_today {
            self.tenants.note_used(tenant, *used);
        }
        for job in self.jobs.values_mut() {
            let book = self.tenants.get_mut(&job.request.tenant);
            job.charged = !job.held && book.is_some();
            if let Some(book) = book.filter(|_| job.charged) {
                book.charge(job.request.tokens);
            }
        }
        let tenants = &self.tenants;
        self.queue.weigh(|tenant| tenants.weight(tenant));
        free.sort_unstable();
        for id in free {
            self.unhold(now, id);
            self.start(now, id, out);
        }
        self.release_all_held(now, out);
    }

    /// Whether the request's tenant may have it run now; `true` if it is to be held back.
    pub(super) fn check_tenant(
        &mut self,
        now: Now,
        request: &JobRequest,
        model: &ModelRef,
    ) -> Result<bool> {
        if self.tenants.is_empty() {
            return Ok(false);
        }
        self.tenants.move_on(now);
        self.check_entitled(request, model)?;
        let hold = self.check_quota(now, request, model)?;
        if let Some(book) = self.tenants.get_mut(&request.tenant) {
            book.limit(now.mono, request)?;
        }
        Ok(hold)
    }

    /// Whether the tenant is known and may use the model, under whichever of its names.
    pub(super) fn check_entitled(&self, request: &JobRequest, model: &ModelRef) -> Result<()> {
        let tenant = &request.tenant;
        let Some(book) = self.tenants.get(tenant) else {
            let message = format!(
                "tenant {tenant} is not known; name one that is, with tenant_id or X-Tenant-Id, \
                 or have it added to `tenants` in the queen's configuration"
            );
            return Err(Error::new(Code::Forbidden, message).param("tenant_id"));
        };
        let Some(allowed) = &book.limits.models else {
            return Ok(());
        };
        let means = |name: &str| match self.names.resolve(name) {
            Ok(Meaning::Certain(meant) | Meaning::Fallback(meant)) => meant == *model,
            Err(_) => false,
        };
        let named = |name: &String| *name == request.model || name == model.as_str();
        if allowed.iter().any(named) || allowed.iter().any(|name| means(name)) {
            return Ok(());
        }
        let message = format!(
            "tenant {tenant} may not use model {}; it may use {}",
            request.model,
            allowed.join(", ")
        );
        Err(Error::new(Code::Forbidden, message).param("model"))
    }

    fn check_quota(&self, now: Now, request: &JobRequest, model: &ModelRef) -> Result<bool> {
        let Some(book) = self.tenants.get(&request.tenant) else {
            return Ok(false);
        };
        if let Some(why) = book.never(request.tokens) {
            return Err(never(&request.tenant, &why));
        }
        let over = book.over(request.tokens);
        if self.config.quota_policy == QuotaPolicy::Queue {
            return Ok(over.is_some() || book.has_held_before(request.priority));
        }
        match over {
            None => Ok(false),
            Some(over) => Err(self.over_quota(now, request, model, over)),
        }
    }

    fn over_quota(&self, now: Now, request: &JobRequest, model: &ModelRef, over: Over) -> Error {
        let tenant = &request.tenant;
        let limits = self.tenants.get(tenant).map(|book| &book.limits);
        let concurrent = limits.and_then(|limits| limits.max_concurrent).unwrap_or(0);
        let daily = limits.and_then(|limits| limits.tokens_per_day).unwrap_or(0);
        let (message, after) = match over {
            Over::Concurrent => (
                format!("tenant {tenant} may have {concurrent} jobs open at once and has as many"),
                within_reason(self.rates.until(model, 1, concurrent)),
            ),
            Over::Daily => (
                format!(
                    "tenant {tenant} may use {daily} tokens a day, and too few are left for the \
                     {} of this request; they come back at midnight UTC",
                    request.tokens
                ),
                to_midnight(now.wall),
            ),
        };
        let error = Error::new(Code::QuotaExceeded, message).retry_after(after);
        match over {
            Over::Concurrent => error,
            // Some clients would sleep until then.
            Over::Daily => error.do_not_retry(),
        }
    }

    /// Why a held job gave up waiting.
    pub(super) fn held_too_long(&self, now: Now, job: &Job) -> Error {
        let book = self.tenants.get(&job.request.tenant);
        let over = book.and_then(|book| book.over(job.request.tokens));
        self.over_quota(
            now,
            &job.request,
            &job.key.model,
            over.unwrap_or(Over::Concurrent),
        )
    }

    /// Counts a job that came in for its tenant.
    pub(super) fn charge(&mut self, id: JobId) {
        if self.tenants.is_empty() {
            return;
        }
        if let Some(job) = self.jobs.get_mut(&id).filter(|job| !job.charged)
            && let Some(book) = self.tenants.get_mut(&job.request.tenant)
        {
            job.charged = true;
            book.charge(job.request.tokens);
        }
    }

    /// A job has ended: what it did not use is its tenant's again.
    pub(super) fn settle(&mut self, now: Now, job: &Job, usage: Option<Usage>) {
        if !job.charged && !job.limited {
            return;
        }
        self.tenants.move_on(now);
        let used = usage.map_or(0, |usage| usage.tokens_in.saturating_add(usage.tokens_out));
        let tokens = job.request.tokens;
        if let Some(book) = self.tenants.get_mut(&job.request.tenant) {
            if job.charged {
                book.settle(tokens, used);
            }
            if job.limited {
                book.settle_minute(tokens, used);
            }
            if book.has_held() {
                self.schedule(now.mono, Due::Held(job.request.tenant.clone()));
            }
        }
    }

    /// Holds a job back until its tenant's quota allows it.
    pub(super) fn hold(&mut self, now: Now, id: JobId, out: &mut Vec<Action>) {
        let Some(job) = self.jobs.get_mut(&id) else {
            return;
        };
        job.phase = Phase::Held;
        let tenant = job.request.tenant.clone();
        let Some(book) = self.tenants.get_mut(&tenant) else {
            return self.start(now, id, out);
        };
        book.hold(job.request.priority, id);
        self.counters.quota_held += 1;
        self.await_turn(now, id);
        if let Some(place) = self.queue_place(id) {
            self.tell(id, place, out);
        }
        let narration = Narration {
            actor: "queen",
            action: "quota",
            target: tenant.to_string(),
            human: format!("Waiting until the quota of tenant {tenant} allows it"),
        };
        out.push(Action::Narrate { job: id, narration });
        self.watch_midnight(now);
    }

    pub(super) fn place_held(&self, job: &Job) -> Option<QueuePlace> {
        let book = self.tenants.get(&job.request.tenant)?;
        Some(QueuePlace {
            position: book.place_held(job.request.priority, job.request.id),
            wait: None,
        })
    }

    /// Takes a job out of those that are held back.
    pub(super) fn unhold(&mut self, now: Now, id: JobId) {
        let Some(job) = self.jobs.get_mut(&id) else {
            return;
        };
        job.held = false;
        job.stop_waiting(now);
        if let Some(book) = self.tenants.get_mut(&job.request.tenant) {
            book.let_go(job.request.priority, id);
        }
        self.watch_midnight(now);
    }

    /// Lets go, in their order, of as many held jobs as the tenant's quota allows.
    pub(super) fn release_held(&mut self, now: Now, tenant: &TenantId, out: &mut Vec<Action>) {
        if self.draining {
            return;
        }
        self.tenants.move_on(now);
        while let Some(book) = self.tenants.get(tenant)
            && let Some(id) = book.first_held()
            && let Some(job) = self.jobs.get(&id)
            && book.over(job.request.tokens).is_none()
        {
            self.unhold(now, id);
            self.charge(id);
            self.start(now, id, out);
        }
    }

    pub(super) fn release_all_held(&mut self, now: Now, out: &mut Vec<Action>) {
        let tenants: Vec<TenantId> = self.tenants.with_held().cloned().collect();
        for tenant in tenants {
            self.release_held(now, &tenant, out);
        }
    }

    /// Midnight matters while somebody waits for it.
    fn watch_midnight(&mut self, now: Now) {
        let somebody = self.tenants.with_held().next().is_some();
        match (somebody, self.midnight) {
            (true, None) => {
                let midnight = Midnight::after(now);
                self.midnight = Some(midnight);
                self.schedule(midnight.at, Due::Midnight);
            }
            (false, Some(midnight)) => {
                self.midnight = None;
                self.due.remove(&(midnight.at, Due::Midnight));
            }
            _ => {}
        }
    }

    /// Works out anew when midnight is if the wall clock was set.
    pub(super) fn mind_the_clock(&mut self, now: Now) {
        if let Some(midnight) = self.midnight.filter(|midnight| midnight.is_off(now)) {
            self.due.remove(&(midnight.at, Due::Midnight));
            self.schedule(now.mono, Due::Midnight);
            self.midnight = Some(Midnight::at_once(now));
        }
    }

    pub(super) fn at_midnight(&mut self, now: Now, out: &mut Vec<Action>) {
        self.midnight = None;
        self.release_all_held(now, out);
        self.watch_midnight(now);
    }

    /// Ends a job whose tenant may not use what its model's name turned out to mean.
    pub(super) fn end_unentitled(&mut self, now: Now, id: JobId, out: &mut Vec<Action>) {
        if self.tenants.is_empty() {
            return;
        }
        let job = self.jobs.get(&id);
        let checked = job.map(|job| self.check_entitled(&job.request, &job.key.model));
        if let Some(Err(error)) = checked {
            self.end(now, id, Outcome::Failed(error), out);
        }
    }
}
