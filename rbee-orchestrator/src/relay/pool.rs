//! Idle connections to workers, and how requests get onto them.

use std::fmt;
use std::future::poll_fn;
use std::hash::BuildHasher;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use foldhash::fast::FixedState;
use http::StatusCode;
use uuid::Uuid;

use super::habits::Habits;
use crate::brain::Blame;
use crate::config::Config;
use crate::domain::{JobId, WorkerId, WorkerSpec};
use crate::error::{Code, Error};
use crate::hashing::IdMap;
use crate::http1::{Connection, Head, SendError};
use crate::transport::{HiveStream, own_trouble, unreached};

/// llama-server closes an idle connection after 5 s; ours must be gone before.
const IDLE: Duration = Duration::from_secs(3);

/// A runtime's connections stay with it: a wake-up between two runtimes costs a system call.
const SHARDS: usize = 16;

/// How a worker is reached.
#[async_trait]
pub(crate) trait Connector: Send + Sync {
    /// A byte stream to the worker's port.
    async fn connect(&self, worker: &WorkerSpec) -> std::io::Result<Box<dyn HiveStream>>;
}

struct Idle {
    connection: Connection,
    port: u16,
    since: Instant,
}

type Shard = IdMap<WorkerId, Vec<Idle>>;

/// Keeps idle connections for the next request to the same worker.
pub(crate) struct Pool {
    shards: [Mutex<Shard>; SHARDS],
    connector: Box<dyn Connector>,
    connect_timeout: Duration,
    max_idle: usize,
    pub(crate) habits: Habits,
    /// Tells this process from others, so that it knows itself behind a worker's address.
    instance: String,
}

/// An answer that has begun, with the connection that its body comes on.
pub(crate) struct Answer {
    pub(crate) head: Head,
    pub(crate) connection: Connection,
}

/// A worker that gave no answer.
#[derive(Debug)]
pub(crate) struct NoAnswer {
    pub(crate) error: Error,
    /// Whether the worker may be gone.
    pub(crate) suspect: bool,
    /// Who is to blame, as far as can be told here.
    pub(crate) blame: Blame,
}

impl Pool {
    pub(crate) fn new(connector: Box<dyn Connector>, config: &Config) -> Self {
        Pool {
            shards: std::array::from_fn(|_| Mutex::default()),
            connector,
            connect_timeout: config.timeouts.connect,
            max_idle: config.limits.max_idle_connections,
            habits: Habits::default(),
            instance: Uuid::new_v4().simple().to_string(),
        }
    }

    #[cfg(feature = "http")]
    pub(crate) fn instance(&self) -> &str {
        &self.instance
    }

