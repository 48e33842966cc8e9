//! What a worker may send: answers that never end, or that could end in two places, cost the queen
//! little, hurt no other request, and leave no connection behind that is out of step.

use rbee_tests::harness::{Home, Queen, RawEngine, Reply, Shared, assert_error};
use serde_json::{Value, json};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

const CHAT: &str = "/v1/chat/completions";
const JSON: &str = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n";
const EVENTS: &str = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n";

/// What the kernel's buffers take beside what the queen has read.
const SOCKET_BYTES: usize = 16 << 20;

fn shared() -> Arc<(Queen, Home)> {
    static QUEEN: Shared<(Queen, Home)> = Shared::new();
    QUEEN.get(|| {
        let home = Home::new();
        let queen = home
            .queen()
            .config("retry.attempts_interactive = 1")
            .config("breaker = { failures = 1000, min_attempts = 1000 }")
            .start();
        (queen, home)
    })
}

/// An engine with such answers, registered for a model of its own.
struct Strange {
    shared: Arc<(Queen, Home)>,
    engine: RawEngine,
    model: String,
}

impl Strange {
    fn new(answer: &str, rest: &str) -> Self {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let shared = shared();
        let model = format!("file:strange-{}", COUNT.fetch_add(1, Relaxed));
        let engine =
            RawEngine::start(answer, rest.repeat(4096 / rest.len().max(1))).expect("a port");
        let worker = json!({"url": engine.url(), "model_ref": model, "slots_total": 4});
        let reply = shared.0.ask("/v2/workers/register", &worker);
        assert_eq!(reply.status, 200, "{}", reply.text);
        Strange {
            shared,
            engine,
            model,
        }
    }

    fn ask(&self, stream: bool) -> Reply {
        let body = json!({"model": self.model, "messages": [{"role": "user", "content": "x"}],
                          "stream": stream});
        self.shared.0.ask(CHAT, &body)
    }

    /// It is no answer, whichever way it is asked for, and no connection is used twice.
    #[track_caller]
    fn is_refused(&self) {
        assert_error(&self.ask(false), 502, "UPSTREAM_INVALID", &[]);
        let streamed = self.ask(true);
        let told = streamed.status == 502 || streamed.text.contains("\"error\"");
        assert!(
            told && streamed.text.contains("UPSTREAM_INVALID"),
            "{}",
            streamed.text
        );
        assert_eq!(self.engine.requests(), 2);
        assert_eq!(self.engine.connections(), 2);
        let sent = self.engine.most_sent();
        assert!(sent <= SOCKET_BYTES, "{sent} bytes were taken");
    }
}

#[test]
fn heads_that_never_end_are_cut_off() {
    for rest in [
        "HTTP/1.1 100 Continue\r\n\r\n",
        "HTTP/1.1 103 Early Hints\r\nlink: </a>; rel=preload\r\n\r\n",
        "HTTP/1.1 102 Processing\r\n\r\n",
    ] {
        Strange::new("", rest).is_refused();
    }
    for (answer, rest) in [
        (JSON, "x-more: and more\r\n"),
        ("HTTP/1.1 200 OK\r\nx-long: ", "more and "),
        ("HTTP/1.1 200 ", "quite "),
        ("", "\r\n"),
        ("", "word "),
    ] {
        Strange::new(answer, rest).is_refused();
    }
}

#[test]
fn chunks_that_never_end_are_cut_off() {
    for head in [JSON, EVENTS] {
        let head = format!("{head}transfer-encoding: chunked\r\n\r\n");
        for (begun, rest) in [
            ("2;", "extension;"),
            ("", "0"),
            ("2 ", "    "),
            ("0\r\n", "trailer: value\r\n"),
            ("0\r\nt", "railer"),
            ("1\r\n \r", "\r"),
            ("", "\r\n"),
        ] {
            Strange::new(&(head.clone() + begun), rest).is_refused();
        }
        let chunk = format!("1;{}\r\n \r\n", "e".repeat(500));
        Strange::new(&head, &chunk).is_refused();
    }
}

#[test]
fn an_answer_that_could_end_in_two_places_is_none() {
    for fields in [
        "content-length: 2\r\ncontent-length: 3",
        "content-length: 2, 3",
        "content-length: +2",
        "content-length: 2\r\ntransfer-encoding: chunked",
        "transfer-encoding: gzip, chunked",
        "transfer-encoding: identity",
        "content-length : 2",
        "content-length: 2\r\n x: y",
    ] {
        Strange::new(&format!("{JSON}{fields}\r\n\r\n{{}}"), "").is_refused();
    }
    for head in [
        "HTTP/1.1 200 OK\ncontent-length: 2\n\n{}",
        "HTTP/1.1 204 No Content\r\ncontent-length: 2\r\n\r\n{}",
        "{\"choices\": []}\r\n\r\n",
    ] {
        Strange::new(head, "").is_refused();
    }
}

#[test]
fn what_is_only_unusual_is_an_answer() {
    let chunked = format!("{JSON}transfer-encoding: chunked\r\n\r\n");
    for answer in [
        format!("{JSON}content-length: 2\r\ncontent-length: 2\r\n\r\n{{}}"),
        format!("{JSON}content-length: 2, 2\r\n\r\n{{}}"),
        format!("{chunked}1;a=b\r\n{{\r\n1 \r\n}}\r\n0;c\r\nx: y\r\n\r\n"),
        format!("HTTP/1.1 100 Continue\r\n\r\n{JSON}content-length: 2\r\n\r\n{{}}"),
    ] {
        let strange = Strange::new(&answer, "");
        for _ in 0..3 {
            let reply = strange.ask(false);
            assert_eq!((reply.status, &*reply.text), (200, "{}"), "{answer:?}");
        }
        assert_eq!(strange.engine.requests(), 3);
    }
}

#[test]
fn bytes_behind_an_answer_belong_to_no_other() {
    let one = format!("{JSON}content-length: 7\r\n\r\n{{\"a\":1}}");
    let other = format!("{JSON}content-length: 7\r\n\r\n{{\"a\":2}}");
    let strange = Strange::new(&(one + &other), "");
    for _ in 0..4 {
        let reply = strange.ask(false);
        assert_eq!(reply.status, 200, "{}", reply.text);
        assert_eq!(reply.json(), json!({"a": 1}) as Value);
    }
    assert_eq!(strange.engine.connections(), 4);
}

#[test]
fn an_error_without_end_is_neither_waited_for_nor_kept() {
    for status in ["500 Internal Server Error", "400 Bad Request"] {
        let head = format!(
            "HTTP/1.1 {status}\r\ncontent-type: text/plain\r\ncontent-length: 60000000\r\n\r\n"
        );
        let strange = Strange::new(&head, "what a long text ");
        let reply = strange.ask(false);
        assert!(
            matches!(reply.status, 400 | 502),
            "{} {}",
            reply.status,
            reply.text
        );
        assert!(reply.text.len() < 8 << 10, "{}", reply.text.len());
        let most = strange.engine.most_sent();
        assert!(most < SOCKET_BYTES, "{most} bytes were taken");
        let listed = strange.shared.0.tasks(&format!("model={}", strange.model));
        let message = listed[0]["error"]["message"].as_str().unwrap_or_default();
        assert!(
            message.contains("a long text") && message.len() < 5 << 10,
            "{message}"
        );
    }
}
