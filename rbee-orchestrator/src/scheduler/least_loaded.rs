//! The default policy.

use std::cmp::Reverse;

use super::{ClusterView, Placement, PlacementRequest, Scheduler, place_new_worker};
use crate::domain::{Device, Worker};

/// The worker with the model and the smallest share of its slots taken; ties go to the device with
/// more free memory, then to the worker that was used least recently. Workers of last resort come after all
/// others.
#[derive(Debug, Default, Clone, Copy)]
pub struct LeastLoaded;

impl Scheduler for LeastLoaded {
    fn name(&self) -> &'static str {
        "least-loaded"
    }

    fn place(&mut self, request: &PlacementRequest<'_>, view: &ClusterView<'_>) -> Placement {
        let free = view
            .candidates(request)
            .filter(|worker| worker.slots_free() > 0);
        let best = free.min_by_key(|worker| {
            // A share in millionths orders like the fraction and can be compared exactly.
            let taken = u64::from(worker.leases) * 1_000_000 / u64::from(worker.spec.slots_total);
            (
                worker.is_last_resort(view.now),
                taken,
                Reverse(device_free_bytes(worker, view)),
                worker.last_used,
            )
        });
        let Some(worker) = best else {
            return place_new_worker(request, view);
        };
        let why = match worker.leases {
            0 => "has the model and is idle".to_owned(),
            taken => {
                let slots = worker.spec.slots_total;
                format!("has the model; {taken} of {slots} slots taken, the smallest share")
            }
        };
        Placement::Route {
            worker: worker.spec.id.clone(),
            why,
        }
    }
}

fn device_free_bytes(worker: &Worker, view: &ClusterView<'_>) -> u64 {
    let hive = worker.spec.hive.as_ref().and_then(|id| view.hives.get(id));
    let devices = hive
        .and_then(|hive| hive.capabilities())
        .map(|c| c.devices.as_slice());
    let is_its = |device: &&Device| device.index == worker.spec.device;
    devices
        .and_then(|devices| devices.iter().find(is_its))
        .map_or(0, |d| d.vram_free_bytes)
}
