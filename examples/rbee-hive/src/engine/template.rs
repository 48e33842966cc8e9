//! Templates: texts with placeholders in braces.

use crate::worker::ApiKey;

pub(super) const PLACEHOLDERS: [&str; 11] = [
    "bin",
    "model_path",
    "model_ref",
    "host",
    "port",
    "api_key",
    "slots",
    "context",
    "context_total",
    "device",
    "index",
];

/// What the placeholders of a template stand for.
#[derive(Debug, Clone)]
pub(crate) struct Values {
    pub(crate) model_path: String,
    pub(crate) model_ref: String,
    pub(crate) host: String,
    pub(crate) port: u16,
    /// None for an engine that takes none.
    pub(crate) api_key: Option<ApiKey>,
    pub(crate) slots: u32,
    pub(crate) context: u64,
    pub(crate) backend: String,
    /// The device's number among those of its backend.
    pub(crate) device_ordinal: u32,
}

impl Values {
    #[cfg(test)]
    pub(super) fn for_tests(backend: &str) -> Self {
        Values {
            model_path: "/m/{port}.gguf".into(),
            model_ref: "file:m.gguf".into(),
            host: "127.0.0.1".into(),
            port: 4711,
            api_key: Some(ApiKey::mint().unwrap()),
            slots: 3,
            context: 2048,
            backend: backend.into(),
            device_ordinal: 1,
        }
    }
}

/// Names in braces. Anything else in braces, such as JSON, is left alone.
pub(super) fn placeholders(text: &str) -> impl Iterator<Item = &str> {
    text.split('{').skip(1).filter_map(|rest| {
        let (name, _) = rest.split_once('}')?;
        let is_name = |c: char| c.is_ascii_lowercase() || c == '_';
        (!name.is_empty() && name.chars().all(is_name)).then_some(name)
    })
}

/// Walks the template once, so that braces in a value are never taken for a placeholder.
pub(super) fn fill(template: &str, bin: &str, values: &Values) -> String {
    let mut out = String::new();
    let mut rest = template;
    while let Some(start) = rest.find('{') {
        out.push_str(&rest[..start]);
        rest = &rest[start..];
        let name = rest[1..].split('}').next().unwrap_or_default();
        match value(name, bin, values) {
            Some(text) => {
                out.push_str(&text);
                rest = &rest[name.len() + 2..];
            }
            None => {
                out.push('{');
                rest = &rest[1..];
            }
        }
    }
    out + rest
}

fn value(name: &str, bin: &str, values: &Values) -> Option<String> {
    let context_total = values.context * u64::from(values.slots);
    Some(match name {
        "bin" => bin.to_owned(),
        "model_path" => values.model_path.clone(),
        "model_ref" => values.model_ref.clone(),
        "host" => values.host.clone(),
        "port" => values.port.to_string(),
        "api_key" => values.api_key.as_ref()?.expose().to_owned(),
        "slots" => values.slots.to_string(),
        "context" => values.context.to_string(),
        "context_total" => context_total.to_string(),
        "device" => device_name(&values.backend, values.device_ordinal),
        "index" => values.device_ordinal.to_string(),
        _ => return None,
    })
}

/// A device's name as llama.cpp has it (`llama-server --list-devices`).
fn device_name(backend: &str, ordinal: u32) -> String {
    match backend {
        "cpu" => "none".into(),
        "cuda" => format!("CUDA{ordinal}"),
        "vulkan" => format!("Vulkan{ordinal}"),
        "rocm" => format!("ROCm{ordinal}"),
        other => format!("{other}{ordinal}"),
    }
}
