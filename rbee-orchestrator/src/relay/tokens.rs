//! How many tokens a request may use, as engines count: before one has, and where it never does.
//!
//! High rather than low: what is taken for a request and not used goes back, so that limits hold.

use std::fmt;
use std::sync::LazyLock;

use memchr::memmem::Finder;
use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::Value;
use serde_json::value::RawValue;

/// Bytes of a text for each token.
const BYTES_PER_TOKEN: u64 = 4;

/// Tokens of an answer whose request does not bound it.
const UNBOUNDED_ANSWER: u64 = 512;

/// More than any request or answer has; a sum over all that a store may hold does not overflow.
pub(crate) const MOST_TOKENS: u64 = 1 << 40;

/// A picture of about a megapixel: 256 with Gemma 3, 576 with LLaVA, 1,300 with Qwen2.5-VL, up to
/// 1,600 where large ones are scaled down.
const PICTURE: u64 = 1600;

/// A picture that is to be looked at roughly (`"detail": "low"`), as OpenAI counts it.
const ROUGH_PICTURE: u64 = 85;

/// A second of sound: 25 with Qwen2-Audio, fewer with Voxtral and Gemma.
const SECOND_OF_SOUND: u64 = 25;

/// Sound whose length its request does not show.
const SOUND_ELSEWHERE: u64 = 60 * SECOND_OF_SOUND;

/// Bytes a second of WAV at 16 kHz with 16 bits, and of what is compressed for speech.
const WAV_BYTES_PER_SECOND: u64 = 32_000;
const CODED_BYTES_PER_SECOND: u64 = 8_000;

/// A video: what Qwen2.5-VL makes at most of one by default.
const VIDEO: u64 = 24_576;

/// A document's bytes for each token of its text and its pages' pictures.
const DOCUMENT_BYTES_PER_TOKEN: u64 = 20;

/// A document of a page, or one whose length its request does not show.
const DOCUMENT: u64 = 3000;

/// What a request may make its worker count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Demand {
    /// Tokens of all prompts.
    pub(crate) input: u64,
    /// Tokens of one answer at most.
    pub(crate) answer: Option<u64>,
    /// Answers to all prompts.
    pub(crate) answers: u64,
    /// Answers to each prompt.
    pub(crate) choices: u64,
}

impl Demand {
    /// A demand of one answer to one prompt.
    pub(crate) fn one(input: u64, answer: Option<u64>) -> Self {
        Demand {
            input,
            answer,
            answers: 1,
            choices: 1,
        }
    }

    /// A demand that no answer is written to.
    pub(super) fn of_texts(input: u64) -> Self {
        Demand {
            answers: 0,
            ..Demand::one(input, None)
        }
    }

    /// All that may be counted: some engines count the prompt again with each choice.
    pub(crate) fn most(&self) -> u64 {
        let input = self.input.saturating_mul(self.choices);
        let answer = self.answer.unwrap_or(UNBOUNDED_ANSWER);
        let output = answer.saturating_mul(self.answers);
        input.saturating_add(output).min(MOST_TOKENS)
    }
}

/// Tokens of a text of so many bytes.
pub(crate) fn of_text(bytes: u64) -> u64 {
    bytes.div_ceil(BYTES_PER_TOKEN)
}

/// A bound on an answer, if it is one. Engines take numbers of every form (llama-server cuts what is
/// larger than its integers, and `-1` is no bound), some take texts (vLLM).
pub(super) fn bound(value: &RawValue) -> Option<u64> {
    number(value).map(|most| most.max(1))
}

/// How many answers are asked for: at least one.
pub(super) fn count(value: &RawValue) -> u64 {
    number(value).map_or(1, |count| count.max(1))
}

/// A number that is not negative.
fn number(value: &RawValue) -> Option<u64> {
    let text = value.get();
    let inner = text.strip_prefix('"').and_then(|t| t.strip_suffix('"'));
    let digits = inner.unwrap_or(text).trim();
    match digits.parse() {
        Ok(number) => Some(number),
        // What is larger than all numbers becomes the largest.
        Err(_) => {
            let number = digits.parse::<f64>().ok().filter(|n| *n >= 0.0);
            number.map(|number| number.ceil() as u64)
        }
    }
}

/// What there is to read: tokens of texts, of tokens, and of what is no text.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Weight {
    bytes: u64,
    tokens: u64,
}

impl Weight {
    fn tokens(self) -> u64 {
        self.tokens.saturating_add(of_text(self.bytes))
    }
}

/// What a message with parts has. Made once: to make a finder takes longer than to search with it.
static TYPED: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new("\"type\""));

/// Tokens of messages. Only what has typed parts is read; the rest counts as it stands.
pub(super) fn of_messages(json: &str) -> u64 {
    if TYPED.find(json.as_bytes()).is_none() {
        return of_text(json.len() as u64);
    }
    read(json).map_or(of_text(json.len() as u64), Weight::tokens)
}

