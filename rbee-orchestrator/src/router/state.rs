//! Where a flow is: waiting, with a worker, in its answer, over.

use std::collections::VecDeque;
use std::task::{Context, Poll};
use std::time::Instant;

use super::attempt::{Failure, Opened, open};
use super::stream::{Next, Streaming};
use super::{Assignment, Awaiting, Flow, Stage, State, Step};
use crate::brain::{Aftermath, Blame, Report};
use crate::domain::{Attempt, Outcome, TaskEvent};
use crate::error::Code;
use crate::killpoint;

impl State {
    pub(super) fn wake(&mut self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    pub(super) fn sleep(&mut self, cx: &Context<'_>) {
        match &mut self.waker {
            Some(waker) => waker.clone_from(cx.waker()),
            none => *none = Some(cx.waker().clone()),
        }
    }

    /// The attempt that has a worker.
    pub(super) fn attempt(&self) -> Option<Attempt> {
        match &self.stage {
            Stage::Waiting | Stage::Over => None,
            Stage::Recording(assignment) | Stage::Assigned(assignment) => Some(assignment.attempt),
            Stage::Opening { lease, .. } => Some(lease.attempt()),
            Stage::Streaming(streaming) => Some(streaming.lease().attempt()),
        }
    }

    /// Drops what the stage holds; a lease goes back with a report of this outcome. What happens to
    /// the job is for the brain to say, unless its client has seen a part of the answer.
    pub(super) fn give_back(&mut self, outcome: &Outcome, blame: Blame) {
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
            Stage::Recording(assignment) | Stage::Assigned(assignment) => {
                assignment.lease.end(Report {
                    blame,
                    ..Report::of(outcome.clone())
                });
            }
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

    pub(super) fn poll_step(&mut self, flow: &Flow, cx: &mut Context<'_>) -> Poll<Step> {
        if let Some(notice) = self.notices.pop_front() {
            return Poll::Ready(Step::Notice(notice));
        }
        match &mut self.stage {
            Stage::Waiting | Stage::Recording(_) => Poll::Pending,
            Stage::Assigned(_) => Poll::Ready(self.begin(flow)),
            Stage::Opening { opening, .. } => match opening.as_mut().poll(cx) {
                Poll::Pending => Poll::Pending,
                Poll::Ready(opened) => self.opened(flow, opened),
            },
            Stage::Streaming(stream) => match stream.poll(&flow.pool, cx) {
                Poll::Pending => Poll::Pending,
                Poll::Ready(Next::Step(step)) => Poll::Ready(step),
                Poll::Ready(Next::Ended(report, last_steps)) => self.ended(report, last_steps),
            },
            Stage::Over => Poll::Ready(self.next_last()),
        }
    }

    /// From the assignment to the call.
    pub(super) fn begin(&mut self, flow: &Flow) -> Step {
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
        self.dispatched_tick = flow.parts.ticks.now();
        killpoint::pass("dispatched");
        let opening = Box::pin(open(
            flow.pool.clone(),
            worker,
            flow.call.clone(),
            flow.parts.privacy,
        ));
        self.stage = Stage::Opening { lease, opening };
        Step::Started(started)
    }

    /// From the call to the answer.
    pub(super) fn opened(&mut self, flow: &Flow, opened: Result<Opened, Failure>) -> Poll<Step> {
        let Stage::Opening { lease, .. } = std::mem::replace(&mut self.stage, Stage::Over) else {
            return Poll::Ready(Step::End);
        };
        match opened {
            Ok(Opened::Stream(answer)) => {
                let streaming = Streaming::new(lease, flow, answer);
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
    pub(super) fn ended(&mut self, report: Report, last_steps: VecDeque<Step>) -> Poll<Step> {
        let completed = report.outcome.error().is_none();
        let next = match completed {
            true => Stage::Over,
            false => Stage::Waiting,
        };
        if completed {
            killpoint::pass("finish-before-commit");
            let events = last_steps.iter().filter_map(|step| match step {
                Step::Event(TaskEvent::Token { .. } | TaskEvent::Thinking { .. }) => None,
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

    pub(super) fn next_last(&mut self) -> Step {
        let error = &mut self.error;
        let ending = || error.take().map_or(Step::End, Step::Failed);
        self.last_steps.pop_front().unwrap_or_else(ending)
    }
}
