//! What a worker's error answer says: whose fault it is, in the worker's own words.
//!
//! Engines answer 500 for mistakes of their callers too. Where structure or wording tells that, the
//! client gets 400 at once, and the worker is not to blame. The wordings are those of llama-server
//! (seen with 0.10434), llama-cpp-python, vLLM, SGLang, Ollama, TGI and LiteLLM's proxy; one that is
//! missing here costs little: the request is then tried on one more worker.

use http::StatusCode;
use memchr::memmem;
use serde_json::Value;

use crate::error::{Code, Error};

/// Whose fault an error is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The caller's: every worker with the model would say the same.
    Caller,
    /// The worker has too much to do.
    Load,
    /// The worker's or the caller's: another worker may tell.
    Unclear,
}

/// A worker's error, in our form.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Refusal {
    pub(crate) fault: Fault,
    pub(crate) error: Error,
}

/// What is read of a worker's error answer, in bytes; the rest of it is not waited for.
pub(crate) const LONGEST_BODY: usize = 64 << 10;

/// What is kept of a worker's error text, in bytes.
pub(crate) const LONGEST_TEXT: usize = 4 << 10;

/// Said at the end of a text that was cut.
pub(super) const CUT: &str = "… (cut)";

/// Text of a body that is no JSON is shown up to this length.
const SHOWN_CHARS: usize = 200;

/// Types and names of errors, without case, `_` and blanks, that are the caller's fault.
const CALLERS_TYPES: [&str; 9] = [
    "invalidrequest",
    "badrequest",
    "exceedcontextsize",
    "contextlengthexceeded",
    "contextwindowexceeded",
    "notsupported",
    "unsupported",
    "notimplemented",
    "validation",
];

/// Wordings that are the engine's own trouble, whatever else stands beside them.
const ENGINES_TROUBLE: [&str; 12] = [
    "out of memory",
    "cuda",
    "hip error",
    "vulkan",
    "metal",
    "nccl",
    "failed to allocate",
    "bad_alloc",
    "enginedead",
    "engine is dead",
    "connection",
    "timed out",
];

/// Wordings that are the caller's fault: all parts of one stand in the text, in this order.
const CALLERS_WORDS: [&[&str]; 44] = [
    // Too long for the engine.
    &["too large to process"],
    &["too long"],
    &["batch size", "tokens"],
    &["exceed", "context"],
    &["exceed", "token"],
    &["exceed", "length"],
    &["longer than", "context"],
    &["longer than", "length"],
    &["context length"],
    &["context window", "token"],
    &["must have less than", "tokens"],
    // What the model or the engine's start does not allow.
    &["input is not supported"],
    &["mmproj"],
    &["multimodal"],
    &["does not support"],
    &["do not support"],
    &["not support"],
    &["unsupported"],
    &["is not a multimodal model"],
    &["not implemented"],
    // Messages and tools that can't be read.
    &["failed to parse message"],
    &["failed to parse tool"],
    &["failed to parse input"],
    &["failed to parse grammar"],
    &["failed to initialize samplers"],
    &["json.exception."],
    &["json schema"],
    &["missing", "role"],
    &["missing tool"],
    &["missing", "required"],
    &["tool call", "type"],
    &["keyerror"],
    &["field required"],
    // Templates that refuse the messages, or can't be used with them.
    &["template"],
    &["jinja"],
    &["raise_exception"],
    &["roles must alternate"],
    &["role", "not supported"],
    &["undefinederror"],
    // Values.
    &["invalid", "request"],
    &["invalid", "value"],
    &["invalid token"],
    &["input validation"],
    &["expected '"],
];

/// Reads an answer that is no success.
pub(crate) fn read(status: StatusCode, body: &[u8]) -> Refusal {
    let value = serde_json::from_slice::<Value>(body).ok();
    let object = value.as_ref().map(inner);
    let said = match object {
        Some(object) => words(object),
        None => shown(String::from_utf8_lossy(body).trim()),
    };
    let fault = match status {
        StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => Fault::Load,
        // The worker's key is the queen's to show, not the caller's.
        StatusCode::UNAUTHORIZED => Fault::Unclear,
        status if status.is_client_error() => Fault::Caller,
        // Another try would only go around once more.
        StatusCode::NOT_IMPLEMENTED | StatusCode::LOOP_DETECTED => Fault::Caller,
        _ => of(object, &said),
    };
    refusal(fault, said, Some(status))
}

/// The beginning of a body that is no JSON.
fn shown(text: &str) -> String {
    match text.char_indices().nth(SHOWN_CHARS) {
        Some((end, _)) => text[..end].to_owned() + CUT,
        None => text.to_owned(),
    }
}