/// Tokens of messages that have been read.
pub(crate) fn of_values(messages: &[Value]) -> u64 {
    let mut weight = Weight::default();
    for message in messages {
        // A value can always be read.
        let _ = Weigh {
            weight: &mut weight,
        }
        .deserialize(message);
    }
    weight.tokens()
}

/// Tokens of a prompt or several, and how many there are: a text, an array of tokens, or an array of
/// either. An array with a token in it is one prompt.
pub(super) fn of_prompts(json: &str) -> (u64, u64) {
    let all = |weight: Weight| weight.tokens();
    let as_text = of_text(json.len() as u64);
    if !json.starts_with(['[', '{']) {
        return (as_text, 1);
    }
    let tokens = read(json).map_or(as_text, all);
    let mut prompts = 1;
    if let Ok(several) = serde_json::from_str::<Vec<&RawValue>>(json) {
        let is_token = |one: &&RawValue| {
            one.get()
                .starts_with(|c: char| c == '-' || c.is_ascii_digit())
        };
        if !several.iter().any(is_token) {
            prompts = several.len().max(1) as u64;
        }
    }
    (tokens, prompts)
}

/// The length of all texts in a part of an answer, in bytes. Null is none.
pub(super) fn text_bytes(json: &str) -> u64 {
    read(json).map_or(0, |weight| weight.bytes)
}

fn read(json: &str) -> serde_json::Result<Weight> {
    let mut weight = Weight::default();
    let mut reader = serde_json::Deserializer::from_str(json);
    Weigh {
        weight: &mut weight,
    }
    .deserialize(&mut reader)?;
    Ok(weight)
}

/// Adds up a value without keeping it.
struct Weigh<'a> {
    weight: &'a mut Weight,
}

impl<'de> DeserializeSeed<'de> for Weigh<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<(), D::Error> {
        from.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Weigh<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }

    fn visit_bool<E: Error>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_unit<E: Error>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E: Error>(self, _: u64) -> Result<(), E> {
        self.weight.tokens += 1;
        Ok(())
    }

    fn visit_i64<E: Error>(self, _: i64) -> Result<(), E> {
        self.weight.tokens += 1;
        Ok(())
    }

    fn visit_f64<E: Error>(self, _: f64) -> Result<(), E> {
        self.weight.tokens += 1;
        Ok(())
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<(), E> {
        self.weight.bytes += text.len() as u64;
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        let weight = self.weight;
        while items.next_element_seed(Weigh { weight })?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<(), A::Error> {
        let weight = self.weight;
        while let Some(key) = fields.next_key::<String>()? {
            match Medium::under(&key) {
                Some(medium) => {
                    let mut seen = Seen::default();
                    fields.next_value_seed(Look { seen: &mut seen })?;
                    weight.tokens += medium.tokens(&seen);
                }
                None => {
                    weight.bytes += key.len() as u64;
                    fields.next_value_seed(Weigh { weight })?;
                }
            }
        }
        Ok(())
    }
}

/// What is no text.
#[derive(Debug, Clone, Copy)]
enum Medium {
    Picture,
    Sound,
    Video,
    Document,
}

impl Medium {
    /// What stands in a message under this name, in OpenAI's, vLLM's and llama-server's requests.
    fn under(key: &str) -> Option<Self> {
        Some(match key {
            "image_url" | "image" | "input_image" | "source" | "multimodal_data" => Medium::Picture,
            "input_audio" | "audio_url" | "audio" => Medium::Sound,
            "video_url" | "video" => Medium::Video,
            "file" | "input_file" => Medium::Document,
            _ => return None,
        })
    }

    fn tokens(self, seen: &Seen) -> u64 {
        // Base64 has four letters for three bytes.
        let bytes = seen.longest / 4 * 3;
        let by_name = seen.longest < Seen::SHORTEST_CONTENT;
        match self {
            Medium::Picture if seen.is_rough => ROUGH_PICTURE,
            Medium::Picture => PICTURE * seen.contents.max(1),
            Medium::Sound if by_name => SOUND_ELSEWHERE,
            Medium::Sound if seen.is_wav => bytes / WAV_BYTES_PER_SECOND * SECOND_OF_SOUND + 1,
            Medium::Sound => bytes / CODED_BYTES_PER_SECOND * SECOND_OF_SOUND + 1,
            Medium::Video => VIDEO,
            Medium::Document if by_name => DOCUMENT,
            Medium::Document => (bytes / DOCUMENT_BYTES_PER_TOKEN).max(DOCUMENT),
        }
    }
}

/// What tells something of a medium.
#[derive(Debug, Default)]
struct Seen {
    /// The length of the longest text, which is its content if it is one.
    longest: u64,
    /// How many texts stand in a list.
    contents: u64,
    is_rough: bool,
    is_wav: bool,
}

impl Seen {
    /// A shorter text is an address or an id.
    const SHORTEST_CONTENT: u64 = 4096;
}

struct Look<'a> {
    seen: &'a mut Seen,
}

