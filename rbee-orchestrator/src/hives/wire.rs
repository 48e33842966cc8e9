//! What hives say, read with lenience: unknown fields are ignored, null is absent, numbers may be
//! text, and an entry that makes no sense is left out instead of spoiling the whole answer.

use std::fmt;

use serde::Serialize;
use serde_json::Value;

use super::lenient::{list, logged, number, small, text};
use crate::domain::{
    Capabilities, Device, HiveId, HiveModel, ModelRef, WorkerId, WorkerProtocol, WorkerSpec,
};
use crate::error::{Code, Error, Result};

/// What to spawn: the body of `POST /v1/workers/spawn`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SpawnRequest {
    /// The model.
    pub model_ref: ModelRef,
    /// Kind of device.
    pub backend: String,
    /// The device, or the first of several.
    pub device: u32,
    /// All devices when it takes more than one.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub devices: Vec<u32>,
    /// Older hives want a path; empty lets the hive find the model.
    pub model_path: String,
    /// The id that the queen minted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub worker_id: Option<WorkerId>,
    /// Requests to serve at once; the hive chooses if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub slots: Option<u32>,
    /// More arguments for the engine.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub args: Vec<String>,
}

impl SpawnRequest {
    /// A worker for a model on one device, with an id that the queen minted.
    #[must_use]
    pub fn new(worker: WorkerId, model: ModelRef, backend: impl Into<String>, device: u32) -> Self {
        SpawnRequest {
            model_ref: model,
            backend: backend.into(),
            device,
            devices: Vec::new(),
            model_path: String::new(),
            worker_id: Some(worker),
            slots: None,
            args: Vec::new(),
        }
    }
}

/// The key of one engine. Its debug form does not show it.
#[derive(Clone, PartialEq, Eq)]
pub struct ApiKey(String);

impl std::ops::Deref for ApiKey {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ApiKey(…)")
    }
}

/// What a hive answered to a spawn.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpawnAnswer {
    /// The hive's name for the worker; older hives mint their own.
    pub worker_id: WorkerId,
    /// Where it will answer, if the hive knows already.
    pub url: Option<String>,
    /// How far it is.
    pub state: HiveWorkerState,
    /// The key that its engine asks for.
    pub api_key: Option<ApiKey>,
}

/// How far a worker is, as its hive sees it. Whether it can take work is for its own health check
/// and the queen's leases to say.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum HiveWorkerState {
    /// It starts, or loads its model.
    #[default]
    Loading,
    /// It runs: idle or busy.
    Ready,
    /// It is being stopped.
    Stopping,
    /// It has exited or could not be started.
    Failed,
    /// The hive used a word that is not known here.
    Unknown,
}

impl HiveWorkerState {
    fn parse(text: &str) -> Self {
        match text.to_ascii_lowercase().as_str() {
            "loading" | "starting" | "spawning" | "initializing" | "pending" => Self::Loading,
            "ready" | "idle" | "busy" | "running" | "healthy" | "active" => Self::Ready,
            "stopping" | "draining" | "terminating" => Self::Stopping,
            "failed" | "error" | "crashed" | "exited" | "stopped" | "dead" => Self::Failed,
            _ => Self::Unknown,
        }
    }
}

/// A worker in a hive's list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HiveWorker {
    /// Its id.
    pub id: WorkerId,
    /// Its base URL as the hive's machine sees it; empty while the hive does not know.
    pub url: String,
    /// The model it serves.
    pub model_ref: ModelRef,
    /// Kind of device; empty when the hive does not say.
    pub backend: String,
    /// Device number; 0 when the hive does not say.
    pub device: u32,
    /// How far it is.
    pub state: HiveWorkerState,
    /// Requests it serves at once; at least 1.
    pub slots_total: u32,
    /// Its process on the hive's machine.
    pub pid: Option<u32>,
    /// Memory it takes, in bytes; 0 when unknown.
    pub vram_bytes: u64,
    /// What it speaks; `None` from older hives, whose workers speak `rbee`.
    pub protocol: Option<WorkerProtocol>,
    /// The name by which it knows the model, where that differs.
    pub served_model: Option<String>,
    /// Why it failed.
    pub error: Option<String>,
    /// The key that its engine asks for.
    pub api_key: Option<ApiKey>,
}

impl HiveWorker {
    /// The worker as the registry knows it.
    ///
    /// # Errors
    /// `UPSTREAM_INVALID` when its URL names no host and port.
    pub fn spec(&self, hive: &HiveId) -> Result<WorkerSpec> {
        let address = crate::domain::host_and_port(&self.url);
        let Some((host, port)) = address else {
            return Err(Error::new(
                Code::UpstreamInvalid,
                format!("hive {hive} gave worker {} the URL {:?}", self.id, self.url),
            ));
        };
        Ok(WorkerSpec {
            id: self.id.clone(),
            hive: Some(hive.clone()),
            model: self.model_ref.clone(),
            served_model: self.served_model.clone(),
            backend: self.backend.clone(),
            device: self.device,
            host,
            port,
            protocol: self.protocol.unwrap_or(WorkerProtocol::Rbee),
            slots_total: self.slots_total,
            vram_bytes: self.vram_bytes,
            authorization: None,
        })
    }
}

