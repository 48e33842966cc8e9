//! Tenants: what each may use, and what it has used.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::domain::{JobId, Mono, Now, Priority, Tenant, TenantId, TenantLimits, UnixMillis};
use crate::error::{Code, Error, Result};

use super::event::JobRequest;
use super::limiter::{Limiter, Refusal};

const DAY_MS: i64 = 24 * 60 * 60 * 1000;

/// What a tenant may use, and what it has used.
#[derive(Debug)]
pub(super) struct Book {
    pub(super) limits: TenantLimits,
    /// Jobs that have not ended and are not held back.
    open: u32,
    /// Tokens that these may use. Wider than they are: what is taken back must be what was added.
    reserved: u128,
    /// Tokens of those that ended today.
    used: u64,
    requests: Option<Limiter>,
    tokens: Option<Limiter>,
    /// Jobs that wait for its quota, in their order.
    held: BTreeSet<(Priority, JobId)>,
}

/// Why a quota does not allow a job now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Over {
    Concurrent,
    Daily,
}

impl Book {
    fn new(limits: TenantLimits) -> Self {
        let limiter = |most: Option<u32>| most.map(Limiter::per_minute);
        Book {
            requests: limiter(limits.requests_per_minute),
            tokens: limiter(limits.tokens_per_minute),
            limits,
            open: 0,
            reserved: 0,
            used: 0,
            held: BTreeSet::new(),
        }
    }

    /// The same book under other limits.
    fn under(mut self, limits: TenantLimits) -> Self {
        let changed = |limiter: &Option<Limiter>, most| limiter.as_ref().map(Limiter::most) != most;
        let new = Book::new(limits);
        if changed(&self.requests, new.limits.requests_per_minute) {
            self.requests = new.requests;
        }
        if changed(&self.tokens, new.limits.tokens_per_minute) {
            self.tokens = new.tokens;
        }
        self.limits = new.limits;
        self
    }

    /// What stands against a job of so many tokens now.
    pub(super) fn over(&self, tokens: u64) -> Option<Over> {
        let most = self.limits.max_concurrent;
        if most.is_some_and(|most| self.open >= most) {
            return Some(Over::Concurrent);
        }
        let day = u128::from(self.used) + self.reserved + u128::from(tokens);
        let most = self.limits.tokens_per_day.map(u128::from);
        most.is_some_and(|most| day > most).then_some(Over::Daily)
    }

    /// Why a job of so many tokens could not run if nothing else did, if it could not.
    pub(super) fn never(&self, tokens: u64) -> Option<String> {
        let limits = &self.limits;
        let most_of = |allowed: Option<u32>| allowed.map(u64::from);
        let bounds = [
            (1, most_of(limits.max_concurrent), "jobs at once"),
            (1, most_of(limits.requests_per_minute), "requests a minute"),
            (tokens, limits.tokens_per_day, "tokens a day"),
            (tokens, most_of(limits.tokens_per_minute), "tokens a minute"),
        ];
        bounds.into_iter().find_map(|(needed, allowed, what)| {
            let allowed = allowed.filter(|allowed| needed > *allowed)?;
            let kind = what.split(' ').next().unwrap_or(what);
            Some(format!(
                "the request needs {needed} {kind} and {allowed} {what} are allowed"
            ))
        })
    }

    /// Whether one that comes now has to stand behind others that are held back.
    pub(super) fn has_held_before(&self, class: Priority) -> bool {
        self.held.first().is_some_and(|(first, _)| *first <= class)
    }

    pub(super) fn first_held(&self) -> Option<JobId> {
        self.held.first().map(|(_, job)| *job)
    }

    /// Jobs that are held back before this one.
    pub(super) fn place_held(&self, class: Priority, job: JobId) -> usize {
        self.held.range(..(class, job)).count()
    }

    pub(super) fn hold(&mut self, class: Priority, job: JobId) {
        self.held.insert((class, job));
    }

    pub(super) fn let_go(&mut self, class: Priority, job: JobId) {
        self.held.remove(&(class, job));
    }

    pub(super) fn has_held(&self) -> bool {
        !self.held.is_empty()
    }

    pub(super) fn charge(&mut self, tokens: u64) {
        self.open += 1;
        self.reserved += u128::from(tokens);
    }

    /// A job that was charged has ended, and used so many tokens.
    pub(super) fn settle(&mut self, tokens: u64, used: u64) {
        self.open = self.open.saturating_sub(1);
        self.reserved = self.reserved.saturating_sub(u128::from(tokens));
        self.used = self.used.saturating_add(used);
    }

    /// Lets a request through the limits of the minute.
    ///
    /// # Errors
    /// `RATE_LIMITED`, with the time after which it would go through.
    pub(super) fn limit(&mut self, now: Mono, request: &JobRequest) -> Result<()> {
        if let Some(limiter) = &mut self.requests {
            take(limiter, now, 1, "requests", &request.tenant)?;
        }
        if let Some(limiter) = &mut self.tokens
            && let Err(error) = take(limiter, now, request.tokens, "tokens", &request.tenant)
        {
            if let Some(limiter) = &mut self.requests {
                limiter.settle(1, 0);
            }
            return Err(error);
        }
        Ok(())
    }

    /// Gives back what a request took and did not use, or takes what it used beyond.
    pub(super) fn settle_minute(&mut self, tokens: u64, used: u64) {
        if let Some(limiter) = &mut self.tokens {
            limiter.settle(tokens, used);
        }
    }

