//! The real engine with a real model.

use std::env;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::{Home, status as asked, text};

fn needed(name: &str, what: &str) -> PathBuf {
    let path = env::var_os(name).map(PathBuf::from).unwrap_or_default();
    assert!(
        path.is_file(),
        "{name} must be the path of {what}; `make test` sets it (it is {path:?})"
    );
    path
}

#[tokio::test]
async fn llama_server_chats_completes_and_embeds_under_a_hive() {
    let server = needed("RBEE_LLAMA_SERVER", "a llama-server");
    let model = needed("RBEE_TEST_MODEL", "a small instruct model (.gguf)");
    let home = Home::new().env("RBEE_LLAMA_SERVER", server.to_str().unwrap());
    std::os::unix::fs::symlink(model, home.path("models/smollm2.gguf")).unwrap();
    let hive = home.start().await;

    let report = hive.get("/v1/capabilities").await.unwrap();
    let mut models = report["models"].as_array().unwrap().iter();
    let listed = models
        .find(|m| m["model_ref"] == "file:smollm2.gguf")
        .unwrap();
    assert_eq!(listed["aliases"], json!(["smollm2"]));
    let (size, need) = (listed["size_bytes"].as_u64(), listed["vram_bytes"].as_u64());
    assert!(need > size, "{listed}");

    let body = json!({"model_ref": "file:smollm2.gguf", "worker_id": "w", "slots": 2});
    let (status, answer) = hive.post("/v1/workers/spawn", &body).await;
    assert_eq!(status, 200, "{answer}");
    let worker = hive.worker_in("w", "idle").await;
    assert_eq!(
        (&worker["slots_total"], &worker["slots_available"]),
        (&json!(2), &json!(2))
    );
    assert!(
        resident_bytes(&worker) < worker["vram_bytes"].as_u64().unwrap(),
        "{worker}"
    );

    let key = text(&worker, "api_key");
    for path in ["/props", "/slots"] {
        let statuses = (
            asked(&worker, path, None).await,
            asked(&worker, path, Some(key)).await,
        );
        assert_eq!(statuses, (401, 200), "{path}");
    }
    let ask = async |path: &str, body: Value| -> Value {
        let url = format!("{}{path}", text(&worker, "url"));
        let answer = reqwest::Client::new()
            .post(url)
            .bearer_auth(key)
            .json(&body)
            .send()
            .await
            .unwrap();
        assert_eq!(answer.status(), 200, "{path}");
        answer.json().await.unwrap()
    };
    let question = json!([{"role": "system", "content": "You are a helpful assistant."},
        {"role": "user", "content": "What is the capital of France?"}]);
    let chat = json!({"messages": question, "temperature": 0, "max_tokens": 30});
    let chat = ask("/v1/chat/completions", chat).await;
    assert!(
        text(&chat["choices"][0]["message"], "content").contains("Paris"),
        "{chat}"
    );
    assert_eq!(chat["model"], worker["served_model"]);
    let completion = json!({"prompt": "Once upon a time", "max_tokens": 5});
    let completion = ask("/v1/completions", completion).await;
    assert!(
        !text(&completion["choices"][0], "text").is_empty(),
        "{completion}"
    );
    let embedding = ask("/v1/embeddings", json!({"input": "bee"})).await;
    assert!(embedding["data"][0]["embedding"].as_array().unwrap().len() > 100);

    hive.stop_worker("w").await;
    hive.worker_gone("w").await;
    home.no_engine_is_left().await;
}

#[tokio::test]
async fn a_list_of_workers_neither_wakes_an_engine_nor_keeps_it_awake() {
    let server = needed("RBEE_LLAMA_SERVER", "a llama-server");
    let model = needed("RBEE_TEST_MODEL", "a small instruct model (.gguf)");
    let home = Home::new().env("RBEE_LLAMA_SERVER", server.to_str().unwrap());
    std::os::unix::fs::symlink(model, home.path("models/smollm2.gguf")).unwrap();
    home.configure("allowed_args = [\"--sleep-idle-seconds\"]");
    let hive = home.start().await;
    let body = json!({"model_ref": "file:smollm2.gguf", "worker_id": "w", "slots": 2,
        "args": ["--sleep-idle-seconds", "2"]});
    let (status, answer) = hive.post("/v1/workers/spawn", &body).await;
    assert_eq!(status, 200, "{answer}");
    hive.worker_in("w", "idle").await;
    let list = async |path: &str| hive.get(path).await.unwrap()["workers"][0].clone();

    // Asked as often as a queen never does, the engine goes to sleep, and stays so.
    let began = Instant::now();
    while list("/v1/workers/list?slots=true").await["sleeping"] != true {
        assert!(began.elapsed() < Duration::from_secs(60), "it never sleeps");
        for _ in 0..30 {
            assert_eq!(list("/v1/workers/list").await["state"], "idle");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
    let asleep = list("/v1/workers/list?slots=true").await;
    assert_eq!(
        (&asleep["sleeping"], &asleep["slots_available"]),
        (&json!(true), &json!(2))
    );
    let refused = hive.get("/v1/workers/list?slots=maybe").await;
    assert_eq!(refused, None);
}

fn resident_bytes(worker: &Value) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", worker["pid"])).unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("VmRSS:"))
        .unwrap();
    let kib: u64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    kib * 1024
}