/// A text up to the length that is kept.
fn cut(mut text: String) -> String {
    if text.len() > LONGEST_TEXT {
        text.truncate(text.floor_char_boundary(LONGEST_TEXT - CUT.len()));
        text.push_str(CUT);
    }
    text
}

/// The error in what was answered, or all of it.
pub(crate) fn inner(answered: &Value) -> &Value {
    let inner = answered.get("error").filter(|error| error.is_object());
    inner.unwrap_or(answered)
}

/// The error that an answer is, although its status is that of a success.
pub(crate) fn in_answer(answered: &Value) -> Option<Refusal> {
    let is_told = answered.get("error").is_some_and(|error| !error.is_null());
    let is_error = is_told
        || answered
            .get("object")
            .is_some_and(|object| object == "error");
    is_error.then(|| read_event(inner(answered)))
}

/// Whether an engine's refusal is about `stream_options`, which some do not know.
pub(crate) fn names_stream_options(body: &[u8]) -> bool {
    let named = |name: &str| memmem::find(body, name.as_bytes()).is_some();
    named("stream_options") || named("include_usage")
}

/// Reads an error that came as an event of a stream.
pub(crate) fn read_event(error: &Value) -> Refusal {
    let said = words(error);
    refusal(of(Some(error), &said), said, None)
}

fn refusal(fault: Fault, said: String, status: Option<StatusCode>) -> Refusal {
    let said = cut(said);
    let said = match (said.is_empty(), status) {
        (false, _) => said,
        (true, Some(status)) => format!("it answered {} without a word", status.as_u16()),
        (true, None) => "it sent an error without a word".to_owned(),
    };
    let mut error = match fault {
        Fault::Caller => Error::invalid(said),
        Fault::Load => Error::new(Code::NoCapacity, format!("the worker reported: {said}")),
        Fault::Unclear => Error::new(Code::WorkerFailed, format!("the worker reported: {said}")),
    };
    if status == Some(StatusCode::LOOP_DETECTED) {
        error.code = Code::LoopDetected;
    }
    if let Some(status) = status {
        error = error.detail("worker_status", status.as_u16());
    }
    Refusal { fault, error }
}

/// Whose fault an error is that its status does not tell.
fn of(object: Option<&Value>, said: &str) -> Fault {
    let field = |name: &str| object.and_then(|object| object.get(name));
    let status = ["code", "status", "status_code"].iter().find_map(|name| {
        let value = field(name)?;
        value.as_u64().or_else(|| value.as_str()?.parse().ok())
    });
    let is_callers =
        |status: u64| matches!(status, 400..=499 if !matches!(status, 408 | 425 | 429));
    let plain = |value: &Value| {
        let name = value.as_str()?.to_ascii_lowercase();
        Some(name.replace(['_', ' ', '-'], ""))
    };
    let types = ["type", "error_type", "code", "object"];
    let mut types = types.iter().filter_map(|name| plain(field(name)?));
    let says_type = types.any(|name| CALLERS_TYPES.iter().any(|known| name.contains(known)));
    let said = said.to_ascii_lowercase();
    let has = |parts: &[&str]| {
        let mut rest = said.as_str();
        parts.iter().all(|part| match rest.split_once(part) {
            Some((_, after)) => {
                rest = after;
                true
            }
            None => false,
        })
    };
    let in_type = |name: &&str| {
        said.replace(['_', ' '], "")
            .contains(&format!("{name}error"))
    };
    if status.is_some_and(is_callers) || matches!(status, Some(501)) || says_type {
        Fault::Caller
    } else if ENGINES_TROUBLE.iter().any(|part| said.contains(part)) {
        Fault::Unclear
    } else if CALLERS_WORDS.iter().any(|parts| has(parts)) || CALLERS_TYPES.iter().any(in_type) {
        Fault::Caller
    } else {
        Fault::Unclear
    }
}

