//! What a hive refuses, and how it says so.

use std::process::Output;

use serde_json::json;

use crate::support::{Home, free_port, text, until};

#[tokio::test]
async fn a_model_outside_of_the_folder_is_refused_and_an_unknown_one_not_found() {
    let home = Home::new();
    let hive = home.start().await;
    let outside = home.path("outside.stub");
    std::fs::write(&outside, "ok").unwrap();
    let outside = outside.to_str().unwrap();
    let absolute = format!("file:{outside}");
    let refused = [
        ("file:../outside.stub", ""),
        ("file:a/../../outside.stub", ""),
        (&*absolute, ""),
        ("file:ok.stub", "../outside.stub"),
        ("file:ok.stub", outside),
        ("", ""),
    ];
    for (model_ref, model_path) in refused {
        let body = json!({"model_ref": model_ref, "model_path": model_path});
        let (status, answer) = hive.post("/v1/workers/spawn", &body).await;
        assert_eq!(status, 400, "{body}: {answer}");
        assert_eq!(answer["error"]["code"], "INVALID_REQUEST");
    }
    let body = json!({"model_ref": "file:nope.stub"});
    let (status, answer) = hive.post("/v1/workers/spawn", &body).await;
    assert_eq!(
        (status.as_u16(), &answer["error"]["code"]),
        (404, &json!("MODEL_NOT_FOUND"))
    );
    assert!(
        text(&answer["error"], "message").contains("file:ok.stub"),
        "{answer}"
    );
    assert!(home.engines().is_empty());
}

#[tokio::test]
async fn bad_spawns_are_told_what_is_wrong() {
    let home = Home::new();
    let hive = home.start().await;
    let with = |name: &str, value: serde_json::Value| {
        let mut body = json!({"model_ref": "file:ok.stub"});
        body[name] = value;
        body
    };
    let refused = [
        (with("worker_id", json!("../../x")), "worker_id"),
        (with("worker_id", json!("-rf")), "worker_id"),
        (with("worker_id", json!("a\nb")), "worker_id"),
        (with("slots", json!(0)), "slots"),
        (with("slots", json!(-1)), "-1"),
        (with("slots", json!(100_000)), "slots"),
        (with("backend", json!("cuda9")), "cpu 0"),
        (with("device", json!(77)), "77"),
        (with("args", json!(["a\u{0}b"])), "args"),
        (json!({}), "model_ref"),
    ];
    for (body, named) in refused {
        let (status, answer) = hive.post("/v1/workers/spawn", &body).await;
        assert_eq!(
            (status.as_u16(), &answer["error"]["code"]),
            (400, &json!("INVALID_REQUEST"))
        );
        assert!(
            text(&answer["error"], "message").contains(named),
            "{body}: {answer}"
        );
    }
    let nulls = json!({"model_ref": "file:ok.stub", "worker_id": "w", "slots": null,
        "device": null, "devices": null, "backend": "", "model_path": null, "args": null});
    assert_eq!(
        hive.post("/v1/workers/spawn", &nulls).await.0,
        200,
        "a null is as absent"
    );
    let (status, answer) = hive.post("/v1/workers/spawn", &nulls).await;
    assert_eq!(
        (status.as_u16(), &answer["error"]["code"]),
        (409, &json!("CONFLICT"))
    );
}

#[tokio::test]
async fn a_model_that_does_not_fit_is_refused_with_the_numbers() {
    let home = Home::new();
    // A file with a hole: its size is all that is known of it.
    let huge = std::fs::File::create(home.path("models/huge.stub")).unwrap();
    huge.set_len(1 << 42).unwrap();
    let hive = home.start().await;
    let body = json!({"model_ref": "huge"});
    let (status, answer) = hive.post("/v1/workers/spawn", &body).await;
    let error = &answer["error"];
    assert_eq!(
        (status.as_u16(), &error["code"]),
        (507, &json!("INSUFFICIENT_VRAM"))
    );
    assert!(error["details"]["needed"].as_u64() > error["details"]["free"].as_u64());
}

