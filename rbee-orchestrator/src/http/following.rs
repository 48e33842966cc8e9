//! Bodies that follow a hive: its log lines, or a model on its way to it.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;

use super::body::Heart;
use super::{logs, models};
use crate::hives::Progress;
use crate::orchestrator::{LogLines, ModelDownload};
use crate::relay::sse;

/// A hive's log lines.
#[derive(Debug)]
pub(super) struct LogBody {
    lines: LogLines,
    heart: Heart,
    /// Said before the next line.
    next: Option<Bytes>,
    over: bool,
}

impl LogBody {
    pub(super) fn new(lines: LogLines, keep_alive: Duration) -> Self {
        LogBody {
            next: lines.from_file().map(logs::from_file),
            lines,
            heart: Heart::new(keep_alive),
            over: false,
        }
    }

    pub(super) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        if let Some(next) = self.next.take() {
            return Poll::Ready(Some(next));
        }
        if self.over {
            return Poll::Ready(None);
        }
        match self.lines.poll_line(cx) {
            Poll::Ready(Some(Ok(line))) => {
                self.heart.note();
                Poll::Ready(Some(logs::event(&line)))
            }
            Poll::Ready(Some(Err(error))) => {
                self.over = true;
                self.next = Some(Bytes::from_static(sse::DONE));
                Poll::Ready(Some(logs::broken(&error)))
            }
            Poll::Ready(None) => {
                self.over = true;
                Poll::Ready(None)
            }
            Poll::Pending => self.heart.poll_beat(cx).map(Some),
        }
    }
}

type News = Pin<Box<dyn Future<Output = (ModelDownload, Option<Progress>)> + Send>>;

/// A model on its way to a hive.
pub(super) struct DownloadBody {
    news: News,
    heart: Heart,
    phase: Phase,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Flowing,
    /// Only the mark of the end is left.
    Closing,
    Over,
}

impl std::fmt::Debug for DownloadBody {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DownloadBody")
            .field("phase", &self.phase)
            .finish_non_exhaustive()
    }
}

impl DownloadBody {
    pub(super) fn new(mut download: ModelDownload, keep_alive: Duration) -> Self {
        let now = download.now();
        DownloadBody {
            news: Box::pin(async { (download, Some(now)) }),
            heart: Heart::new(keep_alive),
            phase: Phase::Flowing,
        }
    }

    pub(super) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        match self.phase {
            Phase::Over => return Poll::Ready(None),
            Phase::Closing => {
                self.phase = Phase::Over;
                return Poll::Ready(Some(Bytes::from_static(sse::DONE)));
            }
            Phase::Flowing => {}
        }
        let Poll::Ready((mut download, news)) = self.news.as_mut().poll(cx) else {
            return Poll::Ready(Some(ready!(self.heart.poll_beat(cx))));
        };
        self.heart.note();
        let Some(progress) = news else {
            self.phase = Phase::Over;
            return Poll::Ready(Some(Bytes::from_static(sse::DONE)));
        };
        let event = models::event(&download, &progress);
        match progress.is_last() {
            true => self.phase = Phase::Closing,
            false => {
                self.news = Box::pin(async {
                    let news = download.next().await;
                    (download, news)
                });
            }
        }
        Poll::Ready(Some(event))
    }
}
