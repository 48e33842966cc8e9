//! Streams of OpenAI workers for OpenAI's clients: whole events go through as they are, and each is
//! looked at only as far as it must be.

use std::sync::LazyLock;

use bytes::Bytes;
use memchr::memchr;
use memchr::memmem::Finder;
use serde_json::value::RawValue;

use super::Streaming;
use crate::domain::Outcome;
use crate::error::Result;
use crate::relay::chunk::Chunk;
use crate::relay::said::{self, Said};
use crate::relay::sse;
use crate::router::Step;

/// What tells a token from all else. Made once: to make a finder takes longer than to search a token
/// with it.
struct Marks {
    usage: Finder<'static>,
    error: Finder<'static>,
    finish: Finder<'static>,
}

static MARKS: LazyLock<Marks> = LazyLock::new(|| Marks {
    usage: Finder::new("\"usage\""),
    error: Finder::new("\"error\""),
    finish: Finder::new("\"finish_reason\""),
});

impl Streaming {
    /// Passes whole events on as they are. Nearly all are tokens, and one look tells that.
    pub(super) fn relay(&mut self, block: Bytes, wants_usage: bool) {
        // Of several choices each event may end one.
        if self.begun
            && self.demand.answers <= 1
            && self.last_event.is_none()
            && is_plain(&block)
            && let Some(events) = objects(&block)
        {
            self.tokens += events;
            self.moved = true;
            return self.ready.push_back(Step::Data(block));
        }
        // Events that go through in a row are passed on as the slice that they are.
        let (mut from, mut at) = (0, 0);
        for event in sse::events(&block) {
            let end = at + event.len();
            let fate = self.look(event, wants_usage).unwrap_or_else(|error| {
                self.fail(error);
                Fate::Drop
            });
            if fate != Fate::Pass {
                self.pass(block.slice(from..at));
                from = end;
            }
            if fate == Fate::Keep {
                self.last_event = Some(block.slice(at..end));
            }
            at = end;
            if self.outcome.is_some() {
                break;
            }
        }
        self.pass(block.slice(from..at));
    }

    fn pass(&mut self, events: Bytes) {
        if !events.is_empty() {
            self.ready.push_back(Step::Data(events));
        }
    }

    /// Passes on the event with which a choice ended.
    pub(super) fn pass_last(&mut self) {
        if let Some(event) = self.last_event.take() {
            self.pass(event);
        }
    }

    /// The same, with what would stand in it if nobody had asked for usage.
    fn pass_last_with(&mut self, timings: &RawValue) {
        if let Some(event) = self.last_event.take() {
            self.pass(with_timings(&event, timings).unwrap_or(event));
        }
    }

    /// Looks at one event of a raw stream.
    fn look(&mut self, event: &[u8], wants_usage: bool) -> Result<Fate> {
        if std::str::from_utf8(event).is_err() {
            return Err(said::unreadable(event));
        }
        let (data, named) = match said::read(event)? {
            Said::Object { data, named } => (data, named),
            Said::Nothing => return Ok(Fate::Drop),
            Said::Done => {
                self.pass_last();
                self.outcome = Some(Outcome::Complete);
                return Ok(Fate::Pass);
            }
            Said::Failed(refusal) => {
                self.refused(refusal);
                return Ok(Fate::Drop);
            }
        };
        let chunk = Chunk::read(&data)?;
        if named && chunk.is_foreign() {
            return Ok(Fate::Drop);
        }
        self.moved = true;
        self.choices.note(&chunk);
        self.counted.add(&chunk);
        let tokens = chunk.tokens();
        if tokens > 0 {
            self.begin();
            self.tokens += tokens;
        }
        let is_usage = chunk.usage.is_some() && chunk.is_bare();
        let is_last = chunk.is_last();
        match (chunk.refusal, chunk.timings) {
            (Some(refusal), _) => {
                self.refused(refusal);
                return Ok(Fate::Drop);
            }
            (None, Some(timings)) if is_usage && !wants_usage => self.pass_last_with(timings),
            _ => self.pass_last(),
        }
        Ok(match wants_usage {
            false if is_usage => Fate::Drop,
            // llama-server's timings go with the usage, which was asked for by the queen alone.
            false if is_last && chunk.timings.is_none() => Fate::Keep,
            _ => Fate::Pass,
        })
    }
}

/// What becomes of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Pass,
    /// The client does not get it.
    Drop,
    /// The client gets it with the next event, which may have a part of it.
    Keep,
}

/// An event of one line with one more field in its object.
fn with_timings(event: &[u8], timings: &RawValue) -> Option<Bytes> {
    let open = event.trim_ascii_end().strip_suffix(b"}")?;
    let of_one_line = event.starts_with(b"data:") && memchr(b'\n', open).is_none();
    let parts = [open, b",\"timings\":", timings.get().as_bytes(), b"}\n\n"];
    of_one_line.then(|| parts.concat().into())
}

/// Whether nothing but text stands in these events.
fn is_plain(block: &[u8]) -> bool {
    MARKS.usage.find(block).is_none()
        && MARKS.error.find(block).is_none()
        && !is_last(block)
        && std::str::from_utf8(block).is_ok()
}

/// Whether a choice ends here: a `finish_reason` that is a text.
fn is_last(block: &[u8]) -> bool {
    let key = &MARKS.finish;
    key.find_iter(block).any(|at| {
        let rest = block[at + key.needle().len()..].trim_ascii_start();
        let value = rest.strip_prefix(b":").map(<[u8]>::trim_ascii_start);
        value.is_some_and(|value| value.starts_with(b"\""))
    })
}

/// How many events there are, if each is one line with an object.
fn objects(block: &[u8]) -> Option<u64> {
    let mut rest = block;
    let mut count = 0;
    while !rest.is_empty() {
        let (line, end) = rest.split_at(memchr(b'\n', rest)?);
        if !line.starts_with(b"data: {") || !line.ends_with(b"}") {
            return None;
        }
        rest = end.strip_prefix(b"\n\n")?;
        count += 1;
    }
    Some(count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_events_of_one_object_each_are_counted_without_being_read() {
        let count = |block: &str| objects(block.as_bytes());
        assert_eq!(count("data: {\"a\":\"data: {\"}\n\n"), Some(1));
        assert_eq!(count("data: {}\n\ndata: {}\n\n"), Some(2));
        for other in [
            "data: [DONE]\n\n",
            "data:{}\n\n",
            ": comment\n\n",
            "data: {}\r\n\r\n",
            "data: {}\n\n\n",
            "data: {}\n",
            "data: {\ndata: }\n\n",
            "id: 1\ndata: {}\n\n",
            "data: {}\n\ndata: [DONE]\n\n",
        ] {
            assert_eq!(count(other), None, "{other:?}");
        }
    }
}
