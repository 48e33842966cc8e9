//! What workers say that they counted, and what is counted for them where they do not.

use std::fmt;

use serde::de::{Deserialize, Deserializer as _, SeqAccess, Visitor};
use serde_json::Value;
use serde_json::value::RawValue;

use super::openai::read_text;
use super::tokens::{self, Demand, MOST_TOKENS, of_text};
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
struct PlainUsage {
    prompt_tokens: u64,
    completion_tokens: u64,
}

impl WireUsage {
    fn read(json: &RawValue) -> Self {
        match serde_json::from_str(json.get()) {
            Ok(PlainUsage {
                prompt_tokens,
                completion_tokens,
            }) => WireUsage {
                prompt: prompt_tokens.min(MOST_TOKENS),
                completion: completion_tokens.min(MOST_TOKENS),
            },
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

/// What is read of an unstreamed answer.
#[derive(serde::Deserialize)]
struct Answer<'a> {
    #[serde(borrow, default)]
    usage: Option<&'a RawValue>,
    #[serde(borrow, default)]
    choices: Option<&'a RawValue>,
}

/// The usage of a whole answer: as its worker counted it, but for what it left out. llama-server counts
/// the first of several choices alone.
///
/// # Errors
/// When the answer is not a JSON object.
pub(crate) fn of_answer(body: &[u8], demand: &Demand) -> serde_json::Result<Usage> {
    let answer: Answer<'_> = read_text(body)?;
    let counted = answer.usage.map(WireUsage::read);
    let counted = counted.and_then(WireUsage::counted);
    let is_whole = |usage: &Usage| usage.tokens_in > 0 && usage.tokens_out > 0;
    if let Some(usage) = counted.filter(is_whole)
        && demand.answers <= 1
    {
        return Ok(usage);
    }
    let mut written = Written::default();
    if let Some(choices) = answer.choices {
        // What is no list of choices has no text that anybody could read.
        let _ = written.read(choices.get(), demand);
    }
    let mut usage = filled(counted, demand, written.probably);
    if written.choices > 1 && usage.tokens_out < written.at_least {
        (usage.tokens_out, usage.estimated) = (written.probably, true);
    }
    if usage.tokens_in == 0 && demand.answers == 0 {
        // An embedding reads and writes nothing.
        (usage.tokens_in, usage.estimated) = (demand.input, true);
    }
    Ok(usage)
}

/// How many tokens the texts of an answer are.
#[derive(Default)]
struct Written {
    choices: u64,
    at_least: u64,
    probably: u64,
}

/// A choice of an answer, of which only the length of its texts is kept.
#[derive(serde::Deserialize)]
struct Choice<'a> {
    #[serde(borrow, default)]
    text: Option<&'a RawValue>,
    #[serde(borrow, default)]
    message: Option<Message<'a>>,
    #[serde(borrow, default)]
    finish_reason: Option<&'a RawValue>,
}

#[derive(serde::Deserialize)]
struct Message<'a> {
    #[serde(borrow, default)]
    content: Option<&'a RawValue>,
    #[serde(borrow, default)]
    reasoning_content: Option<&'a RawValue>,
    #[serde(borrow, default)]
    tool_calls: Option<&'a RawValue>,
}

impl Written {
    fn read(&mut self, choices: &str, demand: &Demand) -> serde_json::Result<()> {
        let mut reader = serde_json::Deserializer::from_str(choices);
        reader.deserialize_seq(Choices {
            written: self,
            demand,
        })
    }

    fn add(&mut self, choice: &Choice<'_>, demand: &Demand) {
        let said = choice.message.as_ref();
        let texts = [
            choice.text,
            said.and_then(|said| said.content),
            said.and_then(|said| said.reasoning_content),
            said.and_then(|said| said.tool_calls),
        ];
        let texts = texts.iter().flatten();
        let bytes: u64 = texts.map(|json| tokens::text_bytes(json.get())).sum();
        let bound = demand.answer.unwrap_or(MOST_TOKENS);
        let cut_off = choice
            .finish_reason
            .is_some_and(|why| why.get() == "\"length\"");
        // One that was cut off has as many as it may, if it is not the context that was full.
        let (least, probably) = if cut_off {
            (bytes.div_ceil(2), bytes.div_ceil(2))
        } else {
            (bytes / 6, of_text(bytes))
        };
        self.choices += 1;
        self.at_least += least.min(bound);
        self.probably += probably.min(bound);
    }
}

/// Reads choices one by one: a worker may send any number.
struct Choices<'a> {
    written: &'a mut Written,
    demand: &'a Demand,
}

impl<'de> Visitor<'de> for Choices<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("choices")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut choices: A) -> Result<(), A::Error> {
        while let Some(choice) = choices.next_element::<Choice<'de>>()? {
            self.written.add(&choice, self.demand);
        }
        Ok(())
    }
}

/// What a stream's chunk says about usage.
#[derive(serde::Deserialize)]
struct UsageChunk<'a> {
    #[serde(borrow, default)]
    usage: Option<&'a RawValue>,
    #[serde(borrow, default)]
    choices: Option<&'a RawValue>,
}

