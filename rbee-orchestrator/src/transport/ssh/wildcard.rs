//! Patterns of OpenSSH's files: `*` is any run of characters, `?` any one.

/// Whether a whole text fits a pattern.
pub(super) fn fits(pattern: &str, text: &str) -> bool {
    let (pattern, text) = (pattern.as_bytes(), text.as_bytes());
    let (mut p, mut t) = (0, 0);
    // Where to go on when what follows the last star does not fit: it takes one more character.
    let mut last_star = None;
    while t < text.len() {
        match pattern.get(p) {
            Some(b'*') => {
                last_star = Some((p + 1, t));
                p += 1;
            }
            Some(byte) if *byte == b'?' || *byte == text[t] => {
                p += 1;
                t += 1;
            }
            _ => {
                let Some((after, taken)) = last_star else {
                    return false;
                };
                last_star = Some((after, taken + 1));
                (p, t) = (after, taken + 1);
            }
        }
    }
    pattern[p..].iter().all(|byte| *byte == b'*')
}

/// Whether one of the patterns fits and none of those that begin with `!` does.
pub(super) fn any_fits<'a>(patterns: impl Iterator<Item = &'a str>, text: &str) -> bool {
    let mut found = false;
    for pattern in patterns {
        match pattern.strip_prefix('!') {
            Some(pattern) if fits(pattern, text) => return false,
            Some(_) => {}
            None => found |= fits(pattern, text),
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stars_and_question_marks_fit() {
        for (pattern, text) in [
            ("*", ""),
            ("gpu-?", "gpu-1"),
            ("*.lan", "a.b.lan"),
            ("a*b*c", "aXbYbZc"),
            ("[10.0.0.1]:2*", "[10.0.0.1]:2222"),
        ] {
            assert!(fits(pattern, text), "{pattern} {text}");
        }
        for (pattern, text) in [("gpu-?", "gpu-10"), ("*.lan", "lan"), ("a", ""), ("", "a")] {
            assert!(!fits(pattern, text), "{pattern} {text}");
        }
        assert!(any_fits(["*.lan", "!b.lan"].into_iter(), "a.lan"));
        assert!(!any_fits(["*.lan", "!b.lan"].into_iter(), "b.lan"));
    }
}
