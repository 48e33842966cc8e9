//! The part of a GGUF file's header that tells how much memory its context needs.
//!
//! Format: <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufReader, ErrorKind, Read};
use std::path::Path;

const LONGEST_TEXT: u64 = 1024;
const LONGEST_LIST: u64 = 4096;
const MOST_ENTRIES: u64 = 100_000;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Header {
    /// Numbers kept for each token of context, over all layers.
    pub(crate) cache_values_per_token: u64,
    /// The context it was trained with.
    pub(crate) context_length: Option<u64>,
}

/// Reads the header; an error when the file is not GGUF or does not say what is needed.
pub(crate) fn read(path: &Path) -> io::Result<Header> {
    let mut reader = Reader(BufReader::with_capacity(256 << 10, File::open(path)?));
    let metadata = reader.metadata()?;
    header(&metadata).ok_or_else(|| malformed("lacks the model's dimensions"))
}

fn header(metadata: &HashMap<String, Value>) -> Option<Header> {
    let Value::Text(architecture) = metadata.get("general.architecture")? else {
        return None;
    };
    let get = |name: &str| metadata.get(&format!("{architecture}.{name}"));
    let number = |name: &str| get(name).and_then(Value::number);
    let layers = number("block_count")?;
    let heads = get("attention.head_count")?;
    let kv_heads = get("attention.head_count_kv").unwrap_or(heads);
    let head_size = || Some(number("embedding_length")? / heads.largest().max(1));
    let key = number("attention.key_length").or_else(head_size)?;
    let value = number("attention.value_length").or_else(head_size)?;
    Some(Header {
        cache_values_per_token: kv_heads
            .sum_over(layers)
            .saturating_mul(key.saturating_add(value)),
        context_length: number("context_length").filter(|&length| length > 0),
    })
}

#[derive(Debug)]
enum Value {
    Number(u64),
    Numbers(Vec<u64>),
    Text(String),
    /// Something that is not needed here.
    Other,
}

impl Value {
    fn number(&self) -> Option<u64> {
        match self {
            Value::Number(number) => Some(*number),
            _ => None,
        }
    }

    fn largest(&self) -> u64 {
        match self {
            Value::Number(number) => *number,
            Value::Numbers(numbers) => numbers.iter().copied().max().unwrap_or(0),
            _ => 0,
        }
    }

    /// One number for every layer, or one for all of them.
    fn sum_over(&self, layers: u64) -> u64 {
        match self {
            Value::Number(number) => number.saturating_mul(layers),
            Value::Numbers(numbers) => numbers.iter().fold(0, |sum, n| sum.saturating_add(*n)),
            _ => 0,
        }
    }
}

fn malformed(what: &str) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, format!("the GGUF header {what}"))
}

struct Reader(BufReader<File>);

impl Reader {
    fn metadata(&mut self) -> io::Result<HashMap<String, Value>> {
        if &self.bytes::<4>()? != b"GGUF" {
            return Err(malformed("is missing"));
        }
        let version = self.u32()?;
        if !(2..=3).contains(&version) {
            return Err(malformed("has an unknown version"));
        }
        let _tensors = self.u64()?;
        let entries = self.u64()?;
        if entries > MOST_ENTRIES {
            return Err(malformed("is absurdly long"));
        }
        let mut metadata = HashMap::new();
        for _ in 0..entries {
            let key = self.text()?.unwrap_or_default();
            let kind = self.u32()?;
            let value = self.value(kind)?;
            metadata.insert(key, value);
        }
        Ok(metadata)
    }

    fn value(&mut self, kind: u32) -> io::Result<Value> {
        const TEXT: u32 = 8;
        const LIST: u32 = 9;
        match kind {
            TEXT => Ok(self.text()?.map_or(Value::Other, Value::Text)),
            LIST => self.list(),
            _ => self.scalar(kind),
        }
    }

    fn list(&mut self) -> io::Result<Value> {
        const TEXT: u32 = 8;
        let kind = self.u32()?;
        let length = self.u64()?;
        if kind == TEXT {
            for _ in 0..length {
                self.text()?;
            }
            return Ok(Value::Other);
        }
        if length > LONGEST_LIST {
            let bytes = size(kind)?.checked_mul(length);
            self.skip(bytes.ok_or_else(|| malformed("has an endless list"))?)?;
            return Ok(Value::Other);
        }
        let mut numbers = Vec::new();
        for _ in 0..length {
            numbers.extend(self.scalar(kind)?.number());
        }
        Ok(Value::Numbers(numbers))
    }

