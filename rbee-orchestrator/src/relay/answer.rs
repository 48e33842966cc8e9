//! A whole answer: what its worker counted of it, or that it is an error.

use std::fmt;

use serde::de::{Deserializer as _, IgnoredAny, SeqAccess, Visitor};
use serde_json::value::RawValue;

use super::openai::read_text;
use super::refusal::{self, Refusal};
use super::tokens::{self, Demand, MOST_TOKENS, of_text};
use super::usage::{PlainUsage, WireUsage, filled};
use crate::domain::Usage;

/// What is read of an unstreamed answer.
#[derive(serde::Deserialize)]
struct Answer<'a> {
    #[serde(borrow, default)]
    usage: Option<&'a RawValue>,
    #[serde(borrow, default)]
    choices: Option<&'a RawValue>,
    #[serde(borrow, default)]
    data: Option<&'a RawValue>,
    #[serde(borrow, default)]
    error: Option<&'a RawValue>,
    #[serde(borrow, default)]
    object: Option<&'a RawValue>,
}

impl Answer<'_> {
    /// Whether it says no, under a status that says yes.
    fn is_refusal(&self) -> bool {
        let is_error = |object: &RawValue| object.get() == "\"error\"";
        self.choices.is_none()
            && self.data.is_none()
            && (self.error.is_some() || self.object.is_some_and(is_error))
    }
}

/// An answer of which nothing needs a second look.
#[derive(serde::Deserialize)]
struct PlainAnswer {
    usage: PlainUsage,
    #[serde(default)]
    choices: Option<IgnoredAny>,
    #[serde(default)]
    data: Option<IgnoredAny>,
}

impl PlainAnswer {
    fn is_one(&self) -> bool {
        self.choices.is_some() || self.data.is_some()
    }
}

/// Whether both counts are there.
fn is_whole(usage: &Usage) -> bool {
    usage.tokens_in > 0 && usage.tokens_out > 0
}

/// Why a whole answer is none.
#[derive(Debug)]
pub(crate) enum NotAnswered {
    /// It is not a JSON object.
    Unreadable(serde_json::Error),
    /// It is an error.
    Refused(Refusal),
}

impl From<serde_json::Error> for NotAnswered {
    fn from(error: serde_json::Error) -> Self {
        NotAnswered::Unreadable(error)
    }
}

/// The usage of a whole answer: as its worker counted it, but for what it left out. llama-server counts
/// the first of several choices alone.
///
/// # Errors
/// When the answer is not a JSON object, or is an error.
pub(crate) fn of_answer(body: &[u8], demand: &Demand) -> Result<Usage, NotAnswered> {
    // In one reading, if it is plain; what there is to be said of any other, the next one finds.
    if demand.answers <= 1
        && let Ok(plain) = read_text::<PlainAnswer>(body)
        && plain.is_one()
        && let Some(usage) = WireUsage::from(plain.usage).counted().filter(is_whole)
    {
        return Ok(usage);
    }
    let answer: Answer<'_> = read_text(body)?;
    if answer.is_refusal()
        && let Some(refusal) = refusal::in_answer(&read_text(body)?)
    {
        return Err(NotAnswered::Refused(refusal));
    }
    let counted = answer.usage.map(WireUsage::read);
    let counted = counted.and_then(WireUsage::counted);
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
    reasoning: Option<&'a RawValue>,
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
            said.and_then(|said| said.reasoning_content.or(said.reasoning)),
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

    fn answer(body: &str, demand: Demand) -> Usage {
        of_answer(body.as_bytes(), &demand).expect("an object")
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
    fn an_error_is_no_answer_whatever_its_status() {
        let demand = Demand::one(12, None);
        for error in [
            r#"{"error":{"message":"no"}}"#,
            r#"{"error":"no"}"#,
            r#"{"object":"error","message":"no"}"#,
        ] {
            match of_answer(error.as_bytes(), &demand) {
                Err(NotAnswered::Refused(refusal)) => {
                    assert_eq!(refusal.error.message, "the worker reported: no");
                }
                other => panic!("{error}: {other:?}"),
            }
        }
        let fine = r#"{"error":null,"object":"list","data":[]}"#;
        assert_eq!(answer(fine, demand), usage(0, 0, true));
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
