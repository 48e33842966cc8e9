//! OpenAI requests and answers: read only as far as they must be, changed in two values.
//!
//! Source: OpenAI's API reference, "Create chat completion", "Create completion", "Streaming".

use bytes::Bytes;
use serde::Deserialize;
use serde_json::error::Category;
use serde_json::value::RawValue;

use crate::domain::Usage;
use crate::error::{Error, Result};

/// What the queen reads of a request's body.
#[derive(Deserialize)]
struct Envelope<'a> {
    #[serde(borrow)]
    model: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "present")]
    stream_options: Option<&'a RawValue>,
    stream: Option<bool>,
    #[serde(borrow)]
    messages: Option<&'a RawValue>,
    #[serde(borrow)]
    prompt: Option<&'a RawValue>,
    #[serde(borrow)]
    input: Option<&'a RawValue>,
    #[serde(borrow)]
    max_tokens: Option<&'a RawValue>,
    #[serde(borrow)]
    max_completion_tokens: Option<&'a RawValue>,
}

/// Takes a null as a value too: its place must be known to be written over.
fn present<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Option<&'de RawValue>, D::Error> {
    <&RawValue>::deserialize(from).map(Some)
}

#[derive(Deserialize)]
struct StreamOptions {
    #[serde(default)]
    include_usage: Option<bool>,
}

/// A span of a request's body.
type Span = std::ops::Range<usize>;

/// A request's body with the places that change.
#[derive(Debug, Clone)]
pub(crate) struct RequestBody {
    bytes: Bytes,
    pub(crate) model: String,
    model_span: Span,
    options_span: Option<Span>,
    pub(crate) stream: bool,
    /// Whether the client wants the usage of a stream.
    pub(crate) wants_usage: bool,
    /// The size of what the model is to read, in bytes.
    pub(crate) input_bytes: usize,
    /// The most tokens of the answer, if it says so; whether it may is for the worker to say.
    pub(crate) max_tokens: Option<u64>,
}

/// Which of an endpoint's inputs must be there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Input {
    Messages,
    Prompt,
    Texts,
}

impl RequestBody {
    /// Reads a body.
    ///
    /// # Errors
    /// `INVALID_REQUEST` for what is not a JSON object with a model and the endpoint's input.
    pub(crate) fn read(bytes: Bytes, input: Input) -> Result<Self> {
        must_be_object(&bytes)?;
        // The plain reader is faster; only a body that it refuses is read again, for the field's name.
        let envelope: Envelope<'_> = match read_text(&bytes) {
            Ok(envelope) => envelope,
            Err(_) => read_json(&bytes)?,
        };
        let model_value = envelope.model.ok_or_else(|| missing("model"))?;
        let model: String = serde_json::from_str(model_value.get())
            .map_err(|_| Error::invalid("model must be a string").param("model"))?;
        let (name, given) = match input {
            Input::Messages => ("messages", envelope.messages),
            Input::Prompt => ("prompt", envelope.prompt),
            Input::Texts => ("input", envelope.input),
        };
        let given = given.ok_or_else(|| missing(name))?.get();
        if input == Input::Messages && !given.starts_with('[') {
            return Err(Error::invalid("messages must be an array of messages").param("messages"));
        }
        let wants_usage = match envelope.stream_options {
            None => false,
            Some(options) => serde_json::from_str::<Option<StreamOptions>>(options.get())
                .ok()
                // A reader of fields takes an array of their values too.
                .filter(|_| !options.get().starts_with('['))
                .ok_or_else(|| {
                    Error::invalid("stream_options must be an object").param("stream_options")
                })?
                .and_then(|options| options.include_usage)
                .unwrap_or(false),
        };
        let most = envelope.max_completion_tokens.or(envelope.max_tokens);
        let span = |value: &RawValue| {
            let start = value.get().as_ptr() as usize - bytes.as_ptr() as usize;
            start..start + value.get().len()
        };
        Ok(RequestBody {
            model_span: span(model_value),
            options_span: envelope.stream_options.map(span),
            model,
            stream: envelope.stream.unwrap_or(false),
            wants_usage,
            input_bytes: given.len(),
            max_tokens: most.and_then(|value| value.get().parse().ok()),
            bytes,
        })
    }

    /// The body for a worker: `model` by the name it serves, and usage asked for on streams.
    pub(crate) fn rewrite(&self, served_model: &str) -> Bytes {
        const USAGE: &str = r#"{"include_usage":true}"#;
        let name = serde_json::to_string(served_model).unwrap_or_default();
        let options = self.stream.then(|| match &self.options_span {
            Some(span) => (span.clone(), self.options_with_usage(span)),
            None => {
                let brace = self.bytes.iter().position(|b| *b == b'{');
                let first = brace.map_or(0, |at| at + 1);
                (first..first, format!("\"stream_options\":{USAGE},"))
            }
        });
        let mut changes = [Some((self.model_span.clone(), name)), options];
        changes.sort_unstable_by_key(|change| change.as_ref().map(|(span, _)| span.start));
        let changes = changes.iter().flatten();
        let added: usize = changes.clone().map(|(_, text)| text.len()).sum();
        let removed: usize = changes.clone().map(|(span, _)| span.len()).sum();
        let mut out = Vec::with_capacity(self.bytes.len() + added - removed);
        let mut at = 0;
        for (span, text) in changes {
            out.extend_from_slice(&self.bytes[at..span.start]);
            out.extend_from_slice(text.as_bytes());
            at = span.end;
        }
        out.extend_from_slice(&self.bytes[at..]);
        out.into()
    }

    fn options_with_usage(&self, span: &Span) -> String {
        let mut options: serde_json::Map<String, serde_json::Value> =
            serde_json::from_slice(&self.bytes[span.clone()]).unwrap_or_default();
        options.insert("include_usage".to_owned(), true.into());
        serde_json::Value::Object(options).to_string()
    }

    /// The body as the client sent it.
    pub(crate) fn bytes(&self) -> &Bytes {
        &self.bytes
    }
}