/// Reads the answer of `GET /v1/workers/list`; `None` if it is not one.
pub(super) fn read_workers(body: &Value) -> Option<Vec<HiveWorker>> {
    let workers = body.get("workers")?.as_array()?;
    Some(
        workers
            .iter()
            .filter_map(|w| logged("worker", w, read_worker))
            .collect(),
    )
}

fn read_worker(worker: &Value) -> Option<HiveWorker> {
    Some(HiveWorker {
        id: WorkerId::new(text(worker, &["id", "worker_id"])?).ok()?,
        url: text(worker, &["url"]).unwrap_or_default(),
        model_ref: ModelRef::from_name(&text(worker, &["model_ref", "model"])?).ok()?,
        backend: text(worker, &["backend"]).unwrap_or_default(),
        device: small(worker, &["device"]).unwrap_or(0),
        state: state(worker),
        slots_total: small(worker, &["slots_total"]).unwrap_or(1).max(1),
        pid: small(worker, &["pid"]),
        vram_bytes: number(worker, &["vram_bytes"]).unwrap_or(0),
        protocol: text(worker, &["protocol"]).and_then(|p| read_protocol(&p)),
        served_model: text(worker, &["served_model"]),
        error: text(worker, &["error", "reason"]),
        api_key: key(worker),
    })
}

fn key(of: &Value) -> Option<ApiKey> {
    let key = text(of, &["api_key"]).filter(|key| !key.is_empty());
    key.map(ApiKey)
}

fn read_protocol(text: &str) -> Option<WorkerProtocol> {
    match text.to_ascii_lowercase().as_str() {
        "openai" => Some(WorkerProtocol::OpenAi),
        "rbee" => Some(WorkerProtocol::Rbee),
        _ => None,
    }
}

fn state(of: &Value) -> HiveWorkerState {
    text(of, &["state", "status"])
        .map_or(HiveWorkerState::default(), |s| HiveWorkerState::parse(&s))
}

/// Reads the answer of `POST /v1/workers/spawn`; `None` if it is not one.
pub(super) fn read_spawn(body: &Value) -> Option<SpawnAnswer> {
    Some(SpawnAnswer {
        worker_id: WorkerId::new(text(body, &["worker_id", "id"])?).ok()?,
        url: text(body, &["url"]).filter(|url| !url.is_empty()),
        state: state(body),
        api_key: key(body),
    })
}

/// Reads the answer of `GET /v1/capabilities`; `None` if it is not one.
pub(super) fn read_capabilities(body: &Value) -> Option<Capabilities> {
    let body = body.as_object().map(|_| body)?;
    let devices: Vec<Device> = list(body, "devices")
        .iter()
        .enumerate()
        .filter_map(|(at, device)| logged("device", device, |d| read_device(d, at)))
        .collect();
    let mut backends: Vec<String> = list(body, "backends")
        .iter()
        .filter_map(|b| b.as_str().map(str::to_owned))
        .collect();
    for device in &devices {
        if !backends.contains(&device.backend) {
            backends.push(device.backend.clone());
        }
    }
    let models = list(body, "models").iter();
    Some(Capabilities {
        devices,
        backends,
        models: models
            .filter_map(|m| logged("model", m, read_model))
            .collect(),
        disk_free_bytes: number(body, &["disk_free_bytes"]),
    })
}

fn read_device(device: &Value, at: usize) -> Option<Device> {
    Some(Device {
        index: small(device, &["index", "device"]).or(u32::try_from(at).ok())?,
        backend: text(device, &["backend"])?,
        name: text(device, &["name"]).unwrap_or_default(),
        vram_total_bytes: number(device, &["vram_total_bytes"]).unwrap_or(0),
        vram_free_bytes: number(device, &["vram_free_bytes"]).unwrap_or(0),
    })
}

fn read_model(model: &Value) -> Option<HiveModel> {
    let aliases = list(model, "aliases").iter();
    Some(HiveModel {
        model_ref: ModelRef::from_name(&text(model, &["model_ref", "id"])?).ok()?,
        aliases: aliases
            .filter_map(|a| a.as_str().map(str::to_owned))
            .collect(),
        size_bytes: number(model, &["size_bytes"]).unwrap_or(0),
        vram_bytes: number(model, &["vram_bytes"]),
        removable: model["removable"].as_bool().unwrap_or(true),
        local_path: None,
    })
}

