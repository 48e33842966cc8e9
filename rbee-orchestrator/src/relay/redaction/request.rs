//! The request's side: its texts go by once, in pieces of any size, and none is kept.

use std::collections::HashMap;
use std::io;
use std::ops::Range;

use foldhash::fast::RandomState;

use super::plain::{Plain, Unit};
use super::{Needle, SHINGLE, SHORTEST, Shingle, Told};
use crate::relay::refusal::CUT;

/// What an error's text quotes of a request. The request is given to it as one JSON object.
#[derive(Debug)]
pub(crate) struct Quotations<'a> {
    told: Told<'a>,
    /// Whether the text's end was cut off before.
    cut: bool,
    shingles: HashMap<u128, bool, RandomState>,
    needles: HashMap<Vec<u8>, Needle, RandomState>,
    request: Lexer,
    run: Run,
}

/// Where in the request's JSON the reading is.
#[derive(Debug, Default)]
struct Lexer {
    depth: usize,
    /// What the string is that was begun last.
    string: Name,
    in_string: bool,
    escaped: bool,
    /// Whether it has ended, and the next byte tells whether it was a key.
    ended: bool,
    /// Whether the next string of the outermost object is a key.
    key_follows: bool,
    /// The last key of the outermost object, as far as it is looked at.
    key: Vec<u8>,
}

/// What a string is by its place.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Name {
    /// The outermost object's: a field of the protocol.
    Field,
    /// The model's name, which is kept with the job.
    Model,
    /// The client's own, or a key further inside.
    #[default]
    None,
}

/// The bytes of a text up to here, as far as they are needed.
#[derive(Debug)]
struct Run {
    plain: Plain,
    last: Shingle,
    /// The newest bytes.
    bytes: Vec<u8>,
    /// Where words begin in them.
    starts: Vec<usize>,
    in_word: bool,
}

/// So many of the newest bytes are kept before they are thinned out.
const RUN_BYTES: usize = 1 << 10;

impl Run {
    fn new() -> Self {
        Run {
            plain: Plain::new(),
            last: Shingle::default(),
            bytes: Vec::with_capacity(RUN_BYTES),
            starts: Vec::new(),
            in_word: false,
        }
    }

    fn reset(&mut self) {
        self.plain = Plain::new();
        self.last = Shingle::default();
        self.bytes.clear();
        self.starts.clear();
        self.in_word = false;
    }

    /// Forgets what no short run of words reaches back to.
    fn thin_out(&mut self) {
        let cut = self.bytes.len() - SHINGLE;
        self.bytes.drain(..cut);
        self.starts.retain(|start| *start >= cut);
        self.starts.iter_mut().for_each(|start| *start -= cut);
    }
}

impl<'a> Quotations<'a> {
    pub(crate) fn of(text: &'a str) -> Self {
        let whole = text.strip_suffix(CUT);
        let told = Told::read(whole.unwrap_or(text));
        Quotations {
            cut: whole.is_some(),
            shingles: told.shingles().map(|(_, key)| (key, false)).collect(),
            needles: told.needles(),
            request: Lexer::default(),
            run: Run::new(),
            told,
        }
    }

