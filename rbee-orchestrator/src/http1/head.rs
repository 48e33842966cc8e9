//! The head of a worker's answer (RFC 9112, sections 4 to 6), read strictly: where two readers could
//! see the answer's end in two places, there is no answer, and the connection is not used again.

use std::mem::MaybeUninit;

use bytes::{Bytes, BytesMut};
use http::{HeaderValue, StatusCode};
use memchr::memchr;

use super::chunked::Chunked;

/// All heads of one answer together.
const MAX_HEAD_BYTES: usize = 64 << 10;

/// Fields of one head.
const MAX_HEADERS: usize = 96;

/// Interim heads (`1xx`) before an answer's own.
const MAX_INTERIM_HEADS: usize = 32;

/// What every head begins with.
const BEGINNING: &[u8] = b"HTTP/1.";

/// Why a request got no answer.
#[derive(Debug)]
pub(crate) enum SendError {
    /// The connection closed before the first byte of an answer.
    NoAnswer(String),
    /// What came is not HTTP, or stopped inside the head.
    Invalid(String),
}

fn invalid<T>(why: impl Into<String>) -> Result<T, SendError> {
    Err(SendError::Invalid(why.into()))
}

/// The head of an answer, as far as anybody reads it.
#[derive(Debug)]
pub(crate) struct Head {
    pub(crate) status: StatusCode,
    pub(crate) content_type: Option<HeaderValue>,
    pub(crate) retry_after: Option<HeaderValue>,
}

/// How an answer's body ends.
#[derive(Debug)]
pub(super) enum Framing {
    Length(u64),
    Chunked(Chunked),
    UntilClose,
    Ended,
}

/// A head with what follows it.
#[derive(Debug)]
pub(super) struct Opening {
    pub(super) head: Head,
    pub(super) framing: Framing,
    pub(super) keep_alive: bool,
    /// What came behind the head.
    pub(super) early: Bytes,
}

/// Takes an answer's head in as it comes. Each byte is looked at a bounded number of times, however
/// few come at once.
#[derive(Debug, Default)]
pub(super) struct HeadReader {
    received: BytesMut,
    /// Where the line begins that has not ended.
    line: usize,
    /// How far line ends have been looked for.
    scanned: usize,
    interim: usize,
    interim_bytes: usize,
}

impl HeadReader {
    /// Whether not a byte has come.
    pub(super) fn is_empty(&self) -> bool {
        self.received.is_empty() && self.interim == 0
    }

    /// Takes in what came next. After an error there is nothing more to take in.
    pub(super) fn push(&mut self, data: &[u8]) -> Result<Option<Opening>, SendError> {
        // As a rule a head comes as a whole, and need not be kept to be read.
        let mut kept = std::mem::take(&mut self.received);
        if !kept.is_empty() {
            kept.extend_from_slice(data);
        }
        let unread = if kept.is_empty() { data } else { &kept[..] };
        let mut rest = unread;
        while let Some(length) = self.whole_head(rest)? {
            let (head, behind) = rest.split_at(length);
            rest = behind;
            if let Some(opening) = self.read(head, behind)? {
                return Ok(Some(opening));
            }
        }
        let read = unread.len() - rest.len();
        self.received = match kept.is_empty() {
            true => BytesMut::from(rest),
            false => kept.split_off(read),
        };
        Ok(None)
    }

    /// The length of the first head, if all of it is there.
    fn whole_head(&mut self, received: &[u8]) -> Result<Option<usize>, SendError> {
        let first = received.len().min(BEGINNING.len());
        if received[..first] != BEGINNING[..first] {
            return invalid("it does not begin with an HTTP/1 status line");
        }
        let mut whole = None;
        while let Some(found) = memchr(b'\n', &received[self.scanned..]) {
            let end = self.scanned + found;
            if end == 0 || received[end - 1] != b'\r' {
                return invalid("a line of the head does not end with CR LF");
            }
            let is_empty = end - 1 == self.line;
            (self.line, self.scanned) = (end + 1, end + 1);
            if is_empty {
                whole = Some(end + 1);
                break;
            }
        }
        let length = match whole {
            Some(length) => length,
            None => {
                self.scanned = received.len();
                received.len()
            }
        };
        if self.interim_bytes + length > MAX_HEAD_BYTES {
            return invalid(format!("the head is longer than {MAX_HEAD_BYTES} bytes"));
        }
        Ok(whole)
    }

