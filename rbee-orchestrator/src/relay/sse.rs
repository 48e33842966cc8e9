//! Server-sent events as bytes (WHATWG HTML, "Server-sent events"): cut, not copied.

use std::borrow::Cow;

use bytes::{Bytes, BytesMut};
use memchr::{memchr2, memrchr2};

/// An event is longer than allowed.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct TooLong;

/// Cuts a byte stream at the ends of events.
///
/// What arrives in whole events goes through without a copy; the part of an event is held back
/// until the rest is there, so that a client never sees half an event.
#[derive(Debug)]
pub(crate) struct Splitter {
    part: BytesMut,
    longest: usize,
}

impl Splitter {
    pub(crate) fn new(longest: usize) -> Self {
        Splitter {
            part: BytesMut::new(),
            longest,
        }
    }

    /// Takes what arrived; returns the whole events that are there now, which may be none.
    pub(crate) fn push(&mut self, mut chunk: Bytes) -> Result<Bytes, TooLong> {
        if !self.part.is_empty() {
            self.part.extend_from_slice(&chunk);
            return match last_end(&self.part) {
                Some(end) => Ok(self.part.split_to(end).freeze()),
                None if self.part.len() > self.longest => Err(TooLong),
                None => Ok(Bytes::new()),
            };
        }
        match last_end(&chunk) {
            Some(end) if end == chunk.len() => Ok(chunk),
            Some(end) => {
                let whole = chunk.split_to(end);
                self.part.extend_from_slice(&chunk);
                Ok(whole)
            }
            None => {
                self.part.extend_from_slice(&chunk);
                if self.part.len() > self.longest {
                    Err(TooLong)
                } else {
                    Ok(Bytes::new())
                }
            }
        }
    }

    /// Whether the stream stopped inside an event.
    pub(crate) fn has_part(&self) -> bool {
        self.part.iter().any(|b| !matches!(b, b'\n' | b'\r'))
    }

    /// What is there of an event that has not ended, as if it had.
    pub(crate) fn take_part(&mut self) -> Bytes {
        let mut part = std::mem::take(&mut self.part);
        part.truncate(part.trim_ascii_end().len());
        part.extend_from_slice(b"\n\n");
        part.freeze()
    }

    /// Whether what is there of an event is a comment.
    pub(crate) fn is_in_comment(&self) -> bool {
        self.part.starts_with(b":")
    }
}

/// Where the last blank line ends.
fn last_end(bytes: &[u8]) -> Option<usize> {
    let mut to = bytes.len();
    while let Some(at) = memrchr2(b'\n', b'\r', &bytes[..to]) {
        // A carriage return at the very end may be the first half of a line break.
        if bytes[at] == b'\r' && at + 1 == bytes.len() && at > 0 && bytes[at - 1] != b'\r' {
            to = at;
            continue;
        }
        let begin = if bytes[at] == b'\n' && at > 0 && bytes[at - 1] == b'\r' {
            at - 1
        } else {
            at
        };
        if begin == 0 || matches!(bytes[begin - 1], b'\n' | b'\r') {
            return Some(at + 1);
        }
        to = begin;
    }
    None
}

/// The events in a run of whole events, each with its blank line.
pub(crate) fn events(bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let (event, after) = rest.split_at(first_end(rest));
        rest = after;
        Some(event)
    })
}

fn first_end(bytes: &[u8]) -> usize {
    let mut from = 0;
    while let Some(at) = memchr2(b'\n', b'\r', &bytes[from..]).map(|at| from + at) {
        let next = line_break(bytes, at);
        let blank = line_break(bytes, next);
        if blank > next {
            return blank;
        }
        from = next;
    }
    bytes.len()
}

/// Where the line break at `at` ends; `at` if there is none.
fn line_break(bytes: &[u8], at: usize) -> usize {
    match (bytes.get(at), bytes.get(at + 1)) {
        (Some(b'\r'), Some(b'\n')) => at + 2,
        (Some(b'\r' | b'\n'), _) => at + 1,
        _ => at,
    }
}

/// The data of an event: its `data:` lines.
pub(crate) fn data(event: &[u8]) -> Option<Cow<'_, [u8]>> {
    only_line(event)
        .map(Cow::from)
        .or_else(|| field(event, b"data"))
}

