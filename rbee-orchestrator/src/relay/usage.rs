//! What workers say that they counted, and what is counted for them where they do not.

use serde::de::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

use super::chunk::Chunk;
use super::tokens::{Demand, MOST_TOKENS};
use crate::domain::Usage;

/// `usage` as OpenAI writes it. A count that is no number counts nothing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct WireUsage {
    prompt: u64,
    completion: u64,
}

impl<'de> Deserialize<'de> for WireUsage {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let value = Value::deserialize(from)?;
        let count = |field: &str| match value.get(field).map(|value| (value.as_u64(), value)) {
            Some((Some(count), _)) => count.min(MOST_TOKENS),
            // Negative ones become nothing, those that are too large the most.
            Some((None, value)) => (value.as_f64().unwrap_or(0.0) as u64).min(MOST_TOKENS),
            None => 0,
        };
        let (mut prompt, completion) = (count("prompt_tokens"), count("completion_tokens"));
        if prompt == 0 && completion == 0 {
            prompt = count("total_tokens");
        }
        Ok(WireUsage { prompt, completion })
    }
}

/// A longer `usage` is none.
const LARGEST_USAGE_BYTES: usize = 16 << 10;

/// The form that nearly all workers write.
#[derive(serde::Deserialize)]
pub(super) struct PlainUsage {
    prompt_tokens: u64,
    completion_tokens: u64,
}

impl From<PlainUsage> for WireUsage {
    fn from(plain: PlainUsage) -> Self {
        WireUsage {
            prompt: plain.prompt_tokens.min(MOST_TOKENS),
            completion: plain.completion_tokens.min(MOST_TOKENS),
        }
    }
}

impl WireUsage {
    pub(super) fn read(json: &RawValue) -> Self {
        match serde_json::from_str::<PlainUsage>(json.get()) {
            Ok(plain) => WireUsage::from(plain),
            Err(_) if json.get().len() > LARGEST_USAGE_BYTES => WireUsage::default(),
            Err(_) => serde_json::from_str(json.get()).unwrap_or_default(),
        }
    }

    /// What it says, unless that is nothing.
    pub(super) fn counted(self) -> Option<Usage> {
        (self != WireUsage::default()).then_some(Usage {
            tokens_in: self.prompt,
            tokens_out: self.completion,
            estimated: false,
        })
    }

    fn plus(self, other: Self) -> Self {
        WireUsage {
            prompt: (self.prompt + other.prompt).min(MOST_TOKENS),
            completion: (self.completion + other.completion).min(MOST_TOKENS),
        }
    }
}

/// Fills in what the worker did not count, if it wrote anything.
pub(crate) fn filled(counted: Option<Usage>, demand: &Demand, written: u64) -> Usage {
    let mut usage = counted.unwrap_or(Usage {
        tokens_in: 0,
        tokens_out: 0,
        estimated: true,
    });
    if usage.tokens_out == 0 && written > 0 {
        (usage.tokens_out, usage.estimated) = (written, true);
    }
    if usage.tokens_in == 0 && usage.tokens_out > 0 {
        (usage.tokens_in, usage.estimated) = (demand.input, true);
    }
    usage
}

/// Choices that are told apart; those beyond count as the last.
const MOST_CHOICES: usize = 256;

/// The usage that a stream's chunks tell. Chunks of nothing but usage add up, for llama-server sends one
/// for each choice; one that comes with a choice holds what that choice has so far (vLLM).
#[derive(Debug, Default)]
pub(crate) struct StreamUsage {
    alone: WireUsage,
    by_choice: Vec<(u64, WireUsage)>,
}

impl StreamUsage {
    /// Adds what a chunk says of it, if it says anything.
    pub(crate) fn add(&mut self, chunk: &Chunk<'_>) {
        let Some(usage) = chunk.usage else { return };
        let Some(choice) = chunk.choice() else {
            self.alone = self.alone.plus(usage);
            return;
        };
        let is_full = self.by_choice.len() == MOST_CHOICES;
        let known = self
            .by_choice
            .iter()
            .position(|(known, _)| *known == choice);
        match known.or(is_full.then_some(MOST_CHOICES - 1)) {
            Some(at) => {
                let last = &mut self.by_choice[at].1;
                last.prompt = last.prompt.max(usage.prompt);
                last.completion = last.completion.max(usage.completion);
            }
            None => self.by_choice.push((choice, usage)),
        }
    }

