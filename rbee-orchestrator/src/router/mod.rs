//! One job on its worker, from the dispatch to the one ending.
//!
//! A [`Flow`] is shared by two sides. The client's side polls it, and with each poll does the work
//! itself: connects, sends, reads. The orchestrator's side assigns a worker to it and can cut it
//! off at any time, whether or not anybody polls: the connection to the worker closes then and
//! there, and the lease goes back.

mod attempt;
mod inbox;
mod lease;
mod stream;

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::brain::{Aftermath, Report};
use crate::domain::{Attempt, JobId, ModelRef, Narration, Outcome, TaskEvent, UnixMillis};
use crate::error::{Code, Error};
use crate::relay::pool::Pool;

pub(crate) use attempt::{Call, Payload, Whole, refusal};
use attempt::{Opened, open};
pub(crate) use inbox::Inbox;
pub(crate) use lease::Lease;
use stream::Streaming;

/// A worker for a job.
pub(crate) struct Assignment {
    pub(crate) lease: Lease,
    pub(crate) attempt: Attempt,
    pub(crate) model: ModelRef,
    pub(crate) at: UnixMillis,
}

/// Something a waiting client may want to know.
#[derive(Debug)]
pub(crate) enum Notice {
    Queued { position: usize },
    Narration(Narration),
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
    Waiting,
    Assigned(Box<Assignment>),
    Opening { lease: Lease, opening: Opening },
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
    /// What is still to be told of a job that is over.
    last_steps: VecDeque<Step>,
    /// What the client is told last, when the job ended from outside.
    error: Option<Error>,
    waker: Option<Waker>,
    awaiting: Awaiting,
    since: Instant,
    /// Whether the job's ending has been recorded.
    settled: bool,
}

/// Notices that wait for a client that does not read; the oldest goes first.
const MAX_NOTICES: usize = 64;

/// A job on its way. See the module's documentation.
pub(crate) struct Flow {
    pub(crate) call: Arc<Call>,
    pool: Arc<Pool>,
    state: Mutex<State>,
}

/// How long a flow may stand still.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Patience {
    pub(crate) between_tokens: Duration,
    pub(crate) client_stall: Duration,
}

