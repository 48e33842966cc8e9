//! The newest lines of every source, bounded, and news of new ones.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

/// Lines kept of one source.
const KEPT_LINES: usize = 2_000;
/// Longer lines are cut.
pub(super) const LONGEST_LINE: usize = 8 * 1024;

/// One line. Its source is a worker's id, or `None` for the hive itself.
#[derive(Debug, Clone)]
pub(crate) struct Line {
    pub(crate) number: u64,
    pub(crate) source: Option<Arc<str>>,
    pub(crate) text: Arc<str>,
}

#[derive(Debug, Default)]
struct Shelf {
    last: u64,
    sources: HashMap<Option<Arc<str>>, VecDeque<Line>>,
}

/// A cheap handle; clones are the same book.
#[derive(Debug, Clone)]
pub(crate) struct LogBook {
    shelf: Arc<Mutex<Shelf>>,
    news: watch::Sender<u64>,
}

impl LogBook {
    pub(crate) fn new() -> Self {
        LogBook {
            shelf: Arc::default(),
            news: watch::Sender::new(0),
        }
    }

    pub(crate) fn push(&self, source: Option<&str>, text: &str) {
        let end = text.floor_char_boundary(LONGEST_LINE);
        let source: Option<Arc<str>> = source.map(Arc::from);
        let mut shelf = self.shelf();
        shelf.last += 1;
        let number = shelf.last;
        let lines = shelf.sources.entry(source.clone()).or_default();
        if lines.len() == KEPT_LINES {
            lines.pop_front();
        }
        lines.push_back(Line {
            number,
            source,
            text: text[..end].into(),
        });
        drop(shelf);
        self.news.send_replace(number);
    }

    /// The last `count` lines of a worker, or of all workers and the hive in the order they came.
    pub(crate) fn tail(&self, worker: Option<&str>, count: usize) -> Vec<Line> {
        let mut lines = self.after(worker, 0);
        lines.drain(..lines.len().saturating_sub(count));
        lines
    }

    /// What is kept of the lines after that number.
    pub(crate) fn after(&self, worker: Option<&str>, number: u64) -> Vec<Line> {
        let shelf = self.shelf();
        let wanted = |source: &&Option<Arc<str>>| worker.is_none() || source.as_deref() == worker;
        let sources = shelf.sources.keys().filter(wanted);
        let mut lines: Vec<Line> = sources
            .flat_map(|source| {
                let lines = &shelf.sources[source];
                let newer = lines.partition_point(|line| line.number <= number);
                lines.range(newer..).cloned()
            })
            .collect();
        drop(shelf);
        lines.sort_unstable_by_key(|line| line.number);
        lines
    }

    /// Drops what is kept of a worker.
    pub(crate) fn forget(&self, worker: &str) {
        self.shelf().sources.remove(&Some(Arc::from(worker)));
    }

    /// Changes with every new line.
    pub(crate) fn news(&self) -> watch::Receiver<u64> {
        self.news.subscribe()
    }

    fn shelf(&self) -> MutexGuard<'_, Shelf> {
        self.shelf.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chatty_worker_does_not_push_out_the_lines_of_others() {
        let book = LogBook::new();
        book.push(Some("quiet"), "one");
        for i in 0..3 * KEPT_LINES {
            book.push(Some("chatty"), &i.to_string());
        }
        assert_eq!(book.tail(Some("quiet"), 10).len(), 1);
        assert_eq!(book.tail(None, usize::MAX).len(), KEPT_LINES + 1);
        assert_eq!(&*book.tail(None, 1)[0].text, "5999");
    }

    #[test]
    fn a_long_line_is_cut_between_characters() {
        let book = LogBook::new();
        book.push(None, &"ä".repeat(LONGEST_LINE));
        assert!(book.tail(None, 1)[0].text.len() <= LONGEST_LINE);
    }
}
