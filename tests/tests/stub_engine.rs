//! The stub engine is what it says: the other tests rest on it.

use rbee_tests::clock::monotonic_ns;
use rbee_tests::harness::{Client, Home, eventually, raw};
use rbee_tests::words;
use serde_json::json;
use std::time::{Duration, Instant};

fn chat(stream: bool) -> serde_json::Value {
    json!({"model": "stub-model", "messages": [{"role": "user", "content": "x"}],
           "max_tokens": 4, "stream": stream})
}

#[test]
fn an_answer_streams_in_numbered_tokens_and_whole_ones_say_the_same() {
    let home = Home::new();
    let stub = home.stub(&[]);
    let client = Client::new(stub.url());
    let stream = client.stream("/v1/chat/completions", &chat(true));
    let events = stream.expect("an answer").rest();
    let text: String = events
        .iter()
        .filter_map(|e| e["choices"][0]["delta"]["content"].as_str())
        .map(|token| token.split('@').next().unwrap_or_default().to_owned() + " ")
        .collect();
    assert_eq!(text, "t0 t1 t2 t3 ");
    let whole = client.post("/v1/chat/completions", &chat(false));
    let whole = whole.expect("an answer").json();
    assert_eq!(whole["choices"][0]["message"]["content"], text);
    assert_eq!(stub.count("finished"), 2);
    let last = stub.last_request().expect("it remembers");
    assert_eq!(last["path"], "/v1/chat/completions");
    assert_eq!(last["body"], chat(false).to_string());
}

#[test]
fn words_follow_from_the_prompt_and_how_often_it_was_computed() {
    let home = Home::new();
    let stub = home.stub(&["--words", "--journal"]);
    let client = Client::new(stub.url()).header("x-correlation-id", "me");
    let ask = |path: &str, body: &serde_json::Value| {
        let reply = client.post(path, body).expect("an answer").json();
        let choice = &reply["choices"][0];
        let text = choice["text"]
            .as_str()
            .or(choice["message"]["content"].as_str());
        text.expect("a text").to_owned()
    };
    let prompt = json!({"model": "stub-model", "prompt": "x", "max_tokens": 4});
    let first = ask("/v1/completions", &prompt);
    assert_eq!(first, words::text("x", 1, 4));
    assert_eq!(
        ask("/v1/chat/completions", &chat(false)),
        words::text("x", 2, 4)
    );
    let stream = client.stream("/v1/chat/completions", &chat(true));
    let events = stream.expect("an answer").rest();
    let pieces = events
        .iter()
        .filter_map(|e| e["choices"][0]["delta"]["content"].as_str());
    assert_eq!(pieces.collect::<String>(), words::text("x", 3, 4));

    let (noted, next) = stub.journal(0).expect("it keeps one");
    let all: Vec<&str> = noted.iter().map(|entry| entry.what.as_str()).collect();
    assert_eq!(all, ["arrived", "finished"].repeat(3));
    assert!(noted.iter().all(|entry| entry.correlation_id == "me"));
    assert!(noted.is_sorted_by_key(|entry| entry.at_ns));
    assert!(noted[5].at_ns <= monotonic_ns());
    assert_eq!(stub.journal(4).expect("it keeps one").0, noted[4..]);
    assert_eq!(next, 6);
}

#[test]
fn a_fault_comes_as_often_as_asked_for() {
    let home = Home::new();
    let stub = home.stub(&[]);
    let client = Client::new(stub.url());
    stub.control("fault=status_429&fault_times=1")
        .expect("a known fault");
    let refused = client.post("/v1/chat/completions", &chat(true));
    let refused = refused.expect("an answer");
    assert_eq!((refused.status, refused.header("retry-after")), (429, "7"));
    let served = client.post("/v1/chat/completions", &chat(true));
    assert_eq!(served.expect("an answer").status, 200);

    stub.control("fault=close_without_a_byte&fault_times=1")
        .expect("a known fault");
    assert!(client.post("/v1/chat/completions", &chat(true)).is_err());
    stub.control("fault=half_event&fault_times=1")
        .expect("a known fault");
    let half = client.post("/v1/chat/completions", &chat(true));
    assert!(!half.expect("an orderly end").text.ends_with('\n'));
    assert!(stub.control("fault=nonsense").is_err());
}

