//! Models that come from the hub and go again.

use serde_json::{Value, json};

use crate::hub::Hub;
use crate::support::{Hive, Home, text, until};

const MODEL: &[u8] = &[7; 300_000];

fn home(hub: &Hub) -> Home {
    let home = Home::new().env("HF_ENDPOINT", &*hub.url);
    let own = home.path("hf-home");
    let home = home.env("HF_HOME", own.to_str().unwrap());
    home.configure("keep_free_mib = 0");
    home
}

pub(crate) async fn ask(hive: &Hive, model_ref: &str) -> (u16, Value) {
    let body = json!({"model_ref": model_ref});
    let (status, answer) = hive.post("/v1/models/download", &body).await;
    (status.as_u16(), answer)
}

/// Asks, and gives the last of the download's events.
pub(crate) async fn fetch(hive: &Hive, model_ref: &str) -> Value {
    loop {
        let (status, answer) = ask(hive, model_ref).await;
        if status != 200 {
            return answer["error"].clone();
        }
        if answer["download_id"] == "cached" {
            return answer;
        }
        // One that ended before it could be followed is asked for again.
        if let Some(last) = events(hive, text(&answer, "download_id")).await.pop() {
            return last;
        }
    }
}

async fn events(hive: &Hive, id: &str) -> Vec<Value> {
    let path = format!("/v1/models/download/progress?id={id}");
    let answer = hive.request("GET", &path).send().await.unwrap();
    if answer.status() == 404 {
        return Vec::new();
    }
    let answer = answer.text().await.unwrap();
    let data: Vec<&str> = answer
        .lines()
        .filter_map(|line| line.strip_prefix("data: "))
        .collect();
    let (done, events) = data.split_last().unwrap();
    assert_eq!(*done, "[DONE]");
    let events = events.iter();
    events
        .map(|event| serde_json::from_str(event).unwrap())
        .collect()
}

pub(crate) async fn is_listed(hive: &Hive, model_ref: &str) -> bool {
    let list = hive.get("/v1/models/list").await.unwrap();
    let models = list["models"].as_array().unwrap().iter();
    models
        .into_iter()
        .any(|model| model["model_ref"] == model_ref)
}

#[tokio::test]
async fn a_repositorys_best_file_is_fetched_checked_and_listed() {
    let hub = Hub::that_waits(&[
        ("README.md", b"no model"),
        ("a-Q8_0.gguf", b"big"),
        ("m-Q4_K_M.gguf", MODEL),
    ])
    .await;
    let home = home(&hub);
    let hive = home.start().await;
    let (status, answer) = ask(&hive, "hf:org/repo").await;
    assert_eq!(
        (status, &answer["local_path"]),
        (200, &Value::Null),
        "{answer}"
    );
    let id = text(&answer, "download_id").to_owned();
    assert!(!is_listed(&hive, "hf:org/repo/m-Q4_K_M.gguf").await);

    let again = ask(&hive, "hf:org/repo").await.1;
    assert_eq!(again["download_id"], id, "one download for all who ask");
    let (all, ()) = tokio::join!(events(&hive, &id), async {
        hub.open();
    });
    assert_eq!(all[0]["stage"], "downloading", "{all:?}");
    assert_eq!(all[0]["bytes_total"], MODEL.len());
    let last = all.last().unwrap();
    assert_eq!(last["stage"], "complete", "{all:?}");
    assert_eq!(std::fs::read(text(last, "local_path")).unwrap(), MODEL);
    assert_eq!(hub.begins(), [0], "it came once");

    assert!(is_listed(&hive, "hf:org/repo/m-Q4_K_M.gguf").await);
    for name in ["hf:org/repo", "hf:org/repo/m-Q4_K_M.gguf", "org/repo"] {
        assert_eq!(ask(&hive, name).await.1["download_id"], "cached", "{name}");
    }
    assert!(
        events(&hive, &id).await.is_empty(),
        "an ended id is unknown"
    );
    let provision = json!({"model_ref": "file:ok.stub"});
    let (status, answer) = hive.post("/v1/models/provision", &provision).await;
    assert_eq!(
        (status.as_u16(), &answer["download_id"]),
        (200, &json!("cached"))
    );
}

