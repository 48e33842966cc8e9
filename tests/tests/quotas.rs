//! Quotas of tokens hold, in whatever form a request asks for them and whatever its engine counts.

use rbee_tests::harness::{Home, Queen, RawEngine, Reply, assert_error, eventually};
use serde_json::{Value, json};
use std::time::Duration;

const CHAT: &str = "/v1/chat/completions";
const COMPLETIONS: &str = "/v1/completions";
const MODEL: &str = "file:model";
const JSON: &str = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n";
const EVENTS: &str = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n";

struct House {
    queen: Queen,
    engine: RawEngine,
    _home: Home,
}

impl House {
    /// A queen with these lines of configuration, and an engine that gives this answer.
    fn new(kind: &str, answer: &str, config: &[&str]) -> Self {
        let home = Home::new();
        let launch = config
            .iter()
            .fold(home.queen(), |launch, line| launch.config(line));
        let queen = launch.start();
        let answer = format!("{kind}content-length: {}\r\n\r\n{answer}", answer.len());
        let engine = RawEngine::start(answer, "").expect("a port");
        let worker = json!({"url": engine.url(), "model_ref": MODEL, "slots_total": 8});
        let reply = queen.ask("/v2/workers/register", &worker);
        assert_eq!(reply.status, 200, "{}", reply.text);
        House {
            queen,
            engine,
            _home: home,
        }
    }

    fn ask(&self, path: &str, fields: &str) -> Reply {
        let body = format!(r#"{{"model":"{MODEL}",{fields}}}"#);
        let asked = self.queen.header("x-tenant-id", "red");
        asked
            .send("POST", path, body.as_bytes())
            .expect("an answer")
    }

    fn usage(&self, jobs: u64) -> (u64, u64) {
        let mut row = Value::Null;
        eventually("the jobs are counted", Duration::from_secs(10), || {
            row = self.queen.look("/v2/usage?tenant=red").json()["usage"][0].clone();
            row["jobs"] == jobs
        });
        let count = |field: &str| row[field].as_u64().expect("a number");
        (count("tokens_in"), count("tokens_out"))
    }
}

const MESSAGE: &str = r#""messages":[{"role":"user","content":"x"}]"#;

#[test]
fn what_is_more_than_a_tenant_ever_has_is_refused_in_whatever_form_it_is_asked_for() {
    let house = House::new(JSON, "{}", &["tenants.red.tokens_per_day = 60"]);
    for fields in [
        r#""max_tokens":80"#,
        r#""max_tokens":80.0"#,
        r#""max_tokens":8e1"#,
        r#""max_tokens":"80""#,
        r#""max_tokens":18446744073709551615"#,
        r#""max_tokens":18446744073709551600,"n":20"#,
        r#""max_tokens":1e400"#,
        r#""max_tokens":-1"#,
        r#""max_tokens":null"#,
        r#""max_completion_tokens":80,"max_tokens":1"#,
        r#""max_tokens":1,"n_predict":80"#,
        r#""max_tokens":20,"n":4"#,
        r#""max_tokens":20,"n":"4""#,
        r#""max_tokens":20,"n":4.0"#,
        r#""max_tokens":20,"best_of":4"#,
    ] {
        for (path, prompt) in [(CHAT, MESSAGE), (COMPLETIONS, r#""prompt":"x""#)] {
            let reply = house.ask(path, &format!("{prompt},{fields}"));
            assert_error(&reply, 400, "INVALID_REQUEST", &["tokens a day"]);
            assert_eq!(reply.header("retry-after"), "", "{fields}");
        }
    }
    let tokens = format!(r#""prompt":[{}1],"max_tokens":1"#, "1,".repeat(80));
    for prompts in [
        r#""prompt":["a","b","c","d"],"max_tokens":20"#,
        r#""prompt":[[1],[2],[3],[4]],"max_tokens":20"#,
        r#""prompt":["a","b"],"n":2,"max_tokens":20"#,
        &tokens,
    ] {
        let reply = house.ask(COMPLETIONS, prompts);
        assert_error(&reply, 400, "INVALID_REQUEST", &["tokens a day"]);
    }
    assert_eq!(house.engine.requests(), 0);
}

#[test]
fn the_usage_of_several_chunks_adds_up() {
    let token = r#"{"choices":[{"index":0,"delta":{"content":"x"}}]}"#;
    let usage = r#"{"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":40}}"#;
    let events: String = [token, usage, usage, token, usage, usage, "[DONE]"]
        .iter()
        .map(|data| format!("data: {data}\n\n"))
        .collect();
    let house = House::new(EVENTS, &events, &["tenants.red.tokens_per_day = 200"]);
    let fields = format!(r#"{MESSAGE},"stream":true,"n":4,"max_tokens":40"#);
    assert_eq!(house.ask(CHAT, &fields).status, 200);
    assert_eq!(house.usage(1), (12, 160));
    let refused = house.ask(CHAT, &fields);
    assert_error(&refused, 429, "QUOTA_EXCEEDED", &[]);
    // Some clients would sleep until midnight.
    assert_eq!(refused.header("x-should-retry"), "false");
    assert!(refused.header("retry-after").parse::<u64>().is_ok());
}

#[test]
fn an_engine_that_counts_nothing_is_charged_by_the_estimate() {
    let text = "word ".repeat(16);
    for usage in [
        "",
        r#","usage":null"#,
        r#","usage":{"prompt_tokens":0,"completion_tokens":0}"#,
        r#","usage":{"prompt_tokens":-7,"completion_tokens":null}"#,
    ] {
        let answer = format!(
            r#"{{"choices":[{{"message":{{"role":"assistant","content":"{text}"}}}}]{usage}}}"#
        );
        let token = r#"data: {"choices":[{"index":0,"delta":{"content":"word "}}]}"#;
        let events = format!(
            "{}data: {{\"choices\":[]{usage}}}\n\ndata: [DONE]\n\n",
            format!("{token}\n\n").repeat(20)
        );
        for (kind, answer, stream) in [(JSON, &answer, false), (EVENTS, &events, true)] {
            let house = House::new(kind, answer, &["tenants.red.tokens_per_day = 50"]);
            let fields = format!(r#"{MESSAGE},"max_tokens":20,"stream":{stream}"#);
            let first = house.ask(CHAT, &fields);
            assert_eq!(first.status, 200, "{}", first.text);
            let (tokens_in, tokens_out) = house.usage(1);
            assert!((5..=15).contains(&tokens_in), "{tokens_in}");
            assert!((20..=21).contains(&tokens_out), "{tokens_out}");
            let refused = house.ask(CHAT, &fields);
            assert_error(&refused, 429, "QUOTA_EXCEEDED", &[]);
        }
    }
}

#[test]
fn a_picture_counts_as_a_picture_however_large_it_is() {
    let answer = r#"{"choices":[],"usage":{"prompt_tokens":800,"completion_tokens":10}}"#;
    for limit in ["tokens_per_day", "tokens_per_minute"] {
        let house = House::new(JSON, answer, &[&format!("tenants.red.{limit} = 20000")]);
        for letters in [100, 100_000, 4_000_000] {
            let data = "A".repeat(letters);
            let reply = house.ask(CHAT, &format!(
                r#""max_tokens":100,"messages":[{{"role":"user","content":[{{"type":"text","text":"What?"}},{{"type":"image_url","image_url":{{"url":"data:image/jpeg;base64,{data}"}}}}]}}]"#
            ));
            assert_eq!(reply.status, 200, "{limit} {letters}: {}", reply.text);
        }
        assert_eq!(house.usage(3), (2400, 30));
    }
}
