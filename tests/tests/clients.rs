//! Habits of clients: browsers' pages, other clients' headers, and what OpenAI's make of errors.

use rbee_tests::harness::{
    Answer, Client, EventEngine, Home, Queen, Reply, StubEngine, assert_error,
};
use serde_json::{Value, json};

const TOKEN: &str = "a-token-of-the-tests";
const BEARER: &str = "Bearer a-token-of-the-tests";
const CHAT: &str = "/v1/chat/completions";

/// A queen with a token or without, whose only engine serves `file:m`, and pages of
/// `https://chat.example` and of an app.
fn queens(home: &Home) -> ([Queen; 2], StubEngine) {
    let stub = home.stub(&[]);
    let queens = [None, Some(TOKEN)].map(|token| {
        let launch = home
            .queen()
            .database(&home.path().join(format!("{}.db", token.unwrap_or("open"))))
            .config("allowed_origins = [\"https://chat.example\", \"vscode-webview://\"]")
            .worker(&stub, "file:m", 2);
        match token {
            Some(token) => launch.env("QUEEN_TOKEN", token).start(),
            None => launch.start(),
        }
    });
    (queens, stub)
}

/// Who asks, on behalf of a page.
fn page(queen: &Queen, origin: &str) -> Client {
    let client = queen.header("origin", origin);
    client.header("sec-fetch-site", "cross-site")
}

fn preflight(queen: &Queen, origin: &str, path: &str) -> Reply {
    let client = page(queen, origin)
        .header("access-control-request-method", "POST")
        .header(
            "access-control-request-headers",
            "authorization,x-stainless-os",
        );
    client.send("OPTIONS", path, b"").expect("an answer")
}

const OURS: [&str; 3] = [
    "http://localhost:3000",
    "https://chat.example",
    "vscode-webview://0a1b",
];

#[test]
fn a_page_that_is_let_in_may_ask_and_read_the_answer() {
    let home = Home::new();
    let (queens, _engine) = queens(&home);
    for queen in queens {
        for origin in OURS {
            for path in [CHAT, "/v2/tasks", "/v2/no-such-path"] {
                let reply = preflight(&queen, origin, path);
                assert_eq!(reply.status, 204, "{path} {}", reply.text);
                assert_eq!(reply.header("access-control-allow-origin"), origin);
                assert!(
                    reply
                        .header("access-control-allow-methods")
                        .contains("DELETE")
                );
                let headers = reply.header("access-control-allow-headers");
                assert_eq!(headers, "authorization,x-stainless-os");
            }
            let client = page(&queen, origin).header("authorization", BEARER);
            let chat = |model: &str| {
                let message = json!([{"role": "user", "content": "x"}]);
                let body = json!({"model": model, "messages": message, "max_tokens": 2});
                client.post(CHAT, &body).expect("an answer")
            };
            for (reply, status) in [(chat("file:m"), 200), (chat("no-such-model"), 404)] {
                assert_eq!(reply.status, status, "{}", reply.text);
                assert_eq!(reply.header("access-control-allow-origin"), origin);
                assert_eq!(reply.header("vary"), "origin");
                let read = reply.header("access-control-expose-headers");
                for name in [
                    "x-job-id",
                    "x-correlation-id",
                    "retry-after",
                    "x-should-retry",
                ] {
                    assert!(read.contains(name), "no {name} in {read:?}");
                }
            }
        }
    }
}

#[test]
fn a_page_of_others_may_neither_ask_nor_read() {
    let home = Home::new();
    let ([open, closed], _engine) = queens(&home);
    for origin in [
        "https://evil.example",
        "http://chat.example",
        "null",
        "app://x",
    ] {
        for queen in [&open, &closed] {
            let reply = preflight(queen, origin, CHAT);
            assert_eq!(reply.status, 403, "{origin} {}", reply.text);
            assert!(reply.text.contains("allowed_origins"), "{}", reply.text);
            assert_eq!(reply.header("access-control-allow-origin"), "", "{origin}");
        }
        let reply = page(&open, origin).get("/v1/models").expect("an answer");
        assert_eq!(reply.status, 403, "{origin} {}", reply.text);
        // Who has the token is no page of a stranger, but a browser shows it nothing.
        let known = page(&closed, origin).header("authorization", BEARER);
        let reply = known.get("/v1/models").expect("an answer");
        assert_eq!(reply.status, 200, "{origin} {}", reply.text);
        assert_eq!(reply.header("access-control-allow-origin"), "", "{origin}");
    }
    // A page that is let in still needs the token, and may read that it does.
    let reply = page(&closed, OURS[1]).get("/v1/models").expect("an answer");
    assert_eq!(reply.status, 401);
    assert_eq!(reply.header("access-control-allow-origin"), OURS[1]);
    // Nothing but a preflight does without it.
    let plain = page(&closed, OURS[1]).send("OPTIONS", CHAT, b"");
    assert_eq!(plain.expect("an answer").status, 401);
    // No page may ask by a name that is not ours, which it may have rebound.
    let rebound = page(&open, OURS[0])
        .header("host", "evil.example")
        .header("access-control-request-method", "POST")
        .send("OPTIONS", CHAT, b"")
        .expect("an answer");
    assert_eq!(rebound.status, 403);
    assert_eq!(rebound.header("access-control-allow-origin"), "");
}

