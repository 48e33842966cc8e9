//! When requests came and how their connections ended, on the clock that all processes share.

use super::engine::lock;
use crate::clock::monotonic_ns;
use serde_json::{Value, json};
use std::collections::VecDeque;
use std::sync::Mutex;

/// What happened to a request.
#[derive(Debug, Clone, Copy)]
pub(super) enum What {
    /// Its head is there
    Arrived,
    /// Its answer is all written
    Finished,
    /// Its client went away before
    Closed,
}

impl What {
    fn name(self) -> &'static str {
        match self {
            What::Arrived => "arrived",
            What::Finished => "finished",
            What::Closed => "closed",
        }
    }
}

struct Entry {
    at_ns: u64,
    what: What,
    correlation_id: String,
}

/// The newest entries.
#[derive(Default)]
pub(super) struct Journal(Mutex<Pages>);

#[derive(Default)]
struct Pages {
    entries: VecDeque<Entry>,
    /// Entries that are no longer there
    gone: usize,
}

/// Entries that are kept.
const MOST: usize = 100_000;

impl Journal {
    pub(super) fn note(&self, what: What, correlation_id: &str) {
        let mut pages = lock(&self.0);
        if pages.entries.len() == MOST {
            pages.entries.pop_front();
            pages.gone += 1;
        }
        pages.entries.push_back(Entry {
            at_ns: monotonic_ns(),
            what,
            correlation_id: correlation_id.to_owned(),
        });
    }

    /// The entries from number `from` on, and the number of the next one to come.
    pub(super) fn json(&self, from: usize) -> Value {
        let pages = lock(&self.0);
        let known = pages.entries.iter().skip(from.saturating_sub(pages.gone));
        let entries: Vec<Value> = known
            .map(|entry| {
                json!({"at_ns": entry.at_ns, "what": entry.what.name(),
                       "correlation_id": entry.correlation_id})
            })
            .collect();
        json!({"entries": entries, "next": pages.gone + pages.entries.len()})
    }
}
