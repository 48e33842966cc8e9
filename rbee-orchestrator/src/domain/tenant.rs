//! A tenant: on whose behalf requests come, what it may use, and what it used.

use serde::{Deserialize, Serialize};

use super::{ModelRef, TenantId};

/// What a tenant may use. A limit that is absent does not limit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TenantLimits {
    /// Its share of the slots when others wait too, against their weights; at least 1.
    pub weight: u32,
    /// The models that it may ask for, by name or reference; all if absent.
    pub models: Option<Vec<String>>,
    /// Jobs that it may have open at once.
    pub max_concurrent: Option<u32>,
    /// Tokens, in and out, that it may use from midnight to midnight UTC.
    pub tokens_per_day: Option<u64>,
    /// Requests in any minute.
    pub requests_per_minute: Option<u32>,
    /// Tokens, in and out, in any minute.
    pub tokens_per_minute: Option<u32>,
}

impl Default for TenantLimits {
    fn default() -> Self {
        TenantLimits {
            weight: 1,
            models: None,
            max_concurrent: None,
            tokens_per_day: None,
            requests_per_minute: None,
            tokens_per_minute: None,
        }
    }
}

/// A tenant that is known.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tenant {
    /// Its name.
    pub id: TenantId,
    /// What it may use.
    #[serde(flatten)]
    pub limits: TenantLimits,
}

/// What a tenant used of a model on one day (UTC): the sum over its jobs that ended then.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UsageRow {
    /// Days since 1970-01-01 UTC.
    pub day: i64,
    /// Who.
    pub tenant: TenantId,
    /// Of which model.
    pub model: ModelRef,
    /// Jobs that ended.
    pub jobs: u64,
    /// Tokens of their prompts.
    pub tokens_in: u64,
    /// Tokens generated.
    pub tokens_out: u64,
    /// See [`super::Times`].
    pub inference_ms: u64,
    /// See [`super::Times`].
    pub slot_ms: u64,
}

/// Which usage to sum; an absent field matches all.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct UsageFilter {
    /// Of this tenant.
    pub tenant: Option<TenantId>,
    /// Of this model.
    pub model: Option<ModelRef>,
    /// From this day on.
    pub since_day: Option<i64>,
}
