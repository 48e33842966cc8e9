use super::*;

fn of_500(body: &str) -> Fault {
    read(StatusCode::INTERNAL_SERVER_ERROR, body.as_bytes()).fault
}

fn message(text: &str) -> String {
    serde_json::json!({"error": {"code": 500, "message": text, "type": "server_error"}}).to_string()
}

#[test]
fn a_text_without_end_is_cut_where_a_character_ends() {
    for long in [message(&"ä".repeat(10_000)), "x".repeat(10_000)] {
        let said = read(StatusCode::INTERNAL_SERVER_ERROR, long.as_bytes())
            .error
            .message;
        assert!(said.len() <= LONGEST_TEXT + 40, "{}", said.len());
    }
    let event = serde_json::json!({"message": "ä".repeat(10_000)});
    assert!(read_event(&event).error.message.ends_with(CUT));
    assert_eq!(cut("short".to_owned()), "short");
}

#[test]
fn a_key_that_a_worker_refuses_is_no_mistake_of_the_caller() {
    let body = br#"{"error":{"message":"Invalid API Key","type":"authentication_error"}}"#;
    let refusal = read(StatusCode::UNAUTHORIZED, body);
    assert_eq!(refusal.fault, Fault::Unclear);
    assert_eq!(refusal.error.code, Code::WorkerFailed);
}

#[test]
fn mistakes_of_the_caller_are_told_from_the_engines_trouble() {
    for callers in [
        "input (901 tokens) is too large to process. increase the physical batch size (current batch size: 512)",
        "image input is not supported - hint: if this is unexpected, you may need to provide the mmproj",
        "audio input is not supported - hint: if this is unexpected, you may need to provide the mmproj",
        "Failed to parse messages: Missing 'role' in message: {\"content\":\"x\"}",
        "Failed to parse messages: [json.exception.type_error.302] type must be string, but is number",
        "Failed to parse messages: Missing tool call type: {\"id\":\"1\"}",
        "Failed to parse tools: Missing tool function: {\"type\":\"function\"}",
        "Conversation roles must alternate user/assistant/user/assistant/...",
        "Unable to generate parser for this template. Automatic parser generation failed",
        "Only user and assistant roles are supported! (raise_exception in template)",
        "Requested tokens (5031) exceed context window of 2048",
        "This model's maximum context length is 2048 tokens",
        "litellm.BadRequestError: OpenAIException - no",
        "m is not a multimodal model",
    ] {
        assert_eq!(of_500(&message(callers)), Fault::Caller, "{callers}");
    }
    for unclear in [
        "",
        "no",
        "Internal Server Error",
        "CUDA error: out of memory in template batch",
        "the stub says 500",
        "Compute error.",
        "failed to decode",
    ] {
        assert_eq!(of_500(&message(unclear)), Fault::Unclear, "{unclear}");
    }
}

#[test]
fn structure_tells_as_well() {
    for callers in [
        r#"{"error":{"message":"no","type":"invalid_request_error"}}"#,
        r#"{"error":{"message":"no","type":"BadRequestError","code":400}}"#,
        r#"{"error":{"message":"no","code":"context_length_exceeded"}}"#,
        r#"{"object":"error","message":"no","type":"NotImplementedError"}"#,
        r#"{"error":"no","error_type":"validation"}"#,
        r#"{"error":"m does not support images"}"#,
        r#"{"detail":[{"loc":["body"],"msg":"Field required"}]}"#,
    ] {
        let fault = read(StatusCode::INTERNAL_SERVER_ERROR, callers.as_bytes()).fault;
        assert_eq!(fault, Fault::Caller, "{callers}");
    }
    let of = |status, body: &str| read(status, body.as_bytes()).fault;
    assert_eq!(of(StatusCode::NOT_IMPLEMENTED, "no"), Fault::Caller);
    assert_eq!(of(StatusCode::NOT_FOUND, ""), Fault::Caller);
    assert_eq!(of(StatusCode::TOO_MANY_REQUESTS, ""), Fault::Load);
    assert_eq!(of(StatusCode::BAD_GATEWAY, "<html>"), Fault::Unclear);
    assert_eq!(
        of(
            StatusCode::INTERNAL_SERVER_ERROR,
            r#"{"error":{"code":429}}"#
        ),
        Fault::Unclear
    );
}

#[test]
fn the_engines_words_are_told_and_nothing_hides_them() {
    let said = |status, body: &str| read(status, body.as_bytes()).error;
    let error = said(
        StatusCode::INTERNAL_SERVER_ERROR,
        &message("mmproj is missing"),
    );
    assert_eq!(error.message, "mmproj is missing");
    assert_eq!(error.code, Code::InvalidRequest);
    let error = said(StatusCode::INTERNAL_SERVER_ERROR, &message("it broke"));
    assert_eq!(error.message, "the worker reported: it broke");
    assert_eq!(error.code, Code::WorkerFailed);
    let error = said(StatusCode::BAD_GATEWAY, "");
    assert_eq!(
        error.message,
        "the worker reported: it answered 502 without a word"
    );
}

#[test]
fn what_is_too_long_for_a_model_is_known_for_that_and_nothing_else_is() {
    let is_too_long = |status, body: &str| {
        let error = read(status, body.as_bytes()).error;
        assert!(!error.is_too_long() || error.code == Code::InvalidRequest);
        error.is_too_long()
    };
    for words in [
        "the request exceeds the available context size, try increasing it",
        "request (5031 tokens) exceeds the available context size (2048 tokens), try increasing it",
        "input (901 tokens) is too large to process. increase the physical batch size (current batch size: 512)",
        "Requested tokens (5031) exceed context window of 2048",
        "This model's maximum context length is 2048 tokens. However, you requested 5031 tokens",
        "The decoder prompt (length 5031) is longer than the maximum model length of 2048.",
        "The input (5031 tokens) is longer than the model's context length (2048 tokens).",
        "the input length exceeds the context length",
        "`inputs` must have less than 1024 tokens. Given: 2000",
    ] {
        for status in [StatusCode::BAD_REQUEST, StatusCode::INTERNAL_SERVER_ERROR] {
            assert!(is_too_long(status, &message(words)), "{status} {words}");
        }
        let event = serde_json::json!({"message": words});
        assert!(read_event(&event).error.is_too_long(), "{words}");
    }
    for typed in [
        r#"{"error":{"message":"no","type":"exceed_context_size_error","code":400}}"#,
        r#"{"error":{"message":"no","code":"context_length_exceeded"}}"#,
    ] {
        assert!(is_too_long(StatusCode::BAD_REQUEST, typed), "{typed}");
    }
    for other in [
        "max_tokens must not exceed 4096",
        "Missing 'role' in message",
        "CUDA error: out of memory while the context exceeds",
    ] {
        let body = message(other);
        assert!(
            !is_too_long(StatusCode::INTERNAL_SERVER_ERROR, &body),
            "{other}"
        );
    }
}
