//! The HTTP API as a service over an [`Orchestrator`], and a [`Server`] that holds a socket against
//! whoever comes. A server of your own can mount the service as well.
//!
//! ```no_run
//! use rbee_orchestrator::Orchestrator;
//! use rbee_orchestrator::http::{Access, HttpApi};
//!
//! # async fn mount(request: http::Request<http_body_util::Full<bytes::Bytes>>)
//! # -> rbee_orchestrator::Result<()> {
//! let orchestrator = Orchestrator::builder().start().await?;
//! let api = HttpApi::new(orchestrator, Access::loopback());
//! let response = api.call(request).await;
//! assert_eq!(response.status(), 200);
//! # Ok(())
//! # }
//! ```

mod access;
mod answer;
mod body;
mod cors;
mod events;
mod fleet;
mod following;
mod hive_filter;
mod hives;
mod logs;
mod models;
mod openai;
mod options;
mod read;
mod registration;
mod routes;
mod serve;
mod task_view;
mod tasks;
mod tenants;
mod workers;

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response};
use http_body::Body as HttpBody;
use uuid::Uuid;

use crate::Orchestrator;
use crate::domain::HiveId;
use crate::error::{Code, Error, Result};

pub use access::Access;
use access::Caller;
pub use body::Body;
use routes::{Found, Route, Routes};
use serve::Asking;
pub use serve::{Server, raise_open_files};

/// The API. Cheap to clone.
#[derive(Debug, Clone)]
pub struct HttpApi {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    orchestrator: Orchestrator,
    access: Access,
    routes: Routes,
}

/// What every endpoint gets.
struct Context<'a> {
    orchestrator: &'a Orchestrator,
    headers: HeaderMap,
    query: Option<&'a str>,
    /// The path's `{id}`.
    id: &'a str,
    correlation_id: &'a str,
    /// The hives whose token the caller showed.
    speaks_for: Vec<HiveId>,
    /// Whether OpenAI's clients read the answer.
    is_openai: bool,
}

/// What an admitted request is.
enum Admitted {
    /// An endpoint's, with the hives whose token the caller showed.
    Call(Route, Vec<HiveId>),
    /// A browser's question whether its page may call.
    Preflight,
}

impl HttpApi {
    /// An API over an orchestrator.
    #[must_use]
    pub fn new(orchestrator: Orchestrator, access: Access) -> Self {
        let inner = Inner {
            orchestrator,
            access,
            routes: Routes::new(),
        };
        HttpApi {
            inner: Arc::new(inner),
        }
    }

    /// The orchestrator behind it.
    #[must_use]
    pub fn orchestrator(&self) -> &Orchestrator {
        &self.inner.orchestrator
    }

    /// Answers a request. Errors are answers too. Dropping the future, or the response's body,
    /// cancels the request's job.
    pub async fn call<B>(&self, request: Request<B>) -> Response<Body>
    where
        B: HttpBody<Data = Bytes> + Unpin,
        B::Error: std::fmt::Display,
    {
        self.answer(request, None).await
    }

    async fn answer<B>(&self, request: Request<B>, asking: Option<&Asking>) -> Response<Body>
    where
        B: HttpBody<Data = Bytes> + Unpin,
        B::Error: std::fmt::Display,
    {
        let started = Instant::now();
        let (mut head, body) = request.into_parts();
        let correlation_id = correlation_id(&head.headers);
        // A HEAD is a GET whose answer goes out without its body (RFC 9110, 9.3.2); the server that
        // this is mounted in leaves it out.
        let asked = match head.method {
            Method::HEAD => &Method::GET,
            _ => &head.method,
        };
        let path = head.uri.path().to_owned();
        let query = head.uri.query().map(str::to_owned);
        let (id, found) = self.inner.routes.find(asked, &path);
        let is_openai = path.starts_with("/v1/") && !path.starts_with("/v1/workers/");
        let caller = self.inner.access.look(&head);
        let page = caller.page().cloned();
        let admitted = self.admit(&head, &caller, &found);
        // Copied above: the URI is a part of the server's read buffer, which waits for it.
        drop(std::mem::take(&mut head.uri));
        let mut response = match admitted {
            Err(error) => answer::error(&error, is_openai, &correlation_id),
            Ok(Admitted::Preflight) => cors::preflight(&head.headers),
            Ok(Admitted::Call(route, speaks_for)) => {
                if let Some(asking) = asking.filter(|_| route != Route::Health) {
                    asking.is_let_in();
                }
                let mut context = Context {
                    orchestrator: &self.inner.orchestrator,
                    headers: head.headers,
                    query: query.as_deref(),
                    id,
                    correlation_id: &correlation_id,
                    speaks_for,
                    is_openai,
                };
                route.answer(&mut context, body).await
            }
        };
        if let Ok(value) = HeaderValue::try_from(&correlation_id) {
            let headers = response.headers_mut();
            // OpenAI's clients tell their users this one.
            headers.insert(&REQUEST_ID, value.clone());
            headers.insert(&CORRELATION_ID, value);
        }
        if let Some(page) = page {
            cors::let_read(&mut response, page);
        }
        tracing::debug!(
            %correlation_id, method = %head.method, path, status = response.status().as_u16(),
            elapsed_us = started.elapsed().as_micros(), "answered"
        );
        response
    }

    /// Which route it is, if the caller may use it.
    fn admit(&self, head: &Parts, caller: &Caller<'_>, found: &Found) -> Result<Admitted> {
        let access = &self.inner.access;
        let orchestrator = &self.inner.orchestrator;
        if let Found::Route(Route::Health) = found {
            return Ok(Admitted::Call(Route::Health, Vec::new()));
        }
        if cors::is_preflight(head) {
            return caller.refuse_foreign().map(|()| Admitted::Preflight);
        }
        let speaks_for = access.check(caller, found.is_callback(), orchestrator)?;
        match found {
            Found::Route(route) => Ok(Admitted::Call(*route, speaks_for)),
            Found::OtherMethods(allowed) => Err(Error::new(
                Code::MethodNotAllowed,
                format!(
                    "{} is not a method of {}; use {allowed}",
                    head.method,
                    head.uri.path()
                ),
            )
            .detail("allow", allowed.as_str())),
            Found::Nothing => Err(Error::new(
                Code::NotFound,
                format!(
                    "there is no {} here; docs/http-api.md lists what there is",
                    head.uri.path()
                ),
            )),
        }
    }
}

static CORRELATION_ID: HeaderName = HeaderName::from_static("x-correlation-id");
static REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The caller's correlation id if it is well formed, else a new one.
fn correlation_id(headers: &HeaderMap) -> String {
    let mut given = None;
    for (name, value) in headers {
        if *name == CORRELATION_ID {
            given = Some(value);
            break;
        }
        if *name == REQUEST_ID && given.is_none() {
            given = Some(value);
        }
    }
    let is_good = |text: &&str| {
        let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
        (1..=128).contains(&text.len()) && text.bytes().all(allowed)
    };
    match given.and_then(|value| value.to_str().ok()).filter(is_good) {
        Some(id) => id.to_owned(),
        None => Uuid::new_v4().simple().to_string(),
    }
}

/// The methods that routes are found by.
const METHODS: [Method; 3] = [Method::GET, Method::POST, Method::DELETE];
