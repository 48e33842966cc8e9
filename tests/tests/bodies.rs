//! What the bodies of requests may cost: how large, how many, how slow.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use rbee_tests::harness::{Home, Queen, assert_error, eventually, raw};
use serde_json::{Value, json};

const CHAT: &str = "/v1/chat/completions";

fn chat(bytes: usize) -> Value {
    json!({"model": "file:m", "max_tokens": 1, "messages": [{"role": "user", "content": "x".repeat(bytes)}]})
}

fn head(path: &str, more: &str) -> String {
    format!(
        "POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n{more}\r\n\r\n"
    )
}

fn begin(queen: &Queen, head: &str) -> TcpStream {
    let mut stream = raw::connect(queen).expect("the queen listens");
    stream.write_all(head.as_bytes()).expect("a head is small");
    stream
}

#[test]
fn pictures_of_several_megabytes_are_no_trouble_by_default() {
    let home = Home::new();
    let queen = home.queen().start();
    let stub = home.stub(&[]);
    queen.register(&stub, "file:m", &json!({}));
    let reply = queen.ask(CHAT, &chat(48 << 20));
    assert_eq!(reply.status, 200, "{}", reply.text);
    let reply = queen.ask(CHAT, &chat(64 << 20));
    assert_error(&reply, 413, "PAYLOAD_TOO_LARGE", &["67108864"]);
}

#[test]
fn a_length_that_is_too_large_is_refused_before_a_byte_of_it_came() {
    let home = Home::new();
    let queen = home.queen().start();
    for path in ["/v2/tasks", CHAT, "/v2/workers/spawn"] {
        let length = format!("content-length: {}", (64 << 20) + 1);
        let mut stream = begin(&queen, &head(path, &length));
        let (status, text) = raw::answer(&mut stream).expect("an answer");
        assert_eq!(status, 413, "{text}");
        let waits = length + "\r\nexpect: 100-continue";
        let mut stream = begin(&queen, &head(path, &waits));
        let (status, text) = raw::answer(&mut stream).expect("an answer");
        assert_eq!(status, 413, "{text}");
    }
}

#[test]
fn a_client_that_sends_all_before_it_reads_gets_its_answer() {
    let home = Home::new();
    let queen = home
        .queen()
        .config("limits.max_body_bytes = 100000")
        .start();
    let size = 30 << 20;
    let piece = vec![b'x'; 1 << 20];
    let length = format!("content-length: {size}");
    for form in [length.as_str(), "transfer-encoding: chunked"] {
        let mut stream = begin(&queen, &head("/v2/tasks", form));
        for _ in 0..size / piece.len() {
            if form != length {
                write!(stream, "{:x}\r\n", piece.len()).expect("it is taken");
            }
            stream
                .write_all(&piece)
                .expect("it is taken, and thrown away");
            if form != length {
                stream.write_all(b"\r\n").expect("it is taken");
            }
        }
        let (status, text) = raw::answer(&mut stream).expect("an answer");
        assert_eq!(status, 413, "{text}");
        assert!(text.contains("PAYLOAD_TOO_LARGE"), "{text}");
    }
}

#[test]
fn all_bodies_together_are_bounded_from_the_first_byte_to_the_end_of_the_job() {
    let home = Home::new();
    let queen = home
        .queen()
        .config("limits.max_body_bytes = 1000000")
        .config("limits.max_bodies_bytes = 1000000")
        .start();
    let slow = home.stub(&["--tokens", "2000", "--itl-ms", "50"]);
    queen.register(&slow, "file:m", &json!({"slots_total": 2}));
    let task = |stream: bool| json!({"model": "file:m", "prompt": "x".repeat(600_000), "stream": stream, "max_tokens": 2000});
    let refused = |what: &str| {
        for (path, body) in [(CHAT, chat(600_000)), ("/v2/tasks", task(false))] {
            let reply = queen.ask(path, &body);
            assert_error(&reply, 503, "OVERLOADED", &["limits.max_bodies_bytes"]);
            assert!(!reply.header("retry-after").is_empty(), "{what}");
        }
    };
    let free = || {
        let small = json!({"model": "file:m", "prompt": "x", "stream": false, "max_tokens": 1});
        let reply = queen.ask("/v2/tasks", &small);
        assert_eq!(
            reply.status, 200,
            "a small one is no burden: {}",
            reply.text
        );
        eventually("there is room again", Duration::from_secs(30), || {
            queen.ask(CHAT, &chat(600_000)).status == 200
        });
    };
    // While it is read …
    let upload = begin(&queen, &head(CHAT, "content-length: 600000"));
    eventually("it is being read", Duration::from_secs(30), || {
        queen.ask(CHAT, &chat(600_000)).status == 503
    });
    refused("one is being read");
    drop(upload);
    free();
    // … and while it runs, in either form.
    let mut streamed = chat(600_000);
    streamed["stream"] = true.into();
    streamed["max_tokens"] = 2000.into();
    for (path, body) in [(CHAT, streamed), ("/v2/tasks", task(true))] {
        let mut running = raw::post(&queen, path, &[], &body.to_string()).expect("it is read");
        running.read_exact(&mut [0; 15]).expect("it has begun");
        refused("one runs");
        drop(running);
        free();
    }
    // A task that outlives its connection counts too.
    let mut batch = task(true);
    batch["priority"] = "batch".into();
    let reply = queen.ask("/v2/tasks", &batch);
    assert_eq!(reply.status, 202, "{}", reply.text);
    refused("one waits or runs");
    let job = reply.json()["job_id"].as_str().expect("an id").to_owned();
    queen.ask(&format!("/v2/tasks/{job}/cancel"), &json!({}));
    free();
}

#[test]
fn a_body_that_only_drips_is_ended() {
    let home = Home::new();
    let queen = home
        .queen()
        .config("timeouts.client_stall = \"1s\"")
        .config("limits.min_body_bytes_per_second = 100")
        .start();
    let mut stream = begin(&queen, &head("/v2/tasks", "content-length: 100000"));
    stream
        .set_read_timeout(Some(Duration::from_millis(50)))
        .expect("a socket");
    let mut text = String::new();
    let mut piece = [0; 1024];
    eventually("it is ended", Duration::from_secs(30), || {
        let _ = stream.write_all(b" ");
        if let Ok(read) = stream.read(&mut piece) {
            text += &String::from_utf8_lossy(&piece[..read]);
        }
        text.contains("REQUEST_TIMEOUT")
    });
    assert!(text.starts_with("HTTP/1.1 408 "), "{text}");
    // One that is silent ends as well, and one that comes at a good pace does not.
    let mut silent = begin(&queen, &head("/v2/tasks", "content-length: 100000"));
    assert_eq!(raw::answer(&mut silent).expect("an answer").0, 408);
    let mut steady = begin(&queen, &head("/v2/tasks", "content-length: 600"));
    let mut sent = 0;
    eventually("it is sent", Duration::from_secs(30), || {
        steady.write_all(&[b' '; 2]).expect("it is read");
        sent += 2;
        sent == 600
    });
    assert_eq!(raw::answer(&mut steady).expect("an answer").0, 400);
}
