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

/// Types, as above, of what is longer than the model's context.
const TOO_LONG_TYPES: [&str; 3] = [
    "exceedcontextsize",
    "contextlengthexceeded",
    "contextwindowexceeded",
];

/// Wordings for it, and for what an engine can't take at once.
const TOO_LONG_WORDS: [&[&str]; 9] = [
    &["exceed", "context"],
    &["longer than", "context"],
    &["longer than", "model length"],
    &["maximum context length"],
    &["context window", "token"],
    &["must have less than", "tokens"],
    &["prompt", "too long"],
    &["input", "too long"],
    &["too large to process"],
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
    refusal(fault, object, said, Some(status))
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
    refusal(of(Some(error), &said), Some(error), said, None)
}

fn refusal(
    fault: Fault,
    object: Option<&Value>,
    said: String,
    status: Option<StatusCode>,
) -> Refusal {
    let is_too_long = fault == Fault::Caller
        && (types(object).any(|name| TOO_LONG_TYPES.iter().any(|known| name.contains(known)))
            || has_any(&said.to_ascii_lowercase(), &TOO_LONG_WORDS));
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
    if is_too_long {
        error = error.too_long();
        // As llama-server tells how long, and how long is too long.
        for key in ["n_prompt_tokens", "n_ctx"] {
            if let Some(count) = object.and_then(|object| object.get(key)?.as_u64()) {
                error = error.detail(key, count);
            }
        }
    }
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
    let says_type =
        types(object).any(|name| CALLERS_TYPES.iter().any(|known| name.contains(known)));
    let said = said.to_ascii_lowercase();
    let in_type = |name: &&str| {
        said.replace(['_', ' '], "")
            .contains(&format!("{name}error"))
    };
    if status.is_some_and(is_callers) || matches!(status, Some(501)) || says_type {
        Fault::Caller
    } else if ENGINES_TROUBLE.iter().any(|part| said.contains(part)) {
        Fault::Unclear
    } else if has_any(&said, &CALLERS_WORDS) || CALLERS_TYPES.iter().any(in_type) {
        Fault::Caller
    } else {
        Fault::Unclear
    }
}

/// An error's types and names, without case, `_` and blanks.
fn types(object: Option<&Value>) -> impl Iterator<Item = String> {
    let names = ["type", "error_type", "code", "object"];
    names.into_iter().filter_map(move |name| {
        let text = object?.get(name)?.as_str()?;
        Some(text.to_ascii_lowercase().replace(['_', ' ', '-'], ""))
    })
}

/// Whether all parts of one of the wordings stand in a text, in their order.
fn has_any(said: &str, wordings: &[&[&str]]) -> bool {
    wordings.iter().any(|parts| {
        let mut rest = said;
        parts.iter().all(|part| match rest.split_once(part) {
            Some((_, after)) => {
                rest = after;
                true
            }
            None => false,
        })
    })
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
mod tests;
