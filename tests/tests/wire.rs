//! HTTP/2 without TLS, clients that stop reading, and hives that someone else runs.

use std::io::Write;
use std::process::Command;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{Request, Version};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rbee_orchestrator::domain::HiveId;
use rbee_orchestrator::hives::HiveToken;
use rbee_tests::harness::events::assert_task_completed;
use rbee_tests::harness::{Daemon, Home, OldHive, eventually, ports, programs, raw};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

#[tokio::test]
async fn http_2_without_tls_is_spoken_even_when_the_preface_comes_in_two_pieces() {
    let home = Home::new();
    let queen = home.queen().start();
    let stub = home.stub(&["--tokens", "3"]);
    queen.register(&stub, "file:two", &json!({}));
    let address = ("127.0.0.1", queen.port());

    let mut halved = TcpStream::connect(address).await.unwrap();
    halved.write_all(b"PR").await.unwrap();
    tokio::time::sleep(Duration::from_millis(50)).await;
    halved
        .write_all(b"I * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0")
        .await
        .unwrap();
    let mut frame = [0; 9];
    halved.read_exact(&mut frame).await.unwrap();
    assert_eq!(frame[3], 4, "the answer to a preface is a SETTINGS frame");

    let io = TokioIo::new(TcpStream::connect(address).await.unwrap());
    let (mut client, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), io)
        .await
        .unwrap();
    let driving = tokio::spawn(connection);
    let body = json!({"model": "file:two", "stream": true, "max_tokens": 3,
                      "messages": [{"role": "user", "content": "x"}]});
    let asked: Vec<_> = (0..8)
        .map(|_| {
            let request = Request::post("http://localhost/v1/chat/completions")
                .body(Full::new(Bytes::from(body.to_string())))
                .unwrap();
            client.send_request(request)
        })
        .collect();
    for answer in asked {
        let answer = answer.await.unwrap();
        assert_eq!(
            (answer.version(), answer.status().as_u16()),
            (Version::HTTP_2, 200)
        );
        let text = answer.into_body().collect().await.unwrap().to_bytes();
        assert!(text.ends_with(b"data: [DONE]\n\n"), "{text:?}");
    }
    driving.abort();
    eventually("every slot is free", Duration::from_secs(2), || {
        queen.is_idle()
    });
}

#[test]
fn a_client_that_stops_reading_is_given_up_and_its_slot_is_free() {
    let home = Home::new();
    let queen = home
        .queen()
        .config("timeouts.client_stall = \"1s\"")
        .start();
    // More than the sockets' buffers take.
    let stub = home.stub(&["--tokens", "400000"]);
    queen.register(&stub, "file:flood", &json!({}));
    let body = json!({"model": "file:flood", "stream": true, "max_tokens": 400_000,
                      "messages": [{"role": "user", "content": "x"}]});
    let path = "/v1/chat/completions";
    let mut unread = raw::post(&queen, path, &[], &body.to_string()).expect("the queen listens");
    unread.flush().expect("the request is sent");
    eventually("the engine is at work", Duration::from_secs(5), || {
        stub.count("in_flight") == 1
    });
    eventually("the engine is free", Duration::from_secs(20), || {
        stub.count("in_flight") == 0
    });
    eventually("the slot is free", Duration::from_secs(2), || {
        queen.is_idle()
    });
    assert_eq!(stub.count("disconnects"), 1);
}

#[test]
fn a_hive_that_someone_else_runs_serves_requests_and_is_left_running() {
    const SECRET: &str = "a-secret-of-the-queen";
    let secret = HiveToken::new(SECRET).expect("a token");
    let own = secret.for_hive(&HiveId::new("other").expect("an id"));
    someone_elses_hive_serves(SECRET, own.expose(), "");
}

#[test]
fn a_hive_that_was_given_the_secret_itself_is_served_where_that_is_configured() {
    const SECRET: &str = "a-secret-that-both-sides-know";
    someone_elses_hive_serves(SECRET, SECRET, "hives.shared_token = true");
}

fn someone_elses_hive_serves(secret: &str, token: &str, setting: &str) {
    let home = Home::new();
    home.add_model("small.stub", "tokens = 3");
    let port = ports::free().expect("there is a free port");
    let mut command = Command::new(programs::hive());
    command
        .args(["daemon", "--port", &port.to_string()])
        .env("RBEE_API_TOKEN", token)
        .env("RBEE_HIVE_MODELS", home.models())
        .env("RBEE_HIVE_STATE", home.path().join("other-hive"))
        .env("RBEE_HIVE_CONFIG", home.path().join("hive.toml"));
    let mut hive = Daemon::spawn("rbee-hive", &mut command, &home.path().join("hive.log"))
        .expect("the hive's program runs");
    {
        let queen = home
            .queen()
            .env("QUEEN_HIVE_TOKEN", secret)
            .config(&format!("hives.local = false\n{setting}"))
            .start();
        let added = queen.ask(
            "/v2/registry/beehives/add",
            &json!({"node_name": "other", "mode": "network", "hostname": "127.0.0.1", "port": port}),
        );
        assert_eq!(added.status, 200, "{}", added.json());
        let task = json!({"model": "small", "prompt": "x", "max_tokens": 3});
        let events = queen.stream("/v2/tasks", &task).expect("an answer").rest();
        assert_task_completed(&events);
        assert_eq!(queen.workers()[0]["hive_id"], "other");
    }
    assert!(
        hive.exited().is_none(),
        "she did not start it, so she does not stop it"
    );
    assert!(hive.stop().expect("it ends").success());
    home.assert_nothing_runs();
}

#[test]
fn no_model_is_answered_by_another_that_lives_where_it_should_be() {
    let home = Home::new();
    let stub = home.stub(&["--model", "hf:org/a"]);
    // Its workers are all at one address, and it can't stop any.
    let hive = OldHive::with_openai_worker(stub.url());
    let queen = home
        .queen()
        .config("hives.local = false")
        .config("hives.loading_interval = \"50ms\"")
        .start();
    let added = queen.ask("/v2/registry/beehives/add", &hive.registration());
    assert_eq!(added.status, 200, "{}", added.text);
    let chat =
        |model: &str| json!({"model": model, "messages": [{"role": "user", "content": "x"}]});
    let reply = queen.ask("/v1/chat/completions", &chat("org/a"));
    assert_eq!(reply.status, 200, "{}", reply.text);
    let first = queen.workers()[0]["worker_id"].clone();

    let reply = queen.ask("/v1/chat/completions", &chat("org/b"));
    assert_eq!(reply.status, 502, "{}", reply.text);
    assert!(reply.text.contains("still served"), "{}", reply.text);
    assert_eq!(
        stub.count("requests"),
        1,
        "nothing of it came to the other model"
    );

    let refused = queen.ask("/v2/workers/shutdown", &json!({"worker_id": first}));
    assert_eq!(refused.status, 404, "{}", refused.text);
    eventually(
        "it is not shown as leaving",
        Duration::from_secs(10),
        || {
            queen
                .workers()
                .iter()
                .all(|worker| worker["state"] != "draining")
        },
    );
}
