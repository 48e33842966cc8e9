//! What a world is made of.

use std::time::Duration;

use rbee_orchestrator::brain::{SeenState, SeenWorker, WorkerCallback};
use rbee_orchestrator::domain::{
    Capabilities, Device, HiveId, HiveModel, HiveSpec, ModelRef, WorkerId, WorkerProtocol,
    WorkerSpec,
};
use rbee_orchestrator::error::{Code, Error};

pub(crate) const GIB: u64 = 1 << 30;
pub(crate) const SMOL: &str = "file:smol.gguf";
pub(crate) const BIG: &str = "file:big.gguf";

pub(crate) fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

pub(crate) fn model(name: &str) -> ModelRef {
    ModelRef::from_name(name).unwrap()
}

pub(crate) fn hive(name: &str) -> HiveId {
    HiveId::new(name).unwrap()
}

pub(crate) fn worker(name: &str) -> WorkerId {
    WorkerId::new(name).unwrap()
}

/// Where a worker is: each has a port of its own.
pub(crate) fn port_of(id: &WorkerId) -> u16 {
    let hash = id.as_str().bytes().fold(0_u32, |hash, byte| {
        hash.wrapping_mul(31).wrapping_add(u32::from(byte))
    });
    1024 + (hash % 60_000) as u16
}

pub(crate) fn failed(message: &str) -> Error {
    Error::new(Code::WorkerFailed, message)
}

/// The hive reached at `10.0.0.1`, with a name.
pub(crate) fn spec(name: &str) -> HiveSpec {
    HiveSpec {
        hostname: "10.0.0.1".into(),
        ..HiveSpec::local(hive(name))
    }
}

pub(crate) fn device(index: u32, backend: &str, free_gib: u64) -> Device {
    Device {
        index,
        backend: backend.into(),
        name: String::new(),
        vram_total_bytes: 64 * GIB,
        vram_free_bytes: free_gib * GIB,
    }
}

pub(crate) fn on_disk(name: &str, aliases: &[&str], gib: u64) -> HiveModel {
    HiveModel {
        model_ref: model(name),
        aliases: aliases.iter().map(|&a| a.to_owned()).collect(),
        size_bytes: gib * GIB,
        vram_bytes: Some(gib * GIB),
        removable: true,
        local_path: None,
    }
}

/// Smol (1 GiB, also `smol` and `tiny`) and big (6 GiB, also `big`).
pub(crate) fn report(devices: &[Device]) -> Capabilities {
    Capabilities {
        devices: devices.to_vec(),
        backends: Vec::new(),
        models: vec![
            on_disk(SMOL, &["smol", "tiny"], 1),
            on_disk(BIG, &["big"], 6),
        ],
        disk_free_bytes: None,
    }
}

pub(crate) fn seen(
    hive_name: &str,
    id: &WorkerId,
    model_name: &str,
    state: SeenState,
) -> SeenWorker {
    SeenWorker {
        spec: WorkerSpec {
            id: id.clone(),
            hive: Some(hive(hive_name)),
            model: model(model_name),
            served_model: None,
            backend: "cpu".into(),
            device: 0,
            host: "127.0.0.1".into(),
            port: port_of(id),
            protocol: WorkerProtocol::OpenAi,
            slots_total: 1,
            vram_bytes: 0,
            authorization: None,
        },
        state,
    }
}

pub(crate) fn call(id: &WorkerId, model_name: &str) -> WorkerCallback {
    WorkerCallback {
        id: id.clone(),
        hive: None,
        model: model(model_name),
        backend: "cpu".into(),
        device: None,
        host: "127.0.0.1".into(),
        port: port_of(id),
        protocol: Some(WorkerProtocol::OpenAi),
        slots_total: Some(1),
        served_model: None,
        vram_bytes: None,
        speaks_for: vec![hive("a")],
        authorization: None,
    }
}
