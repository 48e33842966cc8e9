//! One job on its worker, from the dispatch to the one ending.
//!
//! A [`Flow`] is shared by two sides. The client's side (or, for a task that nobody waits for, a task
//! of the orchestrator's) polls it, and with each poll does the work itself: connects, sends, reads.
//! The orchestrator's side assigns a worker to it and can cut it off at any time, whether or not
//! anybody polls: the connection to the worker closes then and there, and the lease goes back.
//!
//! An attempt that failed goes back to the brain, which gives the flow another worker or its ending.

mod attempt;
mod inbox;
mod journal;
mod lease;
mod patience;
mod stream;

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::brain::{Aftermath, Blame, Report};
use crate::domain::{
    Attempt, Ending, JobId, ModelRef, Narration, Outcome, StopReason, TaskEvent, UnixMillis,
};
use crate::error::{Code, Error};
use crate::killpoint;
use crate::relay::pool::Pool;

pub(crate) use attempt::{Call, Payload, Whole, refusal};
use attempt::{Opened, open};
pub(crate) use inbox::Inbox;
pub(crate) use journal::{Journal, Read, Reader, TextBudget, replay};
pub(crate) use lease::Lease;
pub(crate) use patience::{Patience, Ticks};
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
                ending: Vec::new(),
                waker: None,
                awaiting: Awaiting::Client,
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

    /// Gives the job a worker. A flow that is over gives the lease back at once.
    pub(crate) fn assign(&self, assignment: Assignment) {
        let mut state = self.lock();
        if let Stage::Waiting = state.stage {
            // What an earlier attempt has left is void.
            state.last_steps.clear();
            state.stage = Stage::Assigned(Box::new(assignment));
            state.wake();
        }
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
        let stage = std::mem::replace(&mut state.stage, Stage::Over);
        state.settled = true;
        state.wake();
        drop(state);
        if let Some(journal) = self.journal.get() {
            journal.close();
        }
        match stage {
            Stage::Waiting | Stage::Over => None,
            Stage::Assigned(assignment) => Some(assignment.attempt),
            Stage::Opening { lease, .. } => Some(lease.attempt()),
            Stage::Streaming(streaming) => Some(streaming.into_lease().attempt()),
        }
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
        state.awaiting = match &step {
            Poll::Ready(_) => Awaiting::Client,
            Poll::Pending => Awaiting::Worker,
        };
        state.since = self.parts.ticks.now();
        if step.is_pending() {
            state.sleep(cx);
        }
        step
    }
}

