//! One thing that waits for the writer, and who waits for it.

use rusqlite::Connection;
use tokio::sync::oneshot;

use super::statements::{Claim, Statements};
use crate::domain::{Attempt, Ending, JobId, JobRecord, UnixMillis};
use crate::error::{Error, Result};
use crate::store::{Submission, Submitted};

/// One thing to write.
pub(super) enum Op {
    /// A job that is not in the table yet, with what happened to it while it waited.
    Insert(NewJob),
    /// A dispatch of a job that is in the table, or on its way there.
    Claim(Claim),
    /// An attempt of such a job that was given up.
    Requeue {
        job: JobId,
        attempt: Attempt,
        failed: bool,
        not_before: Option<UnixMillis>,
    },
    /// The ending of such a job, with its dispatch if that waited too.
    Finish(Option<Claim>, Finish),
    /// A job whose submitter waits.
    Submit(Box<Submission>, Answer<Submitted>),
    /// Any other step that a caller waits for.
    Call(Box<dyn Call>),
    /// What was refused, so that it never happens.
    Nothing,
}

/// A job that was only recorded.
pub(super) struct NewJob {
    pub(super) record: Box<JobRecord>,
    pub(super) request: Option<Vec<u8>>,
}

/// An ending.
pub(super) struct Finish {
    pub(super) job: JobId,
    pub(super) attempt: Attempt,
    pub(super) ending: Box<Ending>,
    /// For whom it waits; `None` if it was only recorded.
    pub(super) answer: Option<Answer<bool>>,
}

/// What a caller waits for.
pub(super) struct Answer<T> {
    pub(super) done: Option<T>,
    reply: oneshot::Sender<Result<T>>,
}

impl<T> Answer<T> {
    pub(super) fn new(reply: oneshot::Sender<Result<T>>) -> Self {
        Answer { done: None, reply }
    }

    pub(super) fn send(self, committed: Result<()>) {
        let unapplied = || Error::internal("a step was answered that was not applied");
        let answer = committed.and_then(|()| self.done.ok_or_else(unapplied));
        // Whoever dropped the future does not want to know.
        let _ = self.reply.send(answer);
    }
}

/// A step in the writer's transaction whose caller waits for the commit.
pub(super) trait Call: Send {
    /// Does the step; it takes effect with the commit. Done again if that comes to nothing.
    fn apply(&mut self, db: &Connection) -> rusqlite::Result<()>;

    /// Tells the caller what became of it.
    fn answer(self: Box<Self>, committed: Result<()>);
}

impl Op {
    /// The job, if it is one that is written as a row and nothing else.
    pub(super) fn only_row(&self) -> Option<&JobRecord> {
        match self {
            Op::Insert(new) if new.request.is_none() && new.record.result.is_none() => {
                Some(&new.record)
            }
            _ => None,
        }
    }

    /// Does it, as a part of the transaction that is open.
    pub(super) fn apply(&mut self, statements: &mut Statements<'_>) -> rusqlite::Result<()> {
        match self {
            Op::Insert(new) => {
                if !statements.insert(&new.record, new.request.as_deref())? {
                    report_twin(new.record.id);
                }
            }
            Op::Claim(claim) => statements.claim(claim)?,
            Op::Requeue {
                job,
                attempt,
                failed,
                not_before,
            } => statements.requeue(*job, *attempt, *failed, *not_before)?,
            Op::Finish(claim, finish) => {
                let won = match claim {
                    Some(claim) => statements.run(claim, &finish.ending)?,
                    None => statements.finish(finish.job, finish.attempt, &finish.ending)?,
                };
                if let Some(answer) = &mut finish.answer {
                    answer.done = Some(won);
                }
            }
            Op::Submit(submission, answer) => {
                answer.done = Some(statements.submit(submission)?);
            }
            Op::Call(call) => call.apply(statements.db)?,
            Op::Nothing => {}
        }
        Ok(())
    }

    /// Answers the caller, if one waits for this. What a failure is the answer to will not happen;
    /// what was only recorded stays.
    pub(super) fn answer(&mut self, committed: Result<()>) {
        *self = match (std::mem::replace(self, Op::Nothing), committed) {
            (Op::Submit(_, answer), committed) => {
                answer.send(committed);
                Op::Nothing
            }
            (Op::Call(call), committed) => {
                call.answer(committed);
                Op::Nothing
            }
            (Op::Finish(claim, mut finish), committed) => match finish.answer.take() {
                Some(answer) => {
                    answer.send(committed);
                    claim.map_or(Op::Nothing, Op::Claim)
                }
                None => Op::Finish(claim, finish),
            },
            (recorded, _) => recorded,
        };
    }

    /// Whether losing it would lose something that was recorded.
    pub(super) fn is_change(&self) -> bool {
        match self {
            Op::Insert(_) | Op::Claim(_) | Op::Requeue { .. } => true,
            Op::Finish(claim, finish) => claim.is_some() || finish.answer.is_none(),
            Op::Submit(..) | Op::Call(_) | Op::Nothing => false,
        }
    }

    /// Text that it keeps in memory, beyond what every job has.
    pub(super) fn text_bytes(&self) -> usize {
        match self {
            Op::Insert(new) => text_of_record(&new.record) + bytes(&new.request),
            Op::Finish(_, finish) => text_of_ending(&finish.ending),
            Op::Submit(submission, _) => bytes(&submission.request),
            Op::Claim(_) | Op::Requeue { .. } | Op::Call(_) | Op::Nothing => 0,
        }
    }
}

pub(super) fn text_of_record(record: &JobRecord) -> usize {
    length(&record.result) + length(&record.thinking)
}

pub(super) fn text_of_ending(ending: &Ending) -> usize {
    length(&ending.result) + length(&ending.thinking)
}

fn length(text: &Option<String>) -> usize {
    text.as_ref().map_or(0, String::len)
}

fn bytes(bytes: &Option<Vec<u8>>) -> usize {
    bytes.as_ref().map_or(0, Vec::len)
}

/// Says that a caller broke the contract: a second submission can't win and is dropped.
pub(super) fn report_twin(job: JobId) {
    tracing::error!(%job, "a job was submitted twice; the second one is dropped");
}
