//! What goes on as long as the orchestrator lives.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::{Driver, as_ms};
use crate::brain::{Event, PULSE};
use crate::domain::WorkerSpec;
use crate::router::{Flow, Patience};

impl Driver {
    /// Takes in what was sent when nobody else is about to decide.
    pub(in crate::orchestrator) async fn run_inbox(self: Arc<Self>) {
        loop {
            tokio::select! {
                () = self.inbox.arrived() => self.catch_up(),
                () = self.stop.cancelled() => return self.catch_up(),
            }
        }
    }

    /// Tells the brain when something has fallen due.
    pub(in crate::orchestrator) async fn run_timer(self: Arc<Self>) {
        loop {
            // Noted under the lock, as `set_timer` does: neither can miss what the other saw.
            let due = self.look(|brain, _| {
                let due = brain.next_due();
                self.timer_at.store(as_ms(due), Ordering::Relaxed);
                due
            });
            // A far end stands for never; something nearer wakes the timer.
            let wait = due.map_or(Duration::from_secs(3600), |at| self.clock.until(at));
            tokio::select! {
                () = tokio::time::sleep(wait) => self.feed(Event::Tick),
                () = self.timer.notified() => {}
                () = self.stop.cancelled() => return,
            }
        }
    }

    /// Lets the brain know that the queen is awake.
    pub(in crate::orchestrator) async fn run_pulse(self: Arc<Self>) {
        loop {
            self.feed(Event::Pulse);
            tokio::select! {
                () = tokio::time::sleep(PULSE) => {}
                () = self.stop.cancelled() => return,
            }
        }
    }

    /// Cuts off what stands still, and closes connections that were idle for too long.
    pub(in crate::orchestrator) async fn run_patience(self: Arc<Self>) {
        let timeouts = &self.config.timeouts;
        let patience = Patience {
            first_token: timeouts.first_token,
            between_tokens: timeouts.between_tokens,
            client_stall: timeouts.client_stall,
        };
        loop {
            tokio::select! {
                () = tokio::time::sleep(patience.period()) => {}
                () = self.stop.cancelled() => return,
            }
            self.pool.sweep();
            let flows: Vec<Arc<Flow>> = self.lock().flows.values().cloned().collect();
            self.flow_parts.ticks.advance();
            for flow in flows {
                if let Some(error) = flow.check_patience(&patience) {
                    let job = flow.id();
                    self.feed(Event::Cancel { job, error });
                }
            }
            self.catch_up();
        }
    }

    /// Checks the workers that no hive vouches for.
    pub(in crate::orchestrator) async fn run_worker_checks(self: Arc<Self>) {
        let hives = &self.config.hives;
        let mut last = Instant::now();
        loop {
            tokio::select! {
                () = tokio::time::sleep(hives.loading_interval) => {}
                () = self.stop.cancelled() => return,
            }
            let routine = last.elapsed() >= hives.check_interval;
            if routine {
                last = Instant::now();
            }
            let due: Vec<Arc<WorkerSpec>> =
                self.look(|brain, _| brain.workers_to_check(routine).cloned().collect());
            for worker in due {
                self.check_worker(worker, None);
            }
        }
    }
}