impl State {
    fn wake(&mut self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    fn sleep(&mut self, cx: &Context<'_>) {
        match &mut self.waker {
            Some(waker) => waker.clone_from(cx.waker()),
            none => *none = Some(cx.waker().clone()),
        }
    }

    /// Drops what the stage holds; a lease goes back with a report of this outcome. What happens to
    /// the job is for the brain to say, unless its client has seen a part of the answer.
    fn give_back(&mut self, outcome: &Outcome, blame: Blame) {
        let timed_out = outcome
            .error()
            .is_some_and(|error| error.code == Code::Timeout);
        // A worker that let the time pass may hang: it is to answer before it gets more.
        let aftermath = match timed_out && self.awaiting == Awaiting::Worker {
            true => Aftermath::Suspect,
            false => Aftermath::Clean,
        };
        match std::mem::replace(&mut self.stage, Stage::Waiting) {
            Stage::Waiting => {}
            Stage::Over => self.stage = Stage::Over,
            Stage::Assigned(assignment) => assignment.lease.end(Report::of(outcome.clone())),
            Stage::Opening { lease, opening } => {
                drop(opening);
                lease.end_early(Report {
                    aftermath,
                    blame,
                    ..Report::of(outcome.clone())
                });
            }
            Stage::Streaming(stream) => stream.give_back(outcome, blame, aftermath),
        }
    }

    fn poll_step(&mut self, flow: &Flow, cx: &mut Context<'_>) -> Poll<Step> {
        if let Some(notice) = self.notices.pop_front() {
            return Poll::Ready(Step::Notice(notice));
        }
        match &mut self.stage {
            Stage::Waiting => Poll::Pending,
            Stage::Assigned(_) => Poll::Ready(self.begin(flow)),
            Stage::Opening { opening, .. } => match opening.as_mut().poll(cx) {
                Poll::Pending => Poll::Pending,
                Poll::Ready(opened) => self.opened(flow, opened),
            },
            Stage::Streaming(stream) => match stream.poll(&flow.pool, cx) {
                Poll::Pending => Poll::Pending,
                Poll::Ready(stream::Next::Step(step)) => Poll::Ready(step),
                Poll::Ready(stream::Next::Ended(report, last_steps)) => {
                    self.ended(report, last_steps)
                }
            },
            Stage::Over => Poll::Ready(self.next_last()),
        }
    }

    /// From the assignment to the call.
    fn begin(&mut self, flow: &Flow) -> Step {
        let Stage::Assigned(assignment) = std::mem::replace(&mut self.stage, Stage::Over) else {
            return Step::End;
        };
        let Assignment {
            lease,
            attempt,
            model,
            at,
        } = *assignment;
        let worker = lease.worker.clone();
        let started = TaskEvent::Started {
            model,
            started_at: at,
            worker: worker.id.clone(),
            attempt,
        };
        if let Some(journal) = flow.journal.get() {
            journal.begin(attempt, started.clone());
        }
        self.started = Some(started.clone());
        self.dispatched = Instant::now();
        killpoint::pass("dispatched");
        let opening = Box::pin(open(flow.pool.clone(), worker, flow.call.clone()));
        self.stage = Stage::Opening { lease, opening };
        Step::Started(started)
    }

    /// From the call to the answer.
    fn opened(&mut self, flow: &Flow, opened: Result<Opened, attempt::Failure>) -> Poll<Step> {
        let Stage::Opening { lease, .. } = std::mem::replace(&mut self.stage, Stage::Over) else {
            return Poll::Ready(Step::End);
        };
        match opened {
            Ok(Opened::Stream(answer)) => {
                let streaming = Streaming::new(lease, &flow.call, answer, flow.journal.get());
                self.stage = Stage::Streaming(Box::new(streaming));
                Poll::Ready(Step::StreamBegins)
            }
            Ok(Opened::Whole(whole)) => {
                killpoint::pass("finish-before-commit");
                lease.end(whole.report(self.dispatched.elapsed()));
                Poll::Ready(Step::Whole(whole))
            }
            Err(failure) => {
                self.stage = Stage::Waiting;
                lease.end(failure.report());
                Poll::Pending
            }
        }
    }

    /// The worker's stream is over. If it broke off, the brain says what follows.
    fn ended(&mut self, report: Report, last_steps: VecDeque<Step>) -> Poll<Step> {
        let completed = report.outcome.error().is_none();
        let next = match completed {
            true => Stage::Over,
            false => Stage::Waiting,
        };
        if completed {
            killpoint::pass("finish-before-commit");
            let events = last_steps.iter().filter_map(|step| match step {
                Step::Event(TaskEvent::Token { .. }) => None,
                Step::Event(event) => Some(event.clone()),
                _ => None,
            });
            self.ending = events.collect();
        }
        self.last_steps = last_steps;
        if let Stage::Streaming(stream) = std::mem::replace(&mut self.stage, next) {
            stream.into_lease().end(report);
        }
        match completed {
            true => Poll::Ready(self.next_last()),
            false => Poll::Pending,
        }
    }

    fn next_last(&mut self) -> Step {
        let error = &mut self.error;
        let ending = || error.take().map_or(Step::End, Step::Failed);
        self.last_steps.pop_front().unwrap_or_else(ending)
    }
}

pub(crate) fn client_gone() -> Error {
    Error::new(Code::Cancelled, "the client closed its connection")
}
