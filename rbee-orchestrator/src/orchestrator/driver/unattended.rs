//! Jobs whose client does not wait: they are run by a task, and nothing is told of them that is not on
//! disk.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Poll, ready};
use std::time::Duration;

use super::Driver;
use crate::domain::{Attempt, Ending};
use crate::router::{Flow, Step};
use crate::store::JobChange;

/// Pause before what could not be written is tried again; doubles each time.
const STORE_RETRY_FIRST: Duration = Duration::from_millis(250);

/// The longest such pause.
const STORE_RETRY_MAX: Duration = Duration::from_secs(4);

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

    /// Lets an attempt begin when its dispatch is on disk: after a crash no other may have the number
    /// of one whose text somebody has read.
    pub(super) fn record_dispatch(self: &Arc<Self>, flow: Arc<Flow>, attempt: Attempt) {
        let driver = self.clone();
        self.spawn(async move {
            let written = async {
                let mut pause = STORE_RETRY_FIRST;
                while let Err(error) = driver.store.flush().await
                    && !flow.is_over()
                {
                    tracing::warn!(job = %flow.id(), %error, "the dispatch is not stored yet");
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(STORE_RETRY_MAX);
                }
            };
            tokio::select! {
                () = written => flow.recorded(attempt),
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
                let mut pause = STORE_RETRY_FIRST;
                while let Err(error) = driver.store.finish(job, attempt, ending.clone()).await {
                    tracing::warn!(%job, %error, "the ending is not stored yet");
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(STORE_RETRY_MAX);
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
    /// them. What has been said of them is taken in first.
    pub(in crate::orchestrator) fn shelve_all(self: &Arc<Self>) {
        let now = self.clock.now();
        let mut core = self.lock();
        self.decide_in(&mut core, now, |_, _, _| ());
        let goes_on = |flow: &Arc<Flow>| flow.call.asynchronous && !flow.is_over();
        let shelved = core.flows.extract_if(|_, flow| goes_on(flow));
        for (job, flow) in shelved {
            if let Some(attempt) = flow.shelve() {
                self.store.record(JobChange::Requeued {
                    job,
                    attempt,
                    failed: false,
                    not_before: None,
                });
            }
        }
    }
}
