//! What headers say about a request.

use std::time::Duration;

use http::{HeaderMap, HeaderValue};

use super::Context;
use crate::domain::{Priority, RequestOptions, SessionId, TenantId, UnixMillis};
use crate::error::{Code, Error, Result};

/// Queens that may pass a request on, one to the other: more are a circle.
const MAX_HOPS: u32 = 4;

/// What the headers say that are options; of several with one name the first.
#[derive(Default)]
struct Given<'a> {
    priority: Option<&'a HeaderValue>,
    tenant: Option<&'a HeaderValue>,
    session: Option<&'a HeaderValue>,
    idempotency_key: Option<&'a HeaderValue>,
    timeout_ms: Option<&'a HeaderValue>,
    hops: Option<&'a HeaderValue>,
    deadline: Option<&'a HeaderValue>,
}

impl<'a> Given<'a> {
    /// In one walk over the headers: most requests have few, and none of these.
    fn read(headers: &'a HeaderMap) -> Self {
        let mut given = Given::default();
        for (name, value) in headers {
            let option = match name.as_str() {
                "x-priority" => &mut given.priority,
                "x-tenant-id" => &mut given.tenant,
                "x-session-id" => &mut given.session,
                "idempotency-key" => &mut given.idempotency_key,
                "x-request-timeout-ms" => &mut given.timeout_ms,
                "x-rbee-hops" => &mut given.hops,
                "x-request-deadline" => &mut given.deadline,
                _ => continue,
            };
            option.get_or_insert(value);
        }
        given
    }
}

/// A header's text, if there is any.
fn text<'a>(name: &str, value: Option<&'a HeaderValue>) -> Result<Option<&'a str>> {
    let Some(value) = value else {
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
    let given = Given::read(&context.headers);
    let mut options = RequestOptions {
        correlation_id: Some(context.correlation_id.to_owned()),
        ..RequestOptions::default()
    };
    if let Some(hops) = text("X-Rbee-Hops", given.hops)? {
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
    if let Some(name) = text("X-Priority", given.priority)? {
        options.priority = priority(name)?;
    }
    if let Some(tenant) = text("X-Tenant-Id", given.tenant)? {
        options.tenant = TenantId::new(tenant)?;
    }
    if let Some(session) = text("X-Session-Id", given.session)? {
        options.session = Some(SessionId::new(session)?);
    }
    if let Some(key) = text("Idempotency-Key", given.idempotency_key)? {
        options.idempotency_key = Some(key.to_owned());
    }
    if let Some(timeout) = text("X-Request-Timeout-Ms", given.timeout_ms)? {
        let ms: u64 = timeout.parse().map_err(|_| {
            Error::invalid(format!(
                "X-Request-Timeout-Ms {timeout:?} is not a number of milliseconds"
            ))
        })?;
        options.total_timeout = Some(Duration::from_millis(ms));
    }
    if let Some(deadline) = text("X-Request-Deadline", given.deadline)? {
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
