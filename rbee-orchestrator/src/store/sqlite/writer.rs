//! The one writer: a thread that commits all that waits in one transaction, then answers.

use std::fs::File;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use rusqlite::{Connection, Transaction, TransactionBehavior};
use tokio::sync::oneshot;

use super::failure::{closed, failed, is_about_the_step};
use super::handover::{Handover, Tuning};
use super::jobs::Statements;
use super::open::Opened;
use super::queue::{Call, Op, Waiting};
use crate::error::{Code, Error, Result};
use crate::store::JobChange;

/// The callers' end of the writer.
pub(super) struct Writer {
    handover: Arc<Handover>,
    thread: Mutex<Option<JoinHandle<Result<()>>>>,
}

impl Writer {
    /// Starts the thread, which holds the database's lock until it ends.
    pub(super) fn start(opened: Opened, tuning: Tuning) -> Result<Self> {
        let handover = Arc::new(Handover::new(tuning));
        let mut scribe = Scribe {
            handover: handover.clone(),
            taken: Waiting::default(),
            failing: false,
            path: opened.path.display().to_string(),
            db: opened.db,
            _lock: opened.lock,
        };
        let thread = thread::Builder::new()
            .name("store-writer".into())
            .spawn(move || scribe.run());
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

    /// Has one statement run after all that was put into the queue before, and waits until it is
    /// durable.
    pub(super) async fn call<T: Send + 'static>(
        &self,
        step: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T> {
        let (reply, answer) = oneshot::channel();
        self.handover.push_call(Box::new(Step {
            step: Some(step),
            done: None,
            reply,
        }));
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
    step: Option<F>,
    done: Option<T>,
    reply: oneshot::Sender<Result<T>>,
}

impl<T: Send, F: FnOnce(&Connection) -> rusqlite::Result<T> + Send> Call for Step<F, T> {
    fn apply(&mut self, db: &Connection) -> rusqlite::Result<()> {
        if let Some(step) = self.step.take() {
            self.done = Some(step(db)?);
        }
        Ok(())
    }

    fn answer(self: Box<Self>, committed: Result<()>) {
        let Step { done, reply, .. } = *self;
        // Whoever dropped the future does not want to know.
        let _ = reply.send(committed.and_then(|()| done.ok_or_else(closed)));
    }
}

/// The thread's own state.
struct Scribe {
    handover: Arc<Handover>,
    taken: Waiting,
    failing: bool,
    path: String,
    db: Connection,
    _lock: File,
}

/// Whatever ends the thread, nobody may wait for it any longer.
struct Farewell(Arc<Handover>);

impl Drop for Farewell {
    fn drop(&mut self) {
        self.0.end();
    }
}

impl Scribe {
    fn run(&mut self) -> Result<()> {
        let _farewell = Farewell(self.handover.clone());
        while self.handover.take(&mut self.taken) {
            self.write_taken()?;
        }
        Ok(())
    }

    /// Writes all that was taken, batch by batch, again and again until it succeeds. Fails only
    /// when the store is to be closed.
    fn write_taken(&mut self) -> Result<()> {
        let mut retry = self.handover.tuning.retry_first;
        let mut done = 0;
        while done < self.taken.ops.len() {
            let last_try = self.handover.is_closing();
            let (end, text_bytes) = self.batch_from(done);
            match self.commit(done, end) {
                Ok(()) => {
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
                    self.taken.answer_all(&error);
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

    fn commit(&mut self, start: usize, end: usize) -> rusqlite::Result<()> {
        // Dropped on an error, the transaction is rolled back.
        let transaction = Transaction::new_unchecked(&self.db, TransactionBehavior::Immediate)?;
        let mut statements = Statements::new(&transaction)?;
        for op in &mut self.taken.ops[start..end] {
            match op.apply(&mut statements) {
                Ok(()) => {}
                Err(error) if is_about_the_step(&error) => refuse(op, &error),
                Err(error) => return Err(error),
            }
        }
        drop(statements);
        transaction.commit()
    }

    fn changes_from(&self, start: usize) -> usize {
        let open = &self.taken.ops[start..];
        open.iter().filter(|op| op.is_change()).count()
    }

    fn note_success(&mut self) {
        if std::mem::take(&mut self.failing) {
            tracing::info!(database = self.path, "the store can write again");
        }
    }

    fn note_failure(&mut self, done: usize, error: &rusqlite::Error) -> Error {
        let error = failed("written", error);
        if !std::mem::replace(&mut self.failing, true) {
            tracing::error!(
                database = self.path,
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
        tracing::error!(database = self.path, "{message}");
        Error::new(Code::StoreFailed, message)
    }
}

/// Drops a step that would fail for ever and keep all others from being written.
fn refuse(op: &mut Op, error: &rusqlite::Error) {
    if op.is_change() {
        tracing::error!("a change of a job can't be written and is dropped: {error}");
    }
    op.answer(Err(failed("written", error)));
}
