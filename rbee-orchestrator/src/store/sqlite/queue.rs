//! What waits for the writer: the steps in their order, those of one job merged where that is the
//! same.

use super::op::{Finish, NewJob, Op, report_twin, text_of_ending, text_of_record};
use super::statements::Claim;
use crate::domain::{JobId, JobRecord};
use crate::error::Error;
use crate::hashing::IdMap;
use crate::store::JobChange;

/// Operations in the order of their application.
#[derive(Default)]
pub(super) struct Waiting {
    pub(super) ops: Vec<Op>,
    pub(super) text_bytes: usize,
    /// The inserts and claims that the next change of their job may still merge into.
    open: IdMap<JobId, usize>,
}

impl Waiting {
    /// Adds a change: by applying it to the job's insert if that still waits (in memory, by the
    /// same compare-and-set as in the database), else at the end.
    pub(super) fn push_change(&mut self, change: JobChange) {
        let job = change.job();
        if let Some(at) = self.open.get(&job)
            && let Op::Insert(new) = &mut self.ops[*at]
        {
            self.text_bytes -= text_of_record(&new.record);
            merge(&mut new.record, change);
            self.text_bytes += text_of_record(&new.record);
            return;
        }
        match change {
            JobChange::Submitted { record, request } => {
                self.push_open(job, Op::Insert(NewJob { record, request }));
            }
            JobChange::Claimed {
                attempt,
                placed,
                at,
                ..
            } => {
                let claim = Claim {
                    job,
                    attempt,
                    placed,
                    at,
                };
                self.push_open(job, Op::Claim(claim));
            }
            JobChange::Requeued {
                attempt,
                failed,
                not_before,
                ..
            } => {
                self.open.remove(&job);
                self.ops.push(Op::Requeue {
                    job,
                    attempt,
                    failed,
                    not_before,
                });
            }
            JobChange::Finished {
                attempt, ending, ..
            } => self.push_finish(Finish {
                job,
                attempt,
                ending,
                answer: None,
            }),
        }
    }

    fn push_open(&mut self, job: JobId, op: Op) {
        self.text_bytes += op.text_bytes();
        self.open.insert(job, self.ops.len());
        self.ops.push(op);
    }

    /// Adds an ending, in the place of the job's dispatch if that still waits: of one job nothing
    /// came in between, and other jobs do not mind.
    pub(super) fn push_finish(&mut self, finish: Finish) {
        self.text_bytes += text_of_ending(&finish.ending);
        let waiting = self.open.remove(&finish.job);
        if let Some(at) = waiting
            && let Op::Claim(claim) = &self.ops[at]
            && claim.attempt == finish.attempt
            && let Op::Claim(claim) = std::mem::replace(&mut self.ops[at], Op::Nothing)
        {
            self.ops[at] = Op::Finish(Some(claim), finish);
        } else {
            self.ops.push(Op::Finish(None, finish));
        }
    }

    /// Adds a step that a caller waits for.
    pub(super) fn push_awaited(&mut self, op: Op) {
        match op {
            Op::Finish(_, finish) => self.push_finish(finish),
            op => {
                if let Op::Call(_) = op {
                    // What comes later must not seem to have come before it, so merging starts
                    // afresh.
                    self.open.clear();
                }
                self.text_bytes += op.text_bytes();
                self.ops.push(op);
            }
        }
    }

    /// Moves all operations of another behind these.
    pub(super) fn append(&mut self, other: &mut Waiting) {
        self.ops.append(&mut other.ops);
        self.text_bytes += other.text_bytes;
        other.clear();
    }

    /// Forgets everything and keeps the memory.
    pub(super) fn clear(&mut self) {
        self.ops.clear();
        self.open.clear();
        self.text_bytes = 0;
    }

    /// Refuses what callers wait for; what was recorded stays.
    pub(super) fn refuse_awaited(&mut self, error: &Error) {
        for op in &mut self.ops {
            op.answer(Err(error.clone()));
        }
        self.ops.retain(|op| !matches!(op, Op::Nothing));
        self.text_bytes = self.ops.iter().map(Op::text_bytes).sum();
        self.open.clear();
    }
}

