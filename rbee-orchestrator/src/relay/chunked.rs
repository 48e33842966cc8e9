//! The chunked transfer coding (RFC 9112, section 7.1), decoded as it comes.

use std::io;

use bytes::BytesMut;

/// A chunk larger than this is not one.
const MAX_CHUNK_BYTES: u64 = 1 << 40;

/// Where in the coding the stream is.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) enum Chunked {
    /// At the first digit of a size.
    #[default]
    Start,
    /// Inside a size.
    Size(u64),
    /// Behind a size: an extension, which nobody reads, or the line's end.
    Extension(u64),
    /// Inside a chunk's data, with so much left.
    Data(u64),
    /// Behind a chunk's data.
    DataEnd,
    /// At the start of a trailer line.
    Trailer,
    /// Inside a trailer line, which nobody reads.
    TrailerLine,
    /// Behind the last line.
    Ended,
}

impl Chunked {
    pub(super) fn is_ended(self) -> bool {
        self == Chunked::Ended
    }

    /// Decodes what was read; says how much of it belongs to the coding.
    pub(super) fn decode(&mut self, read: &[u8], out: &mut BytesMut) -> io::Result<usize> {
        let mut at = 0;
        while at < read.len() && !self.is_ended() {
            if let Chunked::Data(left) = *self {
                let rest = &read[at..];
                let count = usize::try_from(left).unwrap_or(usize::MAX).min(rest.len());
                out.extend_from_slice(&rest[..count]);
                at += count;
                *self = match left - count as u64 {
                    0 => Chunked::DataEnd,
                    left => Chunked::Data(left),
                };
            } else {
                *self = self.next(read[at])?;
                at += 1;
            }
        }
        Ok(at)
    }

    /// Where one byte of the coding itself leads.
    fn next(self, byte: u8) -> io::Result<Self> {
        let digit = char::from(byte).to_digit(16).map(u64::from);
        Ok(match (self, byte, digit) {
            (Chunked::Start, _, Some(digit)) => Chunked::Size(digit),
            (Chunked::Size(size), _, Some(digit)) if size < MAX_CHUNK_BYTES => {
                Chunked::Size(size * 16 + digit)
            }
            (Chunked::Size(0) | Chunked::Extension(0), b'\n', _) => Chunked::Trailer,
            (Chunked::Size(size) | Chunked::Extension(size), b'\n', _) => Chunked::Data(size),
            (Chunked::Size(size), b'\r' | b';' | b' ' | b'\t', _) => Chunked::Extension(size),
            (Chunked::Extension(size), _, _) => Chunked::Extension(size),
            (Chunked::DataEnd, b'\r', _) => Chunked::DataEnd,
            (Chunked::DataEnd, b'\n', _) => Chunked::Start,
            (Chunked::Trailer, b'\r', _) => Chunked::Trailer,
            (Chunked::Trailer, b'\n', _) => Chunked::Ended,
            (Chunked::TrailerLine, b'\n', _) => Chunked::Trailer,
            (Chunked::Trailer | Chunked::TrailerLine, _, _) => Chunked::TrailerLine,
            _ => {
                let what = format!("byte {byte:#04x} does not belong into the chunked coding");
                return Err(io::Error::new(io::ErrorKind::InvalidData, what));
            }
        })
    }
}