    /// Reads a whole head and what came behind it; nothing if it is an interim one.
    fn read(&mut self, head: &[u8], behind: &[u8]) -> Result<Option<Opening>, SendError> {
        (self.line, self.scanned) = (0, 0);
        let mut fields = [const { MaybeUninit::uninit() }; MAX_HEADERS];
        let mut response = httparse::Response::new(&mut []);
        let read = httparse::ParserConfig::default().parse_response_with_uninit_headers(
            &mut response,
            head,
            &mut fields,
        );
        match read {
            Ok(httparse::Status::Complete(read)) if read == head.len() => {}
            Ok(_) => return invalid("the head has no end"),
            Err(httparse::Error::TooManyHeaders) => {
                return invalid(format!("the head has more than {MAX_HEADERS} fields"));
            }
            Err(error) => return invalid(error.to_string()),
        }
        let status = response
            .code
            .and_then(|code| StatusCode::from_u16(code).ok());
        let Some(status) = status else {
            return invalid("the answer has no status");
        };
        if status == StatusCode::SWITCHING_PROTOCOLS {
            return invalid("it switches to a protocol that nobody asked for");
        }
        if status.is_informational() {
            self.interim += 1;
            self.interim_bytes += head.len();
            if self.interim > MAX_INTERIM_HEADS {
                return invalid(format!("more than {MAX_INTERIM_HEADS} interim heads came"));
            }
            return Ok(None);
        }
        let mut noted = Noted {
            head: Head {
                status,
                content_type: None,
                retry_after: None,
            },
            length: None,
            is_chunked: false,
            keep_alive: response.version == Some(1),
            closes: false,
        };
        for field in response.headers.iter() {
            noted.note(field)?;
        }
        if noted.is_chunked && response.version != Some(1) {
            return invalid("an HTTP/1.0 answer has a transfer-encoding");
        }
        let framing = noted.framing()?;
        Ok(Some(Opening {
            head: noted.head,
            framing,
            keep_alive: noted.keep_alive && !noted.closes,
            early: Bytes::copy_from_slice(behind),
        }))
    }
}

/// What matters of a head's fields.
struct Noted {
    head: Head,
    length: Option<u64>,
    is_chunked: bool,
    keep_alive: bool,
    closes: bool,
}

impl Noted {
    fn note(&mut self, field: &httparse::Header<'_>) -> Result<(), SendError> {
        let is = |name: &str| field.name.eq_ignore_ascii_case(name);
        if is("content-type") {
            self.head.content_type = HeaderValue::from_bytes(field.value).ok();
        } else if is("retry-after") {
            self.head.retry_after = HeaderValue::from_bytes(field.value).ok();
        } else if is("transfer-encoding") {
            let known = field.value.trim_ascii().eq_ignore_ascii_case(b"chunked");
            if !known || self.is_chunked {
                return invalid("the transfer-encoding is not just \"chunked\"");
            }
            self.is_chunked = true;
        } else if is("content-length") {
            for member in members(field.value) {
                let length = digits(member);
                if length.is_none() || self.length.is_some_and(|known| Some(known) != length) {
                    return invalid("the content-length is not one number");
                }
                self.length = length;
            }
        } else if is("connection") {
            for member in members(field.value) {
                self.closes |= member.eq_ignore_ascii_case(b"close");
                self.keep_alive |= member.eq_ignore_ascii_case(b"keep-alive");
            }
        }
        Ok(())
    }

    fn framing(&self) -> Result<Framing, SendError> {
        let has_body = !matches!(
            self.head.status,
            StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED
        );
        match (self.is_chunked, self.length) {
            (true, Some(_)) => invalid("there are a content-length and a transfer-encoding"),
            (true, None) if has_body => Ok(Framing::Chunked(Chunked::default())),
            (false, Some(0)) => Ok(Framing::Ended),
            (false, Some(length)) if has_body => Ok(Framing::Length(length)),
            (false, None) if has_body => Ok(Framing::UntilClose),
            (false, None) => Ok(Framing::Ended),
            _ => invalid("a body is announced with a status that has none"),
        }
    }
}

/// The members of a field that is a list.
fn members(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii)
}

