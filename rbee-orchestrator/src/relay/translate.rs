//! Workers' events read into pieces, whichever protocol they speak, and pieces written as OpenAI
//! chunks.

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::{Value, json};

use super::chunk::Chunk;
use super::openai::RequestBody;
use super::rbee;
use super::refusal::Refusal;
use super::said::{self, Said};
use super::usage::WireUsage;
use crate::domain::{
    JobId, Sampling, StopReason, TaskInput, TaskRequest, UnixMillis, Usage, WorkerProtocol,
};
use crate::error::Result;

/// What one event of a worker means.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Piece {
    Text(String),
    /// What the model thinks before it answers.
    Thinking(String),
    /// Something else that the model makes: a piece of a tool call.
    Other,
    Stop {
        reason: StopReason,
        matched: Option<String>,
    },
    Usage(Usage),
    /// The worker gave up.
    Failed(Refusal),
    /// Nothing follows.
    Done,
}

/// Reads the pieces of one event; tells whether it says anything.
///
/// # Errors
/// `UPSTREAM_INVALID` when the event is not of the protocol.
pub(crate) fn read_event(
    protocol: WorkerProtocol,
    event: &[u8],
    out: &mut Vec<Piece>,
) -> Result<bool> {
    match said::read(event)? {
        Said::Nothing => return Ok(false),
        Said::Done => out.push(Piece::Done),
        Said::Failed(refusal) => out.push(Piece::Failed(refusal)),
        Said::Object { data, named } => match protocol {
            WorkerProtocol::OpenAi => {
                let chunk = Chunk::read(&data)?;
                let is_ping = named && chunk.is_foreign();
                read_chunk(chunk, out);
                return Ok(!is_ping);
            }
            WorkerProtocol::Rbee => rbee::read_event(&data, out)?,
        },
    }
    Ok(true)
}

fn read_chunk(chunk: Chunk<'_>, out: &mut Vec<Piece>) {
    if let Some(refusal) = chunk.refusal {
        return out.push(Piece::Failed(refusal));
    }
    if let Some(mut choice) = chunk.choices.into_iter().next() {
        let thinking = choice.take_thinking();
        let text = choice.take_text().filter(|text| !text.is_empty());
        if thinking.is_none() && text.is_none() && choice.has_more() {
            out.push(Piece::Other);
        }
        out.extend(thinking.map(|text| Piece::Thinking(text.into_owned())));
        out.extend(text.map(|text| Piece::Text(text.into_owned())));
        if let Some(finish) = choice.finish_reason {
            let matched = choice.stop_reason.map(Cow::into_owned);
            let reason = match (&*finish, &matched) {
                ("length", _) => StopReason::MaxTokens,
                (_, Some(_)) => StopReason::StopSequence,
                _ => StopReason::Eos,
            };
            out.push(Piece::Stop { reason, matched });
        }
    }
    out.extend(chunk.usage.and_then(WireUsage::counted).map(Piece::Usage));
}

/// A completion request as a task, for models that only `rbee` workers serve; `None` when it asks
/// for what they can't do (several prompts, tokens as a prompt).
pub(crate) fn completion_as_task(body: &RequestBody) -> Option<TaskRequest> {
    #[derive(Deserialize)]
    struct Completion {
        prompt: String,
        max_tokens: Option<u32>,
        temperature: Option<f64>,
        top_p: Option<f64>,
        top_k: Option<u32>,
        seed: Option<u64>,
        stop: Option<OneOrMany>,
    }
    let asked: Completion = serde_json::from_slice(body.bytes()).ok()?;
    let mut task = TaskRequest::prompt(&body.model, asked.prompt);
    task.sampling = Sampling {
        max_tokens: asked.max_tokens,
        temperature: asked.temperature,
        top_p: asked.top_p,
        top_k: asked.top_k,
        seed: asked.seed,
        stop: asked.stop.map(Vec::from).unwrap_or_default(),
    };
    task.check().ok()
}

/// `stop`, which may be a text or several.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub(crate) enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

impl From<OneOrMany> for Vec<String> {
    fn from(stop: OneOrMany) -> Self {
        match stop {
            OneOrMany::One(text) => vec![text],
            OneOrMany::Many(texts) => texts,
        }
    }
}

/// Path and body of a task for an OpenAI worker.
pub(crate) fn openai_request(
    task: &TaskRequest,
    served_model: &str,
    with_usage: bool,
) -> (&'static str, Vec<u8>) {
    let mut body = json!({"model": served_model, "stream": true});
    if with_usage {
        body["stream_options"] = json!({"include_usage": true});
    }
    let path = match &task.input {
        TaskInput::Prompt(prompt) => {
            body["prompt"] = prompt.as_str().into();
            "/v1/completions"
        }
        TaskInput::Messages(messages) => {
            body["messages"] = messages.as_slice().into();
            "/v1/chat/completions"
        }
    };
    put_sampling(&task.sampling, &mut body);
    (path, body.to_string().into_bytes())
}

