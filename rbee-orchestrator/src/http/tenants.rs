//! Tenants, and what they used.

use bytes::Bytes;
use http::Response;
use http_body::Body as HttpBody;
use serde::Deserialize;
use serde_json::{Value, json};

use super::body::Body;
use super::{Context, answer, read};
use crate::domain::{Tenant, TenantId, TenantLimits, UnixMillis, UsageFilter, UsageRow};
use crate::error::{Error, Result};

/// `GET /v2/tenants/list`.
pub(super) async fn list(context: &Context<'_>) -> Result<Response<Body>> {
    let tenants = context.orchestrator.tenants().await?;
    let shown: Vec<Value> = tenants.iter().map(object).collect();
    Ok(answer::ok(&json!({"tenants": shown})))
}

fn object(tenant: &Tenant) -> Value {
    let mut object = json!(tenant.limits);
    object["tenant_id"] = json!(tenant.id);
    object
}

#[derive(Deserialize)]
struct Named {
    tenant_id: String,
    #[serde(flatten)]
    limits: Limits,
}

/// The limits, with a null as good as nothing.
#[derive(Deserialize)]
struct Limits {
    weight: Option<u32>,
    models: Option<Vec<String>>,
    max_concurrent: Option<u32>,
    tokens_per_day: Option<u64>,
    requests_per_minute: Option<u32>,
    tokens_per_minute: Option<u32>,
}

/// `POST /v2/tenants/add`: makes a tenant known, in place of an older one of its name.
pub(super) async fn add<B>(context: &Context<'_>, body: B) -> Result<Response<Body>>
where
    B: HttpBody<Data = Bytes> + Unpin,
    B::Error: std::fmt::Display,
{
    let Named { tenant_id, limits } = read::json(context, body).await?;
    let id = TenantId::new(tenant_id).map_err(|error| error.param("tenant_id"))?;
    let limits = TenantLimits {
        weight: limits.weight.unwrap_or(1),
        models: limits.models,
        max_concurrent: limits.max_concurrent,
        tokens_per_day: limits.tokens_per_day,
        requests_per_minute: limits.requests_per_minute,
        tokens_per_minute: limits.tokens_per_minute,
    };
    let message = format!("tenant {id} is known");
    context
        .orchestrator
        .put_tenant(Tenant { id, limits })
        .await?;
    Ok(answer::ok(&json!({"success": true, "message": message})))
}

#[derive(Deserialize)]
struct Removal {
    tenant_id: String,
}

/// `POST /v2/tenants/remove`.
pub(super) async fn remove<B>(context: &Context<'_>, body: B) -> Result<Response<Body>>
where
    B: HttpBody<Data = Bytes> + Unpin,
    B::Error: std::fmt::Display,
{
    let Removal { tenant_id } = read::json(context, body).await?;
    let id = TenantId::new(tenant_id).map_err(|error| error.param("tenant_id"))?;
    context.orchestrator.remove_tenant(&id).await?;
    let message = format!("tenant {id} is forgotten; what it has open goes on");
    Ok(answer::ok(&json!({"success": true, "message": message})))
}

/// `GET /v2/usage`.
pub(super) async fn usage(context: &Context<'_>) -> Result<Response<Body>> {
    let tenant = read::query(context, "tenant").map(TenantId::new);
    let model = read::query(context, "model").map(|name| context.orchestrator.resolve(&name));
    let since = read::query(context, "since").map(|date| {
        let midnight = UnixMillis::parse(&format!("{date}T00:00:00Z"));
        let wrong =
            || Error::invalid(format!("since {date:?} is no date like 2026-12-31")).param("since");
        midnight.map(UnixMillis::day).ok_or_else(wrong)
    });
    let filter = UsageFilter {
        tenant: tenant.transpose()?,
        model: model.transpose()?,
        since_day: since.transpose()?,
    };
    let rows = context.orchestrator.usage(&filter).await?;
    let shown: Vec<Value> = rows.iter().map(row).collect();
    Ok(answer::ok(&json!({"usage": shown})))
}

fn row(row: &UsageRow) -> Value {
    json!({
        "day": UnixMillis::of_day(row.day).date(),
        "tenant_id": row.tenant,
        "model": row.model,
        "jobs": row.jobs,
        "tokens_in": row.tokens_in,
        "tokens_out": row.tokens_out,
        "inference_ms": row.inference_ms,
        "slot_ms": row.slot_ms,
    })
}
