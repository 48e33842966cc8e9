//! Jobs whose client does not wait: they are run by a task, and nothing is told of them that is not on
//! disk.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Poll, ready};
use std::time::Duration;

use super::Driver;
use crate::domain::{Attempt, Ending};
use crate::router::{Assignment, Flow, Step};
use crate::store::JobChange;

/// Between two tries to write what somebody waits for.
const STORE_RETRY: Duration = Duration::from_millis(250);

impl Driver {
    /// Does the work of a job whose client does not wait for it.
    pub(in crate::orchestrator) fn run_unattended(self: &Arc<Self>, flow: Arc<Flow>) {
        let driver = self.clone();
        self.spawn(async move {
            let work = poll_fn(|cx| {
                loop {
                    let step = flow.poll_step(cx);
                    driver.catch_up();
                    match ready!(step) {
                        Step::End | Step::Failed(_) => return Poll::Ready(()),
                        _ => {}
                    }
                }
            });
            tokio::select! {
                () = work => {}
                () = driver.stop.cancelled() => {}
            }
        });
    }

    /// Gives a job its worker when its dispatch is on disk: after a crash no other attempt may have
    /// the number of one whose text somebody has read.
    pub(super) fn assign_durably(self: &Arc<Self>, flow: Arc<Flow>, assignment: Assignment) {
        let driver = self.clone();
        self.spawn(async move {
            let written = async {
                while let Err(error) = driver.store.flush().await {
                    tracing::warn!(job = %flow.id(), %error, "the dispatch is not stored yet");
                    tokio::time::sleep(STORE_RETRY).await;
                }
            };
            tokio::select! {
                () = written => flow.assign(assignment),
                () = driver.stop.cancelled() => {}
            }
        });
    }

    /// Records an ending that nobody may hear of before it is on disk. A disk that is full or locked
    /// is waited for.
    pub(super) fn finish_durably(
        self: &Arc<Self>,
        flow: Arc<Flow>,
        attempt: Attempt,
        ending: Ending,
    ) {
        let driver = self.clone();
        self.spawn(async move {
            let job = flow.id();
            let written = async {
                while let Err(error) = driver.store.finish(job, attempt, ending.clone()).await {
                    tracing::warn!(%job, %error, "the ending is not stored yet");
                    tokio::time::sleep(STORE_RETRY).await;
                }
            };
            tokio::select! {
                () = written => flow.settle(flow.last_events(&ending)),
                () = driver.stop.cancelled() => drop(flow.shelve()),
            }
            driver.lock().settling.remove(&job);
        });
    }

    /// Lets go of the asynchronous jobs that have not ended: another life of the queen goes on with
    /// them.
    pub(in crate::orchestrator) fn shelve_all(&self) {
        let mut core = self.lock();
        let shelved = core.flows.extract_if(|_, flow| flow.call.asynchronous);
        for (job, flow) in shelved {
            if let Some(attempt) = flow.shelve() {
                self.store.record(JobChange::Requeued {
                    job,
                    attempt,
                    not_before: None,
                });
            }
        }
    }
}
