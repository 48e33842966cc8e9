//! A taken slot.

use std::sync::Arc;

use super::client_gone;
use super::inbox::Inbox;
use crate::brain::{Aftermath, Event, Report};
use crate::domain::{Attempt, JobId, Outcome, WorkerProtocol, WorkerSpec};

/// One slot of a worker, held for one attempt of one job.
///
/// It comes back exactly once: with a report, or, when it is just dropped, as cancelled. It comes
/// back into the inbox, since the brain may be just deciding: whoever ends a lease with a report
/// has the brain decide afterwards, and only a dropped one wakes somebody to do so.
pub(crate) struct Lease {
    pub(crate) worker: Arc<WorkerSpec>,
    job: JobId,
    attempt: Attempt,
    report: Option<Box<Report>>,
    inbox: Arc<Inbox>,
}

impl Lease {
    pub(crate) fn new(
        worker: Arc<WorkerSpec>,
        job: JobId,
        attempt: Attempt,
        inbox: Arc<Inbox>,
    ) -> Self {
        Lease {
            worker,
            job,
            attempt,
            report: None,
            inbox,
        }
    }

    /// The attempt that holds it.
    pub(super) fn attempt(&self) -> Attempt {
        self.attempt
    }

    /// Gives the slot back and tells what came of the attempt.
    pub(crate) fn end(mut self, report: Report) {
        self.report = Some(Box::new(report));
    }

    /// Gives the slot back while the worker may still be at work. Closing the connection cancels
    /// it at an OpenAI worker; of an `rbee` worker only its health check tells.
    pub(crate) fn end_early(self, mut report: Report) {
        if self.worker.protocol == WorkerProtocol::Rbee {
            report.aftermath = Aftermath::Computing;
        }
        self.end(report);
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let ended = |report| Event::AttemptEnded {
            job: self.job,
            attempt: self.attempt,
            worker: self.worker.id.clone(),
            report,
        };
        match self.report.take() {
            Some(report) => self.inbox.leave(ended(report)),
            None => {
                let gone = Report::of(Outcome::Cancelled(client_gone()));
                self.inbox.send(ended(Box::new(gone)));
            }
        }
    }
}
