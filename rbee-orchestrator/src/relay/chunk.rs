//! A chunk of an OpenAI stream, read as far as the queen needs it.
//!
//! Engines add to chunks what they like: a field that is not understood, or has another type than
//! OpenAI's, says nothing, and the answer stands.

use std::borrow::Cow;
use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

use super::refusal::{self, Refusal};
use super::said::unreadable;
use super::usage::WireUsage;
use crate::error::Result;

/// What a chunk has.
#[derive(Debug)]
pub(crate) struct Chunk<'a> {
    pub(crate) choices: Vec<Choice<'a>>,
    pub(crate) usage: Option<WireUsage>,
    /// llama-server: how long it took to read and to write.
    pub(crate) timings: Option<&'a RawValue>,
    /// The worker gave up.
    pub(crate) refusal: Option<Refusal>,
}

#[derive(Deserialize)]
struct Wire<'a> {
    #[serde(borrow, default)]
    choices: Option<Vec<Choice<'a>>>,
    #[serde(borrow, default)]
    usage: Option<&'a RawValue>,
    #[serde(borrow, default)]
    timings: Option<&'a RawValue>,
    #[serde(borrow, default)]
    error: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "text_if_it_is_one")]
    object: Option<Cow<'a, str>>,
}

/// One choice's part of a chunk.
#[derive(Debug, Deserialize)]
pub(crate) struct Choice<'a> {
    #[serde(default, deserialize_with = "number_if_it_is_one")]
    index: u64,
    #[serde(borrow, default, deserialize_with = "text_or_null")]
    text: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    delta: Option<Delta<'a>>,
    #[serde(borrow, default, deserialize_with = "text_if_it_is_one")]
    pub(crate) finish_reason: Option<Cow<'a, str>>,
    /// vLLM: the stop sequence that was met.
    #[serde(borrow, default, deserialize_with = "text_if_it_is_one")]
    pub(crate) stop_reason: Option<Cow<'a, str>>,
}

/// What is new of a chat's answer.
#[derive(Debug, Default)]
struct Delta<'a> {
    content: Option<Cow<'a, str>>,
    /// `reasoning_content` (llama-server, DeepSeek, SGLang) or `reasoning` (vLLM, Ollama): the same,
    /// where both are there.
    thinking: Option<Cow<'a, str>>,
    /// Whether it has something else: a tool call, a refusal, sound.
    has_more: bool,
    /// Whether it has any field that is not null.
    has_fields: bool,
}

impl<'a> Chunk<'a> {
    /// Reads a chunk.
    ///
    /// # Errors
    /// `UPSTREAM_INVALID` when it is no JSON object, or its text is none.
    pub(crate) fn read(data: &'a [u8]) -> Result<Self> {
        let wire: Wire<'a> = serde_json::from_slice(data).map_err(|_| unreadable(data))?;
        let is_error = wire.error.is_some() || wire.object.as_deref() == Some("error");
        let value = is_error
            .then(|| serde_json::from_slice(data).ok())
            .flatten();
        Ok(Chunk {
            choices: wire.choices.unwrap_or_default(),
            usage: wire.usage.map(WireUsage::read),
            timings: wire.timings,
            refusal: value.and_then(|value| refusal::in_answer(&value)),
        })
    }

    /// Whether it is no chunk at all, but another object.
    pub(crate) fn is_foreign(&self) -> bool {
        self.choices.is_empty() && self.usage.is_none() && self.refusal.is_none()
    }

    /// Whether it brings nothing of any choice, which it may name all the same (LiteLLM).
    pub(crate) fn is_bare(&self) -> bool {
        self.choices.iter().all(Choice::is_bare)
    }

    /// Whether a choice ends with it.
    pub(crate) fn is_last(&self) -> bool {
        self.choices
            .iter()
            .any(|choice| choice.finish_reason.is_some())
    }

    /// The choice that it names, if it names one.
    pub(crate) fn choice(&self) -> Option<u64> {
        Some(self.choices.first()?.index)
    }

    /// How many pieces of answers it brings: engines send each token of each answer by itself.
    pub(crate) fn tokens(&self) -> u64 {
        self.choices
            .iter()
            .filter(|choice| choice.has_token())
            .count() as u64
    }
}

