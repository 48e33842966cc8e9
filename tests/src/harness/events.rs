//! Reads an SSE answer, and holds it to the form that the contract gives it.

use serde_json::Value;
use std::io::{BufRead, BufReader};
use ureq::http::{HeaderMap, Response};
use ureq::{Body, BodyReader};

/// One block of the stream.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// `data: {json}`
    Json(Value),
    /// `data: [DONE]`
    Done,
    /// `: comment`
    Comment(String),
}

/// An answer that is being read. Dropping it closes the connection.
pub struct EventStream {
    /// The HTTP status
    pub status: u16,
    /// The answer's headers
    pub headers: HeaderMap,
    lines: BufReader<BodyReader<'static>>,
}

impl EventStream {
    pub(super) fn new(res: Response<Body>) -> Self {
        let (parts, body) = res.into_parts();
        EventStream {
            status: parts.status.as_u16(),
            headers: parts.headers,
            lines: BufReader::new(body.into_reader()),
        }
    }

    fn line(&mut self) -> Option<String> {
        let mut line = String::new();
        let read = self.lines.read_line(&mut line);
        let read = read.expect("the stream is UTF-8 and does not break off");
        (read > 0).then_some(line)
    }

    /// The next block; nothing at the end of the body.
    ///
    /// # Panics
    /// When a block is not one `data: ` or comment line and an empty one: existing clients read
    /// exactly this.
    #[expect(
        clippy::should_implement_trait,
        reason = "an iterator would invite adapters that hide which event failed"
    )]
    pub fn next(&mut self) -> Option<Event> {
        let line = self.line()?;
        let text = line.strip_suffix('\n').unwrap_or_else(|| {
            panic!("the body ends in the middle of a line: {line:?}");
        });
        let event = if let Some(data) = text.strip_prefix("data: ") {
            match data {
                "[DONE]" => Event::Done,
                json => Event::Json(
                    serde_json::from_str(json).unwrap_or_else(|e| panic!("{e} in: {json}")),
                ),
            }
        } else if let Some(comment) = text.strip_prefix(':') {
            Event::Comment(comment.trim().to_owned())
        } else {
            panic!("neither data nor a comment: {text:?}");
        };
        assert_eq!(self.line().as_deref(), Some("\n"), "after {text:?}");
        Some(event)
    }

    /// The next JSON event, past comments.
    ///
    /// # Panics
    /// When there is none.
    pub fn json(&mut self) -> Value {
        loop {
            match self.next() {
                Some(Event::Json(json)) => return json,
                Some(Event::Comment(_)) => {}
                other => panic!("expected an event, not {other:?}"),
            }
        }
    }

    /// Reads on until an event of that `type`; returns it.
    ///
    /// # Panics
    /// When the stream ends first.
    pub fn until_type(&mut self, kind: &str) -> Value {
        loop {
            let event = self.json();
            if event["type"] == kind {
                return event;
            }
            let ended = event["type"] == "error" || event["type"] == "end";
            assert!(!ended, "ended before any {kind}: {event}");
        }
    }

    /// All JSON events up to `[DONE]`, which must be the last of the body.
    ///
    /// # Panics
    /// When there is no `[DONE]` or something after it.
    pub fn rest(mut self) -> Vec<Value> {
        let mut events = Vec::new();
        loop {
            match self.next() {
                Some(Event::Json(json)) => events.push(json),
                Some(Event::Comment(_)) => {}
                Some(Event::Done) => break,
                None => panic!("the body ended without [DONE], after {events:#?}"),
            }
        }
        assert_eq!(self.next(), None, "after [DONE]");
        events
    }
}

/// Checks the order of a task's events: `queued`? → `started` → `token`* → one ending, tokens
/// numbered without gaps; returns the text.
///
/// # Panics
/// When the order is another.
#[track_caller]
pub fn assert_task_completed(events: &[Value]) -> String {
    let mut text = String::new();
    let (mut started, mut ended, mut next) = (false, false, 0);
    for event in events {
        let kind = event["type"].as_str().unwrap_or_default();
        assert!(!ended, "after the ending: {event}");
        match kind {
            "queued" => assert!(!started, "queued after started: {event}"),
            "narration" | "metrics" => {}
            "started" => {
                assert!(!started, "started twice: {events:#?}");
                started = true;
            }
            "token" => {
                assert!(started, "a token before started: {event}");
                assert_eq!(event["i"], next, "{event}");
                next += 1;
                text += event["t"].as_str().expect("a token has a text");
            }
            "end" => {
                assert!(started, "an end before started: {event}");
                ended = true;
            }
            _ => panic!("unexpected event: {event}"),
        }
    }
    assert!(ended, "no end: {events:#?}");
    text
}

/// Checks that a stream of task events ends with this error; returns its message.
///
/// # Panics
/// When it does not.
#[track_caller]
pub fn assert_task_failed(events: &[Value], code: &str, message_has: &[&str]) -> String {
    let last = events.last().expect("a stream has events");
    assert_eq!(last["type"], "error", "{events:#?}");
    assert_eq!(last["code"], code, "{last}");
    let endings = events
        .iter()
        .filter(|e| e["type"] == "error" || e["type"] == "end");
    assert_eq!(endings.count(), 1, "{events:#?}");
    let message = last["message"].as_str().unwrap_or_default();
    for fragment in message_has {
        assert!(message.contains(fragment), "no {fragment:?} in: {message}");
    }
    message.to_owned()
}
