//! Where callers and the writer's thread meet: the queue's lock, its bounds, and who wakes whom.

use std::num::NonZero;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use super::failure::closed;
use super::op::Op;
use super::queue::Waiting;
use crate::error::{Error, Result};
use crate::store::JobChange;

/// How long changes wait that nobody awaits: the changes of a short job become one write, and an
/// idle disk syncs forty times a second at most. It is what a crash may take of an interactive
/// stream's record.
const LINGER: Duration = Duration::from_millis(25);

/// Operations in one transaction: enough to spread one sync over many, few enough that a caller
/// who waits for it does so for milliseconds.
pub(super) const BATCH_MAX: NonZero<usize> = NonZero::new(1_024).expect("it is not 0");

/// Bytes of text after which a transaction takes no more, so that the log stays small.
const BATCH_TEXT_MAX: usize = 8 * 1024 * 1024;

/// Operations that may wait before submitters have to.
const QUEUE_MAX: usize = 10_000;

/// Bytes of text that may wait before submitters have to.
const QUEUE_TEXT_MAX: usize = 64 * 1024 * 1024;

/// Pause before a failed commit is tried again; doubles each time, up to [`RETRY_MAX`].
const RETRY_FIRST: Duration = Duration::from_millis(50);

/// The longest such pause: how late it is noticed that a disk has room again.
const RETRY_MAX: Duration = Duration::from_secs(1);

/// The writer's limits; see the constants that are their defaults.
pub(super) struct Tuning {
    pub(super) linger: Duration,
    pub(super) batch_max: usize,
    pub(super) batch_text_max: usize,
    pub(super) queue_max: usize,
    pub(super) queue_text_max: usize,
    pub(super) retry_first: Duration,
    pub(super) retry_max: Duration,
}

impl Default for Tuning {
    fn default() -> Self {
        Tuning {
            linger: LINGER,
            batch_max: BATCH_MAX.get(),
            batch_text_max: BATCH_TEXT_MAX,
            queue_max: QUEUE_MAX,
            queue_text_max: QUEUE_TEXT_MAX,
            retry_first: RETRY_FIRST,
            retry_max: RETRY_MAX,
        }
    }
}

/// The queue between callers and the thread.
pub(super) struct Handover {
    pub(super) tuning: Tuning,
    state: Mutex<State>,
    /// Wakes the thread.
    wake: Condvar,
    /// Wakes those who wait for room.
    room: Notify,
}

#[derive(Default)]
struct State {
    waiting: Waiting,
    /// What the thread has taken and not committed.
    taken: usize,
    taken_text: usize,
    phase: Phase,
    /// Somebody waits for what is in the queue.
    urgent: bool,
    closing: bool,
    /// Why the last commit failed, while the thread waits before the next.
    failure: Option<Error>,
}

/// What the thread does. A wake-up is a system call, so it is only sent when it is due and not
/// sent twice.
#[derive(Default, PartialEq)]
enum Phase {
    /// It works or was woken: it will look into the queue before it sleeps.
    #[default]
    Awake,
    /// It gives changes time to merge.
    Lingering,
    /// It waits for the first operation.
    Asleep,
}

