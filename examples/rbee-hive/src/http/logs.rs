//! `GET /v1/logs`: one log line an event.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::time::Duration;

use axum::extract::{Query, State};
use axum::response::sse::{Event, KeepAlive, Sse};
use futures_util::Stream;
use futures_util::stream;
use serde::Deserialize;
use tokio::sync::watch;

use crate::error::{ApiError, Result};
use crate::hive::Hive;
use crate::logs::{Line, LogBook};

const DEFAULT_TAIL: usize = 100;
const KEEP_ALIVE: Duration = Duration::from_secs(10);

#[derive(Debug, Deserialize)]
pub(super) struct LogsQuery {
    #[serde(default)]
    follow: bool,
    tail: Option<usize>,
    worker_id: Option<String>,
}

/// The lines of one worker, or those of all workers and the hive, each with its source before it.
pub(super) async fn logs(
    State(hive): State<Hive>,
    query: Result<Query<LogsQuery>, axum::extract::rejection::QueryRejection>,
) -> Result<Sse<impl Stream<Item = Result<Event, Infallible>>>> {
    let Query(query) = query.map_err(|error| ApiError::invalid(error.body_text()))?;
    let worker = query.worker_id.filter(|id| !id.is_empty());
    if let Some(id) = &worker
        && hive.registry.get(id).is_none()
    {
        return Err(ApiError::worker_not_found(id));
    }
    let news = hive.book.news();
    let newest = *news.borrow();
    let waiting: VecDeque<Line> = hive
        .book
        .tail(worker.as_deref(), query.tail.unwrap_or(DEFAULT_TAIL))
        .into();
    let last = waiting.back().map_or(newest, |line| line.number);
    let reader = Reader {
        last,
        book: hive.book.clone(),
        news,
        waiting,
        worker,
        follow: query.follow,
        hive,
    };
    let lines = stream::unfold(reader, |mut reader| async {
        let line = reader.next().await?;
        let event = Event::default().data(reader.show(&line));
        Some((Ok(event), reader))
    });
    Ok(Sse::new(lines).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)))
}

/// One caller's place in the book. A slow caller misses lines; nobody waits for him.
struct Reader {
    hive: Hive,
    book: LogBook,
    news: watch::Receiver<u64>,
    waiting: VecDeque<Line>,
    last: u64,
    worker: Option<String>,
    follow: bool,
}

impl Reader {
    /// `None` at the end: all is sent, the worker is forgotten, or the hive stops.
    async fn next(&mut self) -> Option<Line> {
        loop {
            if let Some(line) = self.waiting.pop_front() {
                self.last = line.number;
                return Some(line);
            }
            if !self.follow {
                return None;
            }
            self.news.mark_unchanged();
            self.waiting = self.book.after(self.worker.as_deref(), self.last).into();
            if !self.waiting.is_empty() {
                continue;
            }
            if let Some(id) = &self.worker {
                self.hive.registry.get(id)?;
            }
            tokio::select! {
                () = self.hive.stopping.cancelled() => return None,
                changed = self.news.changed() => changed.ok()?,
            }
        }
    }

    /// A line with a bare carriage return would end the event early.
    fn show(&self, line: &Line) -> String {
        let text = line.text.replace('\r', " ");
        match (&self.worker, &line.source) {
            (Some(_), _) => text,
            (None, Some(worker)) => format!("{worker}: {text}"),
            (None, None) => format!("hive: {text}"),
        }
    }
}
