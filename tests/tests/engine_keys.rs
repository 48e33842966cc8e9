//! Engines have keys of their own: who does not know a worker's can't use its port.

use rbee_tests::harness::{Client, Home, Queen, eventually};
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

const SECOND: Duration = Duration::from_secs(1);

/// The files below a folder.
fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let paths = entries.map(|entry| entry.path());
    paths
        .flat_map(|path| match path.is_dir() {
            true => files(&path),
            false => vec![path],
        })
        .collect()
}

fn is_record(path: &Path) -> bool {
    path.parent()
        .is_some_and(|folder| folder.ends_with("workers"))
}

/// Where a model's worker is and its key, from what its hive wrote down.
fn worker(home: &Home, model: &str) -> (Client, String) {
    let records = files(&home.path().join("hive")).into_iter();
    let mut records = records
        .filter(|path| is_record(path))
        .map(|path| serde_json::from_slice(&fs::read(path).expect("it is ours")).expect("JSON"));
    let record: Value = records
        .find(|record: &Value| record["plan"]["model_ref"] == model)
        .expect("its hive wrote it down");
    let text = |name: &str| record[name].as_str().expect("a text").to_owned();
    (Client::new(&text("url")), text("api_key"))
}

fn chat(model: &str) -> Value {
    json!({"model": model, "messages": [{"role": "user", "content": "x"}], "max_tokens": 2})
}

fn serves(queen: &Queen, model: &str) {
    let task = json!({"model": model, "prompt": "x", "max_tokens": 2, "stream": false});
    let reply = queen.ask("/v2/tasks", &task);
    assert_eq!(reply.status, 200, "{}", reply.text);
}

#[test]
fn a_worker_answers_nobody_but_its_queen_and_nobody_is_told_its_key() {
    let home = Home::new();
    home.add_model("m.stub", "");
    let verbose = "rbee_orchestrator=trace,queen_rbee=trace,rbee_hive=trace";
    let queen = home.queen().env("RUST_LOG", verbose).start();
    let model = "file:m.stub";
    serves(&queen, model);
    let (direct, key) = worker(&home, model);
    let body = chat(model);
    for shown in ["", "Bearer ", "Bearer wrong"] {
        let stranger = direct.header("authorization", shown);
        let refused = stranger.post("/v1/chat/completions", &body);
        assert_eq!(refused.expect("an answer").status, 401, "{shown:?}");
    }
    let bearer = format!("Bearer {key}");
    let known = direct.header("authorization", &bearer);
    let served = known.post("/v1/chat/completions", &body);
    assert_eq!(served.expect("an answer").status, 200);

    // It sees its own key, and not what the queen's client showed.
    let client = queen.header("authorization", "Bearer a-client's-own");
    let served = client.post("/v1/chat/completions", &body);
    assert_eq!(served.expect("an answer").status, 200);
    let last = queen
        .stub_behind(model)
        .last_request()
        .expect("it remembers");
    assert_eq!(last["headers"]["authorization"], json!(bearer));

    for path in [
        "/v2/workers/list",
        "/v2/workers/health",
        "/v2/registry/beehives/list",
        "/v2/models/list",
        "/v1/models",
        "/v2/tasks",
        "/v2/logs",
    ] {
        let told = queen.look(path).text;
        assert!(!told.is_empty(), "{path}");
        assert!(!told.contains(&key), "{path}: {told}");
    }
    let others = files(home.path())
        .into_iter()
        .filter(|path| !is_record(path));
    let others: Vec<PathBuf> = others.collect();
    let has = |name: &str| others.iter().any(|path| path.ends_with(name));
    assert!(
        has("queen.db") && has("logs/hive-localhost.log"),
        "{others:#?}"
    );
    for path in others {
        let bytes = fs::read(&path).unwrap_or_default();
        let text = String::from_utf8_lossy(&bytes);
        assert!(!text.contains(&key), "{} has the key", path.display());
    }
}

#[test]
fn a_cancel_shows_an_rbee_worker_its_key() {
    let home = Home::new();
    home.add_model("m.rbee", "protocol = \"rbee\"\nitl_ms = 40");
    let queen = home.queen().start();
    serves(&queen, "file:m.rbee");
    let stub = queen.stub_behind("file:m.rbee");
    let task = json!({"model": "file:m.rbee", "prompt": "x", "max_tokens": 200});
    let mut stream = queen.stream("/v2/tasks", &task).expect("an answer");
    stream.until_type("token");
    drop(stream);
    // A cancel without the key would not be counted.
    eventually("it is told", 5 * SECOND, || stub.count("cancels") == 1);
}

#[test]
fn a_worker_whose_hive_is_lost_is_asked_itself_with_its_key() {
    let home = Home::new();
    home.add_model("m.stub", "");
    // Its hive is started again only when somebody needs it.
    let queen = home
        .queen()
        .config("hives.check_interval = \"200ms\"")
        .config("hives.restart_limit = 0")
        .start();
    serves(&queen, "file:m.stub");
    let stub = queen.stub_behind("file:m.stub");
    let before = stub.count("health");
    let hive = home.processes().into_iter();
    let hive = hive.filter(|process| process.command.contains("rbee-hive"));
    let pids: Vec<u32> = hive.map(|process| process.pid).collect();
    let [hive] = pids[..] else {
        panic!("one hive, not {pids:?}")
    };
    rbee_tests::proc::kill(hive);
    // A check without the key would not be counted, and the worker be taken for dead.
    eventually("its worker is asked", 20 * SECOND, || {
        stub.count("health") > before
    });
    let engines = home.engines();
    serves(&queen, "file:m.stub");
    assert_eq!(home.engines(), engines, "no second engine");
}
