//! Carrying out what the brain wants. Nothing here waits: what takes time is handed to a task.

use std::collections::HashSet;
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::Duration;

use super::{Core, Driver};
use crate::brain::{Action, Event};
use crate::domain::{Attempt, HiveId, JobId, Narration, WorkerId, WorkerSpec};
use crate::error::{Code, Error};
use crate::orchestrator::hive_actor::Order;
use crate::router::{Assignment, Lease, Notice};
use crate::store::JobChange;

impl Driver {
    /// One action. Nothing here waits: what takes time is handed to a task.
    pub(super) fn carry_out(self: &Arc<Self>, core: &mut Core, action: Action) {
        match action {
            Action::Requeue {
                job,
                attempt,
                failed,
                not_before,
                error,
            } => {
                tracing::debug!(%job, attempt, failed, %error, "the attempt is void, the job waits again");
                self.store.record(JobChange::Requeued {
                    job,
                    attempt,
                    failed,
                    not_before,
                });
                if let Some(flow) = core.flows.get(&job) {
                    flow.notify(Notice::Narration(retry_narration(
                        job, attempt, failed, &error,
                    )));
                }
            }
            Action::Queued {
                job,
                position,
                wait,
            } => {
                if let Some(flow) = core.flows.get(&job) {
                    flow.notify(Notice::Queued { position, wait });
                }
            }
            Action::Narrate { job, narration } => {
                if let Some(flow) = core.flows.get(&job) {
                    flow.notify(Notice::Narration(narration));
                }
            }
            Action::Dispatch {
                job,
                attempt,
                worker,
                placed,
                at,
            } => {
                let lease = Lease::new(worker, job, attempt, self.inbox.clone());
                let model = placed.model.clone();
                self.store.record(JobChange::Claimed {
                    job,
                    attempt,
                    placed,
                    at,
                });
                let assignment = Assignment {
                    lease,
                    attempt,
                    model,
                    at,
                };
                if let Some(flow) = core.flows.get(&job) {
                    flow.assign(assignment);
                    if flow.call.asynchronous {
                        self.record_dispatch(flow.clone(), attempt);
                    }
                }
            }
            Action::GiveBack { job, attempt, why } => {
                if let Some(flow) = core.flows.get(&job) {
                    flow.give_back(attempt, why);
                }
            }
            Action::EndUnlessFlowing { job, attempt } => {
                let flow = core.flows.get(&job);
                if !flow.is_some_and(|flow| flow.flows()) {
                    self.inbox.send(Event::NotFlowing { job, attempt });
                }
            }
            Action::Abort { job, outcome } => {
                if let Some(flow) = core.flows.get(&job) {
                    flow.abort(&outcome);
                }
            }
            Action::Finish {
                job,
                attempt,
                ending,
            } => {
                if let Some(error) = ending.outcome.error() {
                    tracing::debug!(%job, attempt, %error, "job ended");
                }
                let flow = core.flows.remove(&job);
                if let Some(flow) = &flow {
                    flow.abort(&ending.outcome);
                }
                match flow {
                    Some(flow) if flow.call.asynchronous => {
                        core.settling.insert(job, flow.clone());
                        self.finish_durably(flow, attempt, *ending);
                    }
                    Some(flow) => {
                        let last_events = flow.last_events(&ending);
                        self.store.record(JobChange::Finished {
                            job,
                            attempt,
                            ending,
                        });
                        flow.settle(last_events);
                    }
                    None => {}
                }
            }
            // At most once in `breaker.open_first` for each worker.
            Action::Distrust { worker, note } => {
                let (id, state, until) = (&worker.id, note.state, note.until);
                let until = until.map(|at| at.to_string()).unwrap_or_default();
                let (failures, reason, cause) = (note.failures, &note.reason, &note.cause);
                tracing::warn!(worker = %id, model = %worker.model, ?state, %until, failures, %reason,
                    cause, "the worker's breaker: jobs fail there, others with the model are preferred");
            }
            Action::StartHive { hive } => self.order(&hive, Order::Start),
            Action::StopHive { hive } => self.order(&hive, Order::Stop),
            Action::Provision { hive, model } => self.provision(hive, model),
            Action::Spawn {
                hive,
                worker,
                devices,
                model_path,
                for_job,
            } => {
                tracing::info!(%hive, worker = %worker.id, model = %worker.model, "spawning");
                let flow = for_job.and_then(|job| core.flows.get(&job));
                let order = Order::Spawn {
                    worker,
                    devices,
                    model_path,
                    correlation_id: flow.map(|flow| flow.call.correlation_id.clone()),
                };
                self.order(&hive, order);
            }
            Action::StopWorker { hive, worker } => {
                tracing::info!(%hive, %worker, "stopping a worker");
                self.order(&hive, Order::StopWorker(worker));
            }
            Action::CheckHive { hive } => self.order(&hive, Order::Check),
            Action::CheckWorker { worker } => self.check_worker(worker, None),
            Action::AskWhatIsServed { worker } => self.ask_what_is_served(worker),
            Action::CancelOnWorker { worker, job } => self.check_worker(worker, Some(job)),
        }
    }

