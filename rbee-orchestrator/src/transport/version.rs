//! Versions as programs tell them.

/// Whether a program that answered `version` to `--version` is older than `than`, by their numbers.
/// Unknown when it tells none.
pub(crate) fn is_older(version: &str, than: &str) -> Option<bool> {
    Some(numbers(version)? < numbers(than)?)
}

/// `1.2.3` of a text like `rbee-hive 1.2.3-beta (abc)`.
fn numbers(text: &str) -> Option<[u64; 3]> {
    let word = text.split_whitespace().find(|word| {
        let word = word.trim_start_matches('v');
        word.starts_with(|c: char| c.is_ascii_digit()) && word.contains('.')
    })?;
    let word = word.trim_start_matches('v');
    let end = word.find(|c: char| !c.is_ascii_digit() && c != '.');
    let mut parts = word[..end.unwrap_or(word.len())].split('.');
    let mut next = || parts.next().map_or(Ok(0), str::parse).ok();
    Some([next()?, next()?, next()?])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_by_their_numbers() {
        assert_eq!(is_older("rbee-hive 0.9.3", "0.10.0"), Some(true));
        assert_eq!(
            is_older("rbee-hive v0.10.0-rc1 (abc)", "0.10.0"),
            Some(false)
        );
        assert_eq!(is_older("hive 1.0", "0.10.0"), Some(false));
        assert_eq!(is_older("Python 3.11.2", "0.1.0"), Some(false));
        assert_eq!(is_older("no number", "0.1.0"), None);
    }
}
