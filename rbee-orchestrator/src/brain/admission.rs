//! Admission: validation, entitlements, quota, rate limit, capacity, in this order. A request is
//! dispatched, taken into the queue, held back, or refused at once.

use std::time::Duration;

use crate::domain::{HiveId, JobId, Mono, Now, Outcome, Priority};
use crate::error::{Code, Error, Result};
use crate::scheduler::Placement;

use super::Brain;
use super::action::Action;
use super::breaker::Ticket;
use super::event::JobRequest;
use super::job::{Job, NEVER, Phase};
use super::jobs::out_of_time;
use super::names::Meaning;
use super::queue::{Group, GroupKey, Waits};

/// A request that may come in, with what was found out about it.
struct Admitted {
    key: GroupKey,
    /// Whether the model's name may come to mean another.
    tentative: bool,
    /// Where it goes; `None` if others of its group wait.
    placement: Option<Placement>,
    /// Whether it is held back until its tenant's quota allows it.
    held: bool,
}

impl Brain {
    /// Lets a request in, up to and including capacity. It is counted from now on, but neither
    /// waits nor runs before [`super::Event::Confirm`]; [`super::Event::Withdraw`] makes it one that
    /// never came.
    ///
    /// # Errors
    /// Why it is refused. A refusal leaves nothing behind and no [`Action::Finish`].
    pub fn admit(
        &mut self,
        now: Now,
        request: Box<JobRequest>,
        out: &mut Vec<Action>,
    ) -> Result<()> {
        let admitted = self.let_in(now, &request, out)?;
        let id = request.id;
        self.enter(now, request, admitted.key, admitted.held);
        if let Some(job) = self.jobs.get_mut(&id) {
            job.phase = Phase::Admitted;
        }
        self.take_room(id);
        Ok(())
    }

    /// Lets a request in that is confirmed with that: [`super::Event::Submit`] for a caller who is to
    /// know at once whether it is refused.
    ///
    /// # Errors
    /// Why it is refused. A refusal leaves nothing behind and no [`Action::Finish`].
    pub fn submit(
        &mut self,
        now: Now,
        request: Box<JobRequest>,
        out: &mut Vec<Action>,
    ) -> Result<()> {
        let id = request.id;
        let admitted = self.let_in(now, &request, out)?;
        self.enter(now, request, admitted.key, admitted.held);
        match admitted.held {
            true => self.hold(now, id, out),
            false => self.begin(now, id, admitted.tentative, admitted.placement, out),
        }
        Ok(())
    }

    pub(super) fn confirm(&mut self, now: Now, id: JobId, out: &mut Vec<Action>) {
        let draining = self.draining;
        let Some(job) = self.jobs.get_mut(&id) else {
            return;
        };
        if job.phase != Phase::Admitted {
            return;
        }
        if let Some(outcome) = job.cut_short.take() {
            self.conclude(now, id, outcome, out);
        } else if draining && !job.request.asynchronous {
            self.conclude(now, id, Outcome::Failed(Error::shutting_down()), out);
        } else if job.held {
            let tenant = job.request.tenant.clone();
            self.hold(now, id, out);
            self.release_held(now, &tenant, out);
        } else {
            self.start(now, id, out);
        }
    }

    pub(super) fn withdraw(&mut self, now: Now, id: JobId) {
        let admitted = |job: &&Job| job.phase == Phase::Admitted;
        if self.jobs.get(&id).filter(admitted).is_none() {
            return;
        }
        if let Some(mut job) = self.jobs.remove(&id) {
            self.room.leave(&mut job);
            if std::mem::take(&mut job.limited)
                && let Some(book) = self.tenants.get_mut(&job.request.tenant)
            {
                book.unlimit(job.request.tokens);
            }
            self.settle(now, &job, None);
        }
    }

    /// Takes in what an earlier life left. It was admitted then; nothing refuses it now.
    pub(super) fn recover(&mut self, now: Now, request: Box<JobRequest>, out: &mut Vec<Action>) {
        let id = request.id;
        // While the queen goes down it is left to the next life.
        if self.draining || self.jobs.contains_key(&id) {
            return;
        }
        let model = match self.resolve(&request.model) {
            Ok(model) => model,
            Err(error) => return self.refuse_attempt(now, id, request.attempts, error, out),
        };
        let not_before = request.not_before;
        let key = GroupKey::of(&request, model);
        self.enter(now, request, key, false);
        if let Some(job) = self.jobs.get_mut(&id) {
            job.limited = false;
        }
        // A clock that was set back meanwhile makes no pause longer than any may be.
        let pause = not_before.map(|at| at.since(now.wall));
        let pause = pause.map(|pause| pause.min(self.config.retry.backoff_max));
        match pause.filter(|pause| !pause.is_zero()) {
            Some(pause) => self.back_off(now, id, pause),
            None => self.start(now, id, out),
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
            Meaning::Certain(model) => (model, false),
            Meaning::Fallback(model) => (model, true),
        };
        let held = self.check_tenant(now, request, &model)?;
        let key = GroupKey::of(request, model);
        let placement = self.find_place(now, request, &key, held, out);
        if placement.is_err()
            && let Some(book) = self.tenants.get_mut(&request.tenant)
        {
            book.unlimit(request.tokens);
        }
        Ok(Admitted {
            placement: placement?,
            key,
            tentative,
            held,
        })
    }