/// Writes what is set; a field that is not set is left out.
pub(super) fn put_sampling(sampling: &Sampling, body: &mut Value) {
    let mut put = |key: &str, value: Option<Value>| {
        if let Some(value) = value {
            body[key] = value;
        }
    };
    put("max_tokens", sampling.max_tokens.map(Value::from));
    put("temperature", sampling.temperature.map(Value::from));
    put("top_p", sampling.top_p.map(Value::from));
    put("top_k", sampling.top_k.map(Value::from));
    put("seed", sampling.seed.map(Value::from));
    let stop = (!sampling.stop.is_empty()).then(|| Value::from(sampling.stop.as_slice()));
    put("stop", stop);
}

/// Writes a task's answer as OpenAI's completion objects, for models that only `rbee` workers
/// serve.
#[derive(Debug)]
pub(crate) struct CompletionWriter {
    id: String,
    model: String,
    created: i64,
}

impl CompletionWriter {
    pub(crate) fn new(job: JobId, model: &str, at: UnixMillis) -> Self {
        CompletionWriter {
            id: format!("cmpl-{job}"),
            model: model.to_owned(),
            created: at.as_secs(),
        }
    }

    fn object(&self, choices: &Value) -> Value {
        json!({
            "id": self.id, "object": "text_completion", "created": self.created,
            "model": self.model, "choices": choices,
        })
    }

    pub(crate) fn chunk(&self, text: &str, finish: Option<StopReason>) -> Value {
        let finish = finish.map(finish_reason);
        self.object(&json!([
            {"index": 0, "text": text, "logprobs": null, "finish_reason": finish}
        ]))
    }

    pub(crate) fn whole(&self, text: &str, finish: StopReason, usage: Usage) -> Value {
        let mut whole = self.chunk(text, Some(finish));
        whole["usage"] = usage_object(usage);
        whole
    }

    pub(crate) fn usage(&self, usage: Usage) -> Value {
        let mut chunk = self.object(&json!([]));
        chunk["usage"] = usage_object(usage);
        chunk
    }
}

fn finish_reason(reason: StopReason) -> &'static str {
    match reason {
        StopReason::MaxTokens => "length",
        StopReason::Eos | StopReason::StopSequence => "stop",
    }
}

fn usage_object(usage: Usage) -> Value {
    json!({
        "prompt_tokens": usage.tokens_in,
        "completion_tokens": usage.tokens_out,
        "total_tokens": usage.tokens_in.saturating_add(usage.tokens_out),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Code;

    fn pieces(protocol: WorkerProtocol, event: &str) -> Vec<Piece> {
        let mut out = Vec::new();
        read_event(protocol, event.as_bytes(), &mut out).unwrap();
        out
    }

    #[test]
    fn openai_chunks_become_text_stop_and_usage() {
        let read = |event| pieces(WorkerProtocol::OpenAi, event);
        let text = |text: &str| vec![Piece::Text(text.to_owned())];
        let stop = |reason, matched: Option<&str>| {
            vec![Piece::Stop {
                reason,
                matched: matched.map(str::to_owned),
            }]
        };
        assert_eq!(
            read("data: {\"choices\":[{\"text\":\"a\"}]}\n\n"),
            text("a")
        );
        assert_eq!(
            read("data: {\"choices\":[{\"delta\":{\"content\":\"b\"}}]}\n\n"),
            text("b")
        );
        assert_eq!(
            read("data: {\"choices\":[{\"delta\":{\"role\":\"assistant\",\"content\":null}}]}\n\n"),
            []
        );
        assert_eq!(
            read("data: {\"choices\":[{\"text\":\"\",\"finish_reason\":\"length\"}]}\n\n"),
            stop(StopReason::MaxTokens, None)
        );
        assert_eq!(
            read(
                "data: {\"choices\":[{\"text\":\"\",\"finish_reason\":\"stop\",\"stop_reason\":\"END\"}]}\n\n"
            ),
            stop(StopReason::StopSequence, Some("END"))
        );
        assert_eq!(
            read(
                "data: {\"choices\":[{\"delta\":{\"reasoning\":\"Hm\",\"reasoning_content\":\"Hm\",\"content\":\"b\"}}]}\n\n"
            ),
            [Piece::Thinking("Hm".into()), Piece::Text("b".into())]
        );
        assert_eq!(
            read("data: {\"choices\":[{\"delta\":{\"tool_calls\":[{\"index\":0}]}}]}\n\n"),
            [Piece::Other]
        );
        assert_eq!(
            read(
                "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":1,\"completion_tokens\":2}}\n\n"
            ),
            [Piece::Usage(Usage {
                tokens_in: 1,
                tokens_out: 2,
                estimated: false
            })]
        );
        assert_eq!(read("data: [DONE]\n\n"), [Piece::Done]);
        assert_eq!(read(": comment\n\n"), []);
    }

    #[test]
    fn garbage_is_refused_and_a_workers_error_is_told() {
        let mut out = Vec::new();
        let error = read_event(WorkerProtocol::OpenAi, b"data: <html>\n\n", &mut out).unwrap_err();
        assert_eq!(error.code, Code::UpstreamInvalid);
        let told = pieces(
            WorkerProtocol::OpenAi,
            "data: {\"error\":{\"message\":\"no\"}}\n\n",
        );
        assert!(matches!(&told[..], [Piece::Failed(e)] if e.error.message.ends_with("no")));
    }
}
