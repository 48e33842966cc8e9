//! The hive's workers: asked for, shown what they may see, and ended.

use std::sync::Arc;

use http::HeaderValue;

use super::HiveActor;
use crate::brain::{Event, Spawned};
use crate::domain::{WorkerId, WorkerSpec};
use crate::error::Result;
use crate::hives::{SpawnRequest, bearer};

impl HiveActor {
    pub(super) async fn spawn(
        &self,
        worker: Arc<WorkerSpec>,
        devices: Vec<u32>,
        model_path: Option<String>,
        correlation_id: Option<String>,
    ) {
        let mut request = SpawnRequest::new(
            worker.id.clone(),
            worker.model.clone(),
            worker.backend.clone(),
            worker.device,
        );
        request.slots = self.driver.config.hives.worker_slots;
        request.model_path = model_path.unwrap_or_default();
        if devices.len() > 1 {
            request.devices = devices;
        }
        let result = self.ask_for(&request, correlation_id).await;
        if let Err(error) = &result {
            tracing::warn!(hive = %self.handle.id(), worker = %worker.id, %error, "spawn refused");
        }
        self.driver.feed(Event::SpawnAnswered {
            worker: worker.id.clone(),
            result,
        });
    }

    async fn ask_for(
        &self,
        request: &SpawnRequest,
        correlation_id: Option<String>,
    ) -> Result<Spawned> {
        let mut client = self.client()?;
        if let Some(id) = correlation_id {
            client = client.correlated(&id);
        }
        let answer = client.spawn(request).await?;
        let address = answer.url.as_deref().and_then(crate::domain::host_and_port);
        let (host, port) = address.unwrap_or_default();
        Ok(Spawned {
            id: answer.worker_id,
            host,
            port,
            authorization: self.authorization(answer.api_key.as_deref()),
        })
    }

    /// What a worker is shown: the key that was made for it, so that it sees no more than it needs.
    pub(super) fn authorization(&self, key: Option<&str>) -> Option<HeaderValue> {
        bearer(key.unwrap_or_else(|| self.handle.token().expose()))
    }

    /// A worker that its hive does not end keeps its place, and is tried again at each check.
    pub(super) async fn stop_worker(&mut self, worker: WorkerId) {
        let stopped = match self.client() {
            Ok(client) => client.shutdown_worker(worker.as_str(), None).await,
            Err(error) => Err(error),
        };
        let hive = self.handle.id();
        let known = self.unstopped.iter().position(|id| *id == worker);
        match (stopped, known) {
            (Ok(()), known) => {
                known.map(|at| self.unstopped.swap_remove(at));
                self.driver.feed(Event::WorkerStopped { worker });
            }
            // It says no, and will not say yes: the worker is not its own, or it can't stop any.
            (Err(error), known) if (400..500).contains(&error.code.status()) => {
                known.map(|at| self.unstopped.swap_remove(at));
                tracing::warn!(%hive, %worker, %error, "the worker can't be stopped");
                self.driver.feed(Event::WorkerNotStopped { worker, error });
            }
            (Err(error), None) => {
                tracing::warn!(%hive, %worker, %error, "the worker was not stopped; trying again");
                self.unstopped.push(worker);
            }
            (Err(error), Some(_)) => {
                tracing::debug!(%hive, %worker, %error, "the worker was not stopped again");
            }
        }
    }
}
