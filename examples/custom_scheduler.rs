//! A scheduler from scratch: fill one worker before the next is touched, and put a new worker on
//! the device with the least memory that still fits it, so that large devices stay free for large
//! models. (The default, `LeastLoaded`, does the opposite of both.)
//! Runs two tasks at once and prints why each ran where it did.
//! ```sh
//! tests/parts.sh && . .cache/parts.env       # an engine and a small model, if you have none
//! cargo build -p rbee-hive
//! PATH=$PWD/target/debug:$PATH cargo run -p rbee-examples --example custom_scheduler
//! ```

use anyhow::{Context, Result};
use rbee_orchestrator::domain::{Device, HiveStatus, TaskRequest};
use rbee_orchestrator::scheduler::{ClusterView, Hive, Placement, PlacementRequest, Scheduler};
use rbee_orchestrator::{Code, Error, Orchestrator};

/// It has no state of its own. One that has may keep it: `place` takes `&mut self`.
struct PackTight;

impl Scheduler for PackTight {
    fn name(&self) -> &'static str {
        "pack-tight"
    }

    fn place(&mut self, request: &PlacementRequest<'_>, view: &ClusterView<'_>) -> Placement {
        // Ties must be broken by something that is the same every time: workers come by id.
        let with_room = view.candidates(request).filter(|w| w.slots_free() > 0);
        if let Some(worker) = with_room.max_by_key(|worker| worker.leases) {
            return Placement::Route {
                worker: worker.spec.id.clone(),
                why: format!("the fullest with room: {} slots taken", worker.leases),
            };
        }
        match view.candidates(request).next() {
            Some(_busy_or_loading) => Placement::Wait,
            None => new_worker(request, view),
        }
    }
}

fn new_worker(request: &PlacementRequest<'_>, view: &ClusterView<'_>) -> Placement {
    let wanted = request.constraints;
    let mut tightest: Option<(u64, &Hive, &Device)> = None;
    let mut otherwise = Placement::Reject(Error::new(Code::NoCapacity, "no hive can take it"));
    for hive in view.hives.values() {
        let allowed = wanted.hive.as_ref().is_none_or(|only| only == hive.id());
        let (report, model) = (hive.capabilities(), hive.model(request.model));
        // A hive that never reported may have the model; it must start to tell.
        if !allowed || (report.is_some() && model.is_none()) {
            continue;
        }
        match hive.status {
            HiveStatus::Starting => otherwise = Placement::Wait,
            _ if view.can_start(hive) => otherwise = Placement::StartHive(hive.id().clone()),
            _ => {}
        }
        let devices = report.filter(|_| hive.status == HiveStatus::Online);
        for device in devices.map_or(&[][..], |report| &report.devices) {
            let free = view.free_bytes(hive.id(), device);
            let fits = wanted.backend.as_ref().is_none_or(|b| *b == device.backend)
                && wanted.device.is_none_or(|index| index == device.index)
                && view.has_room(hive, device, model.and_then(|m| m.vram_bytes).unwrap_or(0));
            if fits && tightest.is_none_or(|(least, ..)| free < least) {
                tightest = Some((free, hive, device));
            }
        }
    }
    let Some((_, hive, device)) = tightest else {
        return otherwise;
    };
    Placement::Spawn {
        hive: hive.id().clone(),
        backend: device.backend.clone(),
        devices: vec![device.index],
        evict: Vec::new(),
    }
}

#[tokio::main]
async fn main() -> Result<()> {
    let orchestrator = Orchestrator::builder().scheduler(PackTight).start().await?;
    let answered = tokio::select! {
        answered = ask(&orchestrator) => answered,
        _ = tokio::signal::ctrl_c() => Ok(()),
    };
    orchestrator.shutdown().await;
    answered
}

async fn ask(orchestrator: &Orchestrator) -> Result<()> {
    let task = || TaskRequest::prompt("smollm2", "Once upon a time").max_tokens(12);
    let mut first = orchestrator.submit(task()).await?;
    let mut second = orchestrator.submit(task()).await?;
    tokio::try_join!(first.finished(), second.finished())?;
    for job in [first.job(), second.job()] {
        let task = orchestrator.task(job).await?;
        println!("{job}: {}", task.placed.context("it ran nowhere")?.why);
    }
    Ok(())
}
