//! A hive's log lines, through the queen.

use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio_util::sync::WaitForCancellationFutureOwned;

use super::Orchestrator;
use super::provisioning::no_hive;
use crate::domain::{HiveId, WorkerId};
use crate::error::{Code, Error, Result};
use crate::hives::HiveEvents;

/// Which lines are wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogQuery {
    /// Whose.
    pub node: HiveId,
    /// Only those of one worker.
    pub worker: Option<WorkerId>,
    /// So many of the older lines.
    pub tail: usize,
    /// Whether new lines are waited for.
    pub follow: bool,
}

/// Log lines, older ones first. Nothing is read ahead of who takes them; dropped, the hive's stream
/// is closed.
#[derive(Debug)]
pub struct LogLines {
    source: Source,
}

enum Source {
    Hive(Box<HiveEvents>, Pin<Box<WaitForCancellationFutureOwned>>),
    /// The file that the hive writes to, and why it was not asked itself.
    File(VecDeque<String>, Error),
}

impl std::fmt::Debug for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Source::Hive(events, _) => events.fmt(f),
            Source::File(lines, why) => f.debug_tuple("File").field(lines).field(why).finish(),
        }
    }
}

impl LogLines {
    /// Why the lines come from the hive's log file, which nobody can follow; `None` when they come
    /// from the hive.
    #[must_use]
    pub fn from_file(&self) -> Option<&Error> {
        match &self.source {
            Source::Hive(..) => None,
            Source::File(_, why) => Some(why),
        }
    }

    /// The next line; `None` at the end, which also comes when the queen shuts down.
    ///
    /// # Errors
    /// `HIVE_UNREACHABLE` when the hive's stream breaks.
    pub fn poll_line(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<String>>> {
        match &mut self.source {
            Source::File(lines, _) => Poll::Ready(lines.pop_front().map(Ok)),
            Source::Hive(events, stop) => {
                if stop.as_mut().poll(cx).is_ready() {
                    return Poll::Ready(None);
                }
                let line = events.poll_next(cx);
                line.map_ok(|data| String::from_utf8_lossy(&data).into_owned())
            }
        }
    }
}

impl Orchestrator {
    /// Opens a hive's log. Where the hive does not answer, its log file is read through its
    /// transport: that has its own lines and those of no worker.
    ///
    /// # Errors
    /// `HIVE_NOT_FOUND`, `WORKER_NOT_FOUND`; `HIVE_UNREACHABLE` when neither can be read.
    pub async fn logs(&self, query: &LogQuery) -> Result<LogLines> {
        let entry = self.driver.hives.get(&query.node);
        let known = self
            .driver
            .look(|brain, now| brain.view(now).hives.contains_key(&query.node));
        let Some(entry) = entry.filter(|_| known) else {
            return Err(no_hive(&query.node));
        };
        let opened = match entry.handle.client() {
            Some(client) => client.events(&path(query)).await,
            None => {
                let message = format!("hive {} does not run", query.node);
                Err(Error::new(Code::HiveUnreachable, message))
            }
        };
        let why = match opened {
            Ok(events) => {
                let stop = Box::pin(self.driver.stop.clone().cancelled_owned());
                let source = Source::Hive(Box::new(events), stop);
                return Ok(LogLines { source });
            }
            Err(error) => error,
        };
        let is_silent = matches!(
            why.code,
            Code::HiveUnreachable | Code::UpstreamInvalid | Code::NotImplemented
        );
        if !is_silent || query.worker.is_some() {
            return Err(why);
        }
        match entry.handle.logs(query.tail).await {
            Ok(lines) => Ok(LogLines {
                source: Source::File(lines.into(), why),
            }),
            Err(_) => Err(why),
        }
    }
}

fn path(query: &LogQuery) -> String {
    let LogQuery { tail, follow, .. } = query;
    let mut path = format!("/v1/logs?tail={tail}&follow={follow}");
    if let Some(worker) = &query.worker {
        // Its characters need no encoding.
        path += &format!("&worker_id={worker}");
    }
    path
}
