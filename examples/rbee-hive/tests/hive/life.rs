//! A worker's life: loading, ready, ended; and the ways in which it goes wrong.

use serde_json::json;

use crate::support::{Home, is_alive, next, pid, queen, text};

#[tokio::test]
async fn a_worker_is_spawned_reported_ready_listed_and_shut_down() {
    let (url, mut callbacks) = queen().await;
    let home = Home::new()
        .env("QUEEN_CALLBACK_URL", url)
        .env("RBEE_API_TOKEN", "secret");
    home.model("slow.stub", "slow 0.5");
    home.configure("stop_grace_secs = 5\nallowed_args = [\"--more\"]");
    let hive = home.start().await;

    let body = json!({"worker_id": "w-1", "model_ref": "file:slow.stub", "backend": "cpu",
        "device": 0, "model_path": "", "slots": 3, "args": ["--more"]});
    let (status, answer) = hive.post("/v1/workers/spawn", &body).await;
    assert_eq!(
        (status.as_u16(), &answer["state"]),
        (200, &json!("loading"))
    );
    let loading = hive.worker("w-1").await.unwrap();
    assert_eq!(
        (&loading["state"], &loading["slots_available"]),
        (&json!("loading"), &json!(0))
    );

    let (path, token, ready) = next(&mut callbacks).await;
    assert_eq!((&*path, &*token), ("/v2/workers/ready", "Bearer secret"));
    let expected = json!({"worker_id": "w-1", "url": answer["url"], "backend": "cpu", "device": 0,
        "model_ref": "file:slow.stub", "served_model": "file:slow.stub", "slots_total": 3,
        "protocol": "openai", "vram_bytes": loading["vram_bytes"], "api_key": answer["api_key"]});
    assert_eq!(ready, expected);

    let worker = hive.worker_in("w-1", "idle").await;
    assert_eq!(
        (&worker["slots_total"], &worker["slots_available"]),
        (&json!(3), &json!(3))
    );
    assert!(is_alive(pid(&worker)));
    let engine = format!("{}/anything", text(&worker, "url"));
    let request = reqwest::Client::new().get(engine);
    let request = request.bearer_auth(text(&worker, "api_key"));
    let served = request.send().await.unwrap().text().await.unwrap();
    assert_eq!(
        served, "file:slow.stub",
        "the engine is told the model's name"
    );

    assert_eq!(hive.stop_worker("w-1").await.0, 200);
    hive.worker_gone("w-1").await;
    home.no_engine_is_left().await;
    let (status, answer) = hive.stop_worker("w-1").await;
    assert_eq!(
        (status.as_u16(), &answer["error"]["code"]),
        (404, &json!("WORKER_NOT_FOUND"))
    );
}

#[tokio::test]
async fn shutting_a_worker_down_twice_is_one_shutdown_and_the_shorter_grace_counts() {
    let home = Home::new();
    home.model("stubborn.stub", "stubborn");
    let hive = home.start().await;
    hive.spawn("w", "file:stubborn.stub").await;
    hive.worker_in("w", "idle").await;
    let slow = json!({"worker_id": "w", "grace_ms": 600_000});
    assert_eq!(hive.post("/v1/workers/shutdown", &slow).await.0, 200);
    assert_eq!(hive.worker("w").await.unwrap()["state"], "draining");
    let now = json!({"worker_id": "w", "grace_ms": 0});
    assert_eq!(hive.post("/v1/workers/shutdown", &now).await.0, 200);
    hive.worker_gone("w").await;
    home.no_engine_is_left().await;
}

#[tokio::test]
async fn an_engine_that_exits_while_loading_is_reported_with_its_last_words() {
    let (url, mut callbacks) = queen().await;
    let home = Home::new().env("QUEEN_CALLBACK_URL", url);
    home.model("bad.stub", "exit 3");
    let hive = home.start().await;
    hive.spawn("w", "file:bad.stub").await;

    let (path, _, failed) = next(&mut callbacks).await;
    assert_eq!(path, "/v2/workers/failed");
    assert_eq!(
        (&failed["worker_id"], &failed["exit_code"]),
        (&json!("w"), &json!(3))
    );
    for part in ["exited with code 3 while loading", "stub: out of cheese"] {
        assert!(text(&failed, "reason").contains(part), "{failed}");
    }
    let listed = hive.worker_in("w", "failed").await;
    assert_eq!(listed["error"], failed["reason"]);
    // Whoever tries again need not wait until the failure is forgotten.
    hive.spawn("w", "file:ok.stub").await;
    hive.worker_in("w", "idle").await;
}

