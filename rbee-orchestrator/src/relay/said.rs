//! What an event of a worker's stream says, in whichever form its engine writes it.
//!
//! Pings come as comments, as named events without data or with data that is no answer, and as empty
//! data. Errors come under `error` in the data, as an event named `error`, as a field `error`
//! (llama-server up to 2024), as `"object": "error"` (vLLM), and as a line of JSON that is no event.

use std::borrow::Cow;

use serde::de::IgnoredAny;
use serde_json::Value;

use super::refusal::{self, Refusal};
use super::sse;
use crate::error::{Code, Error, Result};

/// What an event says.
#[derive(Debug, PartialEq)]
pub(crate) enum Said<'a> {
    /// Nothing: a comment, a ping, empty data. No client is to be shown it.
    Nothing,
    /// That the stream is over.
    Done,
    /// A JSON object, and whether it comes under a name of its own.
    Object { data: Cow<'a, [u8]>, named: bool },
    /// That the worker gave up.
    Failed(Refusal),
}

/// Reads an event. That an object is JSON to its end is for its reader to find.
///
/// # Errors
/// `UPSTREAM_INVALID` for data that is no JSON.
pub(crate) fn read(event: &[u8]) -> Result<Said<'_>> {
    if let Some(error) = sse::field(event, b"error") {
        return Ok(Said::Failed(failure(&error)));
    }
    let name = sse::field(event, b"event");
    let name = name.as_deref().map(<[u8]>::trim_ascii);
    let data = trimmed(sse::data(event).unwrap_or_default());
    if name == Some(b"error") {
        return Ok(Said::Failed(failure(&data)));
    }
    match &*data {
        b"" => Ok(bare_error(event).map_or(Said::Nothing, Said::Failed)),
        b"[DONE]" => Ok(Said::Done),
        object if object.starts_with(b"{") => {
            let is_empty = object[1..].trim_ascii_start() == b"}";
            let named = name.is_some_and(|name| name != b"message");
            Ok(match is_empty {
                true => Said::Nothing,
                false => Said::Object { data, named },
            })
        }
        // Null, or anything else that no chunk of an answer is.
        other if is_json(other) || name.is_some() => Ok(Said::Nothing),
        other => Err(unreadable(other)),
    }
}

/// Whether the last event of a stream is there to its end, although no blank line follows.
pub(crate) fn is_whole(event: &[u8]) -> bool {
    match read(event) {
        Ok(Said::Object { data, .. }) => is_json(&data),
        Ok(_) => true,
        Err(_) => false,
    }
}

fn trimmed(data: Cow<'_, [u8]>) -> Cow<'_, [u8]> {
    match data {
        Cow::Borrowed(data) => Cow::Borrowed(data.trim_ascii()),
        Cow::Owned(data) => Cow::Owned(data.trim_ascii().to_vec()),
    }
}

fn is_json(data: &[u8]) -> bool {
    serde_json::from_slice::<IgnoredAny>(data).is_ok()
}

/// An error that is all of its event: JSON, or a sentence.
fn failure(said: &[u8]) -> Refusal {
    let value = serde_json::from_slice(said)
        .unwrap_or_else(|_| String::from_utf8_lossy(said.trim_ascii()).into());
    refusal::read_event(refusal::inner(&value))
}

/// An error that stands where an event should, as a proxy writes it that has promised a stream.
fn bare_error(text: &[u8]) -> Option<Refusal> {
    let text = text.trim_ascii();
    let value: Value = text
        .starts_with(b"{")
        .then(|| serde_json::from_slice(text).ok())??;
    refusal::in_answer(&value)
}

pub(crate) fn unreadable(data: &[u8]) -> Error {
    let shown: String = String::from_utf8_lossy(data).chars().take(120).collect();
    let what = "the worker sent an event that can't be read";
    // It may be a part of an answer.
    Error::new(Code::UpstreamInvalid, format!("{what}: {shown:?}")).keep(what)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failed(event: &str) -> Error {
        match read(event.as_bytes()).expect(event) {
            Said::Failed(refusal) => refusal.error,
            other => panic!("{event:?}: {other:?}"),
        }
    }

    #[test]
    fn an_object_is_shown_under_whatever_name() {
        for (event, named) in [
            ("data: {\"a\":1}\n\n", false),
            ("data:{\"a\":1}\r\n\r\n", false),
            (": note\nid: 3\nevent: message\ndata: {\"a\":1}\n\n", false),
            ("event: ping\ndata: {\"a\":1}\n\n", true),
        ] {
            let data = Cow::from(&b"{\"a\":1}"[..]);
            assert_eq!(
                read(event.as_bytes()),
                Ok(Said::Object { data, named }),
                "{event:?}"
            );
        }
        for event in ["data: [DONE]\n\n", "data:[DONE]\r\n\r\n", "data: [DONE] "] {
            assert_eq!(read(event.as_bytes()), Ok(Said::Done), "{event:?}");
        }
        let quoted = read(b"data: {\"content\":\"[DONE]\"}\n\n");
        assert!(matches!(quoted, Ok(Said::Object { .. })));
    }

    #[test]
    fn events_that_say_nothing_are_known() {
        for event in [
            ": ping\n\n",
            "event: ping\n\n",
            "data:\n\n",
            "data: \n\n",
            "data: null\n\n",
            "data: {}\n\n",
            "data: { }\n\n",
            "data: []\n\n",
            "retry: 3000\n\n",
            "event: ping\ndata: {}\n\n",
            "event: keepalive\ndata: ping\n\n",
            "\n",
        ] {
            assert_eq!(read(event.as_bytes()), Ok(Said::Nothing), "{event:?}");
        }
        for event in ["data: <html>\n\n", "data: ping\n\n", "data: nul\n\n"] {
            let error = read(event.as_bytes()).expect_err(event);
            assert_eq!(error.code, Code::UpstreamInvalid);
        }
    }

    #[test]
    fn an_error_is_told_in_the_engines_words_in_every_form() {
        for event in [
            "error: {\"code\":500,\"message\":\"out of memory\",\"type\":\"server_error\"}\n\n",
            "error: {\"error\":{\"message\":\"out of memory\"}}\n\n",
            "error: out of memory\n\n",
            "event: error\ndata: {\"code\":500,\"message\":\"out of memory\"}\n\n",
            "event: error\ndata: {\"type\":\"error\",\"error\":{\"message\":\"out of memory\"}}\n\n",
            "event: error\ndata: out of memory\n\n",
            "{\"error\":{\"message\":\"out of memory\"}}\n\n",
            "{\n  \"error\": \"out of memory\"\n}\n",
        ] {
            let error = failed(event);
            assert_eq!(
                error.message, "the worker reported: out of memory",
                "{event:?}"
            );
            assert_eq!(error.code, Code::WorkerFailed, "{event:?}");
        }
        let callers = failed("error: {\"code\":400,\"message\":\"longer than the context\"}\n\n");
        assert_eq!(callers.code, Code::InvalidRequest);
        assert_eq!(callers.message, "longer than the context");
        assert!(
            failed("event: error\n\n")
                .message
                .contains("without a word")
        );
    }
}