    /// Where a request goes at once, or that there is room for it to wait.
    fn find_place(
        &mut self,
        now: Now,
        request: &JobRequest,
        key: &GroupKey,
        held: bool,
        out: &mut Vec<Action>,
    ) -> Result<Option<Placement>> {
        // Those who wait for a place say nothing of whether there is one for somebody who can't, and those
        // who come after it take none from it.
        let waits_for_place = |group: &Group| matches!(group.waits, Waits::Place(_));
        let group = self.queue.group(key);
        let first = group.is_none_or(|g| waits_for_place(g) || !g.has_of(request.priority));
        let placement = first.then(|| self.place(now, key));
        match placement {
            Some(Placement::Reject(error)) => return Err(error),
            Some(Placement::Route { ref worker, .. })
                if !held
                    && self.may_take(key, worker)
                    && self.leaves_room(now, request.priority, &key.model) => {}
            _ => self.make_room(now, request, key, out)?,
        }
        Ok(placement)
    }

    /// Whether the request makes sense, and which model it means.
    fn validate(&self, now: Now, request: &JobRequest) -> Result<Meaning> {
        if self.draining {
            return Err(Error::shutting_down());
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
    fn enter(&mut self, now: Now, request: Box<JobRequest>, key: GroupKey, held: bool) {
        let id = request.id;
        let deadline = request
            .deadline
            .map_or(NEVER, |deadline| now.mono + deadline.since(now.wall));
        let from_now = |time: Duration| match request.asynchronous {
            // Its time counts from each dispatch.
            true => deadline,
            false => deadline.min(now.mono + time),
        };
        let end_by = from_now(request.total_timeout);
        let flow_by = from_now(request.flowing_timeout);
        if request.priority == Priority::Interactive {
            self.note_interactive(now, &key.model);
        }
        let waited = now.wall.since(request.submitted_at);
        let promote_after = self.config.queue.promote_after.saturating_sub(waited);
        let job = Job {
            key,
            class: request.priority,
            returned: false,
            attempt: request.attempts,
            failures: request.failures,
            past: None,
            faults: Vec::new(),
            deaths: 0,
            given_back: 0,
            gives_back: false,
            ticket: Ticket::default(),
            phase: Phase::Waiting,
            cut_short: None,
            end_by,
            flow_by,
            patience: request.queue_timeout,
            waits_since: now.mono,
            promote_at: now.mono + promote_after,
            due: None,
            takes_room: false,
            held,
            charged: false,
            limited: !self.tenants.is_empty(),
            dispatched_at: Mono::default(),
            run_until: NEVER,
            flows: false,
            slot_time: Duration::ZERO,
            inference_time: Duration::ZERO,
            told: None,
            request,
        };
        self.jobs.insert(id, job);
        self.note_request(now);
        if !held {
            self.charge(id);
        }
    }

    /// Places a job that may run now, or lets it wait. What its model is called may mean another
    /// one by now.
    pub(super) fn start(&mut self, now: Now, id: JobId, out: &mut Vec<Action>) {
        let Some(job) = self.jobs.get_mut(&id) else {
            return;
        };
        job.phase = Phase::Waiting;
        if job.end_by <= now.mono {
            let error = out_of_time(now, job);
            return self.conclude(now, id, Outcome::Failed(error), out);
        }
        let mut tentative = false;
        match self.names.resolve(&job.request.model) {
            Ok(Meaning::Certain(model)) => job.key.model = model,
            Ok(Meaning::Fallback(model)) => {
                tentative = true;
                job.key.model = model;
            }
            Err(_) => {}
        }
        let key = job.key.clone();
        let waits_for_place = |group: &Group| matches!(group.waits, Waits::Place(_));
        let (asynchronous, class) = (job.request.asynchronous, job.class);
        let group = self.queue.group(&key);
        let looks = group
            .is_none_or(|group| (!asynchronous && waits_for_place(group)) || !group.has_of(class));
        let places = !self.draining && looks;
        let placement = places.then(|| self.place(now, &key));
        self.begin(now, id, tentative, placement, out);
    }

    /// Dispatches a job that was let in, or lets it wait.
    fn begin(
        &mut self,
        now: Now,
        id: JobId,
        tentative: bool,
        placement: Option<Placement>,
        out: &mut Vec<Action>,
    ) {
        let Some(job) = self.jobs.get(&id) else {
            return;
        };
        match placement {
            Some(Placement::Route { worker, .. }) if job.was_answered_by(&worker) => {
                self.end_answered(now, id, out);
            }
            Some(Placement::Route { worker, why })
                if self.may_take(&job.key, &worker)
                    && !self.is_wanted(job.class, &job.key, &worker)
                    && self.may_go(now, id) =>
            {
                self.dispatch(now, id, &worker, why, out);
            }
            placement => {
                let key = job.key.clone();
                self.enqueue(now, id, tentative);
                self.tell_place(id, out);
                match placement {
                    Some(placement) => self.act_on(now, &key, placement, out),
                    None => self.join(now, &key, id, out),
                }
            }
        }
    }
}
