//! What a task asks for, in types.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Constraints, Priority, SessionId, TenantId, UnixMillis};
use crate::error::{Error, Result};

/// What a model is to continue.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TaskInput {
    /// A text, continued as it is.
    Prompt(String),
    /// A conversation, as OpenAI's `messages`.
    Messages(Vec<Value>),
}

/// How tokens are chosen. What is absent is left to the worker.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Sampling {
    /// The most tokens to generate.
    pub max_tokens: Option<u32>,
    /// 0 is greedy; up to 2.
    pub temperature: Option<f64>,
    /// Nucleus sampling, above 0 up to 1.
    pub top_p: Option<f64>,
    /// Only the k likeliest tokens.
    pub top_k: Option<u32>,
    /// Makes sampling repeatable where the worker can.
    pub seed: Option<u64>,
    /// Texts that end the answer.
    pub stop: Vec<String>,
}

/// What may be said about any request, whichever endpoint it came through.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct RequestOptions {
    /// Queue class.
    pub priority: Priority,
    /// Where it may run.
    pub constraints: Constraints,
    /// Who it is for.
    pub tenant: TenantId,
    /// The conversation it belongs to.
    pub session: Option<SessionId>,
    /// How long it may take in all; `None` is the configured default.
    pub total_timeout: Option<Duration>,
    /// How long it may wait for a worker; `None` is the configured default.
    pub queue_timeout: Option<Duration>,
    /// When it must have ended, whatever the time-outs say.
    pub deadline: Option<UnixMillis>,
    /// The key under which a repeated submission of a task finds the first, for a day: 1 to 255
    /// visible ASCII characters.
    pub idempotency_key: Option<String>,
    /// Ties it to log lines here and on hives and workers; made when absent.
    pub correlation_id: Option<String>,
    /// Queens that have passed it on before this one.
    #[serde(default)]
    pub hops: u32,
}

/// A task: what `POST /v2/tasks` takes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TaskRequest {
    /// The model's name: an alias or a reference.
    pub model: String,
    /// What to continue.
    pub input: TaskInput,
    /// How.
    pub sampling: Sampling,
    /// Everything else.
    pub options: RequestOptions,
}

/// `max_tokens` of a prompt that does not say.
const DEFAULT_MAX_TOKENS: u32 = 100;
const DEFAULT_TEMPERATURE: f64 = 0.7;

impl TaskRequest {
    /// A task that continues a text.
    pub fn prompt(model: impl Into<String>, prompt: impl Into<String>) -> Self {
        Self::new(model.into(), TaskInput::Prompt(prompt.into()))
    }

    /// A task that answers in a conversation.
    pub fn messages(model: impl Into<String>, messages: Vec<Value>) -> Self {
        Self::new(model.into(), TaskInput::Messages(messages))
    }

    fn new(model: String, input: TaskInput) -> Self {
        TaskRequest {
            model,
            input,
            sampling: Sampling::default(),
            options: RequestOptions::default(),
        }
    }

    /// Sets the most tokens to generate.
    #[must_use]
    pub fn max_tokens(mut self, max_tokens: u32) -> Self {
        self.sampling.max_tokens = Some(max_tokens);
        self
    }

    /// Sets the temperature.
    #[must_use]
    pub fn temperature(mut self, temperature: f64) -> Self {
        self.sampling.temperature = Some(temperature);
        self
    }

    /// Fills in the defaults and refuses values that make no sense.
    ///
    /// # Errors
    /// `INVALID_REQUEST`, naming the field.
    pub fn check(mut self) -> Result<Self> {
        let sampling = &mut self.sampling;
        if let TaskInput::Prompt(_) = self.input {
            sampling.max_tokens.get_or_insert(DEFAULT_MAX_TOKENS);
        }
        sampling.temperature.get_or_insert(DEFAULT_TEMPERATURE);
        let refuse =
            |field, what: &str| Err(Error::invalid(format!("{field} {what}")).param(field));
        if sampling.max_tokens == Some(0) {
            return refuse("max_tokens", "must be at least 1");
        }
        if !sampling
            .temperature
            .is_none_or(|t| (0.0..=2.0).contains(&t))
        {
            return refuse("temperature", "must be from 0 to 2");
        }
        if !sampling.top_p.is_none_or(|p| p > 0.0 && p <= 1.0) {
            return refuse("top_p", "must be above 0 and at most 1");
        }
        if sampling.stop.len() > 16 {
            return refuse("stop", "may have at most 16 texts");
        }
        if sampling.stop.iter().any(String::is_empty) {
            return refuse("stop", "must not have an empty text");
        }
        if let TaskInput::Messages(messages) = &self.input {
            if messages.is_empty() {
                return refuse("messages", "must not be empty");
            }
            if !messages.iter().all(Value::is_object) {
                return refuse("messages", "must be objects with a role and content");
            }
        }
        Ok(self)
    }
}
