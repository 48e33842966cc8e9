//! Engines: the programs that serve a model, each described by a command template.

use std::collections::BTreeMap;
use std::env;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::bail;
use rustix::fs::Access;
use serde::{Deserialize, Serialize};

use crate::error::{ApiError, Result};

mod template;

pub(crate) use template::Values;
use template::{PLACEHOLDERS, fill, placeholders};

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
    /// Whether it is given a key of its own that callers must show.
    #[serde(default = "yes")]
    api_key: bool,
    /// Arguments that a queen may add to its command, in place of those for all engines.
    allowed_args: Option<Vec<String>>,
}

/// Where an engine finds its key, as llama-server does.
const KEY_VARIABLE: &str = "LLAMA_API_KEY";

fn yes() -> bool {
    true
}

fn default_health() -> String {
    "/health".into()
}

#[derive(Debug)]
pub(crate) struct Engine {
    pub(crate) name: String,
    config: EngineConfig,
}

/// A command that can be run.
#[derive(Debug)]
pub(crate) struct CommandLine {
    pub(crate) program: String,
    pub(crate) args: Vec<String>,
    pub(crate) env: Vec<(String, String)>,
    pub(crate) pass_env: Vec<String>,
}

impl EngineConfig {
    fn check_key(&self, name: &str) -> anyhow::Result<()> {
        let has_key = |text: &String| placeholders(text).any(|name| name == "api_key");
        let mut texts = self.command.iter().chain(&self.gpu_args);
        if !self.api_key && (texts.any(has_key) || self.env.values().any(has_key)) {
            bail!("[engines.{name}]: with api_key = false there is no {{api_key}}");
        }
        if self.api_key
            && self
                .env
                .get(KEY_VARIABLE)
                .is_some_and(|text| !has_key(text))
        {
            bail!(
                "[engines.{name}]: {KEY_VARIABLE} in env must have {{api_key}}, the key that \
                 callers are told; leave it out, or set api_key = false"
            );
        }
        Ok(())
    }
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
        config.check_key(name)?;
        Ok(Engine {
            name: name.to_owned(),
            config,
        })
    }

    pub(crate) fn protocol(&self) -> Protocol {
        self.config.protocol
    }

    /// Whether it is given a key.
    pub(crate) fn takes_key(&self) -> bool {
        self.config.api_key
    }

    /// What a queen may add to its command: its own list, or else the one for all engines.
    pub(crate) fn allowed_args<'a>(&'a self, for_all: &'a [String]) -> &'a [String] {
        self.config.allowed_args.as_deref().unwrap_or(for_all)
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
        let key = values.api_key.iter();
        let key = key.map(|key| (KEY_VARIABLE.to_owned(), key.expose().to_owned()));
        let env = self.config.env.iter();
        let env = env.map(|(name, text)| (name.clone(), fill(text, &bin, values)));
        Ok(CommandLine {
            program: words.next().unwrap_or_default(),
            args: words.collect(),
            env: key.chain(env).collect(),
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
        api_key: true,
        allowed_args: None,
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

#[cfg(test)]
mod tests {
    use super::*;

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
        let line = engine(&words)
            .unwrap()
            .command(&Values::for_tests("cpu"))
            .unwrap();
        let expected = ["/m/{port}.gguf", "-c=6144", r#"{"a":{"port":1}}"#];
        assert_eq!(line.args, expected);
    }

    #[test]
    fn a_gpu_adds_its_arguments() {
        let line = engine(&["run"])
            .unwrap()
            .command(&Values::for_tests("cuda"))
            .unwrap();
        assert_eq!(line.args, ["-ngl", "99", "--device", "CUDA1"]);
    }

    #[test]
    fn the_key_is_in_the_environment_and_where_the_template_has_it() {
        let mut config = llama_server();
        config.env = [("OTHER".into(), "{api_key}, mine".into())].into();
        let values = Values::for_tests("cpu");
        let key = values.api_key.clone().unwrap();
        let key = key.expose();
        config.command = vec!["run".into(), "--key={api_key}".into()];
        let engine = Engine::new("test", config).unwrap();
        let line = engine.command(&values).unwrap();
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let env = [
            pair(KEY_VARIABLE, key),
            pair("OTHER", &format!("{key}, mine")),
        ];
        assert_eq!(line.args, [format!("--key={key}")]);
        assert_eq!(line.env, env);
    }

    #[test]
    fn a_key_that_no_caller_could_know_is_refused_at_start() {
        let with = |api_key: bool, value: &str| {
            let mut config = llama_server();
            config.api_key = api_key;
            config.env = [(KEY_VARIABLE.to_owned(), value.to_owned())].into();
            let error = Engine::new("test", config).err();
            error.map(|error| error.to_string()).unwrap_or_default()
        };
        assert!(with(true, "mine").contains("api_key = false"));
        assert_eq!(with(true, "mine,{api_key}"), "");
        assert_eq!(with(false, "mine"), "");
        assert!(with(false, "{api_key}").contains("there is no {api_key}"));
    }

    #[test]
    fn an_unknown_placeholder_is_refused_at_start() {
        let error = engine(&["run", "{modelpath}"]).unwrap_err().to_string();
        assert!(error.contains("{modelpath}"), "{error}");
    }
}
