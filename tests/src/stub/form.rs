//! What an answer looks like on the wire, in each of the forms that workers speak.

use bytes::Bytes;
use serde_json::json;

/// Which answer a route gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Form {
    /// `/v1/chat/completions`
    Chat,
    /// `/v1/completions`
    Text,
    /// `/v1/embeddings`
    Embeddings,
    /// `/v1/execute` and `/v1/inference`: the task event stream
    Task,
}

/// The bytes around the tokens of one stream.
pub(super) struct Frame {
    /// Goes out at once
    pub(super) start: Option<String>,
    /// Before each token; the token's number follows in a task event
    pub(super) before: String,
    pub(super) numbered: bool,
    pub(super) after: &'static str,
    /// The events after the last token
    pub(super) end: String,
}

/// The prompt's tokens, as every usage report here has them.
const PROMPT_TOKENS: u64 = 8;

/// Components of an embedding.
const DIMENSIONS: usize = 8;

impl Form {
    /// The events around the `n` tokens of stream number `id`. `model` is the inside of a JSON
    /// string; so is `job_id`, which only task events show.
    pub(super) fn frame(self, id: u64, model: &str, job_id: &str, n: u64, usage: bool) -> Frame {
        let (kind, object, before, after) = match self {
            Form::Task => return task_frame(model, job_id, n),
            Form::Chat => (
                "chatcmpl",
                "chat.completion.chunk",
                r#""delta":{"content":""#,
                "\"},\"finish_reason\":null}]}\n\n",
            ),
            Form::Text | Form::Embeddings => (
                "cmpl",
                "text_completion",
                r#""text":""#,
                "\",\"finish_reason\":null}]}\n\n",
            ),
        };
        let head = format!(
            r#"data: {{"id":"{kind}-{id}","object":"{object}","created":1700000000,"model":"{model}","choices":["#
        );
        let last = match self {
            Form::Chat => r#"{"index":0,"delta":{},"finish_reason":"length"}"#,
            _ => r#"{"index":0,"text":"","finish_reason":"length"}"#,
        };
        let mut end = format!("{head}{last}]}}\n\n");
        if usage {
            let total = n + PROMPT_TOKENS;
            end += &format!(
                r#"{head}],"usage":{{"prompt_tokens":{PROMPT_TOKENS},"completion_tokens":{n},"total_tokens":{total}}}}}"#
            );
            end += "\n\n";
        }
        end += "data: [DONE]\n\n";
        Frame {
            start: None,
            before: format!(r#"{head}{{"index":0,{before}"#),
            numbered: false,
            after,
            end,
        }
    }

    /// The answer without a stream, `n` tokens of text; for embeddings: of `n` inputs.
    pub(super) fn plain(self, model: &str, text: &str, n: u64) -> Bytes {
        let usage = json!({"prompt_tokens": PROMPT_TOKENS, "completion_tokens": n,
                           "total_tokens": n + PROMPT_TOKENS});
        let body = match self {
            Form::Chat => json!({
                "id": "chatcmpl-0", "object": "chat.completion", "created": 1_700_000_000, "model": model,
                "choices": [{"index": 0, "message": {"role": "assistant", "content": text},
                             "finish_reason": "length"}],
                "usage": usage,
            }),
            Form::Text | Form::Task => json!({
                "id": "cmpl-0", "object": "text_completion", "created": 1_700_000_000, "model": model,
                "choices": [{"index": 0, "text": text, "finish_reason": "length"}], "usage": usage,
            }),
            Form::Embeddings => {
                let one = |i| {
                    let vector: Vec<f64> = (0..DIMENSIONS)
                        .map(|d| {
                            if d as u64 == i % DIMENSIONS as u64 {
                                1.0
                            } else {
                                0.0
                            }
                        })
                        .collect();
                    json!({"object": "embedding", "index": i, "embedding": vector})
                };
                json!({
                    "object": "list", "model": model, "data": (0..n).map(one).collect::<Vec<_>>(),
                    "usage": {"prompt_tokens": PROMPT_TOKENS, "total_tokens": PROMPT_TOKENS},
                })
            }
        };
        body.to_string().into()
    }
}

/// Numbered tokens, as an answer without a stream has them.
pub(super) fn numbers(n: u64) -> String {
    (0..n).map(|i| format!("t{i} ")).collect()
}

fn task_frame(model: &str, job_id: &str, n: u64) -> Frame {
    Frame {
        start: Some(format!(
            "data: {{\"type\":\"started\",\"job_id\":\"{job_id}\",\"model\":\"{model}\",\"started_at\":\"2024-01-01T00:00:00Z\"}}\n\n"
        )),
        before: r#"data: {"type":"token","i":"#.into(),
        numbered: true,
        after: "\"}\n\n",
        end: format!(
            "data: {{\"type\":\"end\",\"tokens_out\":{n},\"decode_time_ms\":0,\"stop_reason\":\"MAX_TOKENS\",\"stop_sequence_matched\":null}}\n\ndata: [DONE]\n\n"
        ),
    }
}

/// What ends a task that was cancelled, after whatever tokens it sent.
pub(super) const CANCELLED: &str = "data: {\"type\":\"error\",\"code\":\"CANCELLED\",\"message\":\"cancelled\"}\n\ndata: [DONE]\n\n";

/// `text` as the inside of a JSON string.
pub(super) fn json_inside(text: &str) -> String {
    let quoted = json!(text).to_string();
    quoted[1..quoted.len() - 1].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    fn events(stream: &str) -> Vec<Value> {
        let lines = stream.split("\n\n").filter(|e| !e.is_empty());
        lines
            .map(|e| {
                e.strip_prefix("data: ")
                    .expect("every event is one data line")
            })
            .filter(|data| *data != "[DONE]")
            .map(|data| serde_json::from_str(data).expect("every event is JSON"))
            .collect()
    }

    fn whole(form: Form, usage: bool) -> Vec<Value> {
        let frame = form.frame(3, "a\\\"b", "j1", 1, usage);
        let number = if frame.numbered { r#"0,"t":""# } else { "" };
        let token = format!("{}{number}t0@1 {}", frame.before, frame.after);
        events(&format!(
            "{}{token}{}",
            frame.start.unwrap_or_default(),
            frame.end
        ))
    }

    #[test]
    fn every_event_of_every_form_is_json() {
        let chat = whole(Form::Chat, true);
        assert_eq!(chat[0]["model"], "a\"b");
        assert_eq!(chat[0]["choices"][0]["delta"]["content"], "t0@1 ");
        assert_eq!(chat[2]["usage"]["total_tokens"], 9);
        assert_eq!(chat[2]["choices"], json!([]));
        assert_eq!(whole(Form::Text, false)[0]["choices"][0]["text"], "t0@1 ");
        let task = whole(Form::Task, false);
        assert_eq!(task[0]["type"], "started");
        assert_eq!(task[1], json!({"type": "token", "i": 0, "t": "t0@1 "}));
        assert_eq!(task[2]["stop_reason"], "MAX_TOKENS");
        assert_eq!(events(CANCELLED)[0]["code"], "CANCELLED");
    }

    #[test]
    fn embeddings_are_as_many_as_the_inputs() {
        let body = Form::Embeddings.plain("m", "", 3);
        let body: Value = serde_json::from_slice(&body).expect("plain answers are JSON");
        assert_eq!(body["data"].as_array().map(Vec::len), Some(3));
        assert_eq!(body["data"][1]["embedding"][1], 1.0);
    }
}
