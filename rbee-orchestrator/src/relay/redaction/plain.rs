//! A text as its letters and digits, so that a quotation is found however it is escaped, indented or
//! put into quotes.

/// What a piece of a text is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unit {
    /// A byte of a word: ASCII letters in lower case.
    Byte(u8),
    /// Whatever stands between words; `quote` for a quotation mark.
    Gap { quote: bool },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Text,
    /// After one or more backslashes: a text that was escaped twice has more of them.
    Backslash,
    /// In the digits of an escaped character.
    Digits {
        left: u8,
        value: u32,
    },
}

/// Reads a text byte by byte.
#[derive(Debug)]
pub(super) struct Plain {
    state: State,
    /// The first half of a character that is escaped in two.
    high: Option<u32>,
    /// A character of several bytes that has not ended: its bytes, and how many it has in all.
    open: ([u8; 4], usize, usize),
}

impl Plain {
    pub(super) fn new() -> Self {
        Plain {
            state: State::Text,
            high: None,
            open: ([0; 4], 0, 0),
        }
    }

    /// Reads the next byte.
    pub(super) fn push(&mut self, byte: u8, out: &mut impl FnMut(Unit)) {
        match self.state {
            State::Text if byte == b'\\' => self.state = State::Backslash,
            State::Text => self.text(byte, out),
            State::Backslash => match byte {
                b'\\' => {}
                b'u' => self.digits(4),
                b'x' => self.digits(2),
                b'U' => self.digits(8),
                _ => {
                    self.state = State::Text;
                    out(Unit::Gap { quote: false });
                    if !matches!(byte, b'n' | b't' | b'r' | b'b' | b'f' | b'v') {
                        self.text(byte, out);
                    }
                }
            },
            State::Digits { left, value } => {
                let Some(digit) = char::from(byte).to_digit(16) else {
                    self.state = State::Text;
                    out(Unit::Gap { quote: false });
                    return self.push(byte, out);
                };
                let value = value << 4 | digit;
                self.state = State::Digits {
                    left: left - 1,
                    value,
                };
                if left == 1 {
                    self.state = State::Text;
                    self.escaped(value, out);
                }
            }
        }
    }

    fn digits(&mut self, left: u8) {
        self.state = State::Digits { left, value: 0 };
    }

    /// A character that was escaped as its number, or a half of one.
    fn escaped(&mut self, value: u32, out: &mut impl FnMut(Unit)) {
        let high = self.high.take();
        match (value, high) {
            (0xd800..=0xdbff, _) => self.high = Some(value),
            (0xdc00..=0xdfff, Some(high)) => {
                let value = 0x10000 + ((high - 0xd800) << 10) + (value - 0xdc00);
                tell(char::from_u32(value).unwrap_or(' '), out);
            }
            (value, _) => tell(char::from_u32(value).unwrap_or(' '), out),
        }
    }

    fn text(&mut self, byte: u8, out: &mut impl FnMut(Unit)) {
        let (bytes, there, wanted) = &mut self.open;
        match byte {
            0x80..=0xbf if *there > 0 => {
                bytes[*there] = byte;
                *there += 1;
                if there == wanted {
                    let read = std::str::from_utf8(&bytes[..*wanted]);
                    let read = read.ok().and_then(|text| text.chars().next());
                    *there = 0;
                    tell(read.unwrap_or(' '), out);
                }
            }
            0xc0.. => {
                *wanted = match byte {
                    0xf0.. => 4,
                    0xe0.. => 3,
                    _ => 2,
                };
                (bytes[0], *there) = (byte, 1);
            }
            _ => {
                *there = 0;
                tell(char::from(byte & 0x7f), out);
            }
        }
    }
}

fn tell(c: char, out: &mut impl FnMut(Unit)) {
    if !is_of_word(c) {
        let quote = matches!(c, '"' | '\'' | '`' | '«' | '»' | '\u{2018}'..='\u{201f}');
        return out(Unit::Gap { quote });
    }
    let mut bytes = [0; 4];
    for byte in c.to_ascii_lowercase().encode_utf8(&mut bytes).bytes() {
        out(Unit::Byte(byte));
    }
}

/// Letters and digits of any script, and what has no other place: pictures and marks.
fn is_of_word(c: char) -> bool {
    let is_between = matches!(c, '\0'..='\u{bf}' | '\u{2000}'..='\u{206f}' | '\u{3000}'..='\u{303f}' | '\u{fe00}'..='\u{fe6f}' | '\u{feff}'..='\u{ff0f}' | '\u{fffd}');
    c.is_alphanumeric() || !is_between
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain(text: &str) -> String {
        let mut reader = Plain::new();
        let (mut out, mut gap) = (Vec::new(), false);
        for byte in text.bytes() {
            reader.push(byte, &mut |unit| match unit {
                Unit::Byte(byte) => {
                    out.extend((gap && !out.is_empty()).then_some(b' '));
                    out.push(byte);
                    gap = false;
                }
                Unit::Gap { .. } => gap = true,
            });
        }
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_text_is_the_same_however_it_is_escaped() {
        let text = "Grüße\nan \"Zoë\" 😀: C:\\tmp";
        let once = serde_json::to_string(text).unwrap();
        let twice = serde_json::to_string(&once).unwrap();
        let in_ascii = r"Gr\u00fc\u00dfe\nan 'Zo\xeb' \ud83d\ude00: C:\\tmp";
        for form in [text, &once, &twice, in_ascii] {
            assert_eq!(plain(form), "grüße an zoë 😀 c mp", "{form}");
        }
    }

    #[test]
    fn no_escape_that_breaks_off_hides_what_follows() {
        for (text, read) in [
            (r"\u00zoo", "zoo"),
            (r"\ud83d zoo", "zoo"),
            (r"\udc00zoo", "zoo"),
            (r"\U99999999zoo", "zoo"),
            ("\\", ""),
        ] {
            assert_eq!(plain(text), read, "{text}");
        }
    }
}