/// What an error object says: OpenAI's, FastAPI's, Ollama's and TGI's forms, or all of it.
fn words(object: &Value) -> String {
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let detail = |value: &Value| {
        let first = value.as_array().and_then(|list| list.first());
        text(value).or_else(|| text(first?.get("msg")?))
    };
    let field = |name: &str| object.get(name);
    text(object)
        .or_else(|| text(field("message")?))
        .or_else(|| text(field("error")?))
        .or_else(|| detail(field("detail")?))
        .unwrap_or_else(|| object.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of_500(body: &str) -> Fault {
        read(StatusCode::INTERNAL_SERVER_ERROR, body.as_bytes()).fault
    }

    fn message(text: &str) -> String {
        serde_json::json!({"error": {"code": 500, "message": text, "type": "server_error"}})
            .to_string()
    }

    #[test]
    fn a_text_without_end_is_cut_where_a_character_ends() {
        for long in [message(&"ä".repeat(10_000)), "x".repeat(10_000)] {
            let said = read(StatusCode::INTERNAL_SERVER_ERROR, long.as_bytes())
                .error
                .message;
            assert!(said.len() <= LONGEST_TEXT + 40, "{}", said.len());
        }
        let event = serde_json::json!({"message": "ä".repeat(10_000)});
        assert!(read_event(&event).error.message.ends_with(CUT));
        assert_eq!(cut("short".to_owned()), "short");
    }

    #[test]
    fn a_key_that_a_worker_refuses_is_no_mistake_of_the_caller() {
        let body = br#"{"error":{"message":"Invalid API Key","type":"authentication_error"}}"#;
        let refusal = read(StatusCode::UNAUTHORIZED, body);
        assert_eq!(refusal.fault, Fault::Unclear);
        assert_eq!(refusal.error.code, Code::WorkerFailed);
    }

    #[test]
    fn mistakes_of_the_caller_are_told_from_the_engines_trouble() {
        for callers in [
            "input (901 tokens) is too large to process. increase the physical batch size (current batch size: 512)",
            "image input is not supported - hint: if this is unexpected, you may need to provide the mmproj",
            "audio input is not supported - hint: if this is unexpected, you may need to provide the mmproj",
            "Failed to parse messages: Missing 'role' in message: {\"content\":\"x\"}",
            "Failed to parse messages: [json.exception.type_error.302] type must be string, but is number",
            "Failed to parse messages: Missing tool call type: {\"id\":\"1\"}",
            "Failed to parse tools: Missing tool function: {\"type\":\"function\"}",
            "Conversation roles must alternate user/assistant/user/assistant/...",
            "Unable to generate parser for this template. Automatic parser generation failed",
            "Only user and assistant roles are supported! (raise_exception in template)",
            "Requested tokens (5031) exceed context window of 2048",
            "This model's maximum context length is 2048 tokens",
            "litellm.BadRequestError: OpenAIException - no",
            "m is not a multimodal model",
        ] {
            assert_eq!(of_500(&message(callers)), Fault::Caller, "{callers}");
        }
        for unclear in [
            "",
            "no",
            "Internal Server Error",
            "CUDA error: out of memory in template batch",
            "the stub says 500",
            "Compute error.",
            "failed to decode",
        ] {
            assert_eq!(of_500(&message(unclear)), Fault::Unclear, "{unclear}");
        }
    }

    #[test]
    fn structure_tells_as_well() {
        for callers in [
            r#"{"error":{"message":"no","type":"invalid_request_error"}}"#,
            r#"{"error":{"message":"no","type":"BadRequestError","code":400}}"#,
            r#"{"error":{"message":"no","code":"context_length_exceeded"}}"#,
            r#"{"object":"error","message":"no","type":"NotImplementedError"}"#,
            r#"{"error":"no","error_type":"validation"}"#,
            r#"{"error":"m does not support images"}"#,
            r#"{"detail":[{"loc":["body"],"msg":"Field required"}]}"#,
        ] {
            let fault = read(StatusCode::INTERNAL_SERVER_ERROR, callers.as_bytes()).fault;
            assert_eq!(fault, Fault::Caller, "{callers}");
        }
        let of = |status, body: &str| read(status, body.as_bytes()).fault;
        assert_eq!(of(StatusCode::NOT_IMPLEMENTED, "no"), Fault::Caller);
        assert_eq!(of(StatusCode::NOT_FOUND, ""), Fault::Caller);
        assert_eq!(of(StatusCode::TOO_MANY_REQUESTS, ""), Fault::Load);
        assert_eq!(of(StatusCode::BAD_GATEWAY, "<html>"), Fault::Unclear);
        assert_eq!(
            of(
                StatusCode::INTERNAL_SERVER_ERROR,
                r#"{"error":{"code":429}}"#
            ),
            Fault::Unclear
        );
    }

    #[test]
    fn the_engines_words_are_told_and_nothing_hides_them() {
        let said = |status, body: &str| read(status, body.as_bytes()).error;
        let error = said(
            StatusCode::INTERNAL_SERVER_ERROR,
            &message("mmproj is missing"),
        );
        assert_eq!(error.message, "mmproj is missing");
        assert_eq!(error.code, Code::InvalidRequest);
        let error = said(StatusCode::INTERNAL_SERVER_ERROR, &message("it broke"));
        assert_eq!(error.message, "the worker reported: it broke");
        assert_eq!(error.code, Code::WorkerFailed);
        let error = said(StatusCode::BAD_GATEWAY, "");
        assert_eq!(
            error.message,
            "the worker reported: it answered 502 without a word"
        );
    }
}