#[tokio::test]
async fn a_download_that_was_cut_goes_on_where_it_stopped() {
    let hub = Hub::with(&[("m.gguf", MODEL)]).await;
    let home = home(&hub);
    let hive = home.start().await;
    hub.cut_at(100_000);
    let failed = fetch(&hive, "hf:org/repo/m.gguf").await;
    assert_eq!(failed["code"], "DOWNLOAD_FAILED", "{failed}");
    assert!(!is_listed(&hive, "hf:org/repo/m.gguf").await);
    hub.cut_at(0);
    let done = fetch(&hive, "hf:org/repo/m.gguf").await;
    assert_eq!(std::fs::read(text(&done, "local_path")).unwrap(), MODEL);
    assert_eq!(hub.begins(), [0, 100_000]);
}

#[tokio::test]
async fn all_parts_of_a_split_model_and_a_pinned_revision_are_fetched() {
    let hub = Hub::with(&[
        ("Q8/big-00001-of-00002.gguf", b"first"),
        ("Q8/big-00002-of-00002.gguf", b"second"),
        ("m.gguf", MODEL),
    ])
    .await;
    let home = home(&hub);
    let hive = home.start().await;
    let split = "hf:org/repo/Q8/big-00001-of-00002.gguf";
    let done = fetch(&hive, split).await;
    assert!(text(&done, "local_path").ends_with("big-00001-of-00002.gguf"));
    assert!(is_listed(&hive, split).await);
    let pinned = "hf:org/repo@v1.0::file=m.gguf";
    fetch(&hive, pinned).await;
    assert!(is_listed(&hive, pinned).await);
    let (_, other) = ask(&hive, "hf:org/repo@v2.0::file=m.gguf").await;
    assert_ne!(
        other["download_id"], "cached",
        "another revision is another model"
    );
}

#[tokio::test]
async fn a_file_with_a_wrong_checksum_never_becomes_a_model() {
    let hub = Hub::that_lies(&[("m.gguf", MODEL)]).await;
    let home = home(&hub);
    let hive = home.start().await;
    for _ in 0..2 {
        let failed = fetch(&hive, "hf:org/repo").await;
        assert_eq!(failed["code"], "DOWNLOAD_FAILED", "{failed}");
        assert!(text(&failed, "message").contains("checksum"), "{failed}");
    }
    assert!(!is_listed(&hive, "hf:org/repo/m.gguf").await);
    assert_eq!(hub.begins(), [0, 0], "what was wrong is not gone on with");
}

#[tokio::test]
async fn what_the_hub_refuses_is_told_with_what_to_do() {
    let hub = Hub::with(&[("m.gguf", MODEL), ("notes.txt", b"x")]).await;
    let home = home(&hub);
    let hive = home.start().await;
    for (status, answer, code, named) in [
        (401, 404, "MODEL_NOT_FOUND", "HF_TOKEN"),
        (404, 404, "MODEL_NOT_FOUND", "org/repo"),
        (500, 502, "DOWNLOAD_FAILED", "500"),
    ] {
        hub.answer_all_with(status);
        for model in ["hf:org/repo", "hf:org/repo/m.gguf"] {
            let (got, body) = ask(&hive, model).await;
            let error = &body["error"];
            assert_eq!((got, &error["code"]), (answer, &json!(code)), "{body}");
            assert!(text(error, "message").contains(named), "{body}");
        }
    }
    hub.answer_all_with(0);
    for (model, status) in [
        ("hf:org/repo/none.gguf", 404),
        ("hf:org", 404),
        ("hf:org/../x", 400),
        ("https://example.org/m.txt", 400),
        ("https://user:secret@example.org/m.gguf", 400),
        ("file:none.gguf", 404),
    ] {
        let (got, body) = ask(&hive, model).await;
        assert_eq!(got, status, "{model}: {body}");
    }
}

