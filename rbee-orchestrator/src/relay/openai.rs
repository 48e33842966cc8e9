//! OpenAI requests and answers: read only as far as they must be, changed in two values.
//!
//! Source: OpenAI's API reference, "Create chat completion", "Create completion", "Streaming".

use bytes::Bytes;
use serde::Deserialize;
use serde_json::error::Category;
use serde_json::value::RawValue;

use super::tokens::{self, Demand};
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
    /// llama-server's own name, which wins over OpenAI's there.
    #[serde(borrow)]
    n_predict: Option<&'a RawValue>,
    #[serde(borrow)]
    n: Option<&'a RawValue>,
    #[serde(borrow)]
    n_cmpl: Option<&'a RawValue>,
    #[serde(borrow)]
    best_of: Option<&'a RawValue>,
    #[serde(borrow)]
    tools: Option<&'a RawValue>,
}

impl Envelope<'_> {
    /// What the request may make its worker count.
    fn demand(&self, input: Input, given: &str) -> Demand {
        let bounds = [self.max_tokens, self.max_completion_tokens, self.n_predict];
        let answer = bounds.into_iter().flatten().filter_map(tokens::bound).max();
        let counts = [self.n, self.n_cmpl, self.best_of];
        let choices = counts.into_iter().flatten().map(tokens::count).max();
        let choices = choices.unwrap_or(1);
        let (read, prompts) = match input {
            Input::Messages => (tokens::of_messages(given), 1),
            Input::Prompt => tokens::of_prompts(given),
            Input::Texts => return Demand::of_texts(tokens::of_prompts(given).0),
        };
        let tools = self.tools.map_or(0, |tools| tools.get().len() as u64);
        Demand {
            input: read.saturating_add(tokens::of_text(tools)),
            answer,
            answers: prompts.saturating_mul(choices),
            choices,
        }
    }
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
    /// What it asks for in tokens; whether it may is for the worker to say.
    pub(crate) demand: Demand,
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
        let is_empty = || given[1..].trim_ascii_start().starts_with(']');
        if input == Input::Messages && is_empty() {
            return Err(Error::invalid("messages must not be empty").param("messages"));
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
        let demand = envelope.demand(input, given);
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
            demand,
            bytes,
        })
    }

    /// Whether the queen alone asks for the usage of its stream.
    pub(crate) fn lacks_options(&self) -> bool {
        let is_null = |span: &Span| &self.bytes[span.clone()] == b"null";
        self.stream && self.options_span.as_ref().is_none_or(is_null)
    }

    /// The body for a worker: `model` by the name it serves, and, if it is to be, usage asked for on
    /// streams.
    pub(crate) fn rewrite(&self, served_model: &str, with_usage: bool) -> Bytes {
        const USAGE: &str = r#"{"include_usage":true}"#;
        let name = serde_json::to_string(served_model).unwrap_or_default();
        let options = (self.stream && with_usage).then(|| match &self.options_span {
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
pub(super) fn read_text<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> serde_json::Result<T> {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn rewritten(body: &str) -> String {
        let body = RequestBody::read(Bytes::copy_from_slice(body.as_bytes()), Input::Messages);
        String::from_utf8(body.unwrap().rewrite("served", true).to_vec()).unwrap()
    }

    #[test]
    fn a_body_changes_in_two_values_only() {
        assert_eq!(
            rewritten(r#"{ "messages" : [ {} ] ,"model":"a\u0062", "x": 1.50 }"#),
            r#"{ "messages" : [ {} ] ,"model":"served", "x": 1.50 }"#
        );
        assert_eq!(
            rewritten(r#"{"model":"m","messages":[{}],"stream":true}"#),
            r#"{"stream_options":{"include_usage":true},"model":"served","messages":[{}],"stream":true}"#
        );
        assert_eq!(
            rewritten(
                r#"{"stream_options":{"include_usage":false,"a":1},"stream":true,"messages":[{}],"model":"m"}"#
            ),
            r#"{"stream_options":{"a":1,"include_usage":true},"stream":true,"messages":[{}],"model":"served"}"#
        );
        assert_eq!(
            rewritten(r#"{"stream_options":null,"stream":true,"messages":[{}],"model":"m"}"#),
            r#"{"stream_options":{"include_usage":true},"stream":true,"messages":[{}],"model":"served"}"#
        );
    }

    #[test]
    fn a_body_whose_usage_nobody_asks_for_changes_in_one_value() {
        for (body, lacks_options) in [
            (r#"{"model":"m","messages":[{}],"stream":true}"#, true),
            (
                r#"{"model":"m","messages":[{}],"stream":true,"stream_options":null}"#,
                true,
            ),
            (
                r#"{"model":"m","messages":[{}],"stream":true,"stream_options":{}}"#,
                false,
            ),
            (r#"{"model":"m","messages":[{}]}"#, false),
        ] {
            let read = RequestBody::read(body.into(), Input::Messages).unwrap();
            assert_eq!(read.lacks_options(), lacks_options, "{body}");
            let served = body.replace(r#""m""#, r#""served""#);
            assert_eq!(read.rewrite("served", false), served);
        }
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
        for empty in [
            r#"{"messages":[],"model":"m"}"#,
            "{\"model\":\"m\",\"messages\":[ \n]}",
        ] {
            let (param, message) = refused(empty);
            assert_eq!(param, Some("messages"));
            assert!(message.contains("empty"), "{message}");
        }
        assert!(
            refused(r#"{"model":"m","messages":[{}],"stream":"yes"}"#)
                .1
                .contains("wrong value")
        );
        assert!(
            refused(r#"{"model":"m","model":"n","messages":[{}]}"#)
                .1
                .contains("duplicate")
        );
    }

    #[test]
    fn what_a_body_asks_for_is_counted_under_every_name() {
        let demand = |input, fields: &str| {
            let body = format!(
                r#"{{"model":"m","messages":[0],"prompt":"four","input":"four",{fields}}}"#
            );
            RequestBody::read(Bytes::from(body), input).unwrap().demand
        };
        let prompt = |fields: &str| demand(Input::Prompt, fields);
        for fields in [
            r#""max_tokens":30"#,
            r#""max_tokens":3e1"#,
            r#""max_tokens":"30""#,
            r#""max_completion_tokens":30,"max_tokens":5"#,
            r#""max_tokens":30,"max_completion_tokens":5"#,
            r#""n_predict":30,"max_tokens":5"#,
        ] {
            assert_eq!(prompt(fields), Demand::one(2, Some(30)), "{fields}");
        }
        for (fields, most) in [
            (r#""max_tokens":30,"n":4"#, 4 * 32),
            (r#""max_tokens":30,"n":1,"best_of":4"#, 4 * 32),
            (r#""max_tokens":30,"n_cmpl":"4""#, 4 * 32),
            (
                r#""max_tokens":18446744073709551615,"n":3"#,
                tokens::MOST_TOKENS,
            ),
            (r#""max_tokens":30,"tools":[{"a":1}]"#, 2 + 30 + 3),
        ] {
            assert_eq!(prompt(fields).most(), most, "{fields}");
        }
        let chat = demand(Input::Messages, r#""max_tokens":30,"n":2.0"#);
        assert_eq!(chat.most(), 2 * 31);
        let embedding = demand(Input::Texts, r#""max_tokens":30"#);
        assert_eq!(embedding.most(), 2);
    }
}