impl Flow {
    pub(crate) fn new(call: Call, pool: Arc<Pool>) -> Self {
        Flow {
            call: Arc::new(call),
            pool,
            state: Mutex::new(State {
                stage: Stage::Waiting,
                notices: VecDeque::new(),
                last_steps: VecDeque::new(),
                error: None,
                waker: None,
                awaiting: Awaiting::Client,
                since: Instant::now(),
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

    /// Tells the client something while it waits.
    pub(crate) fn notify(&self, notice: Notice) {
        let mut state = self.lock();
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
        state.give_back(outcome);
        state.error = outcome.error().cloned();
        state.wake();
    }

    /// Why the job was refused, if it was at once.
    pub(crate) fn refusal(&self) -> Option<Error> {
        self.lock().error.clone()
    }

    /// The job's ending has been recorded.
    pub(crate) fn settle(&self) {
        let mut state = self.lock();
        state.settled = true;
        state.wake();
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
        state.give_back(&Outcome::Cancelled(client_gone()));
        true
    }

    /// Cuts the flow off when its worker or its client has stood still for too long.
    pub(crate) fn check_patience(&self, now: Instant, patience: &Patience) {
        let outcome = {
            let state = self.lock();
            let idle = now.saturating_duration_since(state.since);
            match (&state.stage, state.awaiting) {
                (Stage::Over, _) => return,
                (_, Awaiting::Client) if idle > patience.client_stall => {
                    Outcome::Cancelled(Error::new(
                        Code::Cancelled,
                        "the client took no byte for too long and was given up",
                    ))
                }
                (Stage::Streaming(stream), Awaiting::Worker)
                    if idle > patience.between_tokens && stream.has_begun() =>
                {
                    let secs = patience.between_tokens.as_secs_f64();
                    Outcome::Failed(Error::new(
                        Code::Timeout,
                        format!("the worker sent nothing for {secs} s in the middle of its answer"),
                    ))
                }
                _ => return,
            }
        };
        self.abort(&outcome);
    }

    /// Does the next piece of work. Only one side may poll.
    pub(crate) fn poll_step(&self, cx: &mut Context<'_>) -> Poll<Step> {
        let mut state = self.lock();
        let step = state.poll_step(&self.call, &self.pool, cx);
        state.awaiting = match &step {
            Poll::Ready(_) => Awaiting::Client,
            Poll::Pending => Awaiting::Worker,
        };
        state.since = Instant::now();
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

    /// Drops what the stage holds; a lease goes back with a report of this outcome.
    fn give_back(&mut self, outcome: &Outcome) {
        let timed_out = outcome
            .error()
            .is_some_and(|error| error.code == Code::Timeout);
        // A worker that let the time pass may hang: it is to answer before it gets more.
        let aftermath = match timed_out && self.awaiting == Awaiting::Worker {
            true => Aftermath::Suspect,
            false => Aftermath::Clean,
        };
        match std::mem::replace(&mut self.stage, Stage::Over) {
            Stage::Waiting | Stage::Over => {}
            Stage::Assigned(assignment) => assignment.lease.end(Report::of(outcome.clone())),
            Stage::Opening { lease, opening } => {
                drop(opening);
                let report = Report::of(outcome.clone());
                lease.end_early(Report {
                    aftermath,
                    ..report
                });
            }
            Stage::Streaming(stream) => stream.give_back(outcome, aftermath),
        }
    }

    fn poll_step(
        &mut self,
        call: &Arc<Call>,
        pool: &Arc<Pool>,
        cx: &mut Context<'_>,
    ) -> Poll<Step> {
        if let Some(notice) = self.notices.pop_front() {
            return Poll::Ready(Step::Notice(notice));
        }
        match &mut self.stage {
            Stage::Waiting => Poll::Pending,
            Stage::Assigned(_) => Poll::Ready(self.begin(call, pool)),
            Stage::Opening { opening, .. } => match opening.as_mut().poll(cx) {
                Poll::Pending => Poll::Pending,
                Poll::Ready(opened) => Poll::Ready(self.opened(call, opened)),
            },
            Stage::Streaming(stream) => match stream.poll(pool, cx) {
                Poll::Pending => Poll::Pending,
                Poll::Ready(stream::Next::Step(step)) => Poll::Ready(step),
                Poll::Ready(stream::Next::Ended(report, last_steps)) => {
                    self.ended(report, last_steps);
                    Poll::Ready(self.next_last())
                }
            },
            Stage::Over => Poll::Ready(self.next_last()),
        }
    }

    /// From the assignment to the call.
    fn begin(&mut self, call: &Arc<Call>, pool: &Arc<Pool>) -> Step {
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
        let opening = Box::pin(open(pool.clone(), worker, call.clone()));
        self.stage = Stage::Opening { lease, opening };
        Step::Started(started)
    }

    /// From the call to the answer.
    fn opened(&mut self, call: &Arc<Call>, opened: Result<Opened, attempt::Failure>) -> Step {
        let Stage::Opening { lease, .. } = std::mem::replace(&mut self.stage, Stage::Over) else {
            return Step::End;
        };
        match opened {
            Ok(Opened::Stream(answer)) => {
                self.stage = Stage::Streaming(Box::new(Streaming::new(lease, call, answer)));
                Step::StreamBegins
            }
            Ok(Opened::Whole(whole)) => {
                lease.end(whole.report());
                Step::Whole(whole)
            }
            Err(failure) => {
                let error = failure.error.clone();
                lease.end(failure.report());
                Step::Failed(error)
            }
        }
    }

    /// The worker's stream is over.
    fn ended(&mut self, report: Report, last_steps: VecDeque<Step>) {
        self.error = report.outcome.error().cloned();
        self.last_steps = last_steps;
        if let Stage::Streaming(stream) = std::mem::replace(&mut self.stage, Stage::Over) {
            stream.into_lease().end(report);
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
