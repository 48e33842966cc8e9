//! Streams of OpenAI workers for OpenAI's clients: whole events go through as they are, and each is
//! looked at only as far as it must be.

use std::sync::LazyLock;

use bytes::Bytes;
use memchr::memchr;
use memchr::memmem::Finder;

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
            && is_plain(&block)
            && let Some(events) = objects(&block)
        {
            self.tokens += events;
            self.moved = true;
            return self.ready.push_back(Step::Data(block));
        }
        let (mut from, mut at) = (0, 0);
        for event in sse::events(&block) {
            let end = at + event.len();
            if !self.passes(event, wants_usage) {
                self.pass(block.slice(from..at));
                from = end;
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

    /// Looks at one event of a raw stream; says whether the client gets it.
    fn passes(&mut self, event: &[u8], wants_usage: bool) -> bool {
        self.look(event, wants_usage).unwrap_or_else(|error| {
            self.fail(error);
            false
        })
    }

    fn look(&mut self, event: &[u8], wants_usage: bool) -> Result<bool> {
        if std::str::from_utf8(event).is_err() {
            return Err(said::unreadable(event));
        }
        let (data, named) = match said::read(event)? {
            Said::Object { data, named } => (data, named),
            Said::Nothing => return Ok(false),
            Said::Done => {
                self.outcome = Some(Outcome::Complete);
                return Ok(true);
            }
            Said::Failed(refusal) => {
                self.refused(refusal);
                return Ok(false);
            }
        };
        let chunk = Chunk::read(&data)?;
        if named && chunk.is_foreign() {
            return Ok(false);
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
        match chunk.refusal {
            Some(refusal) => self.refused(refusal),
            None => return Ok(wants_usage || !is_usage),
        }
        Ok(false)
    }
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