#[tokio::test]
async fn only_the_token_opens_and_health_is_public() {
    let home = Home::new().env("RBEE_API_TOKEN", "secret");
    let hive = home.start().await;
    let client = reqwest::Client::new();
    for path in ["/health", "/v1/health"] {
        let health = client.get(hive.url(path)).send().await.unwrap();
        let health: serde_json::Value = health.json().await.unwrap();
        assert_eq!(
            (&health["status"], &health["api_version"]),
            (&json!("alive"), &json!("v1"))
        );
    }
    for path in [
        "/v1/workers/list",
        "/v1/capabilities",
        "/metrics",
        "/v1/logs",
        "/nothing",
    ] {
        for token in [None, Some("wrong"), Some("secret2"), Some("")] {
            let request = client.get(hive.url(path));
            let request = match token {
                Some(token) => request.bearer_auth(token),
                None => request,
            };
            let answer = request.send().await.unwrap();
            assert_eq!(answer.status(), 401, "{path} {token:?}");
            let body: serde_json::Value = answer.json().await.unwrap();
            assert_eq!(body["error"]["code"], "UNAUTHORIZED");
        }
    }
    assert!(hive.get("/v1/workers/list").await.is_some());
}

#[tokio::test]
async fn an_engine_sees_no_secrets_and_what_its_administrator_passes() {
    let home = Home::new()
        .env("RBEE_API_TOKEN", "secret")
        .env("HF_TOKEN", "secret")
        .env("QUEEN_TOKEN", "secret")
        .env("CLOUD_CONFIG", "secret")
        .env("OMP_NUM_THREADS", "1")
        .env("WANTED_BY_ENGINE", "1");
    let config = std::fs::read_to_string(home.path("hive.toml")).unwrap();
    let passed = "[engines.stub]\npass_env = [\"WANTED_BY_ENGINE\"]";
    let config = config.replace("[engines.stub]", passed);
    std::fs::write(home.path("hive.toml"), config).unwrap();
    let hive = home.start().await;
    hive.spawn("w", "ok").await;
    hive.worker_in("w", "idle").await;
    until("the engine says what it sees", async || {
        let logs = hive.request("GET", "/v1/logs?worker_id=w").send().await;
        let logs = logs.ok()?.text().await.ok()?;
        assert!(!logs.contains("secret"), "{logs}");
        let (_, environment) = logs.split_once("stub: environment ")?;
        let (environment, _) = environment.split_once(" end")?;
        for hidden in ["RBEE_API_TOKEN", "HF_TOKEN", "QUEEN_TOKEN", "CLOUD_CONFIG"] {
            assert!(!environment.contains(hidden), "{environment}");
        }
        for seen in ["PATH", "FLAVOUR", "OMP_NUM_THREADS", "WANTED_BY_ENGINE"] {
            assert!(environment.contains(seen), "{environment}");
        }
        logs.contains("stub: token None flavour port").then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_web_page_can_not_drive_a_hive_without_a_token() {
    let home = Home::new();
    let hive = home.start().await;
    for (name, value) in [
        ("origin", "https://evil.example"),
        ("host", "evil.example:9200"),
    ] {
        let request = hive
            .request("POST", "/v1/workers/spawn")
            .header(name, value);
        let answer = request.body(r#"{"model_ref":"ok"}"#).send().await.unwrap();
        assert_eq!(answer.status(), 403, "{name}");
    }
    assert!(hive.workers().await.is_empty());
}

#[tokio::test]
async fn errors_have_one_form_and_carry_the_callers_id() {
    let home = Home::new();
    let hive = home.start().await;
    let calls = [
        ("GET", "/nothing", "", 404, "NOT_FOUND"),
        ("PUT", "/v1/workers/list", "", 405, "METHOD_NOT_ALLOWED"),
        (
            "POST",
            "/v1/workers/spawn",
            "{\"model_ref\":",
            400,
            "INVALID_REQUEST",
        ),
        ("POST", "/v1/workers/spawn", "[1]", 400, "INVALID_REQUEST"),
        ("POST", "/v1/workers/shutdown", "{}", 400, "INVALID_REQUEST"),
        ("GET", "/v1/logs?tail=many", "", 400, "INVALID_REQUEST"),
        ("GET", "/v1/logs?worker_id=w", "", 404, "WORKER_NOT_FOUND"),
        (
            "POST",
            "/v1/models/remove",
            "{\"model_ref\":\"nope\"}",
            404,
            "MODEL_NOT_FOUND",
        ),
        (
            "GET",
            "/v1/models/download/progress?id=1",
            "",
            404,
            "NOT_FOUND",
        ),
    ];
    for (method, path, body, status, code) in calls {
        let request = hive
            .request(method, path)
            .header("x-correlation-id", "my.id-1");
        let answer = request.body(body).send().await.unwrap();
        assert_eq!(answer.status().as_u16(), status, "{path}");
        assert_eq!(answer.headers()["x-correlation-id"], "my.id-1");
        let answer: serde_json::Value = answer.json().await.unwrap();
        assert_eq!(
            (&answer["error"]["code"], &answer["error"]["correlation_id"]),
            (&json!(code), &json!("my.id-1"))
        );
    }
    let large = hive
        .request("POST", "/v1/workers/spawn")
        .body(vec![b' '; 2 << 20]);
    assert_eq!(large.send().await.unwrap().status(), 413);
    let odd = hive
        .request("GET", "/health")
        .header("x-correlation-id", "a b");
    let odd = odd.send().await.unwrap();
    assert_ne!(odd.headers()["x-correlation-id"], "a b");
}

#[tokio::test]
async fn a_hive_that_can_not_start_says_why() {
    let home = Home::new();
    let hive = home.start().await;
    let port = hive.port.to_string();
    let run = |args: &[&str]| home.command(args).output().unwrap();
    assert_refused(&run(&["--port", &port]), "PORT_IN_USE");
    assert_refused(&run(&["--addr", "0.0.0.0:0"]), "TOKEN_REQUIRED");
    assert_refused(&run(&["--addr", "nonsense"]), "HOST:PORT");
    for token in [" \n", "two words"] {
        let mut command = home.command(&["--port", "0"]);
        let output = command.env("RBEE_API_TOKEN", token).output().unwrap();
        assert_refused(&output, "TOKEN_INVALID: RBEE_API_TOKEN");
    }
    for (lines, named) in [("sloots = 1", "sloots"), ("slots = 0", "slots = 0")] {
        home.configure(lines);
        assert_refused(&run(&["--port", "0"]), named);
    }
    home.configure("[aliases]\nx = \"file:../x\"");
    assert_refused(&run(&["--port", "0"]), "'..'");
    let free = free_port().to_string();
    let no_folder = home.path("hive.toml");
    let args = ["--port", &*free, "--state", no_folder.to_str().unwrap()];
    home.configure("");
    assert_refused(&run(&args), "--state");
}

fn assert_refused(output: &Output, why: &str) {
    let message = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{message}");
    assert!(message.contains(why), "{why}: {message}");
}

/// Whether the hive closes a connection on which this was sent, and nothing else.
async fn is_closed_after(port: u16, sent: &[u8]) -> bool {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", port))
        .await
        .unwrap();
    stream.write_all(sent).await.unwrap();
    let mut answer = Vec::new();
    let read = stream.read_to_end(&mut answer);
    tokio::time::timeout(std::time::Duration::from_secs(20), read)
        .await
        .is_ok()
}

#[tokio::test]
async fn connections_that_say_nothing_or_half_of_it_end() {
    let home = Home::new();
    home.configure("head_timeout_secs = 1");
    let hive = home.start().await;
    let whole = b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n";
    let (idle, half, again) = tokio::join!(
        is_closed_after(hive.port, b""),
        is_closed_after(hive.port, &whole[..20]),
        is_closed_after(hive.port, whole),
    );
    assert!(idle && half && again, "{idle} {half} {again}");
    assert!(hive.get("/v1/workers/list").await.is_some());
}

#[tokio::test]
async fn an_array_is_no_body_of_a_call() {
    let hive = Home::new().start().await;
    let (status, answer) = hive
        .post("/v1/models/download", &json!(["hf:org/repo"]))
        .await;
    assert_eq!(status, 400, "{answer}");
    assert!(
        text(&answer["error"], "message").contains("array"),
        "{answer}"
    );
}

#[tokio::test]
async fn an_argument_that_is_not_allowed_is_refused_and_says_by_what() {
    let home = Home::new();
    let hive = home.start().await;
    let wanted = json!({"model_ref": "ok", "args": ["--log-file", "/tmp/x"]});
    let (status, answer) = hive.post("/v1/workers/spawn", &wanted).await;
    assert_eq!(status, 403, "{answer}");
    let message = text(&answer["error"], "message");
    assert!(
        message.contains("allowed_args") && message.contains("--log-file"),
        "{message}"
    );
}