#[test]
fn an_origin_that_would_let_everybody_in_is_refused_at_the_start() {
    let home = Home::new();
    for (origins, named) in [("*", "every web page"), ("https://a.example/x", "path")] {
        let line = format!("allowed_origins = [\"{origins}\"]");
        let (_, said) = home.queen().config(&line).start_in_vain();
        for part in ["allowed_origins", named] {
            assert!(said.contains(part), "no {part:?} in {said}");
        }
    }
}

fn chat(model: &str, more: &Value) -> Value {
    let message = json!([{"role": "user", "content": "x"}]);
    let mut body = json!({"model": model, "messages": message, "max_tokens": 2});
    for (key, value) in more.as_object().into_iter().flatten() {
        body[key] = value.clone();
    }
    body
}

#[test]
fn anthropics_and_azures_header_shows_the_token_which_no_worker_sees() {
    let home = Home::new();
    let ([_, queen], engine) = queens(&home);
    for (name, value) in [
        ("authorization", BEARER),
        ("x-api-key", TOKEN),
        ("api-key", TOKEN),
    ] {
        let client = queen.header(name, value).header("x-request-id", "mine-1");
        let reply = client.post(CHAT, &chat("file:m", &json!({})));
        let reply = reply.expect("an answer");
        assert_eq!(reply.status, 200, "{name} {}", reply.text);
        for told in ["x-request-id", "x-correlation-id"] {
            assert_eq!(reply.header(told), "mine-1");
        }
        let seen = engine.last_request().expect("the stub answers");
        assert_eq!(seen["headers"]["x-correlation-id"], "mine-1", "{seen}");
        assert!(!seen.to_string().contains(TOKEN), "{seen}");
        let wrong = queen
            .header(name, &value.replace(TOKEN, "wrong"))
            .get("/v1/models");
        let wrong = wrong.expect("an answer");
        assert_error(&wrong, 401, "UNAUTHORIZED", &["not the right one"]);
    }
    // A proxy's own credentials beside it do no harm.
    let both = queen.header("authorization", "Bearer of-a-proxy");
    let reply = both.header("x-api-key", TOKEN).get("/v1/models");
    assert_eq!(reply.expect("an answer").status, 200);
    let reply = queen.look("/v1/models");
    assert_error(
        &reply,
        401,
        "UNAUTHORIZED",
        &["Bearer", "x-api-key", "api-key"],
    );
    assert_eq!(
        reply.header("x-request-id"),
        reply.header("x-correlation-id")
    );
}

/// Checks an error of one of OpenAI's endpoints: its code in OpenAI's words, and ours beside it.
#[track_caller]
fn assert_openais(reply: &Reply, status: u16, code: &str, ours: &str) {
    assert_error(reply, status, ours, &[]);
    assert_eq!(reply.json()["error"]["code"], code, "{}", reply.text);
}

#[test]
fn openais_endpoints_tell_openais_codes_and_ours_beside_them() {
    let home = Home::new();
    let queen = home
        .queen()
        .config("tenants.default.weight = 1")
        .config("tenants.slow.requests_per_minute = 1")
        .config("tenants.poor.tokens_per_day = 40")
        .start();
    let stub = home.stub(&[]);
    queen.register(&stub, "file:m", &json!({}));
    let ask = |tenant: &str| {
        let client = queen.header("x-tenant-id", tenant);
        client
            .post(CHAT, &chat("file:m", &json!({"max_tokens": 20})))
            .expect("an answer")
    };
    for (tenant, code, ours, retries) in [
        ("slow", "rate_limit_exceeded", "RATE_LIMITED", ""),
        ("poor", "insufficient_quota", "QUOTA_EXCEEDED", "false"),
    ] {
        assert_eq!(ask(tenant).status, 200);
        let refused = ask(tenant);
        assert_openais(&refused, 429, code, ours);
        assert_eq!(refused.header("x-should-retry"), retries, "{tenant}");
    }
    for reply in [
        queen.ask(CHAT, &chat("no-such-model", &json!({}))),
        queen.look("/v1/models/no-such-model"),
    ] {
        assert_openais(&reply, 404, "model_not_found", "MODEL_NOT_FOUND");
    }
    let reply = queen.look("/v1/no-such-path");
    assert_openais(&reply, 404, "unknown_url", "NOT_FOUND");
    let reply = queen.look(CHAT);
    assert_openais(&reply, 405, "method_not_supported", "METHOD_NOT_ALLOWED");
    // Elsewhere the code is ours alone.
    let unknown = json!({"model": "no-such-model", "prompt": "x"});
    let error = queen.ask("/v2/tasks", &unknown).json()["error"].clone();
    assert_eq!(error["code"], "MODEL_NOT_FOUND", "{error}");
    assert!(error.get("rbee_code").is_none(), "{error}");
}