#[test]
fn one_that_is_away_answers_nobody_and_comes_back_as_it_was() {
    let home = Home::new();
    let stub = home.stub(&["--itl-ms", "500"]);
    let client = Client::new(stub.url());
    let mut stream = client
        .stream("/v1/chat/completions", &chat(true))
        .expect("an answer");
    assert!(matches!(stream.read(), Ok(Some(_))), "its first token");
    stub.leave().expect("it leaves");
    let rest = std::iter::from_fn(|| stream.read().transpose());
    assert!(rest.last().is_some_and(|end| end.is_err()), "it broke off");
    assert!(client.get("/health").is_err());
    stub.come_back().expect("it comes back");
    assert_eq!(client.get("/health").expect("an answer").status, 200);
    assert_eq!(stub.count("requests"), 1);
    assert_eq!(stub.count("disconnects"), 1);
}

#[test]
fn a_client_that_goes_away_is_counted_at_once() {
    let home = Home::new();
    let stub = home.stub(&["--itl-ms", "20000"]);
    let client = Client::new(stub.url());
    let body = chat(true).to_string();
    let open = raw::post(&client, "/v1/chat/completions", &[], &body);
    let open = open.expect("it listens");
    eventually("the request runs", Duration::from_secs(5), || {
        stub.count("in_flight") == 1
    });
    drop(open);
    eventually("it is gone", Duration::from_secs(1), || {
        stub.count("in_flight") == 0 && stub.count("disconnects") == 1
    });
}

#[test]
fn a_job_of_the_rbee_protocol_can_be_cancelled() {
    let home = Home::new();
    let stub = home.stub(&["--protocol", "rbee", "--itl-ms", "20000"]);
    let client = Client::new(stub.url());
    let job = json!({"job_id": "j", "prompt": "x", "max_tokens": 4, "stream": true});
    let mut stream = client.stream("/v1/execute", &job).expect("an answer");
    assert_eq!(stream.json()["type"], "started");
    assert_eq!(stream.json()["type"], "token");
    let cancelled = client.post("/cancel", &json!({"job_id": "j"}));
    let cancelled = cancelled.expect("an answer").json();
    assert_eq!(cancelled["cancelled"], true);
    let rest = stream.rest();
    assert_eq!(rest[0]["code"], "CANCELLED");
}

#[test]
fn an_old_worker_hears_nothing_while_it_computes() {
    let home = Home::new();
    let stub = home.stub(&["--protocol", "old_rbee", "--itl-ms", "100"]);
    let client = Client::new(stub.url());
    let body = json!({"job_id": "j", "prompt": "x", "max_tokens": 6}).to_string();
    let computing = raw::post(&client, "/v1/inference", &[], &body);
    let computing = computing.expect("it listens");
    eventually("it computes", Duration::from_secs(5), || {
        stub.count("in_flight") == 1
    });
    drop(computing);
    let asked = Instant::now();
    let health = client.get("/health").expect("an answer");
    assert_eq!(health.status, 200);
    let waited = asked.elapsed();
    assert!(waited > Duration::from_millis(200), "{waited:?}");
}

#[test]
fn a_behaviour_file_says_how_it_loads() {
    let home = Home::new();
    let file = home.path().join("slow.stub");
    let behaviour = "load_ms = 300\nfault = \"status_400\"";
    std::fs::write(&file, behaviour).expect("the folder is ours");
    let file = file.to_string_lossy().into_owned();
    let stub = home.stub(&["--behaviour-file", &file, "--model", "m"]);
    let client = Client::new(stub.url());
    let health = || client.get("/health").expect("an answer").status;
    assert_eq!(health(), 503);
    eventually("it is loaded", Duration::from_secs(5), || health() == 200);
    let refused = client.post("/v1/chat/completions", &chat(false));
    assert_eq!(refused.expect("an answer").status, 400);
    let models = client.get("/v1/models").expect("an answer").json();
    assert_eq!(models["data"][0]["id"], "m");
}