/// The data of an event that has nothing beside it, as nearly all are.
fn only_line(event: &[u8]) -> Option<&[u8]> {
    let value = event.strip_prefix(b"data: ")?;
    let (line, end) = value.split_at(memchr2(b'\n', b'\r', value)?);
    (end == b"\n\n").then_some(line)
}

/// A field of an event. Borrowed where it has one line, as nearly always.
pub(crate) fn field<'a>(event: &'a [u8], name: &[u8]) -> Option<Cow<'a, [u8]>> {
    let mut lines = lines(event).filter_map(|line| {
        let value = line.strip_prefix(name)?.strip_prefix(b":")?;
        Some(value.strip_prefix(b" ").unwrap_or(value))
    });
    let first = lines.next()?;
    let Some(second) = lines.next() else {
        return Some(first.into());
    };
    let mut all = [first, second].join(&b'\n');
    for line in lines {
        all.push(b'\n');
        all.extend_from_slice(line);
    }
    Some(all.into())
}

pub(super) fn lines(event: &[u8]) -> impl Iterator<Item = &[u8]> {
    event.split(|b| matches!(b, b'\n' | b'\r'))
}

/// `data: …` with its blank line.
pub(crate) fn encode(data: &[u8]) -> Bytes {
    let mut out = Vec::with_capacity(data.len() + 8);
    out.extend_from_slice(b"data: ");
    out.extend_from_slice(data);
    out.extend_from_slice(b"\n\n");
    out.into()
}

/// The event after which nothing comes.
pub(crate) const DONE: &[u8] = b"data: [DONE]\n\n";

#[cfg(test)]
mod tests {
    use super::*;

    fn through(pieces: &[&[u8]]) -> (Vec<String>, bool) {
        let mut splitter = Splitter::new(1 << 20);
        let mut found = Vec::new();
        for piece in pieces {
            let whole = splitter.push(Bytes::copy_from_slice(piece)).unwrap();
            for event in events(&whole) {
                let text = data(event).unwrap_or_default().into_owned();
                found.push(String::from_utf8(text).unwrap());
            }
        }
        (found, splitter.has_part())
    }

    #[test]
    fn events_come_out_whole_wherever_the_stream_is_cut() {
        let stream = "data: {\"a\":\"é\"}\n\n: note\n\nevent: x\r\ndata:b\r\ndata: c\r\n\r\ndata: [DONE]\n\n";
        let expected = (
            vec![
                "{\"a\":\"é\"}".into(),
                String::new(),
                "b\nc".into(),
                "[DONE]".into(),
            ],
            false,
        );
        let bytes = stream.as_bytes();
        assert_eq!(through(&[bytes]), expected);
        for first in 0..bytes.len() {
            for second in first..bytes.len() {
                let pieces = [&bytes[..first], &bytes[first..second], &bytes[second..]];
                let (found, part) = through(&pieces);
                let told: Vec<_> = found.iter().filter(|text| !text.is_empty()).collect();
                assert_eq!(
                    told,
                    ["{\"a\":\"é\"}", "b\nc", "[DONE]"],
                    "{first} {second}"
                );
                assert!(!part);
            }
        }
    }

    #[test]
    fn half_an_event_is_held_back_and_noticed() {
        let mut splitter = Splitter::new(32);
        assert_eq!(
            splitter.push("data: a\n\ndata: b".into()).unwrap(),
            "data: a\n\n"
        );
        assert!(splitter.has_part());
        assert_eq!(splitter.push("\n\n".into()).unwrap(), "data: b\n\n");
        assert!(!splitter.has_part());
        assert_eq!(splitter.push("x".repeat(33).into()), Err(TooLong));
    }

    #[test]
    fn bare_carriage_returns_end_lines_too() {
        assert_eq!(through(&[b"data: a\r\rdata: b\r\r"]).0, ["a", "b"]);
    }

    #[test]
    fn fields_are_found_by_their_whole_names() {
        let event = b"event: error\ndatax: no\ndata:a\ndata: b\nerror:c\n\n";
        let read = |name: &str| field(event, name.as_bytes()).map(Cow::into_owned);
        assert_eq!(read("event").unwrap(), b"error");
        assert_eq!(read("data").unwrap(), b"a\nb");
        assert_eq!(read("error").unwrap(), b"c");
        assert_eq!(read("id"), None);
    }
}
