//! An error's text without what it quotes of the request.
//!
//! Engines quote requests in their errors. What is stored and logged must not, unless prompts are
//! stored as well. Compared are letters and digits only ([`plain`]). Cut out is
//!
//! - whatever has [`SHINGLE`] bytes or more in common with a text of the request;
//! - a whole text of the request that is shorter, from [`SHORTEST`] bytes on;
//! - a word of the request, and several together, where the error puts quotation marks around it, or where
//!   it has digits or letters that English has not.
//!
//! Names and values of OpenAI's protocol stay, and so does the engine's sentence around all that. Takes
//! time in proportion to the request, and memory to the error's text.

mod plain;
mod request;

use std::collections::HashMap;
use std::ops::Range;

use foldhash::fast::RandomState;

use plain::{Plain, Unit};
pub(crate) use request::Quotations;

/// So many bytes in a row are no coincidence.
const SHINGLE: usize = 12;

/// A text or word that is shorter tells nothing.
const SHORTEST: usize = 4;

/// Stands for what was cut out.
const CUT_OUT: &str = "[…]";

/// Names and values of the protocol, which a request has whatever it asks for, as they are compared.
const PROTOCOL: [&str; 45] = [
    "array",
    "assistant",
    "audio",
    "auto",
    "base64",
    "boolean",
    "chat",
    "content",
    "developer",
    "false",
    "file",
    "float",
    "function",
    "functions",
    "high",
    "image",
    "imageurl",
    "inputaudio",
    "inputtext",
    "integer",
    "json",
    "jsonobject",
    "jsonschema",
    "message",
    "messages",
    "model",
    "name",
    "none",
    "null",
    "number",
    "object",
    "outputtext",
    "prompt",
    "required",
    "role",
    "stop",
    "string",
    "system",
    "text",
    "tool",
    "toolcall",
    "toolcalls",
    "tools",
    "true",
    "user",
];

/// The last bytes of a text, each in its place.
#[derive(Debug, Default)]
struct Shingle {
    key: u128,
    length: usize,
}

impl Shingle {
    /// Moves on by a byte; the bytes up to there, if they are enough.
    fn push(&mut self, byte: u8) -> Option<u128> {
        const MASK: u128 = (1 << (8 * SHINGLE)) - 1;
        self.key = (self.key << 8 | u128::from(byte)) & MASK;
        self.length += 1;
        (self.length >= SHINGLE).then_some(self.key)
    }
}

/// A word of the error's text.
#[derive(Debug)]
struct Word {
    /// Where it stands in the text.
    source: Range<usize>,
    /// Where it stands among all words' bytes.
    plain: Range<usize>,
    /// Whether there is a quotation mark between it and the word before.
    quote_before: bool,
    /// Whether there is one between it and the next.
    quote_after: bool,
}

/// A few words of the error's text that the request may have too.
#[derive(Debug, Default)]
struct Needle {
    /// Whether it counts if it is only a part of a text of the request.
    stands_out: bool,
    is_a_text: bool,
    is_a_part: bool,
}

/// An error's text, read for the comparison.
#[derive(Debug)]
struct Told<'a> {
    text: &'a str,
    words: Vec<Word>,
    plain: Vec<u8>,
}

impl<'a> Told<'a> {
    fn read(text: &'a str) -> Self {
        let (mut words, mut plain) = (Vec::<Word>::new(), Vec::new());
        let mut reader = Plain::new();
        let (mut in_word, mut quoted, mut from) = (false, false, 0);
        for (at, byte) in text.bytes().enumerate() {
            reader.push(byte, &mut |unit| match unit {
                Unit::Gap { quote } => {
                    quoted |= quote;
                    (in_word, from) = (false, at + 1);
                }
                Unit::Byte(byte) => {
                    if !in_word {
                        if let Some(before) = words.last_mut() {
                            before.quote_after = quoted;
                        }
                        words.push(Word {
                            source: from..at + 1,
                            plain: plain.len()..plain.len(),
                            quote_before: quoted,
                            quote_after: false,
                        });
                        (in_word, quoted) = (true, false);
                    }
                    plain.push(byte);
                    if let Some(word) = words.last_mut() {
                        (word.source.end, word.plain.end) = (at + 1, plain.len());
                    }
                }
            });
        }
        if let Some(last) = words.last_mut() {
            last.quote_after = quoted && !in_word;
        }
        Told { text, words, plain }
    }