/// Code and message of a hive's error: ours, `{"error": "text"}`, `{"message": "text"}`, or text.
pub(super) fn read_error(body: &[u8]) -> (Option<String>, String) {
    const LONGEST: usize = 1000;
    let parsed = serde_json::from_slice::<Value>(body).unwrap_or_default();
    let error = parsed.get("error").unwrap_or(&parsed);
    let code = text(error, &["code"]).or_else(|| text(&parsed, &["code"]));
    let message = match error {
        Value::String(message) => Some(message.clone()),
        object => text(object, &["message"]).or_else(|| text(&parsed, &["message"])),
    };
    let message = message.unwrap_or_else(|| String::from_utf8_lossy(body).trim().to_owned());
    (code, message.chars().take(LONGEST).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_full_worker_is_read_and_becomes_a_spec() {
        let body = json!({"workers": [{"id": "w1", "url": "http://127.0.0.1:8001/", "device": 1,
            "model_ref": "file:a.gguf", "backend": "cuda", "state": "idle", "slots_total": 4,
            "slots_available": 4, "pid": 77, "vram_bytes": 5, "protocol": "openai",
            "served_model": "a", "new_field": {}}]});
        let workers = read_workers(&body).expect("a list");
        assert_eq!(workers[0].state, HiveWorkerState::Ready);
        assert_eq!(workers[0].pid, Some(77));
        let spec = workers[0]
            .spec(&HiveId::localhost())
            .expect("the URL has host and port");
        assert_eq!((spec.host.as_str(), spec.port), ("127.0.0.1", 8001));
        assert_eq!((spec.slots_total, spec.device, spec.vram_bytes), (4, 1, 5));
        assert_eq!(spec.protocol, WorkerProtocol::OpenAi);
    }

    #[test]
    fn an_older_hives_worker_is_read_as_far_as_it_goes() {
        let body = json!({"workers": [{"worker_id": "9f", "model_ref": "org/repo", "url": null,
            "device": "2", "slots_total": null, "slots_available": 0, "state": "Idle",
            "pid": null, "error": null}]});
        let worker = &read_workers(&body).expect("a list")[0];
        assert_eq!(worker.model_ref.as_str(), "hf:org/repo");
        assert_eq!(
            (worker.device, worker.slots_total, worker.protocol),
            (2, 1, None)
        );
        assert_eq!(worker.state, HiveWorkerState::Ready);
        assert!(
            worker.spec(&HiveId::localhost()).is_err(),
            "there is no URL yet"
        );
    }

    #[test]
    fn entries_without_sense_are_left_out_and_the_rest_stays() {
        let body = json!({"workers": [null, 7, {"id": "a b", "model_ref": "m"}, {"id": "w"},
            {"id": "w", "model_ref": "file:../etc/passwd"},
            {"id": "good", "model_ref": "m", "state": "hibernating", "url": "http://[::1]:1"}]});
        let workers = read_workers(&body).expect("a list");
        assert_eq!(workers.len(), 1);
        assert_eq!(workers[0].state, HiveWorkerState::Unknown);
        let spec = workers[0].spec(&HiveId::localhost()).expect("a URL");
        assert_eq!(spec.host, "::1");
        for not_a_list in [json!(null), json!({}), json!([]), json!({"workers": {}})] {
            assert_eq!(read_workers(&not_a_list), None);
        }
    }

    #[test]
    fn capabilities_survive_nulls_and_missing_fields() {
        let body = json!({"devices": [{"backend": "cuda", "vram_total_bytes": 1e9, "name": null},
            {"index": 5, "backend": "cpu"}, {"index": 6}], "backends": null, "disk_free_bytes": "9",
            "models": [{"model_ref": "hf:a/b", "aliases": ["x", 1], "size_bytes": 3},
                       {"model_ref": "hf:a/../b"}, {}]});
        let found = read_capabilities(&body).expect("an object");
        let indexes: Vec<u32> = found.devices.iter().map(|d| d.index).collect();
        assert_eq!(indexes, [0, 5]);
        assert_eq!(found.devices[0].vram_total_bytes, 1_000_000_000);
        assert_eq!(found.backends, ["cuda", "cpu"]);
        assert_eq!(found.models.len(), 1);
        assert_eq!(found.models[0].aliases, ["x"]);
        assert_eq!(found.disk_free_bytes, Some(9));
        assert_eq!(read_capabilities(&json!("garbage")), None);
    }

    #[test]
    fn errors_of_every_shape_give_a_message() {
        let read = |body: &str| read_error(body.as_bytes());
        let ours = read(r#"{"error":{"code":"X","message":"m"}}"#);
        assert_eq!(ours, (Some("X".into()), "m".into()));
        assert_eq!(read(r#"{"error":"m"}"#), (None, "m".into()));
        assert_eq!(
            read(r#"{"code":"X","message":"m"}"#),
            (Some("X".into()), "m".into())
        );
        assert_eq!(read("plain\n"), (None, "plain".into()));
        assert_eq!(read(""), (None, String::new()));
    }

    #[test]
    fn a_spawn_leaves_out_what_is_not_set() {
        let model = ModelRef::new("file:a.gguf").expect("a reference");
        let worker = WorkerId::new("w1").expect("an id");
        let sent = serde_json::to_value(SpawnRequest::new(worker, model, "cpu", 0));
        let expected = json!({"model_ref": "file:a.gguf", "backend": "cpu", "device": 0,
            "model_path": "", "worker_id": "w1"});
        assert_eq!(sent.expect("plain data"), expected);
    }
}