impl<'a> Choice<'a> {
    /// The text that it brings.
    pub(crate) fn take_text(&mut self) -> Option<Cow<'a, str>> {
        let text = self.text.take();
        text.or_else(|| self.delta.as_mut()?.content.take())
    }

    /// What it brings of the model's thinking.
    pub(crate) fn take_thinking(&mut self) -> Option<Cow<'a, str>> {
        self.delta.as_mut()?.thinking.take()
    }

    /// Whether it brings what is neither text nor thinking.
    pub(crate) fn has_more(&self) -> bool {
        self.delta.as_ref().is_some_and(|delta| delta.has_more)
    }

    fn is_bare(&self) -> bool {
        let has_fields = self.delta.as_ref().is_some_and(|delta| delta.has_fields);
        self.text.is_none() && self.finish_reason.is_none() && !has_fields
    }

    fn has_token(&self) -> bool {
        let is_filled = |text: &Option<Cow<'_, str>>| text.as_ref().is_some_and(|t| !t.is_empty());
        let in_delta = |delta: &Delta<'_>| {
            delta.has_more || is_filled(&delta.content) || delta.thinking.is_some()
        };
        is_filled(&self.text) || self.delta.as_ref().is_some_and(in_delta)
    }
}

/// Which choices of a stream have ended.
#[derive(Debug, Default)]
pub(crate) struct Choices {
    one_has: bool,
    /// Those that have begun and not ended.
    open: Vec<u64>,
}

/// Choices that are told apart.
const MOST_CHOICES: usize = 256;

impl Choices {
    /// Notes what a chunk says of them.
    pub(crate) fn note(&mut self, chunk: &Chunk<'_>) {
        for choice in &chunk.choices {
            if choice.finish_reason.is_some() {
                self.one_has = true;
                self.open.retain(|open| *open != choice.index);
            } else if choice.has_token()
                && self.open.len() < MOST_CHOICES
                && !self.open.contains(&choice.index)
            {
                self.open.push(choice.index);
            }
        }
    }

    /// Whether all have that have begun, and one has.
    pub(crate) fn have_ended(&self) -> bool {
        self.one_has && self.open.is_empty()
    }
}

/// A text, or nothing.
///
/// # Errors
/// When it is another value: an answer's text must not be lost.
fn text_or_null<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Cow<'de, str>>, D::Error> {
    match from.deserialize_any(Glance)? {
        Glimpse::Text(text) => Ok(Some(text)),
        Glimpse::Null => Ok(None),
        _ => Err(D::Error::custom("a text is no text")),
    }
}

/// A text; what is none says nothing.
fn text_if_it_is_one<'de, D: Deserializer<'de>>(
    from: D,
) -> Result<Option<Cow<'de, str>>, D::Error> {
    Ok(match from.deserialize_any(Glance)? {
        Glimpse::Text(text) if !text.is_empty() => Some(text),
        _ => None,
    })
}

fn number_if_it_is_one<'de, D: Deserializer<'de>>(from: D) -> Result<u64, D::Error> {
    Ok(match from.deserialize_any(Glance)? {
        Glimpse::Number(number) => number,
        _ => 0,
    })
}

/// What a value is, where only a text or a number is of interest.
enum Glimpse<'a> {
    Text(Cow<'a, str>),
    Number(u64),
    Null,
    /// An empty list or an empty object.
    Empty,
    Other,
}

impl<'de> Deserialize<'de> for Glimpse<'de> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(Glance)
    }
}

struct Glance;

