//! How far a worker is trusted: suspects are checked, those that fail again and again are left
//! alone for a while, those that have too much to do get a pause.

use std::time::Duration;

use crate::domain::{
    Attempt, BreakerNote, BreakerState, JobId, Mono, Now, Outcome, Prospect, Worker, WorkerId,
};

use super::Brain;
use super::action::Action;
use super::breaker::{Ticket, Verdict};
use super::event::{Blame, Report};
use super::job::Due;
use crate::error::Error;

/// How long a worker of a hive that broke off an attempt may take to answer its health check. Its
/// attempts' own time-outs have run by then: a worker that is alive and idle answers at once, and
/// one that is stuck holds memory that another could use.
const SUSPECT_FOR: Duration = Duration::from_secs(60);

/// How long a worker that has too much to do gets nothing, unless it says how long.
const PAUSE: Duration = Duration::from_secs(1);
/// The least, so that an answer of zero makes no storm.
const SHORTEST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

impl Brain {
    /// Takes in what an attempt says about its worker, if it holds a lease there.
    pub(super) fn judge(
        &mut self,
        now: Now,
        id: &WorkerId,
        lease: (JobId, Attempt),
        ticket: Ticket,
        report: &Report,
        out: &mut Vec<Action>,
    ) {
        let notes = self.worker_notes.get_mut(id);
        let Some(notes) = notes.filter(|notes| notes.leases.contains(&lease)) else {
            return;
        };
        // However often a job tries a worker, it is one witness.
        let job = self.jobs.get(&lease.0);
        let again = job.is_some_and(|job| job.has_failed_on(id));
        let verdict = match (&report.outcome, report.blame) {
            (Outcome::Complete, _) => Verdict::Success,
            (Outcome::Failed(_), Blame::Worker) if !again => Verdict::Failure,
            (Outcome::Failed(_), Blame::Unclear) if !again => Verdict::Refusal,
            _ => Verdict::Neutral,
        };
        let config = &self.config.breaker;
        let was_trusted = notes.allowance(config).is_none();
        let failures = notes.breaker.failures_in_a_row() + 1;
        let opened = notes.breaker.end(now.mono, config, ticket, verdict);
        if let Some(until) = opened {
            self.counters.breaker_opened += 1;
            let old = notes.reopens.replace(until);
            old.map(|old| self.due.remove(&(old, Due::Reopen(id.clone()))));
            self.schedule(until, Due::Reopen(id.clone()));
            let last = report.outcome.error();
            let cause = last.and_then(Error::cause).map(str::to_owned);
            let last = last.map_or("", Error::kept);
            let note = BreakerNote {
                state: BreakerState::Open,
                until: Some(now.wall + until.since(now.mono)),
                failures,
                reason: format!("jobs failed on it, the last with: {last}"),
                cause,
            };
            self.note_breaker(id, note, out);
        } else {
            self.doubt_answers(now, id, verdict, out);
        }
        if let (Outcome::Failed(_), Blame::Load(wait)) = (&report.outcome, report.blame) {
            self.pause(now, id, wait);
        } else if was_trusted && opened.is_none() {
            return;
        }
        self.set_allowance(id);
    }

    /// Takes in what an answer says about a worker, whether in full or an error.
    fn doubt_answers(&mut self, now: Now, id: &WorkerId, verdict: Verdict, out: &mut Vec<Action>) {
        let (Some(worker), Some(notes)) = (self.workers.get_mut(id), self.worker_notes.get_mut(id))
        else {
            return;
        };
        match verdict {
            Verdict::Success => {
                notes.doubt.clear();
                if worker.breaker.is_some() && notes.breaker.admits(&self.config.breaker).is_none()
                {
                    worker.last_resort_until = Mono::default();
                    worker.breaker = None;
                }
            }
            Verdict::Refusal => {
                let Some((until, failures)) = notes.doubt.add(now.mono, &self.config.breaker)
                else {
                    return;
                };
                worker.last_resort_until = until;
                self.counters.last_resorts += 1;
                let note = BreakerNote {
                    state: BreakerState::LastResort,
                    until: Some(now.wall + until.since(now.mono)),
                    failures,
                    reason: "it answered one job after the other with an error".to_owned(),
                    cause: None,
                };
                // What is left alone altogether is no resort.
                if worker
                    .breaker
                    .as_ref()
                    .is_none_or(|old| old.state == note.state)
                {
                    self.note_breaker(id, note, out);
                }
            }
            Verdict::Failure | Verdict::Neutral => {}
        }
    }

    /// Notes why a worker gets less work, for the list and the log.
    fn note_breaker(&mut self, id: &WorkerId, note: BreakerNote, out: &mut Vec<Action>) {
        let Some(worker) = self.workers.get_mut(id) else {
            return;
        };
        out.push(Action::Distrust {
            worker: worker.spec.clone(),
            note: note.clone(),
        });
        worker.breaker = Some(Box::new(note));
    }

    /// Why a worker is given nothing now, for those who wait for it.
    pub(super) fn why_paused(&self, id: &WorkerId) -> &str {
        let worker = self.workers.get(id);
        let note = worker.and_then(|worker| worker.breaker.as_deref());
        note.map_or("it had too much to do", |note| &note.reason)
    }