    /// Reads the next piece of the request.
    pub(crate) fn read(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.take(*byte);
        }
    }

    /// The text without them; `None` if there are none.
    pub(crate) fn cut_out(mut self) -> Option<String> {
        self.settle(false);
        let told = &self.told;
        let mut quoted = vec![false; told.words.len()];
        for range in self.common() {
            let words = told.words_in(&range);
            if told.bytes(&told.words[words.clone()]).len() >= SHINGLE {
                quoted[words].fill(true);
            }
        }
        for words in told.runs() {
            let run = &told.words[words.clone()];
            let is_quoted =
                |needle: &Needle| needle.is_a_text || needle.is_a_part && told.stand_out(run);
            if self.needles.get(told.bytes(run)).is_some_and(is_quoted) {
                quoted[words].fill(true);
            }
        }
        if self.cut {
            // What was cut may be a quotation that is now too short to be known.
            let length = told.plain.len();
            quoted[told.words_in(&(length.saturating_sub(SHINGLE - 1)..length))].fill(true);
        }
        let kept = quoted.contains(&true).then(|| told.without(&quoted))?;
        Some(kept + if self.cut { CUT } else { "" })
    }

    /// What the text's bytes have in common with the request, in ranges that are as long as can be.
    fn common(&self) -> Vec<Range<usize>> {
        let mut ranges = Vec::<Range<usize>>::new();
        for (end, key) in self.told.shingles() {
            if !self.shingles[&key] {
                continue;
            }
            match ranges.last_mut().filter(|last| last.end >= end - SHINGLE) {
                Some(last) => last.end = end,
                None => ranges.push(end - SHINGLE..end),
            }
        }
        ranges
    }

    fn take(&mut self, byte: u8) {
        let request = &mut self.request;
        if request.in_string {
            match byte {
                b'"' if !request.escaped => (request.in_string, request.ended) = (false, true),
                _ => {
                    request.escaped = byte == b'\\' && !request.escaped;
                    self.look_at(byte);
                }
            }
            return;
        }
        match byte {
            b' ' | b'\t' | b'\r' | b'\n' => return,
            b'"' => {
                self.settle(false);
                self.run.reset();
                return self.request.begin_string();
            }
            b':' => {
                request.key_follows = false;
                return self.settle(true);
            }
            b'{' | b'[' => request.depth += 1,
            b'}' | b']' => request.depth = request.depth.saturating_sub(1),
            _ => {}
        }
        self.request.key_follows = self.request.depth == 1 && matches!(byte, b'{' | b',');
        self.settle(false);
        // Numbers are texts where a prompt is a list of tokens.
        self.look_at(if byte.is_ascii_digit() { byte } else { b' ' });
    }

    /// Reads a byte of a text.
    fn look_at(&mut self, byte: u8) {
        let Quotations {
            shingles,
            needles,
            request,
            run,
            ..
        } = self;
        match request.string {
            Name::Model => return,
            Name::Field => {
                request
                    .key
                    .extend((request.key.len() < SHINGLE).then_some(byte));
                return;
            }
            Name::None => {}
        }
        let Run {
            plain,
            last,
            bytes,
            starts,
            in_word,
        } = run;
        plain.push(byte, &mut |unit| match unit {
            Unit::Byte(byte) => {
                if !std::mem::replace(in_word, true) {
                    starts.push(bytes.len());
                }
                bytes.push(byte);
                if let Some(found) = last.push(byte).and_then(|key| shingles.get_mut(&key)) {
                    *found = true;
                }
            }
            Unit::Gap { .. } => {
                if std::mem::take(in_word) && request.in_string {
                    end_word(bytes, starts, needles);
                }
            }
        });
        if run.bytes.len() >= RUN_BYTES {
            run.thin_out();
        }
    }

    /// The string before has ended.
    fn settle(&mut self, is_key: bool) {
        if !std::mem::take(&mut self.request.ended) {
            return;
        }
        let (string, run) = (self.request.string, &mut self.run);
        self.request.string = Name::None;
        if string != Name::None {
            return;
        }
        if run.in_word {
            end_word(&run.bytes, &mut run.starts, &mut self.needles);
        }
        let is_short = run.last.length < SHINGLE && !is_key;
        if let Some(needle) = self.needles.get_mut(&run.bytes).filter(|_| is_short) {
            needle.is_a_text = true;
        }
        run.reset();
    }
}

impl Lexer {
    fn begin_string(&mut self) {
        self.in_string = true;
        self.string = match self.depth {
            1 if self.key_follows => Name::Field,
            1 if self.key == b"model" => Name::Model,
            _ => Name::None,
        };
        if self.string == Name::Field {
            self.key.clear();
        }
    }
}

/// Looks for the words that end with this one.
fn end_word(
    bytes: &[u8],
    starts: &mut Vec<usize>,
    needles: &mut HashMap<Vec<u8>, Needle, RandomState>,
) {
    let length = |start: &usize| bytes.len() - start;
    starts.retain(|start| length(start) < SHINGLE);
    for start in starts.iter().filter(|start| length(start) >= SHORTEST) {
        if let Some(needle) = needles.get_mut(&bytes[*start..]) {
            needle.is_a_part |= needle.stands_out;
        }
    }
}

impl io::Write for Quotations<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.read(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
