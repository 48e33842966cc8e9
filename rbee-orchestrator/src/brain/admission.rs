//! Admission: a request is dispatched, taken into the queue, or refused at once.

use crate::domain::{HiveId, JobId, Now};
use crate::error::{Code, Error};
use crate::scheduler::Placement;

use super::Brain;
use super::event::{Action, Due, Job, JobRequest, Phase};
use super::names::Meaning;
use super::queue::{GroupKey, Turn};

pub(super) fn shutting_down() -> Error {
    Error::new(
        Code::ShuttingDown,
        "the queen is shutting down; ask again when she is back",
    )
}

impl Brain {
    pub(super) fn submit(&mut self, now: Now, request: Box<JobRequest>, out: &mut Vec<Action>) {
        let id = request.id;
        let (model, tentative) = match self.admit(now, &request) {
            Err(error) => return self.refuse(now, id, error, out),
            Ok(Meaning::Certain(model)) => (model, None),
            Ok(Meaning::Fallback(model)) => (model, Some(request.model.clone())),
        };
        let key = GroupKey::of(&request, model);
        let turn = Turn {
            class: request.priority,
            job: id,
        };
        let first = !self.queue.is_waiting(&key);
        let placement = first.then(|| self.place(now, &key));
        match placement {
            Some(Placement::Reject(error)) => self.refuse(now, id, error, out),
            Some(Placement::Route { worker, why }) if self.may_take(&key, &worker) => {
                self.enter(now, request, key.clone());
                self.dispatch(now, id, &key.model, &worker, why, out);
            }
            _ if !self
                .config
                .queue
                .capacity_interactive
                .has_room(self.queue.len()) =>
            {
                self.refuse(now, id, self.at_capacity(), out);
            }
            placement => {
                self.enter(now, request, key.clone());
                let position = self.queue.push(key.clone(), turn, tentative);
                out.push(Action::Queued {
                    job: id,
                    position,
                    wait: None,
                });
                match placement {
                    Some(placement) => {
                        self.act_on(now, &key, placement, out);
                    }
                    None => self.join(now, &key, id, out),
                }
            }
        }
    }

    /// Whether the request may come in at all, and which model it means.
    fn admit(&self, now: Now, request: &JobRequest) -> Result<Meaning, Error> {
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

    fn at_capacity(&self) -> Error {
        let waiting = self.queue.len();
        Error::new(
            Code::SystemAtCapacity,
            format!("{waiting} requests wait already, as many as may; ask again later"),
        )
    }

    pub(super) fn hive_not_found(&self, hive: &HiveId) -> Error {
        let known: Vec<&str> = self.hives.keys().map(HiveId::as_str).collect();
        let message = format!("there is no hive {hive}; there is {}", known.join(", "));
        Error::new(Code::HiveNotFound, message)
    }

    /// Takes the job in, with its deadlines.
    fn enter(&mut self, now: Now, request: Box<JobRequest>, key: GroupKey) {
        let id: JobId = request.id;
        let total = now.mono + request.total_timeout;
        let total_deadline = match request.deadline {
            Some(deadline) => total.min(now.mono + deadline.since(now.wall)),
            None => total,
        };
        let queue_deadline = now.mono + request.queue_timeout;
        let due = match queue_deadline < total_deadline {
            true => (queue_deadline, Due::Queue(id)),
            false => (total_deadline, Due::Total(id)),
        };
        self.due.insert(due.clone());
        let job = Job {
            request,
            key,
            attempt: 0,
            phase: Phase::Waiting,
            total_deadline,
            due,
        };
        self.jobs.insert(id, job);
    }
}
