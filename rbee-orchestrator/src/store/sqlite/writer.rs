//! The one writer: a thread that commits all that waits in one transaction, then answers.

use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use rusqlite::{Connection, Transaction, TransactionBehavior};
use tokio::sync::oneshot;

use super::failure::{Faults, closed, is_about_the_step};
use super::handover::{Handover, Tuning};
use super::inserts::TOGETHER;
use super::op::{Answer, Call, Finish, Op};
use super::open::Opened;
use super::queue::Waiting;
use super::statements::Statements;
use crate::domain::{Attempt, Ending, JobId};
use crate::error::{Code, Error, Result};
use crate::store::{JobChange, Submission, Submitted};

/// The callers' end of the writer.
pub(super) struct Writer {
    handover: Arc<Handover>,
    thread: Mutex<Option<JoinHandle<Result<()>>>>,
}

impl Writer {
    /// Starts the thread, which holds the database's lock until it ends.
    pub(super) fn start(opened: Opened, tuning: Tuning, faults: Arc<Faults>) -> Result<Self> {
        // What the thread can't report to whoever opens the store fails here.
        Statements::new(&opened.db).map_err(|error| faults.failed("written", &error))?;
        let handover = Arc::new(Handover::new(tuning));
        let mut scribe = Scribe {
            handover: handover.clone(),
            taken: Waiting::default(),
            failing: false,
            faults,
        };
        let thread = thread::Builder::new()
            .name("store-writer".into())
            .spawn(move || {
                let Opened { db, lock, .. } = opened;
                let written = scribe.run(&db);
                drop(db);
                drop(lock);
                written
            });
        let thread = thread.map_err(|error| {
            let message = format!("the store's thread can't be started: {error}");
            Error::new(Code::StoreFailed, message)
        })?;
        Ok(Writer {
            handover,
            thread: Mutex::new(Some(thread)),
        })
    }

    /// Puts a change into the queue.
    pub(super) fn record(&self, change: JobChange) {
        self.handover.push_change(change);
    }

    /// Waits for room in the queue.
    pub(super) async fn ready(&self) -> Result<()> {
        self.handover.ready().await
    }

    /// Waits until all that was put into the queue before is durable.
    pub(super) async fn flush(&self) -> Result<()> {
        if self.is_settled() {
            return Ok(());
        }
        self.call(|_| Ok(())).await
    }

    /// Whether all that was put into the queue is durable.
    pub(super) fn is_settled(&self) -> bool {
        self.handover.is_settled()
    }

    /// Submits a job; durable when it returns.
    pub(super) async fn submit(&self, submission: Submission) -> Result<Submitted> {
        self.ready().await?;
        let submission = Box::new(submission);
        self.awaited(|answer| Op::Submit(submission, answer)).await
    }

    /// Ends a job; durable when it returns.
    pub(super) async fn finish(
        &self,
        job: JobId,
        attempt: Attempt,
        ending: Box<Ending>,
    ) -> Result<bool> {
        let finish = |answer| Finish {
            job,
            attempt,
            ending,
            answer: Some(answer),
        };
        self.awaited(|answer| Op::Finish(None, finish(answer)))
            .await
    }

    /// Has a step done after all that was put into the queue before, and waits until it is
    /// durable.
    pub(super) async fn call<T: Send + 'static>(
        &self,
        step: impl FnMut(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T> {
        self.awaited(|answer| Op::Call(Box::new(Step { step, answer })))
            .await
    }

    async fn awaited<T>(&self, op: impl FnOnce(Answer<T>) -> Op) -> Result<T> {
        let (reply, answer) = oneshot::channel();
        self.handover.push_awaited(op(Answer::new(reply)));
        // The sender is only dropped unanswered if the thread is gone.
        answer.await.unwrap_or_else(|_| Err(closed()))
    }

    /// Writes what waits and ends the thread. Blocks.
    pub(super) fn close(&self) -> Result<()> {
        self.handover.close();
        let mut thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner);
        match thread.take().map(JoinHandle::join) {
            None => Ok(()),
            Some(Ok(written)) => written,
            Some(Err(_)) => Err(Error::internal("the store's thread has panicked")),
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        // What could not be written was logged by the thread.
        let _ = self.close();
    }
}

struct Step<F, T> {
    step: F,
    answer: Answer<T>,
}

impl<T: Send, F: FnMut(&Connection) -> rusqlite::Result<T> + Send> Call for Step<F, T> {
    fn apply(&mut self, db: &Connection) -> rusqlite::Result<()> {
        self.answer.done = Some((self.step)(db)?);
        Ok(())
    }

    fn answer(self: Box<Self>, committed: Result<()>) {
        self.answer.send(committed);
    }
}

/// The thread's own state.
struct Scribe {
    handover: Arc<Handover>,
    taken: Waiting,
    failing: bool,
    faults: Arc<Faults>,
}

/// Whatever ends the thread, nobody may wait for it any longer.
struct Farewell(Arc<Handover>);

impl Drop for Farewell {
    fn drop(&mut self) {
        self.0.end();
    }
}

impl Scribe {
    fn run(&mut self, db: &Connection) -> Result<()> {
        let _farewell = Farewell(self.handover.clone());
        let mut statements =
            Statements::new(db).map_err(|error| self.faults.failed("written", &error))?;
        while self.handover.take(&mut self.taken) {
            self.write_taken(&mut statements)?;
        }
        Ok(())
    }