    /// A request that was let through never came.
    pub(super) fn unlimit(&mut self, tokens: u64) {
        if let Some(limiter) = &mut self.requests {
            limiter.settle(1, 0);
        }
        self.settle_minute(tokens, 0);
    }
}

fn take(
    limiter: &mut Limiter,
    now: Mono,
    wanted: u64,
    what: &str,
    tenant: &TenantId,
) -> Result<()> {
    let most = limiter.most();
    limiter.take(now, wanted).map_err(|refusal| {
        let (message, after) = match refusal {
            Refusal::Wait(wait) => (
                format!("tenant {tenant} may use {most} {what} a minute; ask again later"),
                wait,
            ),
            // Those that ask for more than there ever is are refused before.
            Refusal::Never => (
                format!("tenant {tenant} may use {most} {what} a minute, and none are left"),
                Duration::from_secs(60),
            ),
        };
        Error::new(Code::RateLimited, message).retry_after(after)
    })
}

/// All tenants. With none, nobody is limited.
#[derive(Debug, Default)]
pub(super) struct Tenants {
    books: BTreeMap<TenantId, Book>,
    /// The day (UTC) whose use the books hold.
    day: i64,
}

impl Tenants {
    pub(super) fn new(configured: &BTreeMap<String, TenantLimits>) -> Self {
        let mut tenants = Tenants::default();
        drop(tenants.replace(configured, Vec::new()));
        tenants
    }

    /// Takes other tenants in place of those that were; those of the configuration win. What is
    /// known of those that stay stays, but for their open jobs, which are to be counted anew.
    /// Returns the jobs that nobody holds back any more.
    pub(super) fn replace(
        &mut self,
        configured: &BTreeMap<String, TenantLimits>,
        stored: Vec<Tenant>,
    ) -> Vec<JobId> {
        let configured = configured.iter().filter_map(|(name, limits)| {
            let id = TenantId::new(name).ok()?;
            Some((id, limits.clone()))
        });
        let stored = stored.into_iter().map(|tenant| (tenant.id, tenant.limits));
        let all: BTreeMap<TenantId, TenantLimits> = stored.chain(configured).collect();
        let mut old = std::mem::take(&mut self.books);
        for (id, limits) in all {
            let mut book = match old.remove(&id) {
                Some(book) => book.under(limits),
                None => Book::new(limits),
            };
            (book.open, book.reserved) = (0, 0);
            self.books.insert(id, book);
        }
        let free = old.into_values().flat_map(|book| book.held);
        free.map(|(_, job)| job).collect()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.books.is_empty()
    }

    pub(super) fn get(&self, tenant: &TenantId) -> Option<&Book> {
        match self.books.is_empty() {
            true => None,
            false => self.books.get(tenant),
        }
    }

    pub(super) fn get_mut(&mut self, tenant: &TenantId) -> Option<&mut Book> {
        match self.books.is_empty() {
            true => None,
            false => self.books.get_mut(tenant),
        }
    }

    pub(super) fn weight(&self, tenant: &TenantId) -> u32 {
        self.get(tenant).map_or(1, |book| book.limits.weight)
    }

    /// Notes what a tenant has used today, if that is more than is known.
    pub(super) fn note_used(&mut self, tenant: &TenantId, used: u64) {
        if let Some(book) = self.books.get_mut(tenant) {
            book.used = book.used.max(used);
        }
    }

    /// Those for whom jobs are held back.
    pub(super) fn with_held(&self) -> impl Iterator<Item = &TenantId> {
        let books = self.books.iter().filter(|(_, book)| book.has_held());
        books.map(|(tenant, _)| tenant)
    }

    /// Moves on to this time. A new day begins with nothing used; a clock that was set back does
    /// not give anything back.
    pub(super) fn move_on(&mut self, now: Now) {
        let day = now.wall.day();
        if day > self.day {
            self.books.values_mut().for_each(|book| book.used = 0);
        }
        self.day = day;
    }
}

/// How long it is until the next midnight, UTC.
pub(super) fn to_midnight(wall: UnixMillis) -> Duration {
    UnixMillis((wall.day() + 1).saturating_mul(DAY_MS)).since(wall)
}

/// When the next midnight is due, and how the two clocks stood to each other when that was worked
/// out.
#[derive(Debug, Clone, Copy)]
pub(super) struct Midnight {
    pub(super) at: Mono,
    clocks: i64,
}

/// How far the clocks may drift apart before a midnight is worked out anew, in milliseconds.
const DRIFT_MS: i64 = 1000;

impl Midnight {
    pub(super) fn after(now: Now) -> Self {
        Midnight {
            at: now.mono + to_midnight(now.wall),
            clocks: Self::clocks(now),
        }
    }

    /// To be looked at now: the wall clock was set.
    pub(super) fn at_once(now: Now) -> Self {
        Midnight {
            at: now.mono,
            clocks: Self::clocks(now),
        }
    }

    /// Whether the wall clock was set since.
    pub(super) fn is_off(&self, now: Now) -> bool {
        Self::clocks(now).saturating_sub(self.clocks).abs() > DRIFT_MS
    }

    fn clocks(now: Now) -> i64 {
        let mono = i64::try_from(now.mono.0.as_millis()).unwrap_or(i64::MAX);
        now.wall.0.saturating_sub(mono)
    }
}