    fn scalar(&mut self, kind: u32) -> io::Result<Value> {
        let number = match kind {
            0 => u64::from(self.bytes::<1>()?[0]),
            2 => u64::from(u16::from_le_bytes(self.bytes()?)),
            4 => u64::from(self.u32()?),
            5 => u64::try_from(i32::from_le_bytes(self.bytes()?)).unwrap_or(0),
            10 => self.u64()?,
            11 => u64::try_from(i64::from_le_bytes(self.bytes()?)).unwrap_or(0),
            _ => {
                self.skip(size(kind)?)?;
                return Ok(Value::Other);
            }
        };
        Ok(Value::Number(number))
    }

    /// `None` for a text that is too long to be one that matters.
    fn text(&mut self) -> io::Result<Option<String>> {
        let length = self.u64()?;
        if length > LONGEST_TEXT {
            self.skip(length)?;
            return Ok(None);
        }
        let mut bytes = vec![0; length as usize];
        self.0.read_exact(&mut bytes)?;
        Ok(Some(String::from_utf8_lossy(&bytes).into_owned()))
    }

    fn skip(&mut self, bytes: u64) -> io::Result<()> {
        let bytes = i64::try_from(bytes).map_err(|_| malformed("has an endless value"))?;
        self.0.seek_relative(bytes)
    }

    fn u32(&mut self) -> io::Result<u32> {
        Ok(u32::from_le_bytes(self.bytes()?))
    }

    fn u64(&mut self) -> io::Result<u64> {
        Ok(u64::from_le_bytes(self.bytes()?))
    }

    fn bytes<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.0.read_exact(&mut bytes)?;
        Ok(bytes)
    }
}

fn size(kind: u32) -> io::Result<u64> {
    match kind {
        0 | 1 | 7 => Ok(1),
        2 | 3 => Ok(2),
        4..=6 => Ok(4),
        10..=12 => Ok(8),
        _ => Err(malformed("has a value of an unknown type")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> Vec<u8> {
        let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
        bytes.extend(text.as_bytes());
        bytes
    }

    fn number(key: &str, value: u32) -> Vec<u8> {
        [
            text(key),
            4u32.to_le_bytes().into(),
            value.to_le_bytes().into(),
        ]
        .concat()
    }

    fn file(entries: &[Vec<u8>]) -> tempfile::NamedTempFile {
        let mut bytes = b"GGUF\x03\0\0\0".to_vec();
        bytes.extend(0u64.to_le_bytes());
        bytes.extend((entries.len() as u64).to_le_bytes());
        bytes.extend(entries.concat());
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        file
    }

    fn llama() -> Vec<Vec<u8>> {
        let name = [
            text("general.architecture"),
            8u32.to_le_bytes().into(),
            text("llama"),
        ];
        let list = [text("tokenizer.ggml.tokens"), 9u32.to_le_bytes().into()];
        let items = [
            8u32.to_le_bytes().to_vec(),
            2u64.to_le_bytes().into(),
            text("a"),
            text("b"),
        ];
        vec![
            name.concat(),
            [list.concat(), items.concat()].concat(),
            number("llama.block_count", 30),
            number("llama.attention.head_count", 9),
            number("llama.attention.head_count_kv", 3),
            number("llama.embedding_length", 576),
            number("llama.context_length", 8192),
        ]
    }

    #[test]
    fn the_cache_follows_from_layers_heads_and_sizes() {
        let header = read(file(&llama()).path()).unwrap();
        assert_eq!(header.cache_values_per_token, 30 * 3 * (64 + 64));
        assert_eq!(header.context_length, Some(8192));
    }

    #[test]
    fn a_file_cut_anywhere_is_an_error_and_not_a_panic() {
        let whole = std::fs::read(file(&llama()).path()).unwrap();
        for length in 0..whole.len() {
            let file = tempfile::NamedTempFile::new().unwrap();
            std::fs::write(file.path(), &whole[..length]).unwrap();
            assert!(read(file.path()).is_err(), "{length} bytes");
        }
    }
}