    /// Writes all that was taken, batch by batch, again and again until it succeeds. Fails only
    /// when the store is to be closed.
    fn write_taken(&mut self, statements: &mut Statements<'_>) -> Result<()> {
        let mut retry = self.handover.tuning.retry_first;
        let mut done = 0;
        while done < self.taken.ops.len() {
            let last_try = self.handover.is_closing();
            match self.commit(statements, done) {
                Ok((end, text_bytes)) => {
                    self.note_success();
                    for op in &mut self.taken.ops[done..end] {
                        op.answer(Ok(()));
                    }
                    self.handover.note_written(end - done, text_bytes);
                    retry = self.handover.tuning.retry_first;
                    done = end;
                }
                Err(error) => {
                    let error = self.note_failure(done, &error);
                    for op in &mut self.taken.ops[done..] {
                        op.answer(Err(error.clone()));
                    }
                    let changes = self.changes_from(done);
                    if changes == 0 {
                        break;
                    }
                    if last_try {
                        return Err(self.give_up(changes, &error));
                    }
                    self.handover.back_off(retry, &error);
                    retry = (retry * 2).min(self.handover.tuning.retry_max);
                }
            }
        }
        self.taken.clear();
        self.handover.note_all_written();
        Ok(())
    }

    /// Where a batch ends that starts at `start`, and how much text it has.
    fn batch_from(&self, start: usize) -> (usize, usize) {
        let tuning = &self.handover.tuning;
        let mut text_bytes = 0;
        let waiting = &self.taken.ops[start..];
        let batch = waiting.iter().take(tuning.batch_max).take_while(|op| {
            let fits = text_bytes < tuning.batch_text_max;
            if fits {
                text_bytes += op.text_bytes();
            }
            fits
        });
        let end = start + batch.count();
        (end, text_bytes)
    }

    /// Commits a batch; says where it ends, and how much text it has. A step that fails by itself
    /// is refused, and all others are done again without it, so that nothing of it is left.
    fn commit(
        &mut self,
        statements: &mut Statements<'_>,
        start: usize,
    ) -> rusqlite::Result<(usize, usize)> {
        loop {
            // Dropped before its commit, the transaction is rolled back.
            let db = statements.db;
            let transaction = Transaction::new_unchecked(db, TransactionBehavior::Immediate)?;
            statements.begin();
            match self.apply_batch(statements, start)? {
                Applied::Batch(end, text_bytes) => {
                    statements.end()?;
                    transaction.commit()?;
                    return Ok((end, text_bytes));
                }
                Applied::Not(at, error) => {
                    drop(transaction);
                    refuse(&mut self.taken.ops[at], &error, &self.faults);
                }
            }
        }
    }

    /// Does the steps of a batch, those too that came meanwhile: one sync for all is better than
    /// two.
    fn apply_batch(
        &mut self,
        statements: &mut Statements<'_>,
        start: usize,
    ) -> rusqlite::Result<Applied> {
        let mut applied = start;
        loop {
            let (end, text_bytes) = self.batch_from(start);
            while applied < end {
                let next = end.min(applied + TOGETHER);
                if !apply_together(&self.taken.ops[applied..next], statements)? {
                    for at in applied..next {
                        match self.taken.ops[at].apply(statements) {
                            Ok(()) => {}
                            Err(error) if is_about_the_step(&error) => {
                                return Ok(Applied::Not(at, error));
                            }
                            Err(error) => return Err(error),
                        }
                    }
                }
                applied = next;
            }
            if end < self.taken.ops.len() || !self.handover.take_awaited(&mut self.taken) {
                return Ok(Applied::Batch(end, text_bytes));
            }
        }
    }

    fn changes_from(&self, start: usize) -> usize {
        let open = &self.taken.ops[start..];
        open.iter().filter(|op| op.is_change()).count()
    }

    fn note_success(&mut self) {
        if std::mem::take(&mut self.failing) {
            self.faults.note_written();
            tracing::info!(database = %self.faults.path().display(), "the store can write again");
        }
    }

    fn note_failure(&mut self, done: usize, error: &rusqlite::Error) -> Error {
        self.faults.note_unwritable(error);
        let error = self.faults.failed("written", error);
        if !std::mem::replace(&mut self.failing, true) {
            tracing::error!(
                database = %self.faults.path().display(),
                changes = self.changes_from(done),
                "{}; what was recorded is kept and tried again",
                error.message,
            );
        }
        error
    }

    fn give_up(&self, changes: usize, error: &Error) -> Error {
        let changes = changes + self.handover.changes_waiting();
        let message = format!("{changes} recorded changes are lost: {}", error.message);
        tracing::error!(database = %self.faults.path().display(), "{message}");
        Error::new(Code::StoreFailed, message)
    }
}

/// Does some steps as one, if they are new jobs and as many as that takes; says whether it did.
fn apply_together(ops: &[Op], statements: &mut Statements<'_>) -> rusqlite::Result<bool> {
    let are_rows = ops.len() == TOGETHER && ops.iter().all(|op| op.only_row().is_some());
    if !are_rows {
        return Ok(false);
    }
    statements.insert_together(ops.iter().filter_map(Op::only_row))
}

/// What became of a batch: where it ends and how much text it has, or which step is to blame.
enum Applied {
    Batch(usize, usize),
    Not(usize, rusqlite::Error),
}

/// Drops a step that would fail for ever and keep all others from being written.
fn refuse(op: &mut Op, error: &rusqlite::Error, faults: &Faults) {
    if op.is_change() {
        tracing::error!("a change of a job can't be written and is dropped: {error}");
    }
    op.answer(Err(faults.failed("written", error)));
    *op = Op::Nothing;
}
