//! Reads an SSE answer, and holds it to the form that the contract gives it.

use serde_json::Value;
use std::io::{self, BufRead, BufReader};
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

/// An event with the id that it came under.
#[derive(Debug, Clone, PartialEq)]
pub struct Block {
    /// Its `id:` line, which only the answers of `/events` have
    pub id: Option<String>,
    /// What it says
    pub event: Event,
}

/// An answer that is being read. Dropping it closes the connection.
pub struct EventStream {
    /// The HTTP status
    pub status: u16,
    /// The answer's headers
    pub headers: HeaderMap,
    /// The id of the newest event that had one
    pub last_id: Option<String>,
    /// Whether events may have ids: existing clients read the answer to a POST without any
    has_ids: bool,
    lines: BufReader<BodyReader<'static>>,
}

fn invalid(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

impl EventStream {
    pub(super) fn new(res: Response<Body>, has_ids: bool) -> Self {
        let (parts, body) = res.into_parts();
        EventStream {
            status: parts.status.as_u16(),
            headers: parts.headers,
            last_id: None,
            has_ids,
            lines: BufReader::new(body.into_reader()),
        }
    }

    /// A line without its end; nothing at the end of the body.
    fn line(&mut self) -> io::Result<Option<String>> {
        let mut line = String::new();
        if self.lines.read_line(&mut line)? == 0 {
            return Ok(None);
        }
        match line.strip_suffix('\n') {
            Some(text) => Ok(Some(text.to_owned())),
            None => Err(io::Error::new(io::ErrorKind::UnexpectedEof, line)),
        }
    }

    /// The next block; nothing at the end of the body.
    ///
    /// # Errors
    /// When the body breaks off, and with the kind `InvalidData` when a block is not one `data: `
    /// or comment line, an `id: ` line where there may be one, and an empty line: existing clients
    /// read exactly this.
    pub fn read(&mut self) -> io::Result<Option<Block>> {
        let mut id = None;
        let Some(mut line) = self.line()? else {
            return Ok(None);
        };
        if let Some(text) = line.strip_prefix("id: ").filter(|_| self.has_ids) {
            id = Some(text.to_owned());
            let next = self.line()?;
            line = next.ok_or_else(|| invalid(format!("nothing after {line:?}")))?;
        }
        let event = read_line(&line)?;
        let end = self.line()?;
        if end.as_deref() != Some("") {
            return Err(invalid(format!("{end:?} after {line:?}")));
        }
        if id.is_some() {
            self.last_id.clone_from(&id);
        }
        Ok(Some(Block { id, event }))
    }

    /// The next event; nothing at the end of the body.
    ///
    /// # Panics
    /// Where [`EventStream::read`] gives an error.
    #[expect(
        clippy::should_implement_trait,
        reason = "an iterator would invite adapters that hide which event failed"
    )]
    pub fn next(&mut self) -> Option<Event> {
        let read = self.read();
        let block = read.expect("the stream is whole and in its form");
        block.map(|block| block.event)
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

fn read_line(line: &str) -> io::Result<Event> {
    if let Some(comment) = line.strip_prefix(':') {
        return Ok(Event::Comment(comment.trim().to_owned()));
    }
    match line.strip_prefix("data: ") {
        Some("[DONE]") => Ok(Event::Done),
        Some(json) => match serde_json::from_str(json) {
            Ok(json) => Ok(Event::Json(json)),
            Err(e) => Err(invalid(format!("{e} in: {json}"))),
        },
        None => Err(invalid(format!("neither data nor a comment: {line:?}"))),
    }
}

/// Checks the order of a task's events: `queued`? → `started` → `token`* → one ending, tokens
/// numbered without gaps; returns the text, without what the model thought.
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
            "thinking" => assert!(started, "thinking before started: {event}"),
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