/// Reads JSON. That it is UTF-8 is found out for all of it at once, which takes less time than for one
/// string after the other.
fn read_text<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> serde_json::Result<T> {
    match std::str::from_utf8(bytes) {
        Ok(text) => serde_json::from_str(text),
        Err(_) => serde_json::from_slice(bytes),
    }
}

/// Reads a JSON body, which is an object.
///
/// # Errors
/// `INVALID_REQUEST`, naming the field that has a wrong value.
pub(crate) fn read_json<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T> {
    must_be_object(bytes)?;
    let mut json = serde_json::Deserializer::from_slice(bytes);
    let value = serde_path_to_error::deserialize(&mut json).map_err(|error| {
        let path = error.path().to_string();
        wrong_json(error.inner(), Some(path).filter(|path| path != "."))
    })?;
    json.end().map_err(|error| wrong_json(&error, None))?;
    Ok(value)
}

/// Refuses what is JSON and no object: serde's readers of fields take an array of their values too.
fn must_be_object(bytes: &[u8]) -> Result<()> {
    let is_blank = |byte: &u8| matches!(byte, b' ' | b'\t' | b'\n' | b'\r');
    let first = bytes.iter().find(|byte| !is_blank(byte));
    let what = match first {
        Some(b'[') => "an array",
        Some(b'"') => "a string",
        Some(b'-' | b'0'..=b'9') => "a number",
        Some(b't' | b'f' | b'n') if serde_json::from_slice::<Option<bool>>(bytes).is_ok() => {
            "true, false or null"
        }
        // Either it is an object, or the reader says what is wrong.
        _ => return Ok(()),
    };
    Err(Error::invalid(format!(
        "the body must be a JSON object, and is {what}"
    )))
}

fn wrong_json(error: &serde_json::Error, field: Option<String>) -> Error {
    match (error.classify(), field) {
        (Category::Data, Some(field)) => {
            Error::invalid(format!("{field} has a wrong value: {error}")).detail("field", field)
        }
        (Category::Data, None) => Error::invalid(format!("the body has a wrong value: {error}")),
        _ => Error::invalid(format!("the body is not valid JSON: {error}")),
    }
}

pub(crate) fn missing(field: &'static str) -> Error {
    Error::invalid(format!("the request needs a {field}")).param(field)
}

/// `usage` as OpenAI writes it.
#[derive(Debug, Clone, Copy, Default, Deserialize)]
pub(crate) struct WireUsage {
    #[serde(default)]
    prompt_tokens: u64,
    #[serde(default)]
    completion_tokens: u64,
}