    fn order(self: &Arc<Self>, hive: &HiveId, order: Order) {
        let is_start = matches!(order, Order::Start);
        if self.hives.order(hive, order) {
            return;
        }
        tracing::debug!(%hive, is_start, "an order for a hive that nobody serves");
        if !is_start {
            return;
        }
        // Who waits for the start must hear of it. By a task: the brain is just deciding.
        let error = Error::new(
            Code::HiveUnreachable,
            format!(
                "hive {hive} is not served: the queen can't use its registration, or is shutting \
                 down; register it again"
            ),
        );
        let (driver, hive) = (self.clone(), hive.clone());
        self.spawn(async move {
            driver.feed(Event::HiveStarted {
                hive,
                result: Err(error),
            });
        });
    }

    fn ask_what_is_served(self: &Arc<Self>, worker: Arc<WorkerSpec>) {
        let driver = self.clone();
        self.spawn(async move {
            let asked = driver
                .pool
                .served_models(&worker, driver.config.timeouts.health);
            let names = tokio::select! {
                names = asked => names,
                () = driver.stop.cancelled() => return,
            };
            driver.feed(Event::WorkerServes {
                worker: worker.id.clone(),
                names,
            });
        });
    }

    /// Asks a worker whether it answers, after it was told that nobody waits for `cancelled`. One
    /// check of a worker runs at a time.
    pub(in crate::orchestrator) fn check_worker(
        self: &Arc<Self>,
        worker: Arc<WorkerSpec>,
        cancelled: Option<JobId>,
    ) {
        let driver = self.clone();
        self.spawn(async move {
            let check = async {
                if let Some(job) = cancelled {
                    driver
                        .pool
                        .cancel(&worker, job, driver.config.timeouts.health)
                        .await;
                }
                if !driver.checking().insert(worker.id.clone()) {
                    return None;
                }
                let begun = driver.clock.now().mono;
                let health = driver.config.timeouts.health;
                let answers = loop {
                    match driver.pool.is_healthy(&worker, health).await {
                        Some(answers) => break answers,
                        // The queen's own trouble says nothing about a worker.
                        None => tokio::time::sleep(CHECK_AGAIN).await,
                    }
                };
                driver.checking().remove(&worker.id);
                Some((answers, begun))
            };
            let checked = tokio::select! {
                checked = check => checked,
                () = driver.stop.cancelled() => None,
            };
            if let Some((answers, begun)) = checked {
                tracing::debug!(worker = %worker.id, answers, "checked a worker");
                driver.feed(Event::WorkerChecked {
                    worker: worker.id.clone(),
                    answers,
                    begun,
                });
            }
        });
    }

    fn checking(&self) -> MutexGuard<'_, HashSet<WorkerId>> {
        self.checking.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How long after a check that the queen's own trouble prevented the next is tried.
const CHECK_AGAIN: Duration = Duration::from_secs(1);

fn retry_narration(job: JobId, attempt: Attempt, failed: bool, error: &Error) -> Narration {
    let came_to = match failed {
        true => "failed and is tried again",
        false => "is tried again, which counts as no failure",
    };
    Narration {
        actor: "queen",
        action: "retry",
        target: job.to_string(),
        human: format!("Attempt {attempt} {came_to}: {}", error.message),
    }
}
