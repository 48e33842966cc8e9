//! Who is at which address. A hive gives ports out again, and the process that had one may live on: what answers
//! there then is another model. So an address at which a worker answered, and that was not seen to end, is given
//! to a worker of another model only when what is served there fits.

use crate::domain::{HiveId, ModelRef, Mono, Now, Prospect, Worker, WorkerId, WorkerSpec};
use crate::error::{Code, Error};

use super::Brain;
use super::action::Action;
use super::workers::GONE_FOR;

/// Addresses that are remembered, at most.
const REMEMBERED: usize = 4096;

/// A place on a hive's machine.
pub(super) type Address = (HiveId, String, u16);

/// The last worker that answered at an address.
#[derive(Debug)]
pub(super) struct Holder {
    worker: WorkerId,
    model: ModelRef,
    served_model: Option<String>,
    /// When its process has ended for certain; `None` while nobody has said that it was stopped.
    ended_at: Option<Mono>,
}

/// Whose address it is; servers that no hive owns are at the address that their administrator says.
fn address(spec: &WorkerSpec) -> Option<Address> {
    let hive = spec.hive.clone()?;
    Some((hive, spec.host.clone(), spec.port))
}

/// The last part of a name, as a file's: engines that were not told a name serve a file's path.
fn file_name(name: &str) -> &str {
    name.rsplit(['/', ':', '\\']).next().unwrap_or(name)
}

fn is_called(model: &ModelRef, served_model: Option<&str>, name: &str) -> bool {
    name == model.as_str()
        || served_model == Some(name)
        || file_name(name).eq_ignore_ascii_case(file_name(model.as_str()))
}

impl Brain {
    /// Whether a worker may be used at its address; if not, what is served there is asked.
    pub(super) fn has_its_address(
        &mut self,
        now: Now,
        id: &WorkerId,
        out: &mut Vec<Action>,
    ) -> bool {
        let Some(worker) = self.workers.get_mut(id) else {
            return false;
        };
        let spec = worker.spec.clone();
        let Some(address) = address(&spec) else {
            return true;
        };
        let is_free = self.addresses.get(&address).is_none_or(|holder| {
            holder.worker == *id
                || holder.model == spec.model
                || holder.ended_at.is_some_and(|at| at <= now.mono)
        });
        if is_free {
            self.take_address(address, &spec);
            return true;
        }
        worker.ready = false;
        worker.prospect = Prospect::Checked;
        out.push(Action::AskWhatIsServed { worker: spec });
        false
    }

    fn take_address(&mut self, address: Address, spec: &WorkerSpec) {
        if self.addresses.len() >= REMEMBERED {
            let workers = &self.workers;
            self.addresses
                .retain(|_, holder| workers.contains(&holder.worker));
        }
        let holder = Holder {
            worker: spec.id.clone(),
            model: spec.model.clone(),
            served_model: spec.served_model.clone(),
            ended_at: None,
        };
        self.addresses.insert(address, holder);
    }

    /// A worker at an address that was another's told the names of what it serves; `None` if it can't.
    pub(super) fn told_what_is_served(
        &mut self,
        now: Now,
        id: &WorkerId,
        names: Option<Vec<String>>,
        out: &mut Vec<Action>,
    ) {
        let Some(spec) = self.workers.get(id).map(|worker| worker.spec.clone()) else {
            return;
        };
        let Some(address) = address(&spec) else {
            return;
        };
        let Some(holder) = self.addresses.get(&address) else {
            return self.mark_ready(now, id, out);
        };
        let names = names.unwrap_or_default();
        let serves = |model: &ModelRef, served: Option<&str>| {
            names.iter().any(|name| is_called(model, served, name))
        };
        if serves(&spec.model, spec.served_model.as_deref()) {
            let old = holder.worker.clone();
            self.take_address(address, &spec);
            self.mark_ready(now, id, out);
            let error = Error::new(
                Code::WorkerFailed,
                format!("worker {id} answers where worker {old} was"),
            );
            let is_still_there = |old: &Worker| old.spec.port == spec.port;
            if self.workers.get(&old).is_some_and(is_still_there) {
                self.lose_worker(now, &old, &error, out);
            }
            return;
        }
        if serves(&holder.model, holder.served_model.as_deref()) {
            let error = Error::new(
                Code::WorkerFailed,
                format!(
                    "worker {id} for model {} is said to be at {}:{}, where {} of worker {} is still \
                     served",
                    spec.model, spec.host, spec.port, holder.model, holder.worker
                ),
            );
            tracing::warn!("{}", error.message);
            self.stop_worker(now, id, out);
            self.worker_failed(now, id, &error, out);
        }
        // Else nobody can tell: it is used when the other has ended for certain, and asked until then.
    }

    /// The process of a worker has ended: its hive says so, who waited for it.
    pub(super) fn free_address(&mut self, id: &WorkerId) {
        if let Some(address) = self.held_by(id) {
            self.addresses.remove(&address);
        }
    }

    /// A hive has been told to stop a worker, and has agreed: its process ends within its grace.
    pub(super) fn free_address_soon(&mut self, now: Now, id: &WorkerId) {
        let address = self.held_by(id);
        if let Some(holder) = address.and_then(|address| self.addresses.get_mut(&address)) {
            holder.ended_at = Some(now.mono + GONE_FOR);
        }
    }

    fn held_by(&self, id: &WorkerId) -> Option<Address> {
        let address = address(&self.workers.get(id)?.spec)?;
        let holder = self.addresses.get(&address)?;
        (holder.worker == *id).then_some(address)
    }
}
