//! Which hives a list is asked for. All that is said must hold.

use super::{Context, read};
use crate::domain::{Device, HiveStatus, ModelRef};
use crate::error::{Error, Result};
use crate::orchestrator::has_model;
use crate::scheduler::Hive;

/// The kind of device that is no GPU.
const CPU: &str = "cpu";

#[derive(Debug, Default)]
pub(super) struct HiveFilter {
    status: Option<HiveStatus>,
    backend: Option<String>,
    gpu: Option<Gpu>,
    min_vram_bytes: Option<u64>,
    model: Option<ModelRef>,
    /// `key`, or `key` and its value.
    labels: Vec<(String, Option<String>)>,
}

#[derive(Debug)]
enum Gpu {
    Any,
    None,
    /// One with this in its name, in lower case.
    Named(String),
}

impl HiveFilter {
    /// What the query says.
    ///
    /// # Errors
    /// `INVALID_REQUEST`, naming the key.
    pub(super) fn of(context: &Context<'_>) -> Result<Self> {
        let text = |key| read::query(context, key);
        let labels = read::queries(context, "label");
        Ok(HiveFilter {
            status: text("status").as_deref().map(status).transpose()?,
            backend: text("backend"),
            gpu: text("gpu").as_deref().map(gpu),
            min_vram_bytes: text("min_vram_bytes").as_deref().map(bytes).transpose()?,
            model: text("model")
                .map(|name| context.orchestrator.model_named(&name))
                .transpose()
                .map_err(|error| error.param("model"))?,
            labels: labels.iter().map(|label| split(label)).collect(),
        })
    }

    pub(super) fn wants(&self, hive: &Hive) -> bool {
        let devices = hive
            .capabilities()
            .map_or(&[] as &[Device], |report| &report.devices);
        self.status.is_none_or(|status| hive.status == status)
            && self
                .backend
                .as_deref()
                .is_none_or(|backend| has_backend(hive, backend))
            && self.gpu.as_ref().is_none_or(|gpu| gpu.is_among(devices))
            && self
                .min_vram_bytes
                .is_none_or(|bytes| devices.iter().any(|d| d.vram_total_bytes >= bytes))
            && self
                .model
                .as_ref()
                .is_none_or(|model| has_model(hive, model))
            && self.labels.iter().all(|(key, wanted)| {
                let value = hive.record.spec.labels.get(key);
                value.is_some_and(|value| wanted.as_ref().is_none_or(|wanted| wanted == value))
            })
    }
}

impl Gpu {
    fn is_among(&self, devices: &[Device]) -> bool {
        let mut gpus = devices.iter().filter(|device| device.backend != CPU);
        match self {
            Gpu::Any => gpus.next().is_some(),
            Gpu::None => gpus.next().is_none(),
            Gpu::Named(name) => gpus.any(|gpu| gpu.name.to_lowercase().contains(name)),
        }
    }
}

/// What it reported counts; what its registration says, until it has.
fn has_backend(hive: &Hive, backend: &str) -> bool {
    let backends = match hive.capabilities() {
        Some(report) => &report.backends,
        None => &hive.record.spec.backends,
    };
    backends.iter().any(|known| known == backend)
}

fn status(text: &str) -> Result<HiveStatus> {
    serde_json::from_value(text.into()).map_err(|_| {
        let message = format!("status is {text:?}, must be online, offline, starting or error");
        Error::invalid(message).param("status")
    })
}

fn gpu(text: &str) -> Gpu {
    match text.to_lowercase().as_str() {
        "true" | "1" => Gpu::Any,
        "false" | "0" => Gpu::None,
        name => Gpu::Named(name.to_owned()),
    }
}

fn bytes(text: &str) -> Result<u64> {
    text.parse().map_err(|_| {
        let message = format!("min_vram_bytes is {text:?}, must be a number of bytes");
        Error::invalid(message).param("min_vram_bytes")
    })
}

fn split(label: &str) -> (String, Option<String>) {
    match label.split_once('=') {
        Some((key, value)) => (key.to_owned(), Some(value.to_owned())),
        None => (label.to_owned(), None),
    }
}
