//! How many connections there may be: what the process's limit of open files allows.

use rustix::process::{Resource, getrlimit, setrlimit};

/// Descriptors kept for the store, the log, hives and what else is no connection.
const KEPT: usize = 256;

/// Connections that are let in by default, however many descriptors there are: what a connection
/// can hold while nobody knows who it is (a head) times this is what strangers can hold.
const MOST: usize = 16_384;

/// Connections that are let in however few descriptors there are.
const LEAST: usize = 16;

/// Raises this process's limit of open files as far as it may. For a program's start: what it
/// starts inherits the limit.
pub fn raise_open_files() {
    let mut limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum {
        limit.current = limit.maximum;
        if let Err(error) = setrlimit(Resource::Nofile, limit) {
            tracing::warn!(%error, "the limit of open files stays as it is");
        }
    }
}

/// How many connections there may be, of those that were configured: half of the descriptors, for
/// each may need another one to a worker.
pub(super) fn connections(configured: Option<usize>) -> usize {
    let limit = getrlimit(Resource::Nofile).current;
    let all = limit.map_or(usize::MAX, |limit| {
        usize::try_from(limit).unwrap_or(usize::MAX)
    });
    within(all, configured)
}

fn within(descriptors: usize, configured: Option<usize>) -> usize {
    let usable = descriptors.saturating_sub(KEPT);
    match configured {
        Some(configured) => configured.min(usable.max(LEAST)),
        None => (usable / 2).clamp(LEAST, MOST),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_leave_descriptors_for_workers_and_the_store() {
        assert_eq!(within(1024, None), 384);
        assert_eq!(within(usize::MAX, None), MOST);
        assert_eq!(within(1024, Some(5000)), 768);
        assert_eq!(within(1024, Some(2)), 2);
        assert_eq!(within(64, None), LEAST);
    }
}