fn merge(record: &mut JobRecord, change: JobChange) {
    match change {
        JobChange::Submitted { record: twin, .. } => report_twin(twin.id),
        JobChange::Claimed {
            attempt,
            placed,
            at,
            ..
        } => {
            record.claim(attempt, placed, at);
        }
        JobChange::Requeued {
            attempt,
            failed,
            not_before,
            ..
        } => {
            record.requeue(attempt, failed, not_before);
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
    use rusqlite::Connection;
    use tokio::sync::oneshot;

    use super::super::op::{Answer, Call};
    use super::*;
    use crate::domain::{Attempt, JobState};
    use crate::error::Result;
    use crate::store::testing::{cancelled, claimed, finished, queued_job, requeued, submitted};

    struct Nothing;

    impl Call for Nothing {
        fn apply(&mut self, _db: &Connection) -> rusqlite::Result<()> {
            Ok(())
        }
        fn answer(self: Box<Self>, _committed: Result<()>) {}
    }

    fn submit(waiting: &mut Waiting) -> JobId {
        let job = queued_job();
        waiting.push_change(submitted(&job));
        job.id
    }

    /// What waits, in short.
    fn ops(waiting: &Waiting) -> Vec<&'static str> {
        let ops = waiting.ops.iter().map(|op| match op {
            Op::Insert(_) => "insert",
            Op::Claim(_) => "claim",
            Op::Requeue { .. } => "requeue",
            Op::Finish(None, _) => "finish",
            Op::Finish(Some(_), _) => "claim and finish",
            Op::Submit(..) => "submit",
            Op::Call(_) => "call",
            Op::Nothing => "nothing",
        });
        ops.collect()
    }

    /// An ending that somebody waits for.
    fn awaited(job: JobId, attempt: Attempt) -> (Op, oneshot::Receiver<Result<bool>>) {
        let (reply, answer) = oneshot::channel();
        let JobChange::Finished { ending, .. } = finished(job, attempt, "an answer") else {
            unreachable!("the sample is an ending");
        };
        let finish = Finish {
            job,
            attempt,
            ending,
            answer: Some(Answer::new(reply)),
        };
        (Op::Finish(None, finish), answer)
    }

    #[test]
    fn a_short_job_is_one_write() {
        let mut waiting = Waiting::default();
        let jobs = [submit(&mut waiting), submit(&mut waiting)];
        for job in jobs {
            waiting.push_change(claimed(job, 1));
            waiting.push_change(requeued(job, 1));
            waiting.push_change(claimed(job, 2));
            waiting.push_change(finished(job, 2, "an answer"));
            waiting.push_change(cancelled(job, 2));
        }
        assert_eq!(waiting.ops.len(), 2);
        for op in &waiting.ops {
            let Op::Insert(new) = op else {
                panic!("a job that is not in the table is inserted");
            };
            assert_eq!(new.record.state, JobState::Complete);
        }
        assert_eq!(
            waiting.text_bytes,
            2 * "an answerwhat leads to an answer".len()
        );
    }

    #[test]
    fn a_dispatch_and_its_ending_are_one_write() {
        let mut waiting = Waiting::default();
        let jobs = [JobId::mint(), JobId::mint()];
        for job in jobs {
            waiting.push_change(claimed(job, 1));
        }
        waiting.push_change(finished(jobs[0], 1, "an answer"));
        waiting.push_awaited(awaited(jobs[1], 1).0);
        assert_eq!(ops(&waiting), ["claim and finish", "claim and finish"]);
    }

    #[test]
    fn an_ending_of_another_attempt_is_a_write_of_its_own() {
        let mut waiting = Waiting::default();
        let job = JobId::mint();
        waiting.push_change(claimed(job, 1));
        waiting.push_change(finished(job, 2, "an answer"));
        waiting.push_change(claimed(job, 2));
        waiting.push_change(requeued(job, 2));
        waiting.push_change(finished(job, 2, "an answer"));
        let expected = ["claim", "finish", "claim", "requeue", "finish"];
        assert_eq!(ops(&waiting), expected);
    }

    #[test]
    fn nothing_merges_past_an_ending_that_is_awaited() {
        let mut waiting = Waiting::default();
        let job = submit(&mut waiting);
        waiting.push_awaited(awaited(job, 0).0);
        waiting.push_change(claimed(job, 1));
        assert_eq!(ops(&waiting), ["insert", "finish", "claim"]);
    }

    #[test]
    fn what_comes_after_a_call_is_not_moved_before_it() {
        let mut waiting = Waiting::default();
        let (new, old) = (submit(&mut waiting), JobId::mint());
        waiting.push_change(claimed(old, 1));
        waiting.push_awaited(Op::Call(Box::new(Nothing)));
        waiting.push_change(claimed(new, 1));
        waiting.push_change(finished(old, 1, "an answer"));
        let expected = ["insert", "claim", "call", "claim", "finish"];
        assert_eq!(ops(&waiting), expected);
    }

    #[test]
    fn what_is_refused_leaves_what_was_recorded() {
        let mut waiting = Waiting::default();
        let job = JobId::mint();
        waiting.push_change(claimed(job, 1));
        let (op, mut answer) = awaited(job, 1);
        waiting.push_awaited(op);
        waiting.push_awaited(Op::Call(Box::new(Nothing)));
        waiting.refuse_awaited(&Error::internal("no"));
        assert!(answer.try_recv().is_ok_and(|answer| answer.is_err()));
        assert_eq!(ops(&waiting), ["claim"]);
        assert_eq!(waiting.text_bytes, 0);
        waiting.push_change(finished(job, 1, "an answer"));
        assert_eq!(
            ops(&waiting),
            ["claim", "finish"],
            "a later step comes later"
        );
    }
}