    fn shard(&self) -> std::sync::MutexGuard<'_, Shard> {
        let runtime = tokio::runtime::Handle::current().id();
        let at = FixedState::default().hash_one(runtime) as usize % SHARDS;
        self.shards[at]
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self, worker: &WorkerSpec) -> Option<Connection> {
        let mut shard = self.shard();
        let idle = shard.get_mut(&worker.id)?;
        while let Some(candidate) = idle.pop() {
            if candidate.port == worker.port && candidate.since.elapsed() < IDLE {
                return Some(candidate.connection);
            }
        }
        None
    }

    /// Keeps a connection whose answer was read to its end.
    pub(crate) fn put(&self, worker: &WorkerSpec, connection: Connection) {
        let idle = Idle {
            connection,
            port: worker.port,
            since: Instant::now(),
        };
        let mut shard = self.shard();
        match shard.get_mut(&worker.id) {
            Some(others) if others.len() < self.max_idle => others.push(idle),
            Some(_) => {}
            None => {
                shard.insert(worker.id.clone(), vec![idle]);
            }
        }
    }

    /// Closes connections that were idle for too long.
    pub(crate) fn sweep(&self) {
        for shard in &self.shards {
            let mut shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
            for idle in shard.values_mut() {
                idle.retain(|one| one.since.elapsed() < IDLE);
            }
            shard.retain(|_, idle| !idle.is_empty());
        }
    }

    /// Closes all idle connections: what they hold is needed.
    fn drop_idle(&self) {
        for shard in &self.shards {
            let mut shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
            shard.clear();
        }
    }

    async fn fresh(&self, worker: &WorkerSpec) -> Result<Connection, NoAnswer> {
        let failed = |code: Code, why: &io::Error| NoAnswer {
            error: unreached(
                code,
                format!("worker {} could not be reached", worker.id),
                why,
            ),
            suspect: true,
            blame: Blame::Unreached,
        };
        let connect = self.connector.connect(worker);
        let stream = match tokio::time::timeout(self.connect_timeout, connect).await {
            Ok(Ok(stream)) => stream,
            // Its machine can't be reached, whatever the worker does.
            Ok(Err(error)) if error.kind() == io::ErrorKind::NotConnected => {
                return Err(failed(Code::HiveUnreachable, &error));
            }
            Ok(Err(error)) => match own_trouble(&error) {
                Some(error) => {
                    self.drop_idle();
                    return Err(NoAnswer {
                        error,
                        suspect: false,
                        blame: Blame::Queen,
                    });
                }
                None => return Err(failed(Code::WorkerFailed, &error)),
            },
            Err(_) => {
                let why = io::ErrorKind::TimedOut.into();
                return Err(failed(Code::WorkerFailed, &why));
            }
        };
        Ok(Connection::new(stream))
    }

    /// Asks a worker for its health, on a connection of its own; `None` when the queen's own trouble
    /// keeps her from it.
    pub(crate) async fn is_healthy(
        &self,
        worker: &Arc<WorkerSpec>,
        time_out: Duration,
    ) -> Option<bool> {
        match self.health(worker, time_out).await {
            Ok(status) => Some(status.is_success()),
            Err(Some(none)) if none.blame == Blame::Queen => None,
            Err(_) => Some(false),
        }
    }

    /// The names of what a worker serves, by OpenAI's list of models; `None` if it has none.
    pub(crate) async fn served_models(
        &self,
        worker: &Arc<WorkerSpec>,
        time_out: Duration,
    ) -> Option<Vec<String>> {
        /// More than any list of one engine's models has.
        const LONGEST: usize = 1 << 20;
        let head = head(worker, "GET /v1/models", "");
        let asked = async {
            let mut connection = self.fresh(worker).await.ok()?;
            let answer = connection.send(&head, b"").await.ok()?;
            let mut body = Vec::new();
            while let Some(data) = poll_fn(|cx| connection.poll_data(cx)).await {
                body.extend_from_slice(&data.ok()?);
                if body.len() > LONGEST {
                    return None;
                }
            }
            answer.status.is_success().then_some(body)
        };
        let body = tokio::time::timeout(time_out, asked).await.ok()??;
        let list: serde_json::Value = serde_json::from_slice(&body).ok()?;
        let models = list["data"].as_array()?.iter();
        let names = models.filter_map(|model| model["id"].as_str().map(str::to_owned));
        Some(names.collect())
    }

    /// Whether a worker's address leads to this process, which then says so.
    pub(crate) async fn is_own(&self, worker: &WorkerSpec, time_out: Duration) -> bool {
        let status = self.health(worker, time_out).await;
        status.is_ok_and(|status| status == StatusCode::LOOP_DETECTED)
    }

    async fn health(
        &self,
        worker: &WorkerSpec,
        time_out: Duration,
    ) -> Result<StatusCode, Option<NoAnswer>> {
        let instance = format!("x-rbee-instance: {}\r\n", self.instance);
        let head = head(worker, "GET /health", &instance);
        self.ask(worker, &head, time_out).await
    }

    /// Tells an `rbee` worker that nobody waits for a job any more. Older ones have no such call,
    /// and whether one has stopped is for its health check to tell, so the answer is not read.
    pub(crate) async fn cancel(&self, worker: &Arc<WorkerSpec>, job: JobId, time_out: Duration) {
        let body = format!("{{\"job_id\":\"{job}\"}}");
        let length = body.len();
        let fields = format!("content-type: application/json\r\ncontent-length: {length}\r\n");
        let mut request = head(worker, "POST /cancel", &fields);
        request.extend_from_slice(body.as_bytes());
        let _ = self.ask(worker, &request, time_out).await;
    }

    /// The status of an answer; an error without a reason is one that came too late.
    async fn ask(
        &self,
        worker: &WorkerSpec,
        request: &[u8],
        time_out: Duration,
    ) -> Result<StatusCode, Option<NoAnswer>> {
        let answer = async {
            let mut connection = self.fresh(worker).await.map_err(Some)?;
            match connection.send(request, b"").await {
                Ok(answer) => Ok(answer.status),
                Err(_) => Err(None),
            }
        };
        let asked = tokio::time::timeout(time_out, answer).await;
        asked.unwrap_or(Err(None))
    }

    /// Sends a request to a worker and waits for the head of the answer.
    ///
    /// When a kept connection turns out to be closed without a byte of an answer, the request goes
    /// out once more on a fresh one: that is no failure of the worker.
    pub(crate) async fn send(
        &self,
        worker: &Arc<WorkerSpec>,
        head: &[u8],
        body: &[u8],
    ) -> Result<Answer, NoAnswer> {
        let mut sent = false;
        while let Some(mut connection) = self.take(worker) {
            if !connection.is_open().await {
                continue;
            }
            sent = true;
            match connection.send(head, body).await {
                Ok(head) => return Ok(Answer { head, connection }),
                Err(SendError::NoAnswer(_)) => break,
                Err(SendError::Invalid(why)) => return Err(invalid(worker, &why)),
            }
        }
        let fresh = self.fresh(worker).await;
        let mut connection = fresh.map_err(|none| NoAnswer {
            blame: match none.blame {
                Blame::Unreached if sent => Blame::Worker,
                blame => blame,
            },
            ..none
        })?;
        match connection.send(head, body).await {
            Ok(head) => Ok(Answer { head, connection }),
            Err(SendError::Invalid(why)) => Err(invalid(worker, &why)),
            Err(SendError::NoAnswer(why)) => Err(closed(worker, &why)),
        }
    }
}