    pub(crate) fn total(&self) -> Option<Usage> {
        let choices = self.by_choice.iter().map(|(_, usage)| *usage);
        let choices = choices.fold(WireUsage::default(), WireUsage::plus);
        let prompt = match self.alone.prompt {
            0 => choices.prompt,
            prompt => prompt,
        };
        let completion = self.alone.completion.max(choices.completion);
        WireUsage { prompt, completion }.counted()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn usage(tokens_in: u64, tokens_out: u64, estimated: bool) -> Usage {
        Usage {
            tokens_in,
            tokens_out,
            estimated,
        }
    }

    fn stream(chunks: &[&str]) -> Option<Usage> {
        let mut stream = StreamUsage::default();
        for chunk in chunks {
            stream.add(&Chunk::read(chunk.as_bytes()).expect(chunk));
        }
        stream.total()
    }

    #[test]
    fn chunks_of_nothing_but_usage_add_up() {
        let one = r#"{"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":5}}"#;
        assert_eq!(stream(&[one]), Some(usage(3, 5, false)));
        assert_eq!(stream(&[one, one, one]), Some(usage(9, 15, false)));
        let bare = r#"{"usage":{"prompt_tokens":3,"completion_tokens":5}}"#;
        assert_eq!(stream(&[bare, one]), Some(usage(6, 10, false)));
    }

    #[test]
    fn usage_that_names_a_choice_without_anything_of_it_is_usage_alone() {
        let litellm = r#"{"choices":[{"index":0,"delta":{"content":null},"finish_reason":null}],"usage":{"prompt_tokens":3,"completion_tokens":5}}"#;
        let chunk = Chunk::read(litellm.as_bytes()).expect("a chunk");
        assert!(chunk.is_bare() && chunk.tokens() == 0);
        assert_eq!(stream(&[litellm]), Some(usage(3, 5, false)));
        for more in [
            r#""delta":{"content":""}"#,
            r#""delta":{},"finish_reason":"stop""#,
            r#""text":"""#,
        ] {
            let chunk = litellm.replace(r#""delta":{"content":null},"finish_reason":null"#, more);
            assert!(
                !Chunk::read(chunk.as_bytes()).expect("a chunk").is_bare(),
                "{more}"
            );
        }
    }

    #[test]
    fn usage_that_comes_with_a_choice_is_what_that_choice_has_so_far() {
        let chunk = |index: u64, tokens: u64| {
            format!(
                r#"{{"choices":[{{"index":{index},"delta":{{}}}}],"usage":{{"prompt_tokens":3,"completion_tokens":{tokens}}}}}"#
            )
        };
        let (a, b, c, d) = (chunk(0, 1), chunk(0, 2), chunk(1, 4), chunk(1, 6));
        assert_eq!(stream(&[&a, &c, &b, &d]), Some(usage(6, 8, false)));
        let total = r#"{"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":8}}"#;
        assert_eq!(stream(&[&a, &c, &b, &d, total]), Some(usage(3, 8, false)));
        assert_eq!(stream(&[r#"{"choices":[],"usage":null}"#]), None);
    }

    #[test]
    fn counts_that_are_none_count_nothing_and_none_is_too_large_for_a_sum() {
        for text in [
            r#"{"prompt_tokens":null,"completion_tokens":-5}"#,
            r#"{"prompt_tokens":"many"}"#,
            "{}",
            "[]",
            "\"x\"",
        ] {
            let chunk = format!(r#"{{"choices":[],"usage":{text}}}"#);
            assert_eq!(stream(&[&chunk]), None, "{text}");
        }
        let huge = r#"{"choices":[],"usage":{"prompt_tokens":18446744073709551615,"completion_tokens":1e300}}"#;
        let most = usage(MOST_TOKENS, MOST_TOKENS, false);
        assert_eq!(stream(&[huge, huge]), Some(most));
        let float = r#"{"choices":[],"usage":{"prompt_tokens":3.0,"completion_tokens":5.0}}"#;
        assert_eq!(stream(&[float]), Some(usage(3, 5, false)));
    }
}
