//! The client of one hive's HTTP API.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use http::{Method, Request, StatusCode};
use serde_json::{Value, json};

use super::exchange::{Answer, Failure, exchange};
use super::token::HiveToken;
use super::wire::{self, HiveWorker, SpawnAnswer, SpawnRequest};
use crate::domain::{Capabilities, HiveId};
use crate::error::{Code, Error, Result};
use crate::transport::{HiveTransport, own_trouble, unreached};

/// How long calls to a hive may take, each from the connection to the last byte of the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CallTimeouts {
    /// A health check.
    pub health: Duration,
    /// Any other call.
    pub call: Duration,
    /// A spawn: older hives answer it late.
    pub spawn: Duration,
}

impl Default for CallTimeouts {
    fn default() -> Self {
        CallTimeouts {
            health: Duration::from_secs(5),
            call: Duration::from_secs(15),
            spawn: Duration::from_secs(60),
        }
    }
}

/// What listens where a hive may be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Recognition {
    /// A hive that takes the queen's token.
    Accepted,
    /// A hive, or something like one, that refuses it.
    TokenRefused,
    /// Something else, or a hive of another user.
    Stranger,
    /// Nothing that answers.
    Silent,
}

/// The API of a hive at one port. Cheap to clone.
///
/// Every call takes one thread that may block for no longer than its time-out; dropped midway, it
/// frees the thread at once, while the hive may still do what it was asked.
///
/// # Errors
/// Every call may fail with `HIVE_UNREACHABLE` (no connection, no answer in time, token refused)
/// and with `UPSTREAM_INVALID` (an answer that no one can read, or larger than 16 MiB).
#[derive(Clone)]
pub struct HiveClient {
    hive: HiveId,
    pub(super) transport: Arc<dyn HiveTransport>,
    port: u16,
    pub(super) token: HiveToken,
    pub(super) timeouts: CallTimeouts,
    pub(super) correlation: Option<Arc<str>>,
}

impl HiveClient {
    /// A client for the hive that listens on `port` of the transport's machine.
    #[must_use]
    pub fn new(
        hive: HiveId,
        transport: Arc<dyn HiveTransport>,
        port: u16,
        token: HiveToken,
        timeouts: CallTimeouts,
    ) -> Self {
        HiveClient {
            hive,
            transport,
            port,
            token,
            timeouts,
            correlation: None,
        }
    }

    /// The same client for one request: its calls carry that request's correlation id. An id that
    /// can't stand in a header is left out.
    #[must_use]
    pub fn correlated(mut self, id: &str) -> Self {
        self.correlation = http::HeaderValue::from_str(id).is_ok().then(|| id.into());
        self
    }

    /// The hive's name.
    #[must_use]
    pub fn hive(&self) -> &HiveId {
        &self.hive
    }

    /// The hive's HTTP port.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Checks that the hive answers: `GET /health`, then `GET /v1/health` for older hives.
    ///
    /// # Errors
    /// See [`HiveClient`]; `HIVE_UNREACHABLE` also for a status that is no success.
    pub async fn health(&self) -> Result<()> {
        match self.health_status().await {
            Ok(status) if status.is_success() => Ok(()),
            Ok(status) => {
                Err(self.unreachable(&format!("answered its health check with {status}")))
            }
            Err(failure) => Err(self.failed(&failure, self.timeouts.health)),
        }
    }

    /// What its machine has; `None` from older hives, which can't tell.
    ///
    /// # Errors
    /// See [`HiveClient`].
    pub async fn capabilities(&self) -> Result<Option<Capabilities>> {
        let path = "/v1/capabilities";
        let answer = self
            .authorised(Method::GET, path, None, self.timeouts.call)
            .await?;
        match answer.status {
            StatusCode::NOT_FOUND => Ok(None),
            status if status.is_success() => {
                self.read(path, &answer, wire::read_capabilities).map(Some)
            }
            _ => Err(self.refused(path, &answer, Code::HiveUnreachable)),
        }
    }

    /// Its workers. Those that no one can make sense of are left out.
    ///
    /// # Errors
    /// See [`HiveClient`].
    pub async fn workers(&self) -> Result<Vec<HiveWorker>> {
        let path = "/v1/workers/list";
        let answer = self
            .authorised(Method::GET, path, None, self.timeouts.call)
            .await?;
        match answer.status.is_success() {
            true => self.read(path, &answer, wire::read_workers),
            false => Err(self.refused(path, &answer, Code::HiveUnreachable)),
        }
    }