impl<'de> Visitor<'de> for Glance {
    type Value = Glimpse<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }

    fn visit_borrowed_str<E: Error>(self, text: &'de str) -> Result<Self::Value, E> {
        Ok(Glimpse::Text(text.into()))
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Self::Value, E> {
        Ok(Glimpse::Text(text.to_owned().into()))
    }

    fn visit_unit<E: Error>(self) -> Result<Self::Value, E> {
        Ok(Glimpse::Null)
    }

    fn visit_bool<E: Error>(self, _: bool) -> Result<Self::Value, E> {
        Ok(Glimpse::Other)
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<Self::Value, E> {
        Ok(Glimpse::Number(number))
    }

    fn visit_i64<E: Error>(self, _: i64) -> Result<Self::Value, E> {
        Ok(Glimpse::Other)
    }

    fn visit_f64<E: Error>(self, _: f64) -> Result<Self::Value, E> {
        Ok(Glimpse::Other)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Self::Value, A::Error> {
        let mut glimpse = Glimpse::Empty;
        while items.next_element::<IgnoredAny>()?.is_some() {
            glimpse = Glimpse::Other;
        }
        Ok(glimpse)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Self::Value, A::Error> {
        let mut glimpse = Glimpse::Empty;
        while fields.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {
            glimpse = Glimpse::Other;
        }
        Ok(glimpse)
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Delta<'a> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_map(DeltaReader)
    }
}

struct DeltaReader;

impl<'de> Visitor<'de> for DeltaReader {
    type Value = Delta<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a delta")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Self::Value, A::Error> {
        let mut delta = Delta::default();
        while let Some(name) = fields.next_key::<Cow<'de, str>>()? {
            let value = fields.next_value()?;
            delta.has_fields |= !matches!(value, Glimpse::Null);
            match (&*name, value) {
                ("role", _) | (_, Glimpse::Null | Glimpse::Empty) => {}
                ("content", Glimpse::Text(text)) => delta.content = Some(text),
                ("reasoning_content" | "reasoning", Glimpse::Text(text)) => {
                    delta.thinking = delta
                        .thinking
                        .or(Some(text).filter(|text| !text.is_empty()));
                }
                ("content", _) => return Err(A::Error::custom("content is no text")),
                (_, Glimpse::Text(text)) => delta.has_more |= !text.is_empty(),
                (_, Glimpse::Number(_) | Glimpse::Other) => delta.has_more = true,
            }
        }
        Ok(delta)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(data: &str) -> Chunk<'_> {
        Chunk::read(data.as_bytes()).expect(data)
    }

    fn delta(delta: &str) -> String {
        format!(r#"{{"choices":[{{"index":0,"delta":{delta},"finish_reason":null}}]}}"#)
    }

    #[test]
    fn whatever_the_model_makes_is_a_token() {
        for token in [
            r#"{"content":"a"}"#,
            r#"{"content":null,"reasoning_content":"a"}"#,
            r#"{"role":"assistant","reasoning":"a"}"#,
            r#"{"tool_calls":[{"index":0,"function":{"arguments":"a"}}]}"#,
            r#"{"refusal":"a"}"#,
        ] {
            assert_eq!(read(&delta(token)).tokens(), 1, "{token}");
        }
        for none in [
            "null",
            "{}",
            r#"{"role":"assistant","content":null}"#,
            r#"{"role":"assistant","content":"","tool_calls":[],"reasoning":"","audio":null}"#,
        ] {
            assert_eq!(read(&delta(none)).tokens(), 0, "{none}");
        }
        assert_eq!(
            read(r#"{"choices":[{"text":"a"},{"text":""}]}"#).tokens(),
            1
        );
    }

    #[test]
    fn what_engines_add_costs_no_answer() {
        let odd = r#"{"id":7,"object":null,"usage":"many","timings":[],"choices":[{"index":"0",
            "text":null,"logprobs":{"a":[]},"delta":{"content":"a","x":1.5},"finish_reason":3,
            "stop_reason":128001}]}"#;
        let mut chunk = read(odd);
        assert!(chunk.refusal.is_none() && !chunk.is_foreign());
        assert_eq!(chunk.choices[0].finish_reason, None);
        assert_eq!(chunk.choices[0].take_text().as_deref(), Some("a"));
        assert_eq!(chunk.choices[0].stop_reason, None);
        for foreign in [
            r#"{"a":1}"#,
            r#"{"choices":null}"#,
            r#"{"choices":[],"error":null}"#,
        ] {
            assert!(read(foreign).is_foreign(), "{foreign}");
        }
        for lost in [
            delta(r#"{"content":["a"]}"#),
            delta(r#"{"content":1}"#),
            "{".into(),
        ] {
            assert!(Chunk::read(lost.as_bytes()).is_err(), "{lost}");
        }
    }

    #[test]
    fn choices_have_ended_when_each_that_began_has() {
        let mut choices = Choices::default();
        let mut ended_after = |index: u64, finish: &str| {
            let chunk = format!(
                r#"{{"choices":[{{"index":{index},"delta":{{"content":"a"}},"finish_reason":{finish}}}]}}"#
            );
            choices.note(&read(&chunk));
            choices.have_ended()
        };
        assert!(!ended_after(0, "null") && !ended_after(1, "null"));
        assert!(!ended_after(1, r#""stop""#) && !ended_after(0, r#""""#));
        assert!(ended_after(0, r#""length""#));
        assert!(!ended_after(2, "null"));
    }

    #[test]
    fn an_error_in_a_chunk_is_one_in_both_forms() {
        for error in [
            r#"{"error":{"message":"no","code":500}}"#,
            r#"{"error":"no","choices":[]}"#,
            r#"{"object":"error","message":"no","code":500}"#,
        ] {
            let refusal = read(error).refusal.expect(error);
            assert_eq!(refusal.error.message, "the worker reported: no");
        }
    }
}
