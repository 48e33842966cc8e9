//! What the clients and the killer share.

use crate::harness::{Client, until};
use crate::random::Random;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Acknowledged tasks that others may read along.
const BOARD: usize = 64;

/// How long clients wait for a queen to come back before they give up: longer than any restart.
const PATIENCE: Duration = Duration::from_secs(30);

pub(super) struct Stage {
    client: Client,
    random: Random,
    closing: AtomicBool,
    /// When clients give up whatever they still wait for
    ends: Mutex<Option<Instant>>,
    /// Job and wish of the newest acknowledgements
    board: Mutex<VecDeque<(String, String)>>,
}

/// A lock whose holder panicked still holds plain data.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Stage {
    pub(super) fn new(client: Client, random: Random) -> Self {
        Stage {
            client,
            random,
            closing: AtomicBool::new(false),
            ends: Mutex::default(),
            board: Mutex::default(),
        }
    }

    pub(super) fn client(&self) -> &Client {
        &self.client
    }

    /// The choices of client number `number`.
    pub(super) fn random(&self, number: u64) -> Random {
        self.random.fork(number)
    }

    /// Asks for no new tasks; those that are open are seen to their end, for at most `within`.
    pub(super) fn close(&self, within: Duration) {
        *lock(&self.ends) = Some(Instant::now() + within);
        self.closing.store(true, Relaxed);
    }

    pub(super) fn is_closing(&self) -> bool {
        self.closing.load(Relaxed)
    }

    /// Waits for that long, unless the end comes before.
    pub(super) fn closes_within(&self, pause: Duration) -> bool {
        until(pause, || self.is_closing().then_some(())).is_some()
    }

    /// Waits until the queen answers; says whether she does.
    pub(super) fn wait_until_up(&self) -> bool {
        let is_over = || lock(&self.ends).is_some_and(|ends| Instant::now() > ends);
        let came = until(PATIENCE, || {
            if is_over() {
                return Some(false);
            }
            let health = self.client.get("/health").ok()?;
            (health.status == 200).then_some(true)
        });
        came.unwrap_or(false)
    }

    pub(super) fn acknowledged(&self, job_id: &str, name: &str) {
        let mut board = lock(&self.board);
        if board.len() == BOARD {
            board.pop_front();
        }
        board.push_back((job_id.to_owned(), name.to_owned()));
    }

    /// A task that was acknowledged not long ago, if there is any.
    pub(super) fn any_acknowledged(&self, random: &mut Random) -> Option<(String, String)> {
        let board = lock(&self.board);
        let last = board.len().checked_sub(1)? as u64;
        board.get(random.between(0, last) as usize).cloned()
    }
}