#[test]
fn what_is_too_long_for_a_model_is_told_as_openai_does() {
    let home = Home::new();
    let queen = home.queen().start();
    let refusal = json!({"error": {"code": 400, "type": "exceed_context_size_error",
        "message": "request (5031 tokens) exceeds the available context size (2048 tokens)",
        "n_prompt_tokens": 5031, "n_ctx": 2048}});
    let as_event = json!({"error": {"code": 500, "type": "server_error",
        "message": "the request exceeds the available context size. try increasing it"}});
    let counts = |error: &Value| {
        let details = &error["details"];
        (details["n_prompt_tokens"].clone(), details["n_ctx"].clone())
    };
    for (number, answer) in [Answer::json(400, &refusal), Answer::json(500, &as_event)]
        .into_iter()
        .enumerate()
    {
        let engine = EventEngine::start(move |_| answer.clone()).expect("a port");
        let model = format!("file:short-{number}");
        queen.register_url(&engine.url(), &model, &json!({}));
        for stream in [false, true] {
            let reply = queen.ask(CHAT, &chat(&model, &json!({"stream": stream})));
            assert_openais(&reply, 400, "context_length_exceeded", "INVALID_REQUEST");
            let error = &reply.json()["error"];
            assert_eq!(error["type"], "invalid_request_error", "{error}");
            if number == 0 {
                assert_eq!(counts(error), (json!(5031), json!(2048)), "{error}");
            }
            assert_eq!(
                error["details"]["reason"], "context_length_exceeded",
                "{error}"
            );
        }
        let task = chat(&model, &json!({"stream": false}));
        let reply = queen.ask("/v2/tasks", &task);
        assert_error(&reply, 400, "INVALID_REQUEST", &["context size"]);
        let error = &reply.json()["error"];
        assert_eq!(
            error["details"]["reason"], "context_length_exceeded",
            "{error}"
        );
    }
    let answer = Answer::stream().event(&as_event);
    let engine = EventEngine::start(move |_| answer.clone()).expect("a port");
    queen.register_url(&engine.url(), "file:late", &json!({}));
    let late = chat("file:late", &json!({"stream": true}));
    let events = queen.stream(CHAT, &late).expect("an answer").rest();
    let error = &events.last().expect("the error")["error"];
    assert_eq!(error["code"], "context_length_exceeded", "{events:#?}");
    assert_eq!(error["rbee_code"], "INVALID_REQUEST", "{events:#?}");
}

#[test]
fn a_conversation_without_messages_is_refused_before_any_worker_sees_it() {
    let home = Home::new();
    let ([queen, _], engine) = queens(&home);
    for path in [CHAT, "/v2/tasks"] {
        for stream in [false, true] {
            let empty = chat("file:m", &json!({"messages": [], "stream": stream}));
            let reply = queen.ask(path, &empty);
            assert_error(
                &reply,
                400,
                "INVALID_REQUEST",
                &["messages must not be empty"],
            );
            assert_eq!(reply.json()["error"]["param"], "messages", "{}", reply.text);
        }
    }
    assert_eq!(engine.count("requests"), 0);
}

#[test]
fn a_device_that_no_machine_has_is_told_without_when_to_come_back() {
    let home = Home::new();
    home.add_model("m.stub", "");
    let queen = home.queen().start();
    for (constraint, param) in [
        (json!({"backend": "abacus"}), "backend"),
        (json!({"device": 77}), "device"),
    ] {
        let mut task = constraint.clone();
        task["model"] = json!("m");
        task["prompt"] = json!("x");
        task["stream"] = json!(false);
        let reply = queen.ask("/v2/tasks", &task);
        assert_error(
            &reply,
            400,
            "INVALID_REQUEST",
            &["no hive has", "on localhost"],
        );
        assert_eq!(reply.header("retry-after"), "", "{constraint}");
        assert_eq!(reply.json()["error"]["param"], param, "{}", reply.text);
        let mut spawn = constraint.clone();
        spawn["model"] = json!("m");
        let reply = queen.ask("/v2/workers/spawn", &spawn);
        assert_error(&reply, 400, "INVALID_REQUEST", &["no hive has"]);
    }
}