    /// Words that follow each other and are together too short for a shingle.
    fn runs(&self) -> impl Iterator<Item = Range<usize>> {
        let runs_from = move |first: usize| {
            let start = self.words[first].plain.start;
            let until = move |word: &&Word| word.plain.end - start < SHINGLE;
            let most = self.words[first..].iter().take_while(until).count();
            (1..=most).map(move |count| first..first + count)
        };
        let runs = (0..self.words.len()).flat_map(runs_from);
        runs.filter(|run| self.bytes(&self.words[run.clone()]).len() >= SHORTEST)
    }

    fn bytes(&self, run: &[Word]) -> &[u8] {
        match run {
            [] => &[],
            [first, ..] => &self.plain[first.plain.start..run[run.len() - 1].plain.end],
        }
    }

    /// Whether words tell more than others.
    fn stand_out(&self, run: &[Word]) -> bool {
        let is_quoted = run[0].quote_before && run[run.len() - 1].quote_after;
        let is_odd = |byte: &u8| byte.is_ascii_digit() || !byte.is_ascii();
        let is_odd = run.len() == 1 && self.bytes(run).iter().any(is_odd);
        is_quoted || is_odd || run.len() == self.words.len()
    }

    fn needles(&self) -> HashMap<Vec<u8>, Needle, RandomState> {
        let mut needles = HashMap::<Vec<u8>, Needle, RandomState>::default();
        for run in self.runs() {
            let run = &self.words[run];
            let bytes = self.bytes(run);
            let text = std::str::from_utf8(bytes).unwrap_or_default();
            if PROTOCOL.binary_search(&text).is_err() {
                let needle = needles.entry(bytes.to_owned()).or_default();
                needle.stands_out |= self.stand_out(run);
            }
        }
        needles
    }

    /// All shingles, each with the place behind it.
    fn shingles(&self) -> impl Iterator<Item = (usize, u128)> {
        let mut last = Shingle::default();
        let keys = self.plain.iter().map(move |byte| last.push(*byte));
        (1..).zip(keys).filter_map(|(end, key)| Some((end, key?)))
    }

    /// The words that begin and end in a range of all words' bytes. A word that only reaches into it is
    /// one of them if enough of it is there.
    fn words_in(&self, range: &Range<usize>) -> Range<usize> {
        let reaches_in = |word: &Word| {
            let there = word
                .plain
                .end
                .min(range.end)
                .saturating_sub(word.plain.start.max(range.start));
            there >= word.plain.len().min(SHORTEST)
        };
        let first = self.words.iter().position(reaches_in);
        let last = self.words.iter().rposition(reaches_in);
        first.unwrap_or(0)..last.map_or(0, |last| last + 1)
    }

    /// The text with marks in place of such words.
    fn without(&self, is_quoted: &[bool]) -> String {
        let mut kept = String::with_capacity(self.text.len());
        let mut from = 0;
        let mut words = self.words.iter().zip(is_quoted).peekable();
        while let Some((word, quoted)) = words.next() {
            if !quoted {
                continue;
            }
            let mut end = word.source.end;
            while let Some((next, _)) = words.next_if(|(_, quoted)| **quoted) {
                end = next.source.end;
            }
            kept += &self.text[from..word.source.start];
            kept += CUT_OUT;
            from = end;
        }
        kept + &self.text[from..]
    }
}

#[cfg(test)]
mod tests;