impl<'de> DeserializeSeed<'de> for Look<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<(), D::Error> {
        from.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Look<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a picture, sound or file")
    }

    fn visit_bool<E: Error>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_unit<E: Error>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E: Error>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E: Error>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E: Error>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<(), E> {
        self.seen.longest = self.seen.longest.max(text.len() as u64);
        self.seen.is_rough |= text == "low";
        self.seen.is_wav |= text.eq_ignore_ascii_case("wav") || text.starts_with("data:audio/wav");
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        let seen = self.seen;
        while items.next_element_seed(Look { seen })?.is_some() {
            seen.contents += 1;
        }
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<(), A::Error> {
        let seen = self.seen;
        while fields.next_key::<IgnoredAny>()?.is_some() {
            fields.next_value_seed(Look { seen })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw(json: &str) -> Box<RawValue> {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn a_bound_is_read_in_every_form_that_engines_take() {
        let read = |json: &str| bound(&raw(json));
        for (json, most) in [
            ("100", 100),
            ("100.0", 100),
            ("1e3", 1000),
            ("99.5", 100),
            ("0", 1),
            ("4294967301", 4_294_967_301),
            ("18446744073709551615", u64::MAX),
            ("18446744073709551621", u64::MAX),
            ("1e400", u64::MAX),
            ("\"1000\"", 1000),
            ("\" 1e3 \"", 1000),
            ("\"5\"", 5),
        ] {
            assert_eq!(read(json), Some(most), "{json}");
        }
        for json in [
            "-1", "-1e3", "null", "true", "[]", "{}", "\"\"", "\"many\"", "\"nan\"",
        ] {
            assert_eq!(read(json), None, "{json}");
        }
    }

    #[test]
    fn counts_are_at_least_one() {
        for (json, answers) in [
            ("3", 3),
            ("2.0", 2),
            ("\"4\"", 4),
            ("0", 1),
            ("-2", 1),
            ("null", 1),
        ] {
            assert_eq!(count(&raw(json)), answers, "{json}");
        }
    }

    #[test]
    fn nothing_wraps() {
        let demand = Demand {
            input: u64::MAX,
            answer: Some(u64::MAX),
            answers: u64::MAX,
            choices: u64::MAX,
        };
        assert_eq!(demand.most(), MOST_TOKENS);
        assert_eq!(Demand::one(10, None).most(), 10 + UNBOUNDED_ANSWER);
    }

    #[test]
    fn prompts_are_counted_in_every_form() {
        for (json, tokens, prompts) in [
            (r#""four""#, 2, 1),
            (r#"["four","four"]"#, 2, 2),
            ("[1,2,3]", 3, 1),
            ("[[1,2,3],[4]]", 4, 2),
            (r#"[12,"four",34]"#, 3, 1),
            ("[]", 0, 1),
        ] {
            assert_eq!(of_prompts(json), (tokens, prompts), "{json}");
        }
    }

    #[test]
    fn what_is_no_text_counts_as_engines_count_it_whatever_its_length() {
        let part = |part: &str| {
            format!(r#"[{{"role":"user","content":[{{"type":"text","text":"What?"}},{part}]}}]"#)
        };
        let within = |json: &str, least: u64, most: u64| {
            let tokens = of_messages(json);
            assert!(
                (least..=most).contains(&tokens),
                "{tokens}: {}",
                &json[..json.len().min(120)]
            );
            let values: Vec<Value> = serde_json::from_str(json).unwrap();
            assert_eq!(of_values(&values), tokens);
        };
        for letters in [100, 1_000_000] {
            let data = "A".repeat(letters);
            let picture = format!(
                r#"{{"type":"image_url","image_url":{{"url":"data:image/jpeg;base64,{data}"}}}}"#
            );
            within(&part(&picture), PICTURE, PICTURE + 20);
            let rough = picture.replace("}}", r#","detail":"low"}}"#);
            within(&part(&rough), ROUGH_PICTURE, ROUGH_PICTURE + 20);
        }
        let data = "A".repeat(4 * WAV_BYTES_PER_SECOND as usize);
        let sound =
            format!(r#"{{"type":"input_audio","input_audio":{{"data":"{data}","format":"wav"}}}}"#);
        within(&part(&sound), 3 * SECOND_OF_SOUND, 3 * SECOND_OF_SOUND + 20);
        let file = format!(r#"{{"type":"file","file":{{"file_data":"{data}"}}}}"#);
        within(&part(&file), 4800, 4830);
        let text = format!(r#"{{"type":"text","text":"{data}"}}"#);
        within(&part(&text), 32_000, 32_030);
        assert_eq!(of_messages(&"x".repeat(400)), 100);
    }
}
