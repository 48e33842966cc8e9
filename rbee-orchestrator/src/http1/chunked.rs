//! The chunked transfer coding (RFC 9112, section 7.1), decoded as it comes and read strictly: what
//! two readers could cut in two ways is an error.

use std::io;

use bytes::BytesMut;

/// A chunk larger than this is not one.
const MAX_CHUNK_BYTES: u64 = 1 << 40;

/// The line with a chunk's size, its extensions included.
pub(super) const MAX_CHUNK_LINE_BYTES: usize = 4 << 10;

/// What such lines may hold beyond what their chunks' data pay for, over one answer.
pub(super) const MAX_CHUNK_OVERHEAD_BYTES: u64 = 16 << 10;

/// What a chunk's line may hold for nothing: any size, and a short extension.
const FREE_LINE_BYTES: u64 = 16;

/// All trailer lines together.
pub(super) const MAX_TRAILER_BYTES: usize = 16 << 10;

/// Where in the coding the stream is.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum At {
    /// At the first digit of a size.
    #[default]
    Start,
    /// Inside a size.
    Size(u64),
    /// In the blanks behind a size.
    Blank(u64),
    /// Inside an extension, which nobody reads.
    Extension(u64),
    /// Behind the carriage return of a size's line.
    SizeEnd(u64),
    /// Inside a chunk's data, with so much left.
    Data(u64),
    /// Behind a chunk's data.
    DataEnd,
    /// Behind the carriage return there.
    DataLineEnd,
    /// At the start of a trailer line.
    Trailer,
    /// Inside a trailer line, which nobody reads.
    TrailerLine,
    /// Behind the carriage return of a trailer line.
    TrailerLineEnd,
    /// Behind the carriage return of the last line.
    LastLineEnd,
    /// Behind the last line.
    Ended,
}

/// An answer in this coding, as far as it has been read.
#[derive(Debug, Default)]
pub(super) struct Chunked {
    at: At,
    /// Bytes of the size's line so far; behind the last chunk, of all trailers.
    line: usize,
    /// Bytes of all such lines that no data has paid for.
    overhead: u64,
}

impl Chunked {
    pub(super) fn is_ended(&self) -> bool {
        self.at == At::Ended
    }

    /// Decodes what was read; says how much of it belongs to the coding.
    pub(super) fn decode(&mut self, read: &[u8], out: &mut BytesMut) -> io::Result<usize> {
        let mut at = 0;
        while at < read.len() && !self.is_ended() {
            if let At::Data(left) = self.at {
                let rest = &read[at..];
                let count = usize::try_from(left).unwrap_or(usize::MAX).min(rest.len());
                out.extend_from_slice(&rest[..count]);
                at += count;
                self.at = match left - count as u64 {
                    0 => At::DataEnd,
                    left => At::Data(left),
                };
            } else {
                self.step(read[at])?;
                at += 1;
            }
        }
        Ok(at)
    }

    /// Takes one byte of the coding itself.
    fn step(&mut self, byte: u8) -> io::Result<()> {
        self.at = next(self.at, byte)?;
        self.line += 1;
        match self.at {
            At::Data(size) => {
                let paid = size.saturating_mul(2).saturating_add(FREE_LINE_BYTES);
                self.overhead = (self.overhead + self.line as u64).saturating_sub(paid);
                self.line = 0;
                if self.overhead > MAX_CHUNK_OVERHEAD_BYTES {
                    return Err(invalid(format!(
                        "its chunks' extensions are longer than {MAX_CHUNK_OVERHEAD_BYTES} bytes"
                    )));
                }
            }
            At::Start => self.line = 0,
            At::Trailer | At::TrailerLine if self.line > MAX_TRAILER_BYTES => {
                return Err(invalid(format!(
                    "its trailers are longer than {MAX_TRAILER_BYTES} bytes"
                )));
            }
            At::Size(_) | At::Blank(_) | At::Extension(_) if self.line > MAX_CHUNK_LINE_BYTES => {
                return Err(invalid(format!(
                    "the line of a chunk's size is longer than {MAX_CHUNK_LINE_BYTES} bytes"
                )));
            }
            _ => {}
        }
        Ok(())
    }
}