/// The head of a request that the queen makes for herself, with these fields, each a line.
fn head(worker: &WorkerSpec, what: &str, fields: &str) -> Vec<u8> {
    let host = Authority(worker);
    let mut head = format!("{what} HTTP/1.1\r\nhost: {host}\r\n{fields}").into_bytes();
    authorize(&mut head, worker);
    head.extend_from_slice(b"\r\n");
    head
}

/// Adds what a worker is to be shown to a request's head.
pub(crate) fn authorize(head: &mut Vec<u8>, worker: &WorkerSpec) {
    if let Some(authorization) = &worker.authorization {
        head.extend_from_slice(b"authorization: ");
        head.extend_from_slice(authorization.as_bytes());
        head.extend_from_slice(b"\r\n");
    }
}

/// Host and port of a worker, as a `Host` header has them.
pub(crate) struct Authority<'a>(pub(crate) &'a WorkerSpec);

impl fmt::Display for Authority<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let WorkerSpec { host, port, .. } = self.0;
        match host.contains(':') {
            true => write!(f, "[{host}]:{port}"),
            false => write!(f, "{host}:{port}"),
        }
    }
}

fn invalid(worker: &WorkerSpec, why: &str) -> NoAnswer {
    let message = format!("worker {} answered what is not HTTP: {why}", worker.id);
    NoAnswer {
        error: Error::new(Code::UpstreamInvalid, message),
        suspect: false,
        blame: Blame::Worker,
    }
}

fn closed(worker: &WorkerSpec, why: &str) -> NoAnswer {
    let message = format!(
        "worker {} closed the connection without an answer: {why}",
        worker.id
    );
    NoAnswer {
        error: Error::new(Code::WorkerFailed, message),
        suspect: true,
        blame: Blame::Worker,
    }
}
