//! Jobs: how many may wait, what is tried again, what is kept.

use std::time::Duration;

use serde::Deserialize;

/// How many may wait: a number, or -1 for no bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "i64")]
pub struct Capacity(Option<usize>);

impl Capacity {
    /// As many as come.
    pub const UNBOUNDED: Capacity = Capacity(None);

    /// So many.
    #[must_use]
    pub const fn of(most: usize) -> Self {
        Capacity(Some(most))
    }

    /// Whether one more may come where so many are.
    #[must_use]
    pub fn has_room(self, count: usize) -> bool {
        self.0.is_none_or(|most| count < most)
    }
}

impl TryFrom<i64> for Capacity {
    type Error = String;
    fn try_from(number: i64) -> Result<Self, String> {
        match (number, usize::try_from(number)) {
            (-1, _) => Ok(Capacity::UNBOUNDED),
            (_, Ok(most)) => Ok(Capacity::of(most)),
            _ => Err(format!("{number} is neither a number of requests nor -1")),
        }
    }
}

/// What happens to a request that comes when the queue is full.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WhenFull {
    /// It is refused with `SYSTEM_AT_CAPACITY`.
    #[default]
    Reject,
    /// An interactive one takes the place of the batch job that has waited longest, which ends
    /// with `SYSTEM_AT_CAPACITY`.
    DropOldestBatch,
}

/// What happens to work that is over its tenant's quota.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum QuotaPolicy {
    /// It is refused with `QUOTA_EXCEEDED`.
    #[default]
    Reject,
    /// It waits until the quota allows it.
    Queue,
}

/// Bounds of the queue.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct QueueConfig {
    /// Interactive requests that may wait at once.
    pub capacity_interactive: Capacity,
    /// Batch jobs that may wait at once.
    pub capacity_batch: Capacity,
    /// What the waiting requests may hold in memory, in bytes.
    pub max_bytes: u64,
    /// What happens to one more.
    pub when_full: WhenFull,
    /// The share of a model's slots that batch jobs may hold, though always one; the rest stays free
    /// of them.
    pub batch_share: f64,
    /// A model's last free slot goes to a batch job only if no interactive request came for so long.
    #[serde(with = "humantime_serde")]
    pub batch_quiet: Duration,
    /// How often a batch job gives up its slot, and begins anew later, where batch jobs hold all slots that an
    /// interactive request waits for.
    pub batch_gives_back: u32,
    /// A batch job that has waited this long is treated as interactive.
    #[serde(with = "humantime_serde")]
    pub promote_after: Duration,
    /// How long an interactive request waits for a worker unless it says otherwise.
    #[serde(with = "humantime_serde")]
    pub timeout: Duration,
}

impl Default for QueueConfig {
    fn default() -> Self {
        QueueConfig {
            capacity_interactive: Capacity::of(1000),
            capacity_batch: Capacity::of(1000),
            max_bytes: 256 << 20,
            when_full: WhenFull::Reject,
            batch_share: 0.8,
            batch_quiet: Duration::from_secs(10),
            batch_gives_back: 3,
            promote_after: Duration::from_secs(5 * 60),
            timeout: Duration::from_secs(60),
        }
    }
}

/// What is tried again, and how often.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RetryConfig {
    /// Attempts of an interactive request, all before its first byte was relayed.
    pub attempts_interactive: u32,
    /// Attempts of an asynchronous task.
    pub attempts_async: u32,
    /// The longest pause before the second attempt of an asynchronous task; doubles with each.
    #[serde(with = "humantime_serde")]
    pub backoff_first: Duration,
    /// The longest pause before any attempt.
    #[serde(with = "humantime_serde")]
    pub backoff_max: Duration,
    /// Retries that are allowed, as a share of the requests in the window.
    pub budget_ratio: f64,
    /// The window.
    #[serde(with = "humantime_serde")]
    pub budget_window: Duration,
    /// Retries in the window that are allowed however few requests there are.
    pub budget_min: u32,
}

impl Default for RetryConfig {
    fn default() -> Self {
        RetryConfig {
            attempts_interactive: 3,
            attempts_async: 5,
            backoff_first: Duration::from_secs(1),
            backoff_max: Duration::from_secs(60),
            budget_ratio: 0.2,
            budget_window: Duration::from_secs(10),
            budget_min: 10,
        }
    }
}

/// When a worker that fails is left alone.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BreakerConfig {
    /// Failures in a row after which a worker gets no more work for a while.
    pub failures: u32,
    /// The same for this share of failures in the window.
    pub ratio: f64,
    /// Attempts in the window below which the share says nothing.
    pub min_attempts: u32,
    /// The window.
    #[serde(with = "humantime_serde")]
    pub window: Duration,
    /// How long it is left alone the first time; doubles each time in a row.
    #[serde(with = "humantime_serde")]
    pub open_first: Duration,
    /// The longest time.
    #[serde(with = "humantime_serde")]
    pub open_max: Duration,
    /// Attempts at once that try afterwards whether it works again.
    pub probes: u32,
}

impl BreakerConfig {
    /// How long a worker is left alone that was so often before, in a row.
    pub(crate) fn open_time(&self, times_before: u32) -> Duration {
        let time = self.open_first.saturating_mul(1 << times_before.min(16));
        time.min(self.open_max)
    }
}

impl Default for BreakerConfig {
    fn default() -> Self {
        BreakerConfig {
            failures: 5,
            ratio: 0.5,
            min_attempts: 10,
            window: Duration::from_secs(10),
            open_first: Duration::from_secs(5),
            open_max: Duration::from_secs(60),
            probes: 1,
        }
    }
}

/// How long what has ended is kept.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RetentionConfig {
    /// Jobs, with their results, from their end on.
    #[serde(with = "humantime_serde")]
    pub jobs: Duration,
    /// Idempotency keys, from the submission on.
    #[serde(with = "humantime_serde")]
    pub idempotency_keys: Duration,
    /// Between two purges.
    #[serde(with = "humantime_serde")]
    pub interval: Duration,
}

impl Default for RetentionConfig {
    fn default() -> Self {
        const HOUR: Duration = Duration::from_secs(60 * 60);
        RetentionConfig {
            jobs: HOUR * 24 * 7,
            idempotency_keys: HOUR * 24,
            interval: Duration::from_secs(60),
        }
    }
}

/// What is kept of requests.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PrivacyConfig {
    /// Whether requests are stored, and errors with what they quote of them. Asynchronous tasks need
    /// their requests until they have ended.
    pub store_prompts: bool,
}

/// What readers of a task's events are held to.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ReplayConfig {
    /// Text of running tasks that is kept in memory in all, in bytes.
    pub max_bytes: u64,
    /// How far a reader may fall behind, in bytes of text, before it is dropped.
    pub max_lag_bytes: usize,
}

impl Default for ReplayConfig {
    fn default() -> Self {
        ReplayConfig {
            max_bytes: 256 << 20,
            max_lag_bytes: 1 << 20,
        }
    }
}
