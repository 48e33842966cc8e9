//! The bounds of the queue, and what happens when they are reached.

use crate::config::WhenFull;
use crate::domain::{JobId, Now, Outcome, Priority};
use crate::error::{Code, Error, Result};

use super::Brain;
use super::action::Action;
use super::event::JobRequest;
use super::job::Job;
use super::queue::GroupKey;

/// What the jobs that wait take up.
#[derive(Debug, Default)]
pub(super) struct Room {
    interactive: usize,
    batch: usize,
    bytes: u64,
}

impl Room {
    /// Counts a job no more.
    pub(super) fn leave(&mut self, job: &mut Job) {
        if std::mem::take(&mut job.takes_room) {
            *self.of_class(job.request.priority) -= 1;
            self.bytes = self.bytes.saturating_sub(job.request.bytes);
        }
    }

    fn of_class(&mut self, class: Priority) -> &mut usize {
        match class {
            Priority::Interactive => &mut self.interactive,
            Priority::Batch => &mut self.batch,
        }
    }
}

impl Brain {
    /// Whether one more may wait; if the policy says so, at the cost of batch jobs.
    pub(super) fn make_room(
        &mut self,
        now: Now,
        request: &JobRequest,
        key: &GroupKey,
        out: &mut Vec<Action>,
    ) -> Result<()> {
        let bounds = &self.config.queue;
        let (capacity, waiting) = match request.priority {
            Priority::Interactive => (bounds.capacity_interactive, self.room.interactive),
            Priority::Batch => (bounds.capacity_batch, self.room.batch),
        };
        let bytes = self.room.bytes.saturating_add(request.bytes);
        let too_many = bytes.saturating_sub(bounds.max_bytes);
        if capacity.has_room(waiting) && too_many == 0 {
            return Ok(());
        }
        let may_drop = bounds.when_full == WhenFull::DropOldestBatch
            && request.priority == Priority::Interactive;
        let victims = match may_drop {
            true => self.oldest_batch(too_many),
            false => None,
        };
        let after = self.time_to_room(key);
        let victims = victims.ok_or_else(|| {
            let message = match capacity.has_room(waiting) {
                false => {
                    format!("{waiting} requests wait already, as many as may; ask again later")
                }
                true => format!(
                    "with the {} bytes of this request, those that wait would hold more than {} \
                     (queue.max_bytes); ask again later",
                    request.bytes, bounds.max_bytes
                ),
            };
            Error::new(Code::SystemAtCapacity, message).retry_after(after)
        })?;
        for job in victims {
            self.counters.dropped += 1;
            let error = Error::new(
                Code::SystemAtCapacity,
                "the queue is full, and interactive requests come first; submit the job again \
                 later",
            );
            self.end(now, job, Outcome::Failed(error.retry_after(after)), out);
        }
        Ok(())
    }

    /// The batch jobs that have waited longest and make room for so many bytes; at least one.
    fn oldest_batch(&self, bytes: u64) -> Option<Vec<JobId>> {
        let mut freed = 0;
        let mut victims = Vec::new();
        for job in self.queue.batch() {
            freed += self.jobs.get(&job).map_or(0, |job| job.request.bytes);
            victims.push(job);
            if freed >= bytes {
                return Some(victims);
            }
        }
        None
    }

    /// Counts a job for the bounds of the queue.
    pub(super) fn take_room(&mut self, id: JobId) {
        if let Some(job) = self.jobs.get_mut(&id).filter(|job| !job.takes_room) {
            job.takes_room = true;
            *self.room.of_class(job.request.priority) += 1;
            self.room.bytes = self.room.bytes.saturating_add(job.request.bytes);
        }
    }
}
