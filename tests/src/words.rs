//! The text that the stub engine makes of a prompt when it is told to: whoever sent the prompt can
//! check every byte of the answer, and tell which computation of that prompt it came from.

use crate::random::mix;

/// What words are made of; some take two, three and four bytes in UTF-8.
const SYLLABLES: [&str; 16] = [
    "ba", "ké", "li", "mö", "nu", "ри", "so", "テ", "va", "ze", "ßo", "ha", "ir", "dœ", "ur", "🐝",
];

/// Where an answer says which computation it is.
const MARK: char = '#';

/// Word number `i` of the answer when `prompt` is computed for the `generation`th time, with the
/// blank behind it. The first word is the generation's number; no word needs escapes in JSON.
#[must_use]
pub fn word(prompt: &str, generation: u64, i: u64) -> String {
    if i == 0 {
        return format!("{MARK}{generation} ");
    }
    let seed = prompt.bytes().fold(mix(generation), |hash, byte| {
        mix(hash ^ u64::from(byte)).wrapping_add(1)
    });
    let mut bits = mix(seed ^ mix(i));
    let mut word = String::new();
    for _ in 0..=bits % 3 {
        bits >>= 4;
        word += SYLLABLES[(bits % 16) as usize];
    }
    word + " "
}

/// The whole answer, in `n` words.
#[must_use]
pub fn text(prompt: &str, generation: u64, n: u64) -> String {
    (0..n).map(|i| word(prompt, generation, i)).collect()
}

/// The generation that a text names in its first word.
#[must_use]
pub fn generation(text: &str) -> Option<u64> {
    let (first, _) = text.strip_prefix(MARK)?.split_once(' ')?;
    first.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_follows_from_its_prompt_and_generation() {
        let once = text("p", 1, 20);
        assert_eq!(once, text("p", 1, 20));
        assert_eq!(generation(&once), Some(1));
        let rest = |text: &str| text.split_once(' ').map(|(_, rest)| rest.to_owned());
        assert_ne!(rest(&once), rest(&text("p", 2, 20)));
        assert_ne!(rest(&once), rest(&text("q", 1, 20)));
        assert!(text("p", 1, 21).starts_with(&once));
        assert_eq!(once.split_ascii_whitespace().count(), 20);
        assert!(!once.is_ascii(), "{once}");
    }

    #[test]
    fn a_text_of_another_kind_names_none() {
        assert_eq!(generation("t0 t1 "), None);
        assert_eq!(generation("#x "), None);
        assert_eq!(generation(""), None);
    }
}