impl Handover {
    pub(super) fn new(tuning: Tuning) -> Self {
        Handover {
            tuning,
            state: Mutex::default(),
            wake: Condvar::new(),
            room: Notify::new(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // The state is whole after each statement, so a panic elsewhere does not spoil it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a change. A closed store can't take it, which is a defect of the caller.
    pub(super) fn push_change(&self, change: JobChange) {
        let mut state = self.state();
        if state.closing {
            drop(state);
            tracing::error!(job = %change.job(), "a change came after the store was closed");
            return;
        }
        state.waiting.push_change(change);
        self.wake_if_due(state);
    }

    /// Adds a step that a caller waits for; refuses it at once while nothing can be written.
    pub(super) fn push_awaited(&self, mut op: Op) {
        let mut state = self.state();
        let refusal = match &state.failure {
            _ if state.closing => Some(closed()),
            failure => failure.clone(),
        };
        if let Some(error) = refusal {
            drop(state);
            return op.answer(Err(error));
        }
        state.waiting.push_awaited(op);
        state.urgent = true;
        self.wake_if_due(state);
    }

    fn wake_if_due(&self, mut state: MutexGuard<'_, State>) {
        let due = match state.phase {
            Phase::Awake => false,
            Phase::Asleep => true,
            Phase::Lingering => self.is_due(&state),
        };
        if due {
            state.phase = Phase::Awake;
            drop(state);
            self.wake.notify_one();
        }
    }

    fn is_due(&self, state: &State) -> bool {
        state.urgent
            || state.closing
            || state.waiting.ops.len() >= self.tuning.batch_max
            || state.waiting.text_bytes >= self.tuning.batch_text_max
    }

    /// Whether all that came is written.
    pub(super) fn is_settled(&self) -> bool {
        let state = self.state();
        state.taken == 0 && state.waiting.ops.is_empty()
    }

    /// Waits for room.
    pub(super) async fn ready(&self) -> Result<()> {
        loop {
            // Made before the check, so that no wake-up is missed in between.
            let room = self.room.notified();
            {
                let state = self.state();
                if state.closing {
                    return Err(closed());
                }
                if self.has_room(&state) {
                    return Ok(());
                }
                if let Some(error) = &state.failure {
                    return Err(error.clone());
                }
            }
            room.await;
        }
    }

    fn has_room(&self, state: &State) -> bool {
        state.waiting.ops.len() + state.taken < self.tuning.queue_max
            && state.waiting.text_bytes + state.taken_text < self.tuning.queue_text_max
    }

    /// Lets the thread write what waits and end.
    pub(super) fn close(&self) {
        self.state().closing = true;
        self.wake.notify_one();
        self.room.notify_waiters();
    }

    // What follows is called by the thread.

    /// Waits for something to do and takes all of it into `taken`, which is empty. `false` when
    /// nothing will come any more.
    pub(super) fn take(&self, taken: &mut Waiting) -> bool {
        let mut state = self.state();
        while state.waiting.ops.is_empty() {
            if state.closing {
                return false;
            }
            state.phase = Phase::Asleep;
            let woken = self.wake.wait(state);
            state = woken.unwrap_or_else(PoisonError::into_inner);
        }
        let mut state = self.linger(state);
        state.phase = Phase::Awake;
        state.urgent = false;
        std::mem::swap(&mut state.waiting, taken);
        state.taken = taken.ops.len();
        state.taken_text = taken.text_bytes;
        true
    }

    /// Takes what came meanwhile, if somebody waits for it, behind what was taken before.
    pub(super) fn take_awaited(&self, taken: &mut Waiting) -> bool {
        let mut state = self.state();
        if !std::mem::take(&mut state.urgent) {
            return false;
        }
        state.taken += state.waiting.ops.len();
        state.taken_text += state.waiting.text_bytes;
        taken.append(&mut state.waiting);
        true
    }

    fn linger<'a>(&self, mut state: MutexGuard<'a, State>) -> MutexGuard<'a, State>
    where
        Self: 'a,
    {
        let until = Instant::now() + self.tuning.linger;
        while !self.is_due(&state) {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            state.phase = Phase::Lingering;
            let woken = self.wake.wait_timeout(state, left);
            state = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
        state
    }

    pub(super) fn note_written(&self, ops: usize, text_bytes: usize) {
        let mut state = self.state();
        state.taken -= ops;
        state.taken_text = state.taken_text.saturating_sub(text_bytes);
        let has_room = self.has_room(&state);
        drop(state);
        if has_room {
            self.room.notify_waiters();
        }
    }

    /// Nothing of what was taken is left.
    pub(super) fn note_all_written(&self) {
        let mut state = self.state();
        state.taken = 0;
        state.taken_text = 0;
        drop(state);
        self.room.notify_waiters();
    }

    pub(super) fn is_closing(&self) -> bool {
        self.state().closing
    }

    /// Tells all who wait that nothing can be written, and pauses, but not beyond the close.
    pub(super) fn back_off(&self, pause: Duration, error: &Error) {
        let until = Instant::now() + pause;
        let mut state = self.state();
        state.failure = Some(error.clone());
        state.waiting.refuse_awaited(error);
        self.room.notify_waiters();
        while !state.closing {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            let woken = self.wake.wait_timeout(state, left);
            state = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
        state.failure = None;
    }

    pub(super) fn changes_waiting(&self) -> usize {
        let state = self.state();
        state.waiting.ops.iter().filter(|op| op.is_change()).count()
    }

    /// The thread ends: nobody may wait for it any more.
    pub(super) fn end(&self) {
        let mut state = self.state();
        state.closing = true;
        state.waiting.refuse_awaited(&closed());
        state.waiting.clear();
        drop(state);
        self.room.notify_waiters();
    }
}
