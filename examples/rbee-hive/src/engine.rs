//! Engines: the programs that serve a model, each described by a command template.

use std::collections::BTreeMap;
use std::env;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::bail;
use rustix::fs::Access;
use serde::{Deserialize, Serialize};

use crate::error::{ApiError, Result};

const PLACEHOLDERS: [&str; 10] = [
    "bin",
    "model_path",
    "model_ref",
    "host",
    "port",
    "slots",
    "context",
    "context_total",
    "device",
    "index",
];

/// What an engine speaks to the queen.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Protocol {
    #[default]
    Openai,
    Rbee,
}

/// `[engines.NAME]` of the configuration file.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct EngineConfig {
    command: Vec<String>,
    /// Added when the worker is placed on a GPU.
    #[serde(default)]
    gpu_args: Vec<String>,
    #[serde(default)]
    protocol: Protocol,
    #[serde(default = "default_health")]
    health: String,
    extensions: Vec<String>,
    #[serde(default)]
    env: BTreeMap<String, String>,
    /// Variables of the hive's own environment that the engine gets beside the usual ones.
    #[serde(default)]
    pass_env: Vec<String>,
    /// Whether it has llama-server's `GET /props` and `GET /slots`.
    #[serde(default)]
    llama_api: bool,
}

fn default_health() -> String {
    "/health".into()
}

#[derive(Debug)]
pub(crate) struct Engine {
    pub(crate) name: String,
    config: EngineConfig,
}

/// What the placeholders of a template stand for.
#[derive(Debug, Clone)]
pub(crate) struct Values {
    pub(crate) model_path: String,
    pub(crate) model_ref: String,
    pub(crate) host: String,
    pub(crate) port: u16,
    pub(crate) slots: u32,
    pub(crate) context: u64,
    pub(crate) backend: String,
    /// The device's number among those of its backend.
    pub(crate) device_ordinal: u32,
}

/// A command that can be run.
#[derive(Debug)]
pub(crate) struct CommandLine {
    pub(crate) program: String,
    pub(crate) args: Vec<String>,
    pub(crate) env: Vec<(String, String)>,
    pub(crate) pass_env: Vec<String>,
}

impl Engine {
    fn new(name: &str, mut config: EngineConfig) -> anyhow::Result<Self> {
        if config.command.is_empty() {
            bail!("[engines.{name}]: command is empty");
        }
        if !config.health.starts_with('/') {
            bail!("[engines.{name}]: health must be a path such as \"/health\"");
        }
        for extension in &mut config.extensions {
            *extension = extension.trim_start_matches('.').to_ascii_lowercase();
        }
        let values = config.env.values();
        for text in config.command.iter().chain(&config.gpu_args).chain(values) {
            if let Some(unknown) = placeholders(text).find(|name| !PLACEHOLDERS.contains(name)) {
                bail!(
                    "[engines.{name}]: unknown placeholder {{{unknown}}}; there are {}",
                    PLACEHOLDERS.map(|name| format!("{{{name}}}")).join(" ")
                );
            }
        }
        Ok(Engine {
            name: name.to_owned(),
            config,
        })
    }

    pub(crate) fn protocol(&self) -> Protocol {
        self.config.protocol
    }

    pub(crate) fn health(&self) -> &str {
        &self.config.health
    }

    pub(crate) fn has_llama_api(&self) -> bool {
        self.config.llama_api
    }

    /// Whether it is told the model's reference, so that it answers to that name.
    pub(crate) fn serves_model_ref(&self) -> bool {
        let mut arguments = self.config.command.iter();
        arguments.any(|argument| argument.contains("{model_ref}"))
    }

    /// The command for one worker.
    pub(crate) fn command(&self, values: &Values) -> Result<CommandLine> {
        let mut template = self.config.command.clone();
        if values.backend != "cpu" {
            template.extend(self.config.gpu_args.iter().cloned());
        }
        let bin = match template.iter().any(|text| text.contains("{bin}")) {
            true => find_llama_server()?.to_string_lossy().into_owned(),
            false => String::new(),
        };
        let mut words = template.iter().map(|text| fill(text, &bin, values));
        let env = self.config.env.iter();
        Ok(CommandLine {
            program: words.next().unwrap_or_default(),
            args: words.collect(),
            env: env
                .map(|(name, text)| (name.clone(), fill(text, &bin, values)))
                .collect(),
            pass_env: self.config.pass_env.clone(),
        })
    }
}

/// All engines, those of the configuration before the built-in one.
#[derive(Debug)]
pub(crate) struct Engines(Vec<Arc<Engine>>);

impl Engines {
    pub(crate) fn new(configured: &BTreeMap<String, EngineConfig>) -> anyhow::Result<Self> {
        let mut engines = Vec::new();
        for (name, config) in configured {
            engines.push(Arc::new(Engine::new(name, config.clone())?));
        }
        if !configured.contains_key("llama-server") {
            engines.push(Arc::new(Engine::new("llama-server", llama_server())?));
        }
        Ok(Engines(engines))
    }