    /// Has it start a worker, which then loads on its own.
    ///
    /// # Errors
    /// `INSUFFICIENT_VRAM`, `INSUFFICIENT_DISK` and `MODEL_NOT_FOUND` as the hive says; otherwise
    /// `WORKER_FAILED` with `hive_code` and `hive_status` in the details. See also [`HiveClient`].
    pub async fn spawn(&self, request: &SpawnRequest) -> Result<SpawnAnswer> {
        let path = "/v1/workers/spawn";
        let body = serde_json::to_vec(request)
            .map_err(|error| Error::internal(format!("a spawn can't be written: {error}")))?;
        let limit = self.timeouts.spawn;
        let answer = self
            .authorised(Method::POST, path, Some(body), limit)
            .await?;
        if answer.status.is_success() {
            return self.read(path, &answer, wire::read_spawn);
        }
        let (code, _) = wire::read_error(&answer.body);
        let code = match (answer.status, code.as_deref().and_then(Code::parse)) {
            (StatusCode::NOT_FOUND, Some(Code::ModelNotFound)) => Code::ModelNotFound,
            (_, Some(code @ (Code::InsufficientDisk | Code::InsufficientVram))) => code,
            (StatusCode::INSUFFICIENT_STORAGE, _) => Code::InsufficientVram,
            _ => Code::WorkerFailed,
        };
        Err(self.refused(path, &answer, code))
    }

    /// Has it stop a worker: SIGTERM, `grace`, SIGKILL.
    ///
    /// # Errors
    /// `WORKER_NOT_FOUND` when it has no such worker or, being older, no such call: a process that it started
    /// may live on all the same. `CONFLICT` when it refuses, `WORKER_FAILED` when it could not. See also
    /// [`HiveClient`].
    pub async fn shutdown_worker(&self, worker: &str, grace: Option<Duration>) -> Result<()> {
        let path = "/v1/workers/shutdown";
        let mut body = json!({ "worker_id": worker });
        if let Some(grace) = grace {
            body["grace_ms"] = u64::try_from(grace.as_millis()).unwrap_or(u64::MAX).into();
        }
        // The hive may answer once the worker has gone.
        let limit = self.timeouts.call.saturating_add(grace.unwrap_or_default());
        let body = Some(body.to_string().into_bytes());
        let answer = self.authorised(Method::POST, path, body, limit).await?;
        let code = match answer.status {
            status if status.is_success() => return Ok(()),
            // It has no such worker, or, being older, no such call: what it once started may live on.
            StatusCode::NOT_FOUND => Code::WorkerNotFound,
            status if status.is_client_error() => Code::Conflict,
            _ => Code::WorkerFailed,
        };
        Err(self.refused(path, &answer, code))
    }

    /// Has the hive stop its workers and itself.
    ///
    /// # Errors
    /// `CONFLICT` when it refuses or, being older, knows no such call. See also [`HiveClient`].
    pub async fn shutdown(&self) -> Result<()> {
        let path = "/v1/shutdown";
        let body = Some(b"{}".to_vec());
        let answer = self
            .authorised(Method::POST, path, body, self.timeouts.call)
            .await?;
        match answer.status.is_success() {
            true => Ok(()),
            false => Err(self.refused(path, &answer, Code::Conflict)),
        }
    }

    /// Finds out what listens at its port. The token is shown only to what answers like a hive and
    /// may be the queen's own.
    pub async fn recognise(&self) -> Recognition {
        match self.transport.may_be_ours(self.port).await {
            Ok(true) => {}
            Ok(false) => return Recognition::Stranger,
            // Its machine is away.
            Err(_) => return Recognition::Silent,
        }
        match self.health_status().await {
            Ok(status) if status.is_success() => {}
            // It starts or goes down.
            Ok(status) if status.is_server_error() => return Recognition::Silent,
            Ok(_) | Err(Failure::Garbage(_)) => return Recognition::Stranger,
            Err(Failure::TimedOut | Failure::Broken(_)) => return Recognition::Silent,
        }
        let path = "/v1/workers/list";
        match self
            .send(Method::GET, path, None, true, self.timeouts.health)
            .await
        {
            Ok(answer) if is_refusal(answer.status) => Recognition::TokenRefused,
            Ok(answer) if answer.status.is_server_error() => Recognition::Silent,
            Ok(answer) => match self.read(path, &answer, wire::read_workers) {
                Ok(_) if answer.status.is_success() => Recognition::Accepted,
                _ => Recognition::Stranger,
            },
            Err(Failure::Garbage(_)) => Recognition::Stranger,
            Err(Failure::TimedOut | Failure::Broken(_)) => Recognition::Silent,
        }
    }

    /// The first success of the two health checks, or the status of the second.
    async fn health_status(&self) -> Result<StatusCode, Failure> {
        let limit = self.timeouts.health;
        let first = self
            .send(Method::GET, "/health", None, false, limit)
            .await?;
        if first.status.is_success() {
            return Ok(first.status);
        }
        Ok(self
            .send(Method::GET, "/v1/health", None, false, limit)
            .await?
            .status)
    }

