//! The worker protocol `rbee`: `POST /v1/execute` with a stream of task events.

use serde::Deserialize;
use serde_json::{Value, json};

use super::refusal;
use super::said::unreadable;
use super::tokens::MOST_TOKENS;
use super::translate::{Piece, put_sampling};
use crate::domain::{JobId, StopReason, TaskInput, TaskRequest, Usage};
use crate::error::{Error, Result};

/// The endpoint, and the one that older workers have in its place.
pub(crate) const PATHS: [&str; 2] = ["/v1/execute", "/v1/inference"];

/// The body of a task for an `rbee` worker.
///
/// # Errors
/// `INVALID_REQUEST` for a conversation: the protocol knows only prompts.
pub(crate) fn request(task: &TaskRequest, job: JobId) -> Result<Vec<u8>> {
    let TaskInput::Prompt(prompt) = &task.input else {
        return Err(Error::invalid(
            "the model's worker speaks the rbee protocol, which takes a prompt and no messages",
        )
        .param("messages"));
    };
    let mut body = json!({"job_id": job.to_string(), "prompt": prompt, "stream": true});
    put_sampling(&task.sampling, &mut body);
    Ok(body.to_string().into_bytes())
}

/// Events that matter here; `started`, `metrics` and `narration` are the queen's own to tell.
#[derive(Deserialize)]
struct Event {
    r#type: String,
    #[serde(default)]
    t: String,
    #[serde(default)]
    tokens_out: Option<u64>,
    #[serde(default)]
    tokens_in: Option<u64>,
    #[serde(default)]
    stop_reason: Option<String>,
    #[serde(default)]
    stop_sequence_matched: Option<String>,
    #[serde(default)]
    code: Option<Value>,
    #[serde(default)]
    message: Option<String>,
}

pub(super) fn read_event(data: &[u8], out: &mut Vec<Piece>) -> Result<()> {
    let event: Event = serde_json::from_slice(data).map_err(|_| unreadable(data))?;
    match event.r#type.as_str() {
        "token" if event.t.is_empty() => {}
        "token" => out.push(Piece::Text(event.t)),
        "thinking" if event.t.is_empty() => {}
        "thinking" => out.push(Piece::Thinking(event.t)),
        "end" => read_end(event, out),
        "error" => {
            let code = event
                .code
                .as_ref()
                .and_then(Value::as_str)
                .unwrap_or("no code");
            let said = event.message.unwrap_or_default();
            let error = json!({"code": code, "message": format!("{code}: {said}")});
            out.push(Piece::Failed(refusal::read_event(&error)));
        }
        _ => {}
    }
    Ok(())
}

fn read_end(event: Event, out: &mut Vec<Piece>) {
    let reason = match event.stop_reason.as_deref() {
        Some("MAX_TOKENS") => StopReason::MaxTokens,
        Some("STOP_SEQUENCE") => StopReason::StopSequence,
        Some(reason @ ("ERROR" | "CANCELLED")) => {
            let said = format!("it stopped: {reason}").into();
            out.push(Piece::Failed(refusal::read_event(&said)));
            return;
        }
        _ => StopReason::Eos,
    };
    if let Some(tokens_out) = event.tokens_out {
        out.push(Piece::Usage(Usage {
            tokens_in: event.tokens_in.unwrap_or(0).min(MOST_TOKENS),
            tokens_out: tokens_out.min(MOST_TOKENS),
            estimated: false,
        }));
    }
    out.push(Piece::Stop {
        reason,
        matched: event.stop_sequence_matched,
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Code;

    fn read(data: &str) -> Vec<Piece> {
        let mut out = Vec::new();
        read_event(data.as_bytes(), &mut out).unwrap();
        out
    }

    #[test]
    fn events_of_a_worker_become_pieces() {
        assert_eq!(read(r#"{"type":"started","job_id":"j"}"#), []);
        assert_eq!(
            read(r#"{"type":"token","t":"Hi","i":0}"#),
            [Piece::Text("Hi".into())]
        );
        assert_eq!(
            read(r#"{"type":"thinking","t":"Hm"}"#),
            [Piece::Thinking("Hm".into())]
        );
        let ended = read(r#"{"type":"end","tokens_out":2,"stop_reason":"MAX_TOKENS"}"#);
        assert!(matches!(
            ended[..],
            [
                Piece::Usage(Usage { tokens_out: 2, .. }),
                Piece::Stop {
                    reason: StopReason::MaxTokens,
                    ..
                }
            ]
        ));
        for gave_up in ["ERROR", "CANCELLED"] {
            let told = read(&format!(r#"{{"type":"end","stop_reason":"{gave_up}"}}"#));
            assert!(matches!(&told[..], [Piece::Failed(e)] if e.error.code == Code::WorkerFailed));
        }
    }

    #[test]
    fn a_field_that_is_not_set_is_left_out_of_the_request() {
        let task = TaskRequest::prompt("m", "Hi").max_tokens(5);
        let body: Value = serde_json::from_slice(&request(&task, JobId::mint()).unwrap()).unwrap();
        let mut keys: Vec<&str> = body
            .as_object()
            .unwrap()
            .keys()
            .map(String::as_str)
            .collect();
        keys.sort_unstable();
        assert_eq!(keys, ["job_id", "max_tokens", "prompt", "stream"]);
        let chat = TaskRequest::messages("m", vec![json!({"role": "user", "content": "Hi"})]);
        assert_eq!(
            request(&chat, JobId::mint()).unwrap_err().param,
            Some("messages")
        );
    }
}
