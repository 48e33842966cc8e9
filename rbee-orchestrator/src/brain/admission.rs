//! Admission: a request is dispatched, taken into the queue, or refused at once.

use crate::domain::{HiveId, JobId, Mono, Now};
use crate::error::{Code, Error, Result};
use crate::scheduler::Placement;

use super::Brain;
use super::event::{Action, JobRequest};
use super::job::{Job, NEVER, Phase};
use super::names::Meaning;
use super::queue::GroupKey;

pub(super) fn shutting_down() -> Error {
    Error::new(
        Code::ShuttingDown,
        "the queen is shutting down; ask again when she is back",
    )
}

/// A request that may come in, with what was found out about it.
pub(super) struct Admitted {
    key: GroupKey,
    /// The model's name, while it is not known what that means.
    pub(super) tentative: Option<String>,
    /// Where it goes; `None` if others of its group wait.
    pub(super) placement: Option<Placement>,
}

impl Brain {
    pub(super) fn submit(&mut self, now: Now, request: Box<JobRequest>, out: &mut Vec<Action>) {
        let id = request.id;
        match self.let_in(now, &request, out) {
            Err(error) => self.refuse(now, id, error, out),
            Ok(admitted) => {
                let Admitted {
                    key,
                    tentative,
                    placement,
                } = admitted;
                self.enter(now, request, key);
                self.begin(now, id, tentative, placement, out);
            }
        }
    }

    /// Whether a request may come in.
    fn let_in(
        &mut self,
        now: Now,
        request: &JobRequest,
        out: &mut Vec<Action>,
    ) -> Result<Admitted> {
        let (model, tentative) = match self.validate(now, request)? {
            Meaning::Certain(model) => (model, None),
            Meaning::Fallback(model) => (model, Some(request.model.clone())),
        };
        let key = GroupKey::of(request, model);
        let first = self.queue.group(&key).is_none();
        let placement = first.then(|| self.place(now, &key));
        match placement {
            Some(Placement::Reject(error)) => return Err(error),
            Some(Placement::Route { ref worker, .. }) if self.may_take(&key, worker) => {}
            _ => self.make_room(now, request, &key, out)?,
        }
        Ok(Admitted {
            key,
            tentative,
            placement,
        })
    }

    /// Whether the request makes sense, and which model it means.
    fn validate(&self, now: Now, request: &JobRequest) -> Result<Meaning> {
        if self.draining {
            return Err(shutting_down());
        }
        if let Some(hive) = &request.constraints.hive
            && !self.hives.contains_key(hive)
        {
            return Err(self.hive_not_found(hive).param("node"));
        }
        if request.total_timeout.is_zero() || request.deadline.is_some_and(|at| at <= now.wall) {
            return Err(Error::new(
                Code::Timeout,
                "the request's deadline had passed when it came",
            ));
        }
        self.names.resolve(&request.model)
    }

    pub(super) fn hive_not_found(&self, hive: &HiveId) -> Error {
        let known: Vec<&str> = self.hives.keys().map(HiveId::as_str).collect();
        let message = format!("there is no hive {hive}; there is {}", known.join(", "));
        Error::new(Code::HiveNotFound, message)
    }

    /// Takes the job in, with its deadlines.
    fn enter(&mut self, now: Now, request: Box<JobRequest>, key: GroupKey) {
        let total = match request.asynchronous {
            // Its time counts from each dispatch.
            true => NEVER,
            false => now.mono + request.total_timeout,
        };
        let end_by = match request.deadline {
            Some(deadline) => total.min(now.mono + deadline.since(now.wall)),
            None => total,
        };
        let waited = now.wall.since(request.submitted_at);
        let promote_after = self.config.queue.promote_after.saturating_sub(waited);
        let job = Job {
            key,
            class: request.priority,
            returned: false,
            attempt: request.attempts,
            phase: Phase::Waiting,
            end_by,
            patience: request.queue_timeout,
            promote_at: now.mono + promote_after,
            due: None,
            takes_room: false,
            waits_since: now.mono,
            dispatched_at: Mono::default(),
            told: None,
            request,
        };
        self.jobs.insert(job.request.id, job);
    }

    /// Dispatches a job that was let in, or lets it wait.
    fn begin(
        &mut self,
        now: Now,
        id: JobId,
        tentative: Option<String>,
        placement: Option<Placement>,
        out: &mut Vec<Action>,
    ) {
        let Some(key) = self.jobs.get(&id).map(|job| job.key.clone()) else {
            return;
        };
        match placement {
            Some(Placement::Route { worker, why })
                if self.may_take(&key, &worker) && !self.is_wanted(&key, &worker) =>
            {
                self.dispatch(now, id, &worker, why, out);
            }
            placement => {
                self.enqueue(now, id, tentative);
                self.tell_place(now, id, out);
                match placement {
                    Some(placement) => self.act_on(now, &key, placement, out),
                    None => self.join(now, &key, id, out),
                }
            }
        }
    }
}
