//! What waits for the writer: changes in their order, those of one job merged where that is the
//! same.

use std::collections::HashMap;

use rusqlite::Connection;

use super::jobs::{Statements, report_twin};
use crate::domain::{JobId, JobRecord};
use crate::error::Error;
use crate::store::JobChange;

/// One thing to write.
pub(super) enum Op {
    /// A job that is not in the table yet, with what happened to it while it waited.
    Insert(Box<JobRecord>),
    /// A change of a job that is in the table, or on its way there.
    Update(JobChange),
    /// Something that a caller waits for; `None` once he was answered.
    Call(Option<Box<dyn Call>>),
}

/// A step in the writer's transaction whose caller waits for the commit.
pub(super) trait Call: Send {
    /// Does the step; it takes effect with the commit.
    fn apply(&mut self, db: &Connection) -> rusqlite::Result<()>;

    /// Tells the caller what became of it.
    fn answer(self: Box<Self>, committed: Result<(), Error>);
}

impl Op {
    /// Does it, as a part of the transaction that is open.
    pub(super) fn apply(&mut self, statements: &mut Statements<'_>) -> rusqlite::Result<()> {
        match self {
            Op::Insert(record) => statements.insert(record),
            Op::Update(change) => statements.update(change),
            Op::Call(Some(call)) => call.apply(statements.db),
            Op::Call(None) => Ok(()),
        }
    }

    /// Answers the caller, if one waits for this.
    pub(super) fn answer(&mut self, committed: Result<(), Error>) {
        if let Op::Call(call) = self
            && let Some(call) = call.take()
        {
            call.answer(committed);
        }
    }

    /// Whether losing it would lose something that was recorded.
    pub(super) fn is_change(&self) -> bool {
        !matches!(self, Op::Call(_))
    }

    /// Text that it keeps in memory, beyond what every job has.
    pub(super) fn text_bytes(&self) -> usize {
        match self {
            Op::Insert(record) => record.result.as_ref().map_or(0, String::len),
            Op::Update(change) => text_bytes(change),
            Op::Call(_) => 0,
        }
    }
}

fn text_bytes(change: &JobChange) -> usize {
    let text = match change {
        JobChange::Submitted(record) => &record.result,
        JobChange::Finished { ending, .. } => &ending.result,
        JobChange::Claimed { .. } => &None,
    };
    text.as_ref().map_or(0, String::len)
}

/// Operations in the order of their application.
#[derive(Default)]
pub(super) struct Waiting {
    pub(super) ops: Vec<Op>,
    pub(super) text_bytes: usize,
    /// Where the inserts are that later changes may still merge into.
    inserts: HashMap<JobId, usize>,
}

impl Waiting {
    /// Adds a change: by applying it to the job's insert if that still waits (in memory, by the
    /// same compare-and-set as in the database), else at the end.
    pub(super) fn push_change(&mut self, change: JobChange) {
        self.text_bytes += text_bytes(&change);
        let waiting = self.inserts.get(&change.job()).copied();
        match (waiting.map(|at| &mut self.ops[at]), change) {
            (Some(Op::Insert(record)), change) => merge(record, change),
            (_, JobChange::Submitted(record)) => {
                self.inserts.insert(record.id, self.ops.len());
                self.ops.push(Op::Insert(record));
            }
            (_, change) => self.ops.push(Op::Update(change)),
        }
    }

    /// Adds a call. What comes later must not seem to have come before it, so merging starts
    /// afresh.
    pub(super) fn push_call(&mut self, call: Box<dyn Call>) {
        self.inserts.clear();
        self.ops.push(Op::Call(Some(call)));
    }

    /// Forgets everything and keeps the memory.
    pub(super) fn clear(&mut self) {
        self.ops.clear();
        self.inserts.clear();
        self.text_bytes = 0;
    }

    /// Answers everyone who waits; the changes stay.
    pub(super) fn answer_all(&mut self, error: &Error) {
        for op in &mut self.ops {
            op.answer(Err(error.clone()));
        }
    }
}

fn merge(record: &mut JobRecord, change: JobChange) {
    match change {
        JobChange::Submitted(twin) => report_twin(twin.id),
        JobChange::Claimed {
            attempt,
            placed,
            at,
            ..
        } => {
            record.claim(attempt, placed, at);
        }
        JobChange::Finished {
            attempt, ending, ..
        } => {
            record.finish(attempt, *ending);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::JobState;
    use crate::store::testing::{cancelled, claimed, finished, queued_job};

    struct Nothing;

    impl Call for Nothing {
        fn apply(&mut self, _db: &Connection) -> rusqlite::Result<()> {
            Ok(())
        }
        fn answer(self: Box<Self>, _committed: Result<(), Error>) {}
    }

    fn submit(waiting: &mut Waiting) -> JobId {
        let job = queued_job();
        let id = job.id;
        waiting.push_change(JobChange::Submitted(Box::new(job)));
        id
    }

    #[test]
    fn a_short_job_is_one_write() {
        let mut waiting = Waiting::default();
        let jobs = [submit(&mut waiting), submit(&mut waiting)];
        for job in jobs {
            waiting.push_change(claimed(job, 1));
            waiting.push_change(finished(job, 1, "an answer"));
            waiting.push_change(cancelled(job, 1));
        }
        assert_eq!(waiting.ops.len(), 2);
        for op in &waiting.ops {
            let Op::Insert(record) = op else {
                panic!("a job that is not in the table is inserted");
            };
            assert_eq!(record.state, JobState::Complete);
        }
        assert_eq!(waiting.text_bytes, 2 * "an answer".len());
    }

    #[test]
    fn what_comes_after_a_call_is_not_moved_before_it() {
        let mut waiting = Waiting::default();
        let job = submit(&mut waiting);
        waiting.push_call(Box::new(Nothing));
        waiting.push_change(claimed(job, 1));
        let kinds = waiting.ops.iter().map(|op| match op {
            Op::Insert(_) => "insert",
            Op::Update(_) => "update",
            Op::Call(_) => "call",
        });
        assert_eq!(kinds.collect::<Vec<_>>(), ["insert", "call", "update"]);
    }
}
