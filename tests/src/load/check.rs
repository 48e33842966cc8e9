//! Checks a stream as it comes: every token once, in order, and an end.

use crate::token::{tokens, value_of};
use memchr::memmem::Finder;

/// Reads an SSE stream, however it is cut into pieces.
#[derive(Default)]
pub(super) struct Check {
    part: Vec<u8>,
    next: u64,
    done: bool,
    pub(super) lost: u64,
    pub(super) repeated: u64,
    problem: Option<&'static str>,
}

impl Check {
    /// Takes what arrived; calls `each` with every token's stamp.
    pub(super) fn feed(&mut self, key: &Finder<'_>, mut data: &[u8], each: &mut impl FnMut(u64)) {
        while let Some(end) = memchr::memchr(b'\n', data) {
            let (line, rest) = (&data[..end], &data[end + 1..]);
            data = rest;
            if self.part.is_empty() {
                self.line(key, line, each);
            } else {
                let mut part = std::mem::take(&mut self.part);
                part.extend_from_slice(line);
                self.line(key, &part, each);
                part.clear();
                self.part = part;
            }
        }
        self.part.extend_from_slice(data);
    }

    fn line(&mut self, key: &Finder<'_>, line: &[u8], each: &mut impl FnMut(u64)) {
        let Some(data) = line.strip_prefix(b"data:") else {
            return;
        };
        let data = data.trim_ascii();
        if self.done {
            self.problem.get_or_insert("data_after_done");
        }
        if data == b"[DONE]" {
            self.done = true;
            return;
        }
        match value_of(data, key) {
            Some(value) => {
                let Some(text) = value.strip_prefix(b"\"") else {
                    return; // null
                };
                tokens(text, |seq, stamp| {
                    self.token(seq);
                    each(stamp.unwrap_or(0));
                });
            }
            None if is_error(data) => {
                self.problem.get_or_insert("sse_error_event");
            }
            None => {}
        }
    }

    fn token(&mut self, seq: u64) {
        if seq > self.next {
            self.lost += seq - self.next;
            self.problem.get_or_insert("token_lost");
        } else if seq < self.next {
            self.repeated += 1;
            self.problem.get_or_insert("token_repeated_or_late");
        }
        self.next = self.next.max(seq + 1);
    }

    /// Takes the whole text of an answer that was not streamed; returns how many tokens it had.
    pub(super) fn whole(&mut self, text: &[u8]) -> u64 {
        tokens(text, |seq, _| {
            if seq != self.next {
                self.problem = Some("wrong_token");
            }
            self.next = seq + 1;
        });
        self.done = true;
        self.next
    }

    pub(super) fn verdict(&self, expected: u64) -> Result<(), &'static str> {
        match self.problem {
            Some(problem) => Err(problem),
            None if !self.done => Err("no_done"),
            None if self.next < expected => Err("too_few_tokens"),
            None if self.next > expected => Err("too_many_tokens"),
            None => Ok(()),
        }
    }
}

fn is_error(data: &[u8]) -> bool {
    data.starts_with(br#"{"error""#) || data.starts_with(br#"{"type":"error""#)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(pieces: &[&str], expected: u64) -> (Result<(), &'static str>, u64, u64) {
        let mut check = Check::default();
        let key = Finder::new(r#""content""#);
        for piece in pieces {
            check.feed(&key, piece.as_bytes(), &mut |_| {});
        }
        (check.verdict(expected), check.lost, check.repeated)
    }

    const A: &str = "data: {\"delta\":{\"content\":\"t0@5 \"}}\n\n";
    const B: &str = "data:{\"delta\": {\"content\": \"t1@6 \"}}\r\n\r\n";
    const DONE: &str = "data: [DONE]\n\n";

    #[test]
    fn accepts_a_whole_stream_however_it_is_cut() {
        let whole = [
            ": hello\n\ndata: {\"delta\":{\"content\":null}}\n\n",
            A,
            B,
            DONE,
        ]
        .concat();
        assert_eq!(verdict(&[&whole], 2), (Ok(()), 0, 0));
        for cut in 0..whole.len() {
            assert_eq!(verdict(&[&whole[..cut], &whole[cut..]], 2), (Ok(()), 0, 0));
        }
    }

    #[test]
    fn sees_what_is_wrong() {
        assert_eq!(verdict(&[A, DONE], 2).0, Err("too_few_tokens"));
        assert_eq!(verdict(&[A, B, DONE], 1).0, Err("too_many_tokens"));
        assert_eq!(verdict(&[A, B], 2).0, Err("no_done"));
        assert_eq!(verdict(&[B, DONE], 2), (Err("token_lost"), 1, 0));
        assert_eq!(verdict(&[B, A, DONE], 2), (Err("token_lost"), 1, 1));
        let repeated = (Err("token_repeated_or_late"), 0, 1);
        assert_eq!(verdict(&[A, A, B, DONE], 2), repeated);
        assert_eq!(verdict(&[A, B, DONE, B], 2).0, Err("data_after_done"));
        for error in [
            "data: {\"error\":{}}\n\n",
            "data: {\"type\":\"error\",\"code\":\"X\"}\n\n",
        ] {
            assert_eq!(verdict(&[error, DONE], 2).0, Err("sse_error_event"));
        }
    }

    #[test]
    fn reads_task_events() {
        let mut check = Check::default();
        let stream = "data: {\"type\":\"token\",\"t\":\"t0@7 \",\"i\":0}\n\ndata: [DONE]\n\n";
        let mut stamps = Vec::new();
        let key = Finder::new(r#""t""#);
        check.feed(&key, stream.as_bytes(), &mut |stamp| stamps.push(stamp));
        assert_eq!((check.verdict(1), stamps), (Ok(()), vec![7]));
    }
}