    /// Gives a worker nothing until it has had time to get on.
    fn pause(&mut self, now: Now, id: &WorkerId, wait: Option<Duration>) {
        self.counters.back_pressure += 1;
        let wait = wait.unwrap_or(PAUSE).clamp(SHORTEST_PAUSE, LONGEST_PAUSE);
        let until = now.mono + wait;
        let Some(notes) = self.worker_notes.get_mut(id) else {
            return;
        };
        if notes.paused_until.is_some_and(|old| old >= until) {
            return;
        }
        let old = notes.paused_until.replace(until);
        old.map(|old| self.due.remove(&(old, Due::Unpause(id.clone()))));
        self.schedule(until, Due::Unpause(id.clone()));
    }

    pub(super) fn unpause(&mut self, now: Now, id: &WorkerId, out: &mut Vec<Action>) {
        if let Some(notes) = self.worker_notes.get_mut(id) {
            notes.paused_until = None;
        }
        self.give_chance(now, id, out);
    }

    /// A worker was left alone for long enough.
    pub(super) fn reopen(&mut self, now: Now, id: &WorkerId, out: &mut Vec<Action>) {
        if let Some(notes) = self.worker_notes.get_mut(id) {
            notes.reopens = None;
            notes.breaker.half_open(now.mono);
        }
        let worker = self.workers.get_mut(id);
        if let Some(note) = worker.and_then(|worker| worker.breaker.as_deref_mut()) {
            (note.state, note.until) = (BreakerState::HalfOpen, None);
        }
        self.give_chance(now, id, out);
    }

    fn give_chance(&mut self, now: Now, id: &WorkerId, out: &mut Vec<Action>) {
        self.set_allowance(id);
        let worker = self.workers.get(id);
        if let Some(model) = worker.map(|worker| worker.spec.model.clone()) {
            self.pump_model(now, &model, out);
        }
    }

    /// Says in the registry how many more attempts a worker may be given.
    fn set_allowance(&mut self, id: &WorkerId) {
        if let (Some(worker), Some(notes)) = (self.workers.get_mut(id), self.worker_notes.get(id)) {
            worker.allowance = notes.allowance(&self.config.breaker);
        }
    }

    /// Gives a worker no more work until it has answered a check itself.
    pub(super) fn suspect(&mut self, now: Now, id: &WorkerId, out: &mut Vec<Action>) {
        let (Some(worker), Some(notes)) = (self.workers.get_mut(id), self.worker_notes.get_mut(id))
        else {
            return;
        };
        worker.ready = false;
        worker.prospect = Prospect::Checked;
        notes.suspect = true;
        if let Some(hive) = worker.spec.hive.clone() {
            self.hive_notes.entry(hive.clone()).or_default().in_doubt = true;
            out.push(Action::CheckHive { hive });
        }
        out.push(Action::CheckWorker {
            worker: worker.spec.clone(),
        });
        self.expect_answer(now, id);
    }

    /// Gives a suspect a time to answer, unless it has one. A server that no hive owns can't be
    /// stopped: it only stays out of use.
    pub(super) fn expect_answer(&mut self, now: Now, id: &WorkerId) {
        let owned = |worker: &Worker| worker.spec.hive.is_some() && !worker.draining;
        if self.workers.get(id).is_some_and(owned)
            && let Some(notes) = self.worker_notes.get_mut(id)
            && notes.suspect_due.is_none()
        {
            let due = now.mono + SUSPECT_FOR;
            notes.suspect_due = Some(due);
            self.due.insert((due, Due::Suspect(id.clone())));
        }
    }

    /// A suspect did not answer in time. One that holds a lease is busy, not dead: it gets another
    /// time when the lease comes back.
    pub(super) fn stop_suspect(&mut self, now: Now, id: &WorkerId, out: &mut Vec<Action>) {
        if let Some(notes) = self.worker_notes.get_mut(id) {
            notes.suspect_due = None;
        }
        if let Some(worker) = self.workers.get_mut(id)
            && worker.leases == 0
        {
            // Those who wait are placed anew when it has left: only then is there room again.
            worker.draining = true;
            self.stop_worker(now, id, out);
        }
    }

    /// A worker did not answer its check, and holds no lease.
    pub(super) fn missed_check(&mut self, now: Now, id: &WorkerId, out: &mut Vec<Action>) {
        self.note_death(id);
        let (Some(worker), Some(notes)) = (self.workers.get_mut(id), self.worker_notes.get(id))
        else {
            return;
        };
        let owned = worker.spec.hive.is_some();
        // While it loads its deadline judges it, while it is a suspect that of its answer.
        if notes.load_due.is_some() || (owned && notes.suspect) {
            return;
        }
        if owned && worker.ready {
            return self.suspect(now, id, out);
        }
        let is_news = worker.is_worth_waiting_for();
        worker.ready = false;
        worker.prospect = Prospect::Silent;
        if is_news {
            let model = worker.spec.model.clone();
            self.pump_model(now, &model, out);
        }
    }
}
