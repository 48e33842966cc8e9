//! `HiveClient` against small servers that behave well or badly.

use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rbee_orchestrator::Code;
use rbee_orchestrator::domain::{HiveId, ModelRef, WorkerId};
use rbee_orchestrator::hives::{
    CallTimeouts, HiveClient, HiveToken, HiveWorkerState, Recognition, SpawnRequest,
};
use rbee_orchestrator::transport::DirectTransport;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::fake_hive::free_port;

/// What the server saw.
#[derive(Debug, Clone)]
struct Seen {
    method: String,
    path: String,
    headers: http::HeaderMap,
    body: String,
}

type Log = Arc<Mutex<Vec<Seen>>>;

/// A server that answers by path.
async fn server(answer: fn(&str) -> (u16, &'static str)) -> (HiveClient, Log) {
    let listener = TcpListener::bind(("127.0.0.1", 0))
        .await
        .expect("a free port");
    let port = listener.local_addr().expect("bound").port();
    let log = Log::default();
    let seen = Arc::clone(&log);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let seen = Arc::clone(&seen);
            let service = service_fn(move |request: Request<Incoming>| {
                let seen = Arc::clone(&seen);
                async move {
                    let (head, body) = request.into_parts();
                    let body = body.collect().await.expect("a whole body").to_bytes();
                    let (status, text) = answer(head.uri.path());
                    seen.lock().expect("no panic").push(Seen {
                        method: head.method.to_string(),
                        path: head.uri.path().to_owned(),
                        headers: head.headers,
                        body: String::from_utf8_lossy(&body).into_owned(),
                    });
                    let mut response =
                        Response::new(Full::new(Bytes::from_static(text.as_bytes())));
                    *response.status_mut() = StatusCode::from_u16(status).expect("a status");
                    Ok::<_, Infallible>(response)
                }
            });
            let connection = hyper::server::conn::http1::Builder::new();
            tokio::spawn(connection.serve_connection(TokioIo::new(stream), service));
        }
    });
    (client(port), log)
}

/// A server that answers each connection with these bytes, then closes it or keeps it open.
async fn raw_server(bytes: &'static [u8], keep_open: bool) -> HiveClient {
    let listener = TcpListener::bind(("127.0.0.1", 0))
        .await
        .expect("a free port");
    let port = listener.local_addr().expect("bound").port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut request = [0; 4096];
                let _ = stream.read(&mut request).await;
                let _ = stream.write_all(bytes).await;
                if keep_open {
                    std::future::pending::<()>().await;
                }
            });
        }
    });
    client(port)
}

fn client(port: u16) -> HiveClient {
    let transport = Arc::new(DirectTransport::new("127.0.0.1"));
    let timeouts = CallTimeouts {
        health: Duration::from_millis(400),
        call: Duration::from_millis(400),
        spawn: Duration::from_millis(400),
    };
    let id = HiveId::new("gpu-0").expect("a name");
    HiveClient::new(
        id,
        transport,
        port,
        HiveToken::new("s3cret").expect("a token"),
        timeouts,
    )
}

fn a_spawn() -> SpawnRequest {
    let worker = WorkerId::new("w1").expect("an id");
    SpawnRequest::new(
        worker,
        ModelRef::new("hf:a/b").expect("a reference"),
        "cpu",
        0,
    )
}