    /// A call with the token; what the hive answers to it, unless it refuses the token.
    pub(super) async fn authorised(
        &self,
        method: Method,
        path: &str,
        body: Option<Vec<u8>>,
        limit: Duration,
    ) -> Result<Answer> {
        match self.send(method, path, body, true, limit).await {
            Ok(answer) if is_refusal(answer.status) => Err(self.token_refused(answer.status)),
            Ok(answer) => Ok(answer),
            Err(failure) => Err(self.failed(&failure, limit)),
        }
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Option<Vec<u8>>,
        with_token: bool,
        limit: Duration,
    ) -> Result<Answer, Failure> {
        let mut request = Request::builder()
            .method(method)
            .uri(format!("http://{}{path}", self.address()));
        if body.is_some() {
            request = request.header(http::header::CONTENT_TYPE, "application/json");
        }
        if with_token {
            let token = format!("Bearer {}", self.token.expose());
            request = request.header(http::header::AUTHORIZATION, token);
        }
        if let Some(id) = &self.correlation {
            request = request.header("x-correlation-id", &**id);
        }
        let request = request
            .body(body)
            .map_err(|error| Failure::Garbage(format!("no request could be made: {error}")))?;
        exchange(Arc::clone(&self.transport), self.port, request, limit).await
    }

    pub(super) fn read<T>(
        &self,
        path: &str,
        answer: &Answer,
        read: impl FnOnce(&Value) -> Option<T>,
    ) -> Result<T> {
        let body: Option<Value> = serde_json::from_slice(&answer.body).ok();
        body.as_ref().and_then(read).ok_or_else(|| {
            let begin = String::from_utf8_lossy(&answer.body[..answer.body.len().min(200)]);
            // An engine's key is not shown.
            let begin = begin.split("api_key").next().unwrap_or_default();
            self.error(
                Code::UpstreamInvalid,
                &format!("answered {path} with what can't be read: {begin:?}"),
            )
        })
    }

    /// An error that carries the hive's own message, code and status.
    pub(super) fn refused(&self, path: &str, answer: &Answer, code: Code) -> Error {
        let status = answer.status;
        let (hive_code, message) = wire::read_error(&answer.body);
        let said = match message.is_empty() {
            true => format!("answered {path} with {status}"),
            false => format!("answered {path} with {status}: {message}"),
        };
        let error = self
            .error(code, &said)
            .detail("hive_status", status.as_u16())
            .detail("hive_message", message);
        match hive_code {
            Some(hive_code) => error.detail("hive_code", hive_code),
            None => error,
        }
    }

    pub(super) fn token_refused(&self, status: StatusCode) -> Error {
        let said = format!(
            "refuses its token ({status}): RBEE_API_TOKEN in the hive's environment must be the \
             HMAC-SHA256 of \"rbee-hive:{}\" under the queen's secret (QUEEN_HIVE_TOKEN, or the \
             file <database>.hive-token), or, with hives.shared_token, the secret itself",
            self.hive
        );
        self.unreachable(&said)
            .detail("hive_status", status.as_u16())
    }

    pub(super) fn failed(&self, failure: &Failure, limit: Duration) -> Error {
        match failure {
            Failure::TimedOut => {
                self.not_reached(&io::Error::other(format!("no answer within {limit:?}")))
            }
            Failure::Broken(error) => own_trouble(error).unwrap_or_else(|| self.not_reached(error)),
            Failure::Garbage(what) => self.error(
                Code::UpstreamInvalid,
                &format!("does not speak HTTP as it must: {what}"),
            ),
        }
    }

    pub(super) fn not_reached(&self, why: &io::Error) -> Error {
        let what = format!("hive {} at {} can't be reached", self.hive, self.address());
        unreached(Code::HiveUnreachable, what, why).detail("hive_id", self.hive.as_str())
    }

    pub(super) fn unreachable(&self, said: &str) -> Error {
        self.error(Code::HiveUnreachable, said)
    }

    pub(super) fn error(&self, code: Code, said: &str) -> Error {
        let (hive, address) = (&self.hive, self.address());
        Error::new(code, format!("hive {hive} at {address} {said}"))
            .detail("hive_id", hive.as_str())
    }

    pub(super) fn address(&self) -> String {
        let (host, port) = (self.transport.host(), self.port);
        match host.contains(':') {
            true => format!("[{host}]:{port}"),
            false => format!("{host}:{port}"),
        }
    }
}

fn is_refusal(status: StatusCode) -> bool {
    matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN)
}