#[tokio::test]
async fn an_engine_that_hangs_while_loading_is_killed_at_the_deadline() {
    let home = Home::new();
    home.configure("load_timeout_secs = 1\nload_timeout_secs_per_gib = 1");
    home.model("hang.stub", "hang stubborn child");
    let hive = home.start().await;
    hive.spawn("w", "file:hang.stub").await;
    let worker = hive.worker_in("w", "failed").await;
    assert!(
        text(&worker, "error").contains("did not load the model within 1"),
        "{worker}"
    );
    home.no_engine_is_left().await;
    assert_eq!(
        hive.stop_worker("w").await.0,
        200,
        "a failed worker can be forgotten"
    );
    assert!(hive.workers().await.is_empty());
}

#[tokio::test]
async fn a_worker_that_dies_later_is_reported() {
    let (url, mut callbacks) = queen().await;
    let home = Home::new().env("QUEEN_CALLBACK_URL", url);
    let hive = home.start().await;
    hive.spawn("w", "file:ok.stub").await;
    let worker = hive.worker_in("w", "idle").await;
    assert_eq!(next(&mut callbacks).await.0, "/v2/workers/ready");
    let crash = format!("{}/crash", text(&worker, "url"));
    let _ = reqwest::Client::new().post(crash).send().await;
    let (path, _, failed) = next(&mut callbacks).await;
    assert_eq!(
        (&*path, &failed["exit_code"]),
        ("/v2/workers/failed", &json!(7))
    );
    assert!(
        text(&failed, "reason").contains("crashing as asked"),
        "{failed}"
    );
    let metrics = hive.request("GET", "/metrics").send().await.unwrap();
    let metrics = metrics.text().await.unwrap();
    assert!(
        metrics.contains("rbee_hive_worker_failures_total 1"),
        "{metrics}"
    );
    assert!(
        metrics.contains("rbee_hive_workers{state=\"failed\"} 1"),
        "{metrics}"
    );
}

#[tokio::test]
async fn a_port_that_was_taken_meanwhile_is_replaced_by_another() {
    let home = Home::new();
    home.model("unlucky.stub", "port-taken");
    let hive = home.start().await;
    let answer = hive.spawn("w", "file:unlucky.stub").await;
    let worker = hive.worker_in("w", "idle").await;
    assert_ne!(worker["url"], answer["url"]);
}

#[tokio::test]
async fn a_missing_engine_is_named_with_the_cure() {
    let home = Home::new()
        .env("PATH", "/nowhere")
        .env("RBEE_LLAMA_SERVER", "");
    home.model("m.gguf", "GGUF");
    let hive = home.start().await;
    for (model, cure) in [
        ("m.gguf", "RBEE_LLAMA_SERVER"),
        ("ok.stub", "[engines.stub]"),
    ] {
        let body = json!({"model_ref": format!("file:{model}")});
        let (status, answer) = hive.post("/v1/workers/spawn", &body).await;
        assert_eq!(
            (status.as_u16(), &answer["error"]["code"]),
            (500, &json!("ENGINE_NOT_FOUND"))
        );
        assert!(text(&answer["error"], "message").contains(cure), "{answer}");
    }
    assert!(hive.workers().await.is_empty(), "nothing half-made stays");
}

#[tokio::test]
async fn models_and_devices_are_reported() {
    let home = Home::new();
    home.model("hf/org/repo/m.stub", "ok");
    home.model("Big-Model-00001-of-00002.stub", "ok");
    home.model("Big-Model-00002-of-00002.stub", "ok");
    home.configure("[aliases]\nsmall = \"file:ok.stub\"");
    let hive = home.start().await;
    let report = hive.get("/v1/capabilities").await.unwrap();
    let cpu = report["devices"].as_array().unwrap().last().unwrap();
    assert_eq!(cpu["backend"], "cpu");
    assert!(cpu["vram_free_bytes"].as_u64() > Some(0), "{report}");
    assert!(report["disk_free_bytes"].as_u64() > Some(0), "{report}");
    let models = report["models"].as_array().unwrap().iter();
    let names: Vec<_> = models
        .map(|m| (text(m, "model_ref"), &m["aliases"]))
        .collect();
    let expected = [
        ("file:Big-Model-00001-of-00002.stub", &json!(["big-model"])),
        ("file:ok.stub", &json!(["small", "ok"])),
        (
            "hf:org/repo/m.stub",
            &json!(["m", "org/repo", "hf:org/repo"]),
        ),
    ];
    assert_eq!(names, expected);
    let list = hive.get("/v1/models/list").await.unwrap();
    assert_eq!(list["models"], report["models"]);

    let (_, here) = hive
        .post("/v1/models/download", &json!({"model_ref": "hf:org/repo"}))
        .await;
    assert_eq!(here["download_id"], "cached");
}