impl From<WireUsage> for Usage {
    fn from(usage: WireUsage) -> Usage {
        Usage {
            tokens_in: usage.prompt_tokens,
            tokens_out: usage.completion_tokens,
            estimated: false,
        }
    }
}

/// What is read of an unstreamed answer.
#[derive(Deserialize)]
struct AnswerEnvelope {
    #[serde(default)]
    usage: Option<WireUsage>,
}

/// The usage in a whole answer.
///
/// # Errors
/// When the answer is not a JSON object.
pub(crate) fn answer_usage(body: &[u8]) -> serde_json::Result<Option<Usage>> {
    let envelope: AnswerEnvelope = read_text(body)?;
    Ok(envelope.usage.map(Usage::from))
}

/// What a stream's chunk says about usage.
#[derive(Deserialize)]
struct UsageChunk<'a> {
    #[serde(default)]
    usage: Option<WireUsage>,
    #[serde(borrow, default)]
    choices: Option<&'a RawValue>,
}

/// Usage in an event of a stream, and whether the event carries nothing else.
pub(crate) fn chunk_usage(data: &[u8]) -> Option<(Usage, bool)> {
    let chunk: UsageChunk<'_> = serde_json::from_slice(data).ok()?;
    let only = chunk.choices.is_none_or(|choices| {
        choices
            .get()
            .trim_start_matches('[')
            .trim_start()
            .starts_with(']')
    });
    Some((chunk.usage?.into(), only))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rewritten(body: &str) -> String {
        let body = RequestBody::read(Bytes::copy_from_slice(body.as_bytes()), Input::Messages);
        String::from_utf8(body.unwrap().rewrite("served").to_vec()).unwrap()
    }

    #[test]
    fn a_body_changes_in_two_values_only() {
        assert_eq!(
            rewritten(r#"{ "messages" : [ ] ,"model":"a\u0062", "x": 1.50 }"#),
            r#"{ "messages" : [ ] ,"model":"served", "x": 1.50 }"#
        );
        assert_eq!(
            rewritten(r#"{"model":"m","messages":[],"stream":true}"#),
            r#"{"stream_options":{"include_usage":true},"model":"served","messages":[],"stream":true}"#
        );
        assert_eq!(
            rewritten(
                r#"{"stream_options":{"include_usage":false,"a":1},"stream":true,"messages":[],"model":"m"}"#
            ),
            r#"{"stream_options":{"a":1,"include_usage":true},"stream":true,"messages":[],"model":"served"}"#
        );
        assert_eq!(
            rewritten(r#"{"stream_options":null,"stream":true,"messages":[],"model":"m"}"#),
            r#"{"stream_options":{"include_usage":true},"stream":true,"messages":[],"model":"served"}"#
        );
    }

    #[test]
    fn bad_bodies_are_refused_by_name() {
        let refused = |body: &str| {
            let error = RequestBody::read(Bytes::copy_from_slice(body.as_bytes()), Input::Messages);
            let error = error.unwrap_err();
            assert_eq!(error.code.as_str(), "INVALID_REQUEST");
            (error.param, error.message)
        };
        assert!(refused("{").1.contains("not valid JSON"));
        assert_eq!(refused(r#"{"messages":[]}"#).0, Some("model"));
        assert_eq!(refused(r#"{"model":3,"messages":[]}"#).0, Some("model"));
        assert_eq!(refused(r#"{"model":"m"}"#).0, Some("messages"));
        assert_eq!(
            refused(r#"{"model":"m","messages":"hi"}"#).0,
            Some("messages")
        );
        assert!(
            refused(r#"{"model":"m","messages":[],"stream":"yes"}"#)
                .1
                .contains("wrong value")
        );
        assert!(
            refused(r#"{"model":"m","model":"n","messages":[]}"#)
                .1
                .contains("duplicate")
        );
    }

    #[test]
    fn a_usage_chunk_is_told_from_a_token_with_usage() {
        let only = br#"{"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":5}}"#;
        let usage = Usage {
            tokens_in: 3,
            tokens_out: 5,
            estimated: false,
        };
        assert_eq!(chunk_usage(only), Some((usage, true)));
        let both =
            br#"{"choices":[{"delta":{}}],"usage":{"prompt_tokens":3,"completion_tokens":5}}"#;
        assert_eq!(chunk_usage(both), Some((usage, false)));
        assert_eq!(chunk_usage(br#"{"choices":[],"usage":null}"#), None);
    }
}
