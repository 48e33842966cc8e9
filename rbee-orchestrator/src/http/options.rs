//! What headers say about a request.

use std::time::Duration;

use http::{HeaderMap, HeaderName};

use super::Context;
use crate::domain::{Priority, RequestOptions, SessionId, TenantId, UnixMillis};
use crate::error::{Code, Error, Result};

// Made once: a name in text is checked and hashed anew with each look.
static PRIORITY: HeaderName = HeaderName::from_static("x-priority");
static TENANT: HeaderName = HeaderName::from_static("x-tenant-id");
static SESSION: HeaderName = HeaderName::from_static("x-session-id");
static IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
static TIMEOUT_MS: HeaderName = HeaderName::from_static("x-request-timeout-ms");
static HOPS: HeaderName = HeaderName::from_static("x-rbee-hops");
static DEADLINE: HeaderName = HeaderName::from_static("x-request-deadline");

/// Queens that may pass a request on, one to the other: more are a circle.
const MAX_HOPS: u32 = 4;

fn text<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Result<Option<&'a str>> {
    let Some(value) = headers.get(name) else {
        return Ok(None);
    };
    let value = value
        .to_str()
        .map_err(|_| Error::invalid(format!("{name} must be ASCII")))?;
    Ok(Some(value.trim()).filter(|value| !value.is_empty()))
}

/// Options of any request, from its headers.
///
/// # Errors
/// `INVALID_REQUEST`, naming the header.
pub(super) fn from_headers(context: &Context<'_>) -> Result<RequestOptions> {
    let headers = &context.headers;
    let mut options = RequestOptions {
        correlation_id: Some(context.correlation_id.to_owned()),
        ..RequestOptions::default()
    };
    if let Some(hops) = text(headers, &HOPS)? {
        options.hops = hops
            .parse()
            .map_err(|_| Error::invalid(format!("X-Rbee-Hops {hops:?} is not a number")))?;
        if options.hops > MAX_HOPS {
            let message = format!(
                "the request has been passed on by {hops} queens, and {MAX_HOPS} are allowed: most \
                 likely one of them has itself, or one before it, as a worker"
            );
            return Err(Error::new(Code::LoopDetected, message));
        }
    }
    if let Some(name) = text(headers, &PRIORITY)? {
        options.priority = priority(name)?;
    }
    if let Some(tenant) = text(headers, &TENANT)? {
        options.tenant = TenantId::new(tenant)?;
    }
    if let Some(session) = text(headers, &SESSION)? {
        options.session = Some(SessionId::new(session)?);
    }
    if let Some(key) = text(headers, &IDEMPOTENCY_KEY)? {
        options.idempotency_key = Some(key.to_owned());
    }
    if let Some(timeout) = text(headers, &TIMEOUT_MS)? {
        let ms: u64 = timeout.parse().map_err(|_| {
            Error::invalid(format!(
                "X-Request-Timeout-Ms {timeout:?} is not a number of milliseconds"
            ))
        })?;
        options.total_timeout = Some(Duration::from_millis(ms));
    }
    if let Some(deadline) = text(headers, &DEADLINE)? {
        let at = UnixMillis::parse(deadline).ok_or_else(|| {
            Error::invalid(format!(
                "X-Request-Deadline {deadline:?} is not an RFC 3339 time"
            ))
        })?;
        if at <= UnixMillis::now() {
            return Err(Error::new(
                Code::Timeout,
                "the request's deadline has passed already",
            ));
        }
        options.deadline = Some(at);
    }
    Ok(options)
}

/// Whether the caller prefers an answer before the work is done (RFC 7240).
pub(super) fn prefers_async(headers: &HeaderMap) -> bool {
    let values = headers.get_all("prefer").iter();
    let mut preferences = values
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split([',', ';']));
    preferences.any(|name| name.trim().eq_ignore_ascii_case("respond-async"))
}

/// A queue class by name.
///
/// # Errors
/// `INVALID_REQUEST`.
pub(super) fn priority(name: &str) -> Result<Priority> {
    match name {
        "interactive" => Ok(Priority::Interactive),
        "batch" => Ok(Priority::Batch),
        _ => Err(Error::invalid(format!(
            "priority {name:?} is neither \"interactive\" nor \"batch\""
        ))
        .param("priority")),
    }
}