/// Where one byte leads.
fn next(at: At, byte: u8) -> io::Result<At> {
    let digit = char::from(byte).to_digit(16).map(u64::from);
    Ok(match (at, byte, digit) {
        (At::Start, _, Some(digit)) => At::Size(digit),
        (At::Size(size), _, Some(digit)) if size < MAX_CHUNK_BYTES => At::Size(size * 16 + digit),
        (At::Size(size) | At::Blank(size) | At::Extension(size), b'\r', _) => At::SizeEnd(size),
        (At::Size(size) | At::Blank(size), b';', _) => At::Extension(size),
        (At::Size(size) | At::Blank(size), b' ' | b'\t', _) => At::Blank(size),
        (At::SizeEnd(0), b'\n', _) => At::Trailer,
        (At::SizeEnd(size), b'\n', _) => At::Data(size),
        (At::DataEnd, b'\r', _) => At::DataLineEnd,
        (At::DataLineEnd, b'\n', _) => At::Start,
        (At::Trailer, b'\r', _) => At::LastLineEnd,
        (At::LastLineEnd, b'\n', _) => At::Ended,
        (At::TrailerLine, b'\r', _) => At::TrailerLineEnd,
        (At::TrailerLineEnd, b'\n', _) => At::Trailer,
        (At::Extension(size), byte, _) if byte != b'\n' => At::Extension(size),
        (At::Trailer | At::TrailerLine, byte, _) if byte != b'\n' => At::TrailerLine,
        _ => {
            return Err(invalid(format!(
                "byte {byte:#04x} does not belong into the chunked coding"
            )));
        }
    })
}

fn invalid(why: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The body of a coded text, read in pieces of this size; why there is none; whether it ended.
    fn decoded(text: &[u8], piece: usize) -> (Result<Vec<u8>, String>, bool) {
        let mut chunked = Chunked::default();
        let mut out = BytesMut::new();
        for read in text.chunks(piece) {
            if let Err(error) = chunked.decode(read, &mut out) {
                return (Err(error.to_string()), false);
            }
        }
        (Ok(out.to_vec()), chunked.is_ended())
    }

    fn refused(text: impl AsRef<[u8]>) -> String {
        let text = text.as_ref();
        let (whole, bytes) = (decoded(text, text.len()), decoded(text, 1));
        assert_eq!(whole, bytes, "{:?}", String::from_utf8_lossy(text));
        whole.0.expect_err("it is refused")
    }

    #[test]
    fn what_a_strict_reader_and_a_lenient_one_would_cut_in_two_ways_is_refused() {
        for text in [
            "5\nhello\r\n0\r\n\r\n",
            "5\r\nhello\n0\r\n\r\n",
            "5\r\nhello0\r\n\r\n",
            "5\r\nhello\r\r\n0\r\n\r\n",
            "5\r\nhello\r\n\r\n0\r\n\r\n",
            "5;a\nb\r\nhello\r\n0\r\n\r\n",
            "5;a\rb\r\nhello\r\n0\r\n\r\n",
            "5 5\r\nhello\r\n0\r\n\r\n",
            "-5\r\nhello\r\n",
            "+5\r\nhello\r\n",
            "0x5\r\nhello\r\n",
            " 5\r\nhello\r\n",
            "\r\n\r\n\r\n",
            ";\r\n",
            "0\r\n\n",
            "0\r\na: b\n\r\n",
            "0\r\na: b\rc\r\n\r\n",
            "10000000000000000\r\n",
            "fffffffffffffffff\r\n",
        ] {
            assert!(refused(text).contains("does not belong"), "{text:?}");
        }
    }

    #[test]
    fn extensions_blanks_and_trailers_within_reason_are_read_past() {
        for text in [
            "5\r\nhello\r\n0\r\n\r\n",
            "5 \t\r\nhello\r\n000\r\n\r\n",
            "5;name=\"a;b\" ;c\r\nhello\r\n0;last\r\nx: y\r\nz: \r\n\r\n",
        ] {
            for piece in 1..text.len() {
                let body = (Ok(b"hello".to_vec()), true);
                assert_eq!(decoded(text.as_bytes(), piece), body, "{text:?} {piece}");
            }
        }
    }

    #[test]
    fn lines_that_never_end_are_cut_off() {
        let line = "a".repeat(MAX_CHUNK_LINE_BYTES);
        assert!(refused(format!("1;{line}")).contains("size is longer than"));
        assert!(refused("0".repeat(MAX_CHUNK_LINE_BYTES + 1)).contains("size is longer than"));
        let trailer = format!("a: {}\r\n", "b".repeat(100));
        let trailers = trailer.repeat(MAX_TRAILER_BYTES / 100);
        assert!(refused(format!("0\r\n{trailers}")).contains("trailers are longer"));
        assert!(
            refused(format!("0\r\n{}", "c".repeat(2 * MAX_TRAILER_BYTES))).contains("trailers")
        );
    }

    #[test]
    fn small_chunks_with_long_extensions_are_cut_off_and_large_ones_pay_for_theirs() {
        let chunk =
            |data: usize| format!("{data:x};{}\r\n{}\r\n", "e".repeat(200), "d".repeat(data));
        assert!(refused(chunk(1).repeat(200)).contains("extensions are longer"));
        let paid = chunk(200).repeat(2000);
        assert_eq!(
            decoded(paid.as_bytes(), 4096).0.map(|body| body.len()),
            Ok(400_000)
        );
        let bare = "1\r\nx\r\n".repeat(100_000);
        assert_eq!(
            decoded(bare.as_bytes(), 4096).0.map(|body| body.len()),
            Ok(100_000)
        );
    }
}
