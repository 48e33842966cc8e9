//! Whole answers count against a bound until their clients have taken them.

use rbee_tests::harness::{Home, Queen, RawEngine, Reply, assert_error, eventually, raw};
use rustix::net::sockopt::set_socket_recv_buffer_size;
use serde_json::json;
use std::net::TcpStream;
use std::time::Duration;

const CHAT: &str = "/v1/chat/completions";
const MODEL: &str = "file:model";
const JSON: &str = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n";
const MIB: usize = 1 << 20;

struct House {
    queen: Queen,
    engine: RawEngine,
    _home: Home,
}

/// A queen with room for 20 MiB of answers, and an engine that sends this one.
fn house(answer: String) -> House {
    let home = Home::new();
    let queen = home
        .queen()
        .config("limits.max_response_bytes = 16777216")
        .config("limits.max_answers_bytes = 20971520")
        .config("breaker = { failures = 1000, min_attempts = 1000 }")
        .start();
    let engine = RawEngine::start(answer, "").expect("a port");
    let worker = json!({"url": engine.url(), "model_ref": MODEL, "slots_total": 64});
    let reply = queen.ask("/v2/workers/register", &worker);
    assert_eq!(reply.status, 200, "{}", reply.text);
    House {
        queen,
        engine,
        _home: home,
    }
}

/// An answer of about so many bytes, its length told or not.
fn answer(bytes: usize, told: bool) -> String {
    let text = "x".repeat(bytes);
    let body = format!(
        r#"{{"choices":[{{"message":{{"content":"{text}"}}}}],"usage":{{"prompt_tokens":1,"completion_tokens":1}}}}"#
    );
    let length = body.len();
    if told {
        return format!("{JSON}content-length: {length}\r\n\r\n{body}");
    }
    format!("{JSON}transfer-encoding: chunked\r\n\r\n{length:x}\r\n{body}\r\n0\r\n\r\n")
}

impl House {
    fn body() -> serde_json::Value {
        json!({"model": MODEL, "messages": [{"role": "user", "content": "x"}]})
    }

    fn ask(&self) -> Reply {
        self.queen.ask(CHAT, &Self::body())
    }

    /// A client that never reads, and whose system takes little in its place: it may be ready to take
    /// tens of MiB.
    fn idler(&self) -> TcpStream {
        let body = Self::body().to_string();
        let stream = raw::connect(&self.queen).expect("a connection");
        set_socket_recv_buffer_size(&stream, 64 << 10).expect("any size");
        raw::post_on(stream, &self.queen, CHAT, &[], &body).expect("it is sent")
    }
}

#[test]
fn answers_that_nobody_takes_leave_no_room_for_others_until_their_clients_go() {
    for told in [true, false] {
        let house = house(answer(12 * MIB, told));
        assert_eq!(house.ask().status, 200);
        let idlers: Vec<TcpStream> = (0..8).map(|_| house.idler()).collect();
        eventually("all were answered", Duration::from_secs(20), || {
            house.engine.requests() == 9
        });
        eventually("there is no room", Duration::from_secs(20), || {
            let refused = house.ask();
            let is_full = refused.status == 503;
            if is_full {
                assert_error(&refused, 503, "OVERLOADED", &["max_answers_bytes"]);
                assert!(!refused.header("retry-after").is_empty());
            }
            is_full
        });
        drop(idlers);
        eventually("there is room again", Duration::from_secs(20), || {
            house.ask().status == 200
        });
    }
}

#[test]
fn an_answer_that_is_too_long_is_not_read() {
    for told in [true, false] {
        let house = house(answer(17 * MIB, told));
        assert_error(&house.ask(), 502, "UPSTREAM_INVALID", &["16777216"]);
    }
}