/// A number that is nothing but digits.
fn digits(text: &[u8]) -> Option<u64> {
    let are_digits = text.iter().all(u8::is_ascii_digit);
    std::str::from_utf8(text)
        .ok()
        .filter(|_| are_digits)?
        .parse()
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads heads that come in pieces of this size.
    fn read(text: &[u8], piece: usize) -> Result<Opening, String> {
        let mut reader = HeadReader::default();
        for piece in text.chunks(piece) {
            match reader.push(piece) {
                Ok(None) => {}
                Ok(Some(opening)) => return Ok(opening),
                Err(SendError::Invalid(why) | SendError::NoAnswer(why)) => return Err(why),
            }
        }
        Err("unfinished".to_owned())
    }

    fn refused(text: &str) -> String {
        let whole = read(text.as_bytes(), text.len().max(1)).expect_err(text);
        assert_eq!(read(text.as_bytes(), 1).expect_err(text), whole);
        whole
    }

    fn with(fields: &str) -> String {
        format!("HTTP/1.1 200 OK\r\n{fields}\r\n\r\n")
    }

    #[test]
    fn an_answer_that_could_end_in_two_places_is_none() {
        for fields in [
            "content-length: 5\r\ncontent-length: 6",
            "content-length: 5, 6",
            "content-length: +5",
            "content-length: -5",
            "content-length: 5 5",
            "content-length: 0x5",
            "content-length: 5,",
            "content-length:",
            "content-length: 18446744073709551616",
        ] {
            assert!(
                refused(&with(fields)).contains("not one number"),
                "{fields}"
            );
        }
        for fields in [
            "transfer-encoding: gzip",
            "transfer-encoding: gzip, chunked",
            "transfer-encoding: chunked, chunked",
            "transfer-encoding: chunked\r\ntransfer-encoding: chunked",
            "transfer-encoding: xchunked",
            "transfer-encoding: \"chunked\"",
            "transfer-encoding: identity\r\ncontent-length: 5",
            "transfer-encoding:",
        ] {
            assert!(refused(&with(fields)).contains("not just"), "{fields}");
        }
        for fields in [
            "content-length: 5\r\ntransfer-encoding: chunked",
            "transfer-encoding: chunked\r\ncontent-length: 5",
        ] {
            assert!(refused(&with(fields)).contains("there are a"), "{fields}");
        }
        let old = "HTTP/1.0 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
        assert!(refused(old).contains("HTTP/1.0"));
        for status in ["204 No Content", "304 Not Modified"] {
            let text = format!("HTTP/1.1 {status}\r\ncontent-length: 5\r\n\r\nhello");
            assert!(refused(&text).contains("has none"), "{status}");
        }
    }

    #[test]
    fn what_is_not_quite_a_head_is_none() {
        for text in [
            "hello",
            "\r\n\r\nHTTP/1.1 200 OK\r\n\r\n",
            "HTTP/2 200\r\n\r\n",
            "SSH-2.0-OpenSSH_9.2\r\n",
            "HTTP/1.1 200 OK\ncontent-length: 5\n\nhello",
            "HTTP/1.1 200 OK\r\ncontent-length: 5\n\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\nhello",
            "HTTP/1.1 200 OK\r\nx: a\rb\r\n\r\n",
            "HTTP/1.1 200 OK\r\nx: a\r\n b\r\n\r\n",
            "HTTP/1.1 200 OK\r\n content-length: 5\r\n\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length : 5\r\n\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length\r\n\r\n",
            "HTTP/1.1 200 OK\r\nx: a\0b\r\n\r\n",
            "HTTP/1.1 20 OK\r\n\r\n",
            "HTTP/1.1 099 OK\r\n\r\n",
            "HTTP/1.1 +20 OK\r\n\r\n",
            "HTTP/1.1 101 Switching Protocols\r\n\r\n",
        ] {
            assert_ne!(refused(text), "unfinished", "{text:?}");
        }
    }

    #[test]
    fn equal_lengths_are_one() {
        for fields in [
            "content-length: 5\r\ncontent-length: 5",
            "content-length: 5, 05",
        ] {
            let opening = read(with(fields).as_bytes(), 7).expect("an answer");
            assert!(matches!(opening.framing, Framing::Length(5)), "{fields}");
        }
    }

    #[test]
    fn interim_heads_are_read_past_within_reason() {
        let interim = "HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n";
        let answer = "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
        let some = interim.repeat(MAX_INTERIM_HEADS);
        for piece in [1, 7, 4096] {
            let opening = read((some.clone() + answer).as_bytes(), piece).expect("an answer");
            assert_eq!(opening.head.status, StatusCode::OK);
        }
        assert!(refused(&interim.repeat(MAX_INTERIM_HEADS + 1)).contains("interim heads"));
        let long = format!("HTTP/1.1 100 Continue\r\nx: {}\r\n\r\n", "y".repeat(9000));
        assert!(refused(&long.repeat(8)).contains("longer than"));
    }

    #[test]
    fn heads_and_their_fields_have_an_end() {
        assert!(refused(&with(&"x: y\r\n".repeat(MAX_HEADERS + 1))).contains("fields"));
        let endless = format!("HTTP/1.1 200 OK\r\nx: {}", "y".repeat(MAX_HEAD_BYTES));
        assert!(refused(&endless).contains("longer than"));
        let lines = format!(
            "HTTP/1.1 200 OK\r\n{}",
            "x: y\r\n".repeat(MAX_HEAD_BYTES / 6)
        );
        assert!(refused(&lines).contains("longer than"));
    }
}
