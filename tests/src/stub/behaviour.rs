//! How a stub engine behaves: its pace, its protocol, and what goes wrong with it.
//!
//! A behaviour is read from a TOML file (`*.stub`), which stands in for a model's file when the
//! stub runs under a hive; a test writes one such file per kind of engine it needs.

use serde::Deserialize;
use std::str::FromStr;

/// What the behaviour file may hold; everything is optional.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Behaviour {
    /// `/health` is 503 for this long after the start
    pub load_ms: u64,
    /// Exit with this code when the load time is over
    pub exit_while_loading: Option<i32>,
    /// Never become ready
    pub hang_while_loading: bool,
    /// Wait before the first token
    pub ttft_ms: Option<f64>,
    /// Wait between tokens; 0: as fast as they can be sent
    pub itl_ms: Option<f64>,
    /// Tokens of an answer when the request sets no `max_tokens`
    pub tokens: Option<u64>,
    /// Requests computed at once; more of them wait. Unset: no bound, nothing waits
    pub slots: Option<usize>,
    /// Which worker protocol it speaks
    pub protocol: Protocol,
    /// Refuse a request whose `model` is not the name that this engine serves, as vLLM does
    pub strict_model: bool,
    /// Live on after SIGTERM, as an engine stuck in its GPU's driver does
    pub ignore_sigterm: bool,
    /// What goes wrong with a request for tokens
    pub fault: Option<Fault>,
    /// Only with that many requests, from the first; unset: with all
    pub fault_times: Option<u64>,
}

/// The worker protocols of the project's wire contracts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Protocol {
    /// `/v1/chat/completions`, `/v1/completions`, `/v1/embeddings`
    #[default]
    Openai,
    /// `/v1/execute`, `/cancel`
    Rbee,
    /// `/v1/inference` only; whole answer first, deaf meanwhile, one request at a time
    OldRbee,
}

/// Something that goes wrong with a request for tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum Fault {
    /// An error status instead of an answer: 400, 429, 500 or 503; `Retry-After` in seconds, where
    /// the fault says one, and 7 with a 429 that says none
    Status(u16, Option<u64>),
    /// An error that quotes the prompt: with this status, or, with 200, as an event of the stream
    Quote(u16),
    /// After that many tokens the first half of an event, then an orderly end of the body
    HalfEvent(u64),
    /// A body that is neither SSE nor JSON nor UTF-8, under the right content type
    Garbage,
    /// The connection closes before the status line
    CloseWithoutAByte,
    /// That many tokens, then silence; without a stream: silence before the status line
    StallAfter(u64),
    /// A web page with status 200
    WrongContentType,
    /// Status and headers, then silence
    HeadersThenNothing,
    /// After that many tokens the connection breaks in the middle of the body
    DropMidStream(u64),
    /// After that many tokens the process exits with code 9
    DieMidStream(u64),
}

/// After how many tokens a fault strikes that says none.
const STRIKES_AFTER: u64 = 2;

/// `Retry-After` of a 429 that says none.
const RETRY_AFTER_S: u64 = 7;

impl FromStr for Fault {
    type Err = String;

    /// Reads `name` or `name=NUMBER`, blanks around the `=` allowed: how many tokens come before it,
    /// or the seconds of a status's `Retry-After`.
    fn from_str(text: &str) -> Result<Self, String> {
        let (name, after) = match text.split_once('=') {
            Some((name, after)) => {
                let after = after.trim();
                let after: u64 = after
                    .parse()
                    .map_err(|_| format!("not a number in fault: {text}"))?;
                (name.trim(), Some(after))
            }
            None => (text.trim(), None),
        };
        let tokens = after.unwrap_or(STRIKES_AFTER);
        Ok(match name {
            "status_400" => Fault::Status(400, after),
            "status_429" => Fault::Status(429, after.or(Some(RETRY_AFTER_S))),
            "status_500" => Fault::Status(500, after),
            "status_503" => Fault::Status(503, after),
            "quote" => Fault::Quote(after.unwrap_or(400).try_into().map_err(|_| "no status")?),
            "half_event" => Fault::HalfEvent(tokens),
            "garbage" => Fault::Garbage,
            "close_without_a_byte" => Fault::CloseWithoutAByte,
            "stall_after" => Fault::StallAfter(tokens),
            "wrong_content_type" => Fault::WrongContentType,
            "headers_then_nothing" => Fault::HeadersThenNothing,
            "drop_mid_stream" => Fault::DropMidStream(tokens),
            "die_mid_stream" => Fault::DieMidStream(tokens),
            _ => return Err(format!("unknown fault: {text}")),
        })
    }
}

impl TryFrom<String> for Fault {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_a_file_with_everything() {
        let behaviour: Behaviour = toml::from_str(
            r#"
            load_ms = 50
            exit_while_loading = 3
            hang_while_loading = true
            ttft_ms = 1
            itl_ms = 2.5
            tokens = 7
            slots = 2
            protocol = "old_rbee"
            strict_model = true
            fault = "stall_after = 3"
            fault_times = 1
            "#,
        )
        .expect("every key is known");
        assert_eq!(behaviour.itl_ms, Some(2.5));
        assert_eq!(behaviour.protocol, Protocol::OldRbee);
        assert_eq!(behaviour.fault, Some(Fault::StallAfter(3)));
    }

    #[test]
    fn a_status_may_say_when_to_come_back() {
        let read = |text: &str| text.parse::<Fault>().expect("a known fault");
        assert_eq!(read("status_503"), Fault::Status(503, None));
        assert_eq!(read("status_503=2"), Fault::Status(503, Some(2)));
        assert_eq!(read("status_429"), Fault::Status(429, Some(7)));
        assert_eq!(read("quote=500"), Fault::Quote(500));
    }

    #[test]
    fn an_empty_file_is_a_healthy_engine_and_a_typing_error_is_none() {
        let behaviour: Behaviour = toml::from_str("").expect("everything is optional");
        assert_eq!(behaviour.fault, None);
        assert!(toml::from_str::<Behaviour>("falt = \"garbage\"").is_err());
        assert!(toml::from_str::<Behaviour>("fault = \"garbaje\"").is_err());
        assert!("stall_after=soon".parse::<Fault>().is_err());
    }
}
