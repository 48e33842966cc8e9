//! The wire form of a token, shared by the stub engine that writes it and the load generator
//! that checks it.
//!
//! A token is `t<seq>@<unix µs> ` in a stream and `t<seq> ` in a plain reply. The sequence number
//! shows loss, repeats and reordering; the stamp shows how long the way here took.

use memchr::memmem::Finder;

/// Microseconds of the wall clock: both ends run on one machine, so a difference is a delay.
#[must_use]
pub fn now_us() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |d| u64::try_from(d.as_micros()).unwrap_or(u64::MAX))
}

/// Appends `n` in decimal.
pub fn push_num(out: &mut Vec<u8>, mut n: u64) {
    let mut digits = [0u8; 20];
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + (n % 10) as u8;
        n /= 10;
        if n == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[at..]);
}

/// Appends token number `seq`, stamped with the time.
pub fn push_token(out: &mut Vec<u8>, seq: u64) {
    out.push(b't');
    push_num(out, seq);
    out.push(b'@');
    push_num(out, now_us());
    out.push(b' ');
}

/// The number at the start of `s` and how many bytes it takes.
#[must_use]
pub fn take_num(s: &[u8]) -> Option<(u64, usize)> {
    let len = s.iter().take_while(|b| b.is_ascii_digit()).count();
    let n = s[..len].iter().fold(0u64, |n, b| {
        n.wrapping_mul(10).wrapping_add(u64::from(b - b'0'))
    });
    (len > 0).then_some((n, len))
}

/// The bytes after `"key":` (and blanks) in a piece of JSON; `key` comes with its quotes.
#[must_use]
pub fn value_of<'a>(json: &'a [u8], key: &Finder<'_>) -> Option<&'a [u8]> {
    let mut from = 0;
    while let Some(at) = key.find(&json[from..]) {
        let rest = json[from + at + key.needle().len()..].trim_ascii_start();
        if let Some(value) = rest.strip_prefix(b":") {
            return Some(value.trim_ascii_start());
        }
        from += at + key.needle().len();
    }
    None
}

/// Calls `each` with every token `(seq, stamp)` at the start of a JSON string's inside, up to its
/// closing quote.
pub fn tokens(mut s: &[u8], mut each: impl FnMut(u64, Option<u64>)) {
    while let Some(rest) = s.strip_prefix(b"t") {
        let Some((seq, len)) = take_num(rest) else {
            return;
        };
        s = &rest[len..];
        let mut stamp = None;
        if let Some((us, len)) = s.strip_prefix(b"@").and_then(take_num) {
            stamp = Some(us);
            s = &s[1 + len..];
        }
        each(seq, stamp);
        s = s.strip_prefix(b" ").unwrap_or(s);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(s: &str) -> Vec<(u64, Option<u64>)> {
        let mut out = Vec::new();
        tokens(s.as_bytes(), |seq, stamp| out.push((seq, stamp)));
        out
    }

    #[test]
    fn reads_tokens_up_to_the_closing_quote() {
        assert_eq!(all(r#"t0@12 t1@13 "}"#), [(0, Some(12)), (1, Some(13))]);
        assert_eq!(all(r#"t7 t8 ""#), [(7, None), (8, None)]);
        assert_eq!(all(r#"""#), []);
        assert_eq!(all("tea"), []);
    }

    #[test]
    fn reads_back_what_it_writes() {
        let mut out = Vec::new();
        let before = now_us();
        push_token(&mut out, 41);
        let read = all(std::str::from_utf8(&out).expect("tokens are ASCII"));
        assert_eq!(read.len(), 1);
        assert_eq!(read[0].0, 41);
        assert!(read[0].1.is_some_and(|stamp| stamp >= before));
    }

    #[test]
    fn finds_a_value_past_a_string_that_looks_like_the_key() {
        let key = Finder::new(r#""content""#);
        let json = br#"{"type":"content","reasoning_content":null,"content" : "t1 "}"#;
        assert_eq!(value_of(json, &key), Some(&br#""t1 "}"#[..]));
        assert_eq!(value_of(b"{}", &key), None);
    }

    #[test]
    fn writes_numbers() {
        let mut out = Vec::new();
        push_num(&mut out, 0);
        push_num(&mut out, 1_234_567_890);
        assert_eq!(out, b"01234567890");
    }
}
