//! Server-sent events as bytes (WHATWG HTML, "Server-sent events"): cut, not copied.

use std::borrow::Cow;

use bytes::{Bytes, BytesMut};
use memchr::{memchr2, memrchr2};

use crate::budget::{Budget, Held, SMALL};

/// An event that can't be kept until its end.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Overflow {
    /// It is longer than allowed.
    TooLong,
    /// Others hold the memory that it needs.
    NoRoom,
}

/// Cuts a byte stream at the ends of events.
///
/// What arrives in whole events goes through without a copy; the part of an event is held back
/// until the rest is there, so that a client never sees half an event.
#[derive(Debug)]
pub(crate) struct Splitter {
    part: BytesMut,
    longest: usize,
    /// What large events are counted against.
    budget: Option<Budget>,
    held: Option<Held>,
}

impl Splitter {
    pub(crate) fn new(longest: usize) -> Self {
        Splitter {
            part: BytesMut::new(),
            longest,
            budget: None,
            held: None,
        }
    }

    /// Counts large events, until their readers have taken them.
    pub(crate) fn counted(self, budget: Budget) -> Self {
        Splitter {
            budget: Some(budget),
            ..self
        }
    }

    /// Takes what arrived; returns the whole events that are there now, which may be none.
    pub(crate) fn push(&mut self, mut chunk: Bytes) -> Result<Bytes, Overflow> {
        if !self.part.is_empty() {
            let looked_at = self.part.len();
            self.part.extend_from_slice(&chunk);
            return match last_end(&self.part, looked_at) {
                Some(end) => Ok(self.take(end)),
                None => self.wait(),
            };
        }
        match last_end(&chunk, 0) {
            Some(end) if end == chunk.len() => Ok(chunk),
            Some(end) => {
                let whole = chunk.split_to(end);
                self.part.extend_from_slice(&chunk);
                Ok(whole)
            }
            None => {
                self.part.extend_from_slice(&chunk);
                self.wait()
            }
        }
    }

    fn take(&mut self, end: usize) -> Bytes {
        let whole = self.part.split_to(end).freeze();
        match self.held.take() {
            Some(held) => {
                // What is left would keep all of the memory.
                self.part = BytesMut::from(&self.part[..]);
                held.keep(whole)
            }
            None => whole,
        }
    }

    /// Keeps a part until more is there.
    fn wait(&mut self) -> Result<Bytes, Overflow> {
        let bytes = self.part.capacity();
        if self.part.len() > self.longest {
            return Err(Overflow::TooLong);
        }
        if let Some(budget) = self.budget.as_ref().filter(|_| bytes > SMALL) {
            let fits = match &mut self.held {
                Some(held) => held.grow(bytes),
                none => {
                    *none = budget.hold(bytes);
                    none.is_some()
                }
            };
            if !fits {
                return Err(Overflow::NoRoom);
            }
        }
        Ok(Bytes::new())
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

/// Where the last blank line ends; the first `looked_at` bytes have none that is whole.
fn last_end(bytes: &[u8], looked_at: usize) -> Option<usize> {
    // A blank line that begins there ends behind it.
    let low = looked_at.saturating_sub(3);
    let mut to = bytes.len();
    while let Some(at) = memrchr2(b'\n', b'\r', &bytes[low.min(to)..to]).map(|at| low + at) {
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
    fn events_that_come_byte_by_byte_are_the_same() {
        for stream in [
            "data: a\n\ndata: b\n\n",
            "data: a\r\n\r\ndata: b\r\n\r\n",
            "data: a\r\rdata: b\r\r",
            "data: a\n\rdata: b\n\n",
        ] {
            let bytes: Vec<&[u8]> = stream.as_bytes().chunks(1).collect();
            let (found, part) = through(&bytes);
            let told: Vec<_> = found.iter().filter(|text| !text.is_empty()).collect();
            assert_eq!(told, ["a", "b"], "{stream:?}");
            assert!(!part, "{stream:?}");
        }
    }

    #[test]
    fn large_events_are_counted_until_their_reader_has_taken_them() {
        let budget = Budget::new(100_000);
        let mut splitter = Splitter::new(1 << 20).counted(budget.clone());
        let chunk = || Bytes::from(vec![b'x'; 40_000]);
        assert_eq!(splitter.push(chunk()), Ok(Bytes::new()));
        assert!(budget.hold(60_001).is_none());
        let event = splitter.push("\n\ndata".into()).expect("it fits");
        assert_eq!(event.len(), 40_002);
        assert!(budget.hold(60_001).is_none());
        drop(event);
        let all = budget.hold(100_000).expect("nothing is held");
        assert_eq!(splitter.push(chunk()), Err(Overflow::NoRoom));
        drop((splitter, all));
        assert!(budget.hold(100_000).is_some());
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
        assert_eq!(splitter.push("x".repeat(33).into()), Err(Overflow::TooLong));
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
