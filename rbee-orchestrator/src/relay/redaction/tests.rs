use std::io::Write as _;

use serde_json::{Value, json};

use super::*;

/// What is kept of a text, with the request in one piece and byte by byte.
#[track_caller]
fn kept(text: &str, request: &str) -> String {
    let mut whole = Quotations::of(text);
    whole.write_all(request.as_bytes()).unwrap();
    let whole = whole.cut_out().unwrap_or_else(|| text.to_owned());
    let mut pieces = Quotations::of(text);
    for byte in request.bytes() {
        pieces.write_all(&[byte]).unwrap();
    }
    assert_eq!(pieces.cut_out().as_deref().unwrap_or(text), whole);
    whole
}

fn chat(content: impl Into<Value>) -> String {
    let content = content.into();
    json!({"model": "hf:some-model-of-ours", "max_tokens": 100_000,
           "messages": [{"role": "user", "content": content}]})
    .to_string()
}

#[test]
fn the_protocols_names_are_in_order() {
    assert!(PROTOCOL.is_sorted());
}

#[test]
fn what_is_quoted_is_cut_out_and_the_sentence_stays() {
    let request = chat("my secret recipe\nis \"nine\" apples");
    for (text, left) in [
        (
            "could not parse grammar: secret recipe\nis at line 2",
            "could not parse grammar: […] at line 2",
        ),
        (
            r#"Failed to parse messages: {"content":"my secret recipe\nis \"nine\" apples","role":"user"}"#,
            r#"Failed to parse messages: {"content":"[…]","role":"user"}"#,
        ),
        (
            r#"[{'loc': ('body',), 'input': {'content': 'my secret recipe\\nis "nine" apples'}}]"#,
            r"[{'loc': ('body',), 'input': {'content': '[…]'}}]",
        ),
        (
            "unexpected MY SECRET RECIPE IS, then nothing",
            "unexpected […], then nothing",
        ),
        ("invalid value 'recipe'", "invalid value '[…]'"),
    ] {
        assert_eq!(kept(text, &request), left, "{text}");
    }
}

#[test]
fn an_engines_own_sentence_stays_as_it_is() {
    let question = "What is the context size of a model? Say it as an array, with the role.";
    let request = chat(json!([{"type": "text", "text": question}, {"type": "image_url"}]));
    for text in [
        "the worker reported: the request exceeds the available context size",
        "max_tokens must be at most 4096, not 100000",
        "Missing 'role' in message: {\"content\":null}",
        "Conversation roles must alternate user/assistant/user/assistant/...",
        "the model hf:some-model-of-ours does not exist",
        "response_format.type must be \"json_object\"",
        "image_url is not supported - hint: you may need to provide the mmproj",
        "",
        "…",
    ] {
        assert_eq!(kept(text, &request), text);
    }
}

#[test]
fn short_texts_are_cut_out_as_a_whole() {
    let request = chat("PIN 4711");
    assert_eq!(kept("wrong: pin 4711!", &request), "wrong: […]!");
    assert_eq!(kept("near 4711 at 9", &request), "near […] at 9");
    assert_eq!(kept("PINs are no input", &request), "PINs are no input");
    let stops = json!({"model": "m", "prompt": "x", "stop": ["Zoë", "halt now"]}).to_string();
    let text = "a stop like halt now or zoë is too short";
    assert_eq!(kept(text, &stops), "a stop like […] or […] is too short");
}

#[test]
fn schemas_tools_and_token_lists_are_the_requests_too() {
    let request = json!({
        "model": "m", "messages": [],
        "response_format": {"type": "json_schema", "json_schema": {"properties": {"patient_diagnosis": {}}}},
        "prompt": [12345, 678, 91011, 1213],
    })
    .to_string();
    let text = "response_format is wrong: unknown keyword patient_diagnosis";
    let left = "response_format is wrong: unknown keyword […]";
    assert_eq!(kept(text, &request), left);
    assert_eq!(
        kept("no such tokens: 678, 91011, 1213", &request),
        "no such tokens: […]"
    );
}

#[test]
fn what_a_cut_may_have_left_of_a_quotation_is_cut_out() {
    let request = chat("the password is tulip");
    let text = "invalid request: the passwor… (cut)";
    assert_eq!(kept(text, &request), "invalid request: […]… (cut)");
}

#[test]
fn a_request_of_any_length_is_read_to_its_end() {
    let filler = "nothing of note, ".repeat(10_000);
    for secret in ["pangolin", "a quite unlikely sequence"] {
        let request = chat(format!("{filler}{secret}. {filler}"));
        let text = format!("it broke at '{secret}'");
        assert_eq!(kept(&text, &request), "it broke at '[…]'");
    }
    let unbroken = "秘密".repeat(3_000);
    let request = chat(format!("{unbroken}終わりです"));
    assert_eq!(kept("bad: 終わりです.", &request), "bad: […].");
}

#[test]
fn what_is_no_json_does_no_harm() {
    for request in ["", "\"", "}}]]\"a\\", "{\"a\":\"\\", "[[[[", "\u{0}\u{7f}"] {
        assert_eq!(kept("it broke", request), "it broke");
    }
}
