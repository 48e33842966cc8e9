//! Streams of OpenAI workers for OpenAI's clients: whole events go through as they are, and each is
//! looked at only as far as it must be.

use std::sync::LazyLock;

use bytes::{Bytes, BytesMut};
use memchr::memchr;
use memchr::memmem::Finder;
use serde::de::IgnoredAny;

use super::Streaming;
use crate::domain::{Outcome, WorkerProtocol};
use crate::relay::sse;
use crate::relay::translate::{Piece, read_event, unreadable};
use crate::relay::usage::ChunkUsage;
use crate::router::Step;

/// What tells a token from all else. Made once: to make a finder takes longer than to search a token
/// with it.
struct Marks {
    usage: Finder<'static>,
    error: Finder<'static>,
    content: Finder<'static>,
    text: Finder<'static>,
}

static MARKS: LazyLock<Marks> = LazyLock::new(|| Marks {
    usage: Finder::new("\"usage\""),
    error: Finder::new("\"error\""),
    content: Finder::new("content\""),
    text: Finder::new("\"text\""),
});

impl Streaming {
    /// Passes whole events on as they are. Nearly all are tokens, and one look tells that.
    pub(super) fn relay(&mut self, block: Bytes, wants_usage: bool) {
        let marks = &*MARKS;
        let plain = marks.usage.find(&block).is_none()
            && marks.error.find(&block).is_none()
            && std::str::from_utf8(&block).is_ok();
        if !self.begun && has_text(&block) {
            self.begin();
        }
        if plain && let Some(events) = objects(&block) {
            self.tokens += events;
            self.ready.push_back(Step::Data(block));
            return;
        }
        let mut out = BytesMut::with_capacity(block.len());
        for event in sse::events(&block) {
            if self.passes(event, wants_usage) {
                out.extend_from_slice(event);
            }
            if self.outcome.is_some() {
                break;
            }
        }
        if !out.is_empty() {
            self.ready.push_back(Step::Data(out.freeze()));
        }
    }

    /// Looks at one event of a raw stream; says whether the client gets it.
    fn passes(&mut self, event: &[u8], wants_usage: bool) -> bool {
        if sse::is_done(event) {
            self.outcome = Some(Outcome::Complete);
            return true;
        }
        let is_json = |data: &[u8]| serde_json::from_slice::<IgnoredAny>(data).is_ok();
        let data = sse::data(event);
        if std::str::from_utf8(event).is_err() || data.as_ref().is_some_and(|data| !is_json(data)) {
            self.fail(unreadable(event));
            return false;
        }
        let Some(data) = data else { return true };
        if let Some(usage) = ChunkUsage::read(&data) {
            let alone = usage.is_alone();
            self.counted.add(&usage);
            self.tokens += u64::from(!alone);
            return wants_usage || !alone;
        }
        let mut pieces = Vec::new();
        if MARKS.error.find(&data).is_some()
            && read_event(WorkerProtocol::OpenAi, event, &mut pieces).is_ok()
            && let Some(Piece::Failed(refusal)) = pieces.pop()
        {
            self.refused(refusal);
            return false;
        }
        self.tokens += 1;
        true
    }
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

/// Whether a chunk carries text: a `content` or `text` that is not empty.
fn has_text(block: &[u8]) -> bool {
    let is_filled = |rest: &[u8]| {
        let value = rest
            .trim_ascii_start()
            .strip_prefix(b":")
            .map(<[u8]>::trim_ascii_start);
        value.is_some_and(|value| value.starts_with(b"\"") && !value.starts_with(b"\"\""))
    };
    let found = |key: &Finder<'_>| {
        let mut places = key.find_iter(block);
        places.any(|at| is_filled(&block[at + key.needle().len()..]))
    };
    found(&MARKS.content) || found(&MARKS.text)
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