/// Usage in an event of a stream.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct ChunkUsage {
    usage: WireUsage,
    /// Which choice it comes with; none if the event carries nothing else.
    choice: Option<u64>,
}

impl ChunkUsage {
    pub(crate) fn read(data: &[u8]) -> Option<Self> {
        #[derive(serde::Deserialize)]
        struct Choice {
            #[serde(default)]
            index: u64,
        }
        let chunk: UsageChunk<'_> = serde_json::from_slice(data).ok()?;
        let usage = WireUsage::read(chunk.usage?);
        let choices = chunk.choices.map(|choices| choices.get());
        let choices: Vec<Choice> = choices
            .and_then(|choices| serde_json::from_str(choices).ok())
            .unwrap_or_default();
        let choice = choices.first().map(|choice| choice.index);
        Some(ChunkUsage { usage, choice })
    }

    /// Whether the event carries nothing else.
    pub(crate) fn is_alone(&self) -> bool {
        self.choice.is_none()
    }
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
    pub(crate) fn add(&mut self, chunk: &ChunkUsage) {
        let Some(choice) = chunk.choice else {
            self.alone = self.alone.plus(chunk.usage);
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
                last.prompt = last.prompt.max(chunk.usage.prompt);
                last.completion = last.completion.max(chunk.usage.completion);
            }
            None => self.by_choice.push((choice, chunk.usage)),
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
            stream.add(&ChunkUsage::read(chunk.as_bytes()).expect("usage"));
        }
        stream.total()
    }

    fn answer(body: &str, demand: Demand) -> Usage {
        of_answer(body.as_bytes(), &demand).expect("an object")
    }

    #[test]
    fn chunks_of_nothing_but_usage_add_up() {
        let one = r#"{"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":5}}"#;
        assert!(ChunkUsage::read(one.as_bytes()).expect("usage").is_alone());
        assert_eq!(stream(&[one]), Some(usage(3, 5, false)));
        assert_eq!(stream(&[one, one, one]), Some(usage(9, 15, false)));
        let bare = r#"{"usage":{"prompt_tokens":3,"completion_tokens":5}}"#;
        assert_eq!(stream(&[bare, one]), Some(usage(6, 10, false)));
    }

    #[test]
    fn usage_that_comes_with_a_choice_is_what_that_choice_has_so_far() {
        let chunk = |index: u64, tokens: u64| {
            format!(
                r#"{{"choices":[{{"index":{index},"delta":{{}}}}],"usage":{{"prompt_tokens":3,"completion_tokens":{tokens}}}}}"#
            )
        };
        let (a, b, c, d) = (chunk(0, 1), chunk(0, 2), chunk(1, 4), chunk(1, 6));
        assert!(!ChunkUsage::read(a.as_bytes()).expect("usage").is_alone());
        assert_eq!(stream(&[&a, &c, &b, &d]), Some(usage(6, 8, false)));
        let total = r#"{"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":8}}"#;
        assert_eq!(stream(&[&a, &c, &b, &d, total]), Some(usage(3, 8, false)));
        assert_eq!(ChunkUsage::read(br#"{"choices":[],"usage":null}"#), None);
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

    #[test]
    fn a_worker_that_counts_nothing_is_charged_by_the_estimate() {
        let demand = Demand::one(12, Some(100));
        let text = "x".repeat(40);
        for counts in [
            "",
            r#","usage":null"#,
            r#","usage":{"prompt_tokens":0,"completion_tokens":0}"#,
        ] {
            let chat = format!(
                r#"{{"choices":[{{"message":{{"role":"assistant","content":"{text}"}}}}]{counts}}}"#
            );
            assert_eq!(answer(&chat, demand), usage(12, 10, true), "{counts}");
            let completion = format!(r#"{{"choices":[{{"text":"{text}"}}]{counts}}}"#);
            assert_eq!(answer(&completion, demand), usage(12, 10, true), "{counts}");
        }
        let embedding = Demand::of_texts(12);
        assert_eq!(answer(r#"{"data":[]}"#, embedding), usage(12, 0, true));
        let counted = r#"{"data":[],"usage":{"prompt_tokens":7,"total_tokens":7}}"#;
        assert_eq!(answer(counted, embedding), usage(7, 0, false));
    }

    #[test]
    fn choices_that_were_not_counted_are_counted() {
        let four = Demand {
            answers: 4,
            choices: 4,
            ..Demand::one(12, Some(5))
        };
        let text = "some words of it all";
        let choice = format!(r#"{{"text":"{text}","finish_reason":"length"}}"#);
        let choices = [&*choice; 4].join(",");
        let told = |out: u64| {
            let usage = format!(r#"{{"prompt_tokens":9,"completion_tokens":{out}}}"#);
            format!(r#"{{"choices":[{choices}],"usage":{usage}}}"#)
        };
        assert_eq!(answer(&told(5), four), usage(9, 20, true));
        assert_eq!(answer(&told(20), four), usage(9, 20, false));
    }
}