    /// File name extensions that some engine serves.
    pub(crate) fn extensions(&self) -> Vec<String> {
        let engines = self.0.iter();
        engines
            .flat_map(|engine| engine.config.extensions.clone())
            .collect()
    }

    /// The first engine that serves the file.
    pub(crate) fn for_file(&self, path: &Path) -> Result<Arc<Engine>> {
        let extension = path.extension().unwrap_or_default().to_string_lossy();
        let serves = |engine: &&Arc<Engine>| {
            let mut extensions = engine.config.extensions.iter();
            extensions.any(|known| known.eq_ignore_ascii_case(&extension))
        };
        self.0.iter().find(serves).cloned().ok_or_else(|| {
            ApiError::invalid(format!(
                "no engine serves .{extension} files; there are engines for: {}",
                self.extensions().join(", ")
            ))
        })
    }
}

/// With `--pooling mean` one server answers chat, completions and embeddings.
fn llama_server() -> EngineConfig {
    let words = |text: &str| text.split(' ').map(str::to_owned).collect();
    EngineConfig {
        command: words(
            "{bin} -m {model_path} --alias {model_ref} --host {host} --port {port} -np {slots} \
             -c {context_total} --embeddings --pooling mean",
        ),
        gpu_args: words("-ngl 99 --device {device}"),
        protocol: Protocol::Openai,
        health: default_health(),
        extensions: vec!["gguf".into()],
        env: BTreeMap::new(),
        pass_env: Vec::new(),
        llama_api: true,
    }
}

/// `RBEE_LLAMA_SERVER`, then `llama-server` on `PATH`.
fn find_llama_server() -> Result<PathBuf> {
    if let Some(wanted) = env::var_os("RBEE_LLAMA_SERVER").filter(|name| !name.is_empty()) {
        return find_program(Path::new(&wanted)).ok_or_else(|| {
            ApiError::engine(format!(
                "RBEE_LLAMA_SERVER names {}, which is not an executable file",
                wanted.display()
            ))
        });
    }
    find_program(Path::new("llama-server")).ok_or_else(|| {
        ApiError::engine(
            "no llama-server on this machine: put one on PATH or name it in RBEE_LLAMA_SERVER, \
             then start the hive again (llama.cpp's releases have one for every system)",
        )
    })
}

fn find_program(name: &Path) -> Option<PathBuf> {
    let runs = |path: &PathBuf| path.is_file() && rustix::fs::access(path, Access::EXEC_OK).is_ok();
    if name.components().count() > 1 {
        return Some(name.to_owned()).filter(runs);
    }
    let folders = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&folders)
        .map(|folder| folder.join(name))
        .find(runs)
}

/// Names in braces. Anything else in braces, such as JSON, is left alone.
fn placeholders(text: &str) -> impl Iterator<Item = &str> {
    text.split('{').skip(1).filter_map(|rest| {
        let (name, _) = rest.split_once('}')?;
        let is_name = |c: char| c.is_ascii_lowercase() || c == '_';
        (!name.is_empty() && name.chars().all(is_name)).then_some(name)
    })
}

/// Walks the template once, so that braces in a value are never taken for a placeholder.
fn fill(template: &str, bin: &str, values: &Values) -> String {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn values(backend: &str) -> Values {
        Values {
            model_path: "/m/{port}.gguf".into(),
            model_ref: "file:m.gguf".into(),
            host: "127.0.0.1".into(),
            port: 4711,
            slots: 3,
            context: 2048,
            backend: backend.into(),
            device_ordinal: 1,
        }
    }

    fn engine(command: &[&str]) -> anyhow::Result<Engine> {
        let mut config = llama_server();
        config.command = command.iter().map(|&word| word.to_owned()).collect();
        Engine::new("test", config)
    }

    #[test]
    fn a_template_is_filled_once_and_json_is_left_alone() {
        let words = [
            "run",
            "{model_path}",
            "-c={context_total}",
            r#"{"a":{"port":1}}"#,
        ];
        let line = engine(&words).unwrap().command(&values("cpu")).unwrap();
        let expected = ["/m/{port}.gguf", "-c=6144", r#"{"a":{"port":1}}"#];
        assert_eq!(line.args, expected);
    }

    #[test]
    fn a_gpu_adds_its_arguments() {
        let line = engine(&["run"]).unwrap().command(&values("cuda")).unwrap();
        assert_eq!(line.args, ["-ngl", "99", "--device", "CUDA1"]);
    }

    #[test]
    fn an_unknown_placeholder_is_refused_at_start() {
        let error = engine(&["run", "{modelpath}"]).unwrap_err().to_string();
        assert!(error.contains("{modelpath}"), "{error}");
    }
}
