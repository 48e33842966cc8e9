//! Each worker in turn.

use std::collections::HashMap;

use super::{ClusterView, Placement, PlacementRequest, Scheduler, place_new_worker};
use crate::domain::{ModelRef, WorkerId};

/// The workers with the model in turn, by id; those without a free slot are passed over, and those of
/// last resort while another has one.
#[derive(Debug, Default)]
pub struct RoundRobin {
    last: HashMap<ModelRef, WorkerId>,
}

impl Scheduler for RoundRobin {
    fn name(&self) -> &'static str {
        "round-robin"
    }

    fn place(&mut self, request: &PlacementRequest<'_>, view: &ClusterView<'_>) -> Placement {
        let last = self.last.get(request.model);
        let free = || {
            view.candidates(request)
                .filter(|worker| worker.slots_free() > 0)
        };
        let any_better = free().any(|worker| !worker.is_last_resort(view.now));
        let free = || free().filter(|worker| !(any_better && worker.is_last_resort(view.now)));
        let after = free().find(|worker| last.is_none_or(|last| worker.spec.id > *last));
        let Some(worker) = after.or_else(|| free().next()) else {
            return place_new_worker(request, view);
        };
        let id = worker.spec.id.clone();
        self.last.insert(request.model.clone(), id.clone());
        Placement::Route {
            worker: id,
            why: "has the model; its turn".to_owned(),
        }
    }
}