#[tokio::test]
async fn a_model_that_the_disk_has_no_room_for_is_refused_with_the_numbers() {
    let hub = Hub::with(&[("m.gguf", MODEL)]).await;
    let home = home(&hub);
    home.configure("keep_free_mib = 1000000000");
    let hive = home.start().await;
    let (status, answer) = ask(&hive, "hf:org/repo").await;
    let error = &answer["error"];
    assert_eq!((status, &error["code"]), (507, &json!("INSUFFICIENT_DISK")));
    assert_eq!(error["details"]["needed"], MODEL.len());
    assert!(error["details"]["free"].is_u64(), "{answer}");
    assert!(hub.begins().is_empty());
}

#[tokio::test]
async fn a_hub_that_falls_silent_does_not_hold_a_model_for_ever() {
    let hub = Hub::that_waits(&[("m.gguf", MODEL)]).await;
    let home = home(&hub);
    home.configure("keep_free_mib = 0\ndownload_stall_secs = 1");
    let hive = home.start().await;
    let failed = fetch(&hive, "hf:org/repo").await;
    assert!(
        text(&failed, "message").contains("nothing came"),
        "{failed}"
    );
    hub.open();
    let done = fetch(&hive, "hf:org/repo").await;
    assert_eq!(std::fs::read(text(&done, "local_path")).unwrap(), MODEL);
}

#[tokio::test]
async fn the_hub_gets_its_token_and_not_the_hives() {
    let hub = Hub::with(&[("m.gguf", MODEL)]).await;
    let home = home(&hub)
        .env("HF_TOKEN", "hub-secret")
        .env("RBEE_API_TOKEN", "hive-secret");
    let hive = home.start().await;
    fetch(&hive, "hf:org/repo").await;
    assert_eq!(hub.tokens(), ["Bearer hub-secret"]);
}

#[tokio::test]
async fn a_model_in_use_stays_and_an_unused_one_is_removed() {
    let home = Home::new();
    home.model("hf/org/repo/m.gguf", "12345");
    let hive = home.start().await;
    hive.spawn("w", "ok").await;
    let remove = async |name: &str| {
        let body = json!({"model_ref": name});
        let (status, answer) = hive.post("/v1/models/remove", &body).await;
        (status.as_u16(), answer)
    };
    let (status, answer) = remove("file:ok.stub").await;
    assert_eq!(
        (status, &answer["error"]["code"]),
        (409, &json!("CONFLICT"))
    );
    assert!(
        text(&answer["error"], "message").contains("\"w\""),
        "{answer}"
    );
    let stop = json!({"worker_id": "w"});
    hive.post("/v1/workers/shutdown", &stop).await;
    hive.worker_gone("w").await;
    for (name, file) in [
        ("file:ok.stub", "models/ok.stub"),
        ("org/repo", "models/hf"),
    ] {
        let (status, answer) = remove(name).await;
        assert_eq!(status, 200, "{answer}");
        assert!(!home.path(file).exists(), "{file}");
        assert_eq!(remove(name).await.0, 404);
    }
    assert!(home.path("models").exists());
    until("the hive lives", async || hive.get("/health").await).await;
}

#[tokio::test]
async fn the_hubs_token_is_shown_to_the_hub_and_to_no_other_host() {
    let hub = Hub::with_contents_elsewhere(&[("m-Q4_K_M.gguf", MODEL)]).await;
    // A token from a file has a newline, mostly.
    let home = home(&hub).env("HF_TOKEN", " hf_secret\n");
    let hive = home.start().await;
    let last = fetch(&hive, "hf:org/repo").await;
    assert_eq!(last["stage"], "complete", "{last}");
    let shown = hub.shown_tokens_at();
    assert!(shown.len() >= 2, "the hub itself asks for it: {shown:?}");
    assert!(
        shown.iter().all(|path| !path.starts_with("/content/")),
        "{shown:?}"
    );
    assert_eq!(hub.tokens(), [""]);
    assert!(is_listed(&hive, "hf:org/repo/m-Q4_K_M.gguf").await);
}
