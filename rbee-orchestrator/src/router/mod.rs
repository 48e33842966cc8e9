//! One job on its worker, from the dispatch to the one ending.
//!
//! A [`Flow`] is shared by two sides. The client's side (or, for a task that nobody waits for, a task
//! of the orchestrator's) polls it, and with each poll does the work itself: connects, sends, reads.
//! The orchestrator's side assigns a worker to it and can cut it off at any time, whether or not
//! anybody polls: the connection to the worker closes then and there, and the lease goes back.
//!
//! An attempt that failed goes back to the brain, which gives the flow another worker or its ending.

mod attempt;
mod call;
mod gathered;
mod inbox;
mod journal;
mod lease;
mod patience;
mod privacy;
mod state;
mod stream;

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::brain::Blame;
use crate::domain::{
    Attempt, Ending, JobId, ModelRef, Narration, Outcome, StopReason, TaskEvent, UnixMillis,
};
use crate::error::{Code, Error};
use crate::relay::pool::Pool;

use attempt::Opened;
pub(crate) use attempt::Whole;
pub(crate) use call::{Call, Payload};
pub(crate) use inbox::Inbox;
pub(crate) use journal::{Journal, Read, Reader, TextBudget, replay};
pub(crate) use lease::Lease;
pub(crate) use patience::{Patience, Ticks};
pub(crate) use privacy::Privacy;
use stream::Streaming;

/// A worker for a job.
pub(crate) struct Assignment {
    pub(crate) lease: Lease,
    pub(crate) attempt: Attempt,
    pub(crate) model: ModelRef,
    pub(crate) at: UnixMillis,
}

/// Something a waiting client may want to know.
#[derive(Debug, Clone)]
pub(crate) enum Notice {
    Queued {
        position: usize,
        wait: Option<Duration>,
    },
    Narration(Narration),
}

impl From<Notice> for TaskEvent {
    fn from(notice: Notice) -> Self {
        match notice {
            Notice::Queued { position, wait } => TaskEvent::Queued { position, wait },
            Notice::Narration(narration) => TaskEvent::Narration(narration),
        }
    }
}

/// What a poll brought.
#[derive(Debug)]
pub(crate) enum Step {
    Notice(Notice),
    /// A worker has the job.
    Started(TaskEvent),
    /// The worker's stream has begun.
    StreamBegins,
    /// The whole answer of a request that does not stream.
    Whole(Whole),
    /// Bytes of whole events, for raw streams.
    Data(Bytes),
    /// An event, for tasks.
    Event(TaskEvent),
    /// The job ended without completing. Nothing follows.
    Failed(Error),
    /// Nothing follows.
    End,
}

type Opening = Pin<Box<dyn Future<Output = Result<Opened, attempt::Failure>> + Send>>;

enum Stage {
    /// For a worker, or for what the brain makes of an attempt that failed.
    Waiting,
    /// It has a worker, and the dispatch is on its way to the disk.
    Recording(Box<Assignment>),
    Assigned(Box<Assignment>),
    Opening {
        lease: Lease,
        opening: Opening,
    },
    Streaming(Box<Streaming>),
    Over,
}

/// Whom the flow waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Awaiting {
    Client,
    Worker,
}

struct State {
    stage: Stage,
    notices: VecDeque<Notice>,
    /// What is still to be told of an attempt that is over.
    last_steps: VecDeque<Step>,
    /// What the client is told last, when the job ended from outside.
    error: Option<Error>,
    /// The newest attempt, as followers are told of it.
    started: Option<TaskEvent>,
    /// When that was dispatched.
    dispatched: Instant,
    /// The same as a tick.
    dispatched_tick: u32,
    /// How the job ended, as followers are told, if its worker said so.
    ending: Vec<TaskEvent>,
    waker: Option<Waker>,
    awaiting: Awaiting,
    /// The tick at which it last stood still.
    since: u32,
    /// Whether the job's ending has been recorded.
    settled: bool,
}

/// Notices that wait for a client that does not read; the oldest goes first.
const MAX_NOTICES: usize = 64;

