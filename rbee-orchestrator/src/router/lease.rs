//! A taken slot.

use std::sync::Arc;

use tokio::sync::mpsc::UnboundedSender;

use super::client_gone;
use crate::brain::{Aftermath, Event, Report};
use crate::domain::{Attempt, JobId, Outcome, WorkerProtocol, WorkerSpec};

/// One slot of a worker, held for one attempt of one job.
///
/// It comes back exactly once: with a report, or, when it is just dropped, as cancelled. Dropping
/// only sends; it takes no lock. The channel is unbounded, but never holds more than one event for
/// each slot there is.
pub(crate) struct Lease {
    pub(crate) worker: Arc<WorkerSpec>,
    job: JobId,
    attempt: Attempt,
    report: Option<Box<Report>>,
    events: UnboundedSender<Event>,
}

impl Lease {
    pub(crate) fn new(
        worker: Arc<WorkerSpec>,
        job: JobId,
        attempt: Attempt,
        events: UnboundedSender<Event>,
    ) -> Self {
        Lease {
            worker,
            job,
            attempt,
            report: None,
            events,
        }
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
        let gone = || Box::new(Report::of(Outcome::Cancelled(client_gone())));
        let report = self.report.take().unwrap_or_else(gone);
        // Nobody listens any more only when the orchestrator is gone, and its registry with it.
        let _ = self.events.send(Event::AttemptEnded {
            job: self.job,
            attempt: self.attempt,
            worker: self.worker.id.clone(),
            report,
        });
    }
}