#[tokio::test]
async fn calls_carry_token_and_correlation_and_health_carries_no_token() {
    let (client, log) = server(|path| match path {
        "/v1/workers/spawn" => (
            200,
            r#"{"worker_id":"w9","url":"http://x:1","state":"loading"}"#,
        ),
        "/v1/workers/list" => (200, r#"{"workers":[]}"#),
        _ => (200, "{}"),
    })
    .await;
    let client = client.correlated("trace-1");
    client.health().await.expect("healthy");
    client.workers().await.expect("a list");
    let spawned = client.spawn(&a_spawn()).await.expect("spawned");
    assert_eq!(spawned.worker_id.as_str(), "w9");
    assert_eq!(spawned.url.as_deref(), Some("http://x:1"));
    assert_eq!(spawned.state, HiveWorkerState::Loading);
    client
        .shutdown_worker("w9", Some(Duration::from_secs(1)))
        .await
        .expect("stopped");
    client.shutdown().await.expect("stopped");

    let log = log.lock().expect("no panic").clone();
    let calls: Vec<String> = log
        .iter()
        .map(|s| format!("{} {}", s.method, s.path))
        .collect();
    let expected = [
        "GET /health",
        "GET /v1/workers/list",
        "POST /v1/workers/spawn",
        "POST /v1/workers/shutdown",
        "POST /v1/shutdown",
    ];
    assert_eq!(calls, expected);
    for seen in &log {
        assert_eq!(seen.headers["x-correlation-id"], "trace-1");
        assert_eq!(seen.headers["host"], format!("127.0.0.1:{}", client.port()));
        let token = seen
            .headers
            .get("authorization")
            .map(http::HeaderValue::as_bytes);
        let expected = (seen.path != "/health").then_some(&b"Bearer s3cret"[..]);
        assert_eq!(token, expected, "{}", seen.path);
    }
    assert_eq!(log[2].headers["content-type"], "application/json");
    assert!(
        log[2].body.contains(r#""model_path":"""#),
        "{}",
        log[2].body
    );
    assert_eq!(log[3].body, r#"{"grace_ms":1000,"worker_id":"w9"}"#);
}

#[tokio::test]
async fn an_older_hive_is_spoken_with() {
    let (client, _) = server(|path| match path {
        "/v1/health" => (200, r#"{"status":"alive"}"#),
        "/v1/workers/list" => (200, r#"{"workers":[{"id":"w","model_ref":"a/b"}]}"#),
        _ => (404, ""),
    })
    .await;
    client.health().await.expect("healthy by the older route");
    assert_eq!(client.capabilities().await.expect("an answer"), None);
    assert_eq!(client.workers().await.expect("a list").len(), 1);
    assert_eq!(client.recognise().await, Recognition::Accepted);
    let error = client.shutdown().await.expect_err("it knows no such call");
    assert_eq!(error.code, Code::Conflict);
    let error = client
        .shutdown_worker("w", None)
        .await
        .expect_err("it knows no such call");
    assert_eq!(error.code, Code::WorkerNotFound);
}

#[tokio::test]
async fn a_refused_spawn_keeps_what_the_hive_said() {
    let (full, _) = server(|_| (507, r#"{"error":{"code":"X","message":"8 GiB short"}}"#)).await;
    let error = full.spawn(&a_spawn()).await.expect_err("no room");
    assert_eq!(error.code, Code::InsufficientVram);
    assert!(error.message.contains("8 GiB short"), "{error}");

    let (disk, _) = server(|_| (507, r#"{"error":{"code":"INSUFFICIENT_DISK"}}"#)).await;
    assert_eq!(
        disk.spawn(&a_spawn()).await.expect_err("full").code,
        Code::InsufficientDisk
    );

    let (none, _) = server(|_| (404, r#"{"error":{"code":"MODEL_NOT_FOUND"}}"#)).await;
    assert_eq!(
        none.spawn(&a_spawn()).await.expect_err("none").code,
        Code::ModelNotFound
    );

    let (broken, _) = server(|_| (500, r#"{"error":{"code":"ODD","message":"no engine"}}"#)).await;
    let error = broken.spawn(&a_spawn()).await.expect_err("it fails");
    assert_eq!(error.code, Code::WorkerFailed);
    let details = error.details.expect("details");
    assert_eq!(details["hive_code"], "ODD");
    assert_eq!(details["hive_message"], "no engine");
    assert_eq!(details["hive_status"], 500);
}

#[tokio::test]
async fn an_engines_key_is_read_and_never_shown() {
    let (keyed, _) = server(|_| (200, r#"{"worker_id":"w9","api_key":"k3y"}"#)).await;
    let answer = keyed.spawn(&a_spawn()).await.expect("spawned");
    assert_eq!(answer.api_key.as_deref(), Some("k3y"));
    assert!(!format!("{answer:?}").contains("k3y"));

    let (blank, _) = server(|_| (200, r#"{"worker_id":"w9","api_key":""}"#)).await;
    let answer = blank.spawn(&a_spawn()).await.expect("spawned");
    assert!(answer.api_key.is_none(), "none");

    let (odd, _) = server(|_| (200, r#"{"odd":1,"api_key":"k3y"}"#)).await;
    let error = odd.spawn(&a_spawn()).await.expect_err("it names no worker");
    assert!(error.message.contains("odd"), "{error}");
    assert!(!error.message.contains("k3y"), "{error}");
}

#[tokio::test]
async fn a_worker_that_the_hive_does_not_know_was_not_stopped() {
    let (client, _) = server(|_| (404, r#"{"error":{"code":"WORKER_NOT_FOUND"}}"#)).await;
    let stopped = client.shutdown_worker("w", None).await;
    let error = stopped.expect_err("what it started once may live on");
    assert_eq!(error.code, Code::WorkerNotFound);
}

#[tokio::test]
async fn a_refused_token_says_where_it_is_set_and_does_not_show_it() {
    let (client, _) = server(|path| match path {
        "/health" => (200, "{}"),
        _ => (401, "no"),
    })
    .await;
    let error = client.workers().await.expect_err("refused");
    assert_eq!(error.code, Code::HiveUnreachable);
    assert!(error.message.contains("gpu-0") && error.message.contains("RBEE_API_TOKEN"));
    assert!(!error.message.contains("s3cret"), "{error}");
    assert_eq!(client.recognise().await, Recognition::TokenRefused);
}

#[tokio::test]
async fn a_hive_that_is_not_there_is_named_with_its_address() {
    let client = client(free_port());
    let error = client.health().await.expect_err("nobody listens");
    assert_eq!(error.code, Code::HiveUnreachable);
    assert!(
        error
            .message
            .contains(&format!("gpu-0 at 127.0.0.1:{}", client.port())),
        "{error}"
    );
    assert_eq!(client.recognise().await, Recognition::Silent);
}

#[tokio::test]
async fn a_hive_that_hangs_costs_no_more_than_the_time_out() {
    for bytes in [
        &b""[..],
        b"HTTP/1.1 200 OK\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{",
    ] {
        let client = raw_server(bytes, true).await;
        let begun = Instant::now();
        let error = client.workers().await.expect_err("it hangs");
        assert_eq!(error.code, Code::HiveUnreachable);
        assert!(error.in_full().contains("400ms"), "{error}");
        assert!(
            begun.elapsed() < Duration::from_secs(3),
            "{:?}",
            begun.elapsed()
        );
    }
}

#[test]
fn a_call_that_is_dropped_frees_its_thread_at_once() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .max_blocking_threads(1)
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        let hung = raw_server(b"", true).await;
        let patient = CallTimeouts {
            call: Duration::from_secs(600),
            ..CallTimeouts::default()
        };
        let hung = HiveClient::new(
            HiveId::localhost(),
            Arc::new(DirectTransport::new("127.0.0.1")),
            hung.port(),
            HiveToken::new("t").expect("a token"),
            patient,
        );
        let call = tokio::time::timeout(Duration::from_millis(200), hung.workers()).await;
        call.expect_err("it hangs");
        // The only thread that may block is needed for this.
        let free = tokio::task::spawn_blocking(|| ());
        tokio::time::timeout(Duration::from_secs(5), free)
            .await
            .expect("the thread is free")
            .expect("no panic");
    });
}

#[tokio::test]
async fn garbage_is_told_from_silence() {
    for bytes in [
        &b"SSH-2.0-OpenSSH_9.2\r\n"[..],
        b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nno json!",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]",
    ] {
        let client = raw_server(bytes, false).await;
        let error = client.workers().await.expect_err("garbage");
        assert_eq!(error.code, Code::UpstreamInvalid, "{error}");
        assert_eq!(client.recognise().await, Recognition::Stranger);
    }
    let closes = raw_server(b"", false).await;
    let error = closes.workers().await.expect_err("closed without a byte");
    assert_eq!(error.code, Code::HiveUnreachable);
}

#[tokio::test]
async fn an_endless_answer_is_cut_off() {
    let listener = TcpListener::bind(("127.0.0.1", 0))
        .await
        .expect("a free port");
    let port = listener.local_addr().expect("bound").port();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.expect("a call");
        let head = b"HTTP/1.1 200 OK\r\nContent-Length: 99000000\r\n\r\n";
        stream.write_all(head).await.expect("it reads");
        while stream.write_all(&[b' '; 65536]).await.is_ok() {}
    });
    let patient = CallTimeouts {
        call: Duration::from_secs(30),
        ..CallTimeouts::default()
    };
    let transport = Arc::new(DirectTransport::new("127.0.0.1"));
    let token = HiveToken::new("t").expect("a token");
    let client = HiveClient::new(HiveId::localhost(), transport, port, token, patient);
    let error = client.workers().await.expect_err("too much");
    assert_eq!(error.code, Code::UpstreamInvalid);
    assert!(error.message.contains("16777216"), "{error}");
}

#[tokio::test]
async fn a_redirect_is_not_followed() {
    let redirect =
        b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n";
    let client = raw_server(redirect, false).await;
    let error = client.workers().await.expect_err("no list");
    assert!(error.message.contains("302"), "{error}");
}