/// A job on its way. See the module's documentation.
pub(crate) struct Flow {
    pub(crate) call: Arc<Call>,
    pool: Arc<Pool>,
    parts: Arc<FlowParts>,
    /// What followers read; of a task from its beginning, since it holds the result.
    journal: OnceLock<Arc<Journal>>,
    state: Mutex<State>,
}

/// What all flows share.
#[derive(Debug)]
pub(crate) struct FlowParts {
    pub(crate) ticks: Ticks,
    pub(crate) text: Arc<TextBudget>,
    pub(crate) privacy: Privacy,
}

impl Flow {
    pub(crate) fn new(call: Call, pool: Arc<Pool>, parts: Arc<FlowParts>) -> Self {
        let since = parts.ticks.now();
        let journal = match call.payload {
            Payload::Task(_) => Arc::new(Journal::new(parts.text.clone())).into(),
            Payload::OpenAi { .. } => OnceLock::new(),
        };
        Flow {
            call: Arc::new(call),
            pool,
            parts,
            journal,
            state: Mutex::new(State {
                stage: Stage::Waiting,
                notices: VecDeque::new(),
                last_steps: VecDeque::new(),
                error: None,
                started: None,
                dispatched: Instant::now(),
                dispatched_tick: since,
                ending: Vec::new(),
                waker: None,
                awaiting: Awaiting::Worker,
                since,
                settled: false,
            }),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn id(&self) -> JobId {
        self.call.job
    }

    /// What this job tells those who follow it.
    pub(crate) fn journal(&self) -> Arc<Journal> {
        let state = self.lock();
        let first = || {
            let journal = Journal::new(self.parts.text.clone());
            if let Some(started @ TaskEvent::Started { attempt, .. }) = &state.started {
                journal.begin(*attempt, started.clone());
            }
            Arc::new(journal)
        };
        self.journal.get_or_init(first).clone()
    }

    /// Tells the client something while it waits.
    pub(crate) fn notify(&self, notice: Notice) {
        let mut state = self.lock();
        // Its place is told up to its first attempt: `queued` comes before `started`.
        if state.started.is_some() && matches!(notice, Notice::Queued { .. }) {
            return;
        }
        if let Some(journal) = self.journal.get() {
            journal.note(notice.clone().into());
        }
        if state.notices.len() == MAX_NOTICES {
            state.notices.pop_front();
        }
        state.notices.push_back(notice);
        state.wake();
    }

    /// Gives the job a worker. That of an asynchronous one is called when [`Flow::recorded`] says so.
    /// A flow that is over gives the lease back at once.
    pub(crate) fn assign(&self, assignment: Assignment) {
        let mut state = self.lock();
        if let Stage::Waiting = state.stage {
            // What an earlier attempt has left is void.
            state.last_steps.clear();
            let assignment = Box::new(assignment);
            state.stage = match self.call.asynchronous {
                true => Stage::Recording(assignment),
                false => Stage::Assigned(assignment),
            };
            state.wake();
        }
    }

    /// The dispatch with this number is on disk.
    pub(crate) fn recorded(&self, attempt: Attempt) {
        let mut state = self.lock();
        match std::mem::replace(&mut state.stage, Stage::Waiting) {
            Stage::Recording(assignment) if assignment.attempt == attempt => {
                state.stage = Stage::Assigned(assignment);
                state.wake();
            }
            other => state.stage = other,
        }
    }

    /// Whether there is nothing left to do but to tell and to record the ending.
    pub(crate) fn is_over(&self) -> bool {
        matches!(self.lock().stage, Stage::Over)
    }

    /// Whether its answer has begun.
    pub(crate) fn flows(&self) -> bool {
        match &self.lock().stage {
            Stage::Streaming(stream) => stream.has_begun(),
            _ => false,
        }
    }

    /// A client is about to poll: it may be given up when it does not.
    pub(crate) fn hand_out(&self) {
        let mut state = self.lock();
        state.awaiting = Awaiting::Client;
        state.since = self.parts.ticks.now();
    }

    /// Ends the job from outside: the worker's connection closes now, the lease goes back with
    /// this outcome, and the client is told the error.
    pub(crate) fn abort(&self, outcome: &Outcome) {
        let mut state = self.lock();
        if let Stage::Over = state.stage {
            return;
        }
        state.give_back(outcome, Blame::Request);
        state.stage = Stage::Over;
        state.error = outcome.error().cloned();
        state.wake();
    }

    /// Takes the worker away from this attempt, if it is still the one that runs: its connection closes
    /// now, and the job waits for what the brain gives it next.
    pub(crate) fn give_back(&self, attempt: Attempt, why: Error) {
        let mut state = self.lock();
        if state.attempt() == Some(attempt) {
            state.give_back(&Outcome::Failed(why), Blame::GivenBack);
        }
    }

    /// Why the job was refused, if it was at once.
    pub(crate) fn refusal(&self) -> Option<Error> {
        self.lock().error.clone()
    }

    /// The job's ending has been recorded: who follows it may know. To be given
    /// [`Flow::last_events`].
    pub(crate) fn settle(&self, last_events: Vec<TaskEvent>) {
        let mut state = self.lock();
        state.settled = true;
        state.wake();
        drop(state);
        if let Some(journal) = self.journal.get() {
            journal.end(last_events);
        }
    }

    /// What those who follow the job are told of its ending; nothing if nobody can.
    pub(crate) fn last_events(&self, ending: &Ending) -> Vec<TaskEvent> {
        if self.journal.get().is_none() {
            return Vec::new();
        }
        let told = std::mem::take(&mut self.lock().ending);
        match ending.outcome.error() {
            Some(error) => vec![TaskEvent::Error {
                job: self.id(),
                error: error.clone(),
            }],
            None if !told.is_empty() => told,
            None => vec![TaskEvent::End {
                tokens_out: ending.usage.map_or(0, |usage| usage.tokens_out),
                decode_time_ms: ending.times.inference_ms,
                stop_reason: ending.stop.unwrap_or(StopReason::Eos),
                stop_sequence_matched: None,
            }],
        }
    }

    /// The job goes on in another life of the queen: this one lets go of it. Returns the attempt that
    /// was cut off, if one was.
    pub(crate) fn shelve(&self) -> Option<Attempt> {
        let mut state = self.lock();
        let attempt = state.attempt();
        state.stage = Stage::Over;
        state.settled = true;
        state.wake();
        drop(state);
        if let Some(journal) = self.journal.get() {
            journal.close();
        }
        attempt
    }

    /// Waits until the ending has been recorded, so that whoever asks next reads it.
    pub(crate) fn poll_settled(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut state = self.lock();
        if state.settled {
            return Poll::Ready(());
        }
        state.sleep(cx);
        Poll::Pending
    }

    /// Nobody polls any more. Says whether the job had not ended.
    pub(crate) fn abandon(&self) -> bool {
        let mut state = self.lock();
        if let Stage::Over = state.stage {
            return false;
        }
        state.give_back(&Outcome::Cancelled(client_gone()), Blame::Request);
        state.stage = Stage::Over;
        true
    }

    /// Does the next piece of work. Only one side may poll.
    pub(crate) fn poll_step(&self, cx: &mut Context<'_>) -> Poll<Step> {
        let mut state = self.lock();
        let step = state.poll_step(self, cx);
        let awaiting = match &step {
            Poll::Ready(_) => Awaiting::Client,
            Poll::Pending => Awaiting::Worker,
        };
        // A worker that sends bytes and gets nowhere stands still as well.
        let moved = match &mut state.stage {
            Stage::Streaming(stream) => stream.has_moved(),
            _ => true,
        };
        if moved || step.is_ready() || state.awaiting != awaiting {
            state.since = self.parts.ticks.now();
        }
        state.awaiting = awaiting;
        if step.is_pending() {
            state.sleep(cx);
        }
        step
    }
}

pub(crate) fn client_gone() -> Error {
    Error::new(Code::Cancelled, "the client closed its connection")
}
