//! What a real llama-server does to streams, and what their clients get of it.
//!
//! The engine of `tests/parts.sh`, started without a hive, so that it can be asked itself beside the queen.

use rbee_tests::harness::events::assert_task_completed;
use rbee_tests::harness::{Client, Daemon, Home, Queen, Shared, ports, until};
use serde_json::{Value, json};
use std::env;
use std::process::Command;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

const CHAT: &str = "/v1/chat/completions";
const MODEL: &str = "file:real";

/// A queen, and a real engine that she knows and that can be asked itself.
struct House {
    queen: Queen,
    direct: Client,
    _engine: Daemon,
    _home: Home,
}

fn part(name: &str) -> String {
    env::var(name).unwrap_or_else(|_| panic!("{name} is not set: run `make test`"))
}

/// One for all tests here; its engine pings often, and reads prompts in small batches.
fn shared() -> Arc<House> {
    static HOUSE: Shared<House> = Shared::new();
    HOUSE.get(|| {
        House::new(&[
            "-np",
            "4",
            "-c",
            "8192",
            "-b",
            "256",
            "--sse-ping-interval",
            "1",
        ])
    })
}

impl House {
    fn new(args: &[&str]) -> Self {
        let home = Home::new();
        let port = ports::free().expect("a port").to_string();
        let mut command = Command::new(part("RBEE_LLAMA_SERVER"));
        command.args([
            "-m",
            &part("RBEE_TEST_MODEL"),
            "--alias",
            "real",
            "--port",
            &port,
        ]);
        command.args(args);
        let log = home.path().join("engine.log");
        let engine = Daemon::spawn("llama-server", &mut command, &log).expect("the engine runs");
        let direct = Client::new(&format!("http://127.0.0.1:{port}"));
        let up = until(Duration::from_secs(60), || {
            let health = direct.get("/health").ok()?;
            (health.status == 200).then_some(())
        });
        assert!(up.is_some(), "{}", engine.log());
        let queen = home.queen().start();
        let more = json!({"served_model": "real", "slots_total": 4});
        queen.register_url(direct.base(), MODEL, &more);
        House {
            queen,
            direct,
            _engine: engine,
            _home: home,
        }
    }

    /// The same request's events, asked of the engine itself and of the queen.
    fn both(&self, path: &str, mut body: Value) -> [Vec<Value>; 2] {
        body["stream"] = json!(true);
        [("real", &self.direct), (MODEL, &*self.queen)].map(|(model, client)| {
            body["model"] = json!(model);
            client.stream(path, &body).expect("an answer").rest()
        })
    }
}

fn asks(more: &Value) -> Value {
    let mut body = json!({"max_tokens": 5, "temperature": 0, "seed": 1,
        "messages": [{"role": "user", "content": "Count to twenty, in words."}]});
    for (key, value) in more.as_object().into_iter().flatten() {
        body[key] = value.clone();
    }
    body
}

fn text(events: &[Value]) -> String {
    let deltas = events
        .iter()
        .filter_map(|event| event["choices"][0]["delta"]["content"].as_str());
    deltas.collect()
}

/// The fields of an event, and of its only choice.
fn shape(event: &Value) -> Vec<String> {
    let keys = |value: &Value| -> Vec<String> {
        value
            .as_object()
            .into_iter()
            .flatten()
            .map(|(key, _)| key.clone())
            .collect()
    };
    let mut all = keys(event);
    all.extend(keys(&event["choices"][0]));
    all
}

#[test]
fn who_asks_for_no_usage_gets_what_the_engine_itself_would_send() {
    let house = shared();
    let [direct, through] = house.both(CHAT, asks(&json!({})));
    assert_eq!(text(&through), text(&direct));
    let shapes = |events: &[Value]| events.iter().map(shape).collect::<Vec<_>>();
    assert_eq!(shapes(&through), shapes(&direct));
    let timings = &through.last().expect("events")["timings"];
    assert_eq!(timings["predicted_n"], 5, "{through:#?}");
    let usage = asks(&json!({"stream_options": {"include_usage": true}}));
    let [direct, through] = house.both(CHAT, usage);
    assert_eq!(shapes(&through), shapes(&direct));
}

#[test]
fn the_null_before_a_list_of_prompts_stays_away() {
    let house = shared();
    let body = json!({"prompt": ["One, two,", "Red, green,"], "max_tokens": 3, "temperature": 0});
    let [direct, through] = house.both("/v1/completions", body);
    assert!(
        direct[0].is_null(),
        "this engine sends none: {:?}",
        direct[0]
    );
    assert!(through.iter().all(Value::is_object), "{through:#?}");
    let whole = direct.iter().filter(|event| event.is_object()).count();
    assert_eq!(through.len(), whole, "{through:#?}");
}

#[test]
fn the_usage_of_each_choice_is_counted() {
    let house = shared();
    let body = asks(&json!({"n": 2, "ignore_eos": true, "model": MODEL, "stream": true}));
    let stream = house.queen.stream(CHAT, &body).expect("an answer");
    let id = stream.headers["x-job-id"]
        .to_str()
        .expect("an id")
        .to_owned();
    stream.rest();
    let record = house.queen.ended_task(&id);
    assert_eq!(
        (&record["tokens_out"], &record["usage_estimated"]),
        (&json!(10), &json!(false))
    );
}

#[test]
fn a_stream_that_anothers_prompt_silences_goes_on() {
    let house = shared();
    let long = json!({"model": MODEL, "prompt": "word ".repeat(500), "max_tokens": 1});
    let task = json!({"model": MODEL, "prompt": "One, two,", "max_tokens": 100,
                      "temperature": 0});
    let mut stream = house.queen.stream("/v2/tasks", &task).expect("an answer");
    stream.until_type("token");
    thread::scope(|scope| {
        let other = scope.spawn(|| {
            house
                .queen
                .stream("/v2/tasks", &long)
                .expect("an answer")
                .rest()
        });
        let rest = stream.rest();
        assert_eq!(
            rest.last().map(|event| event["type"].clone()),
            Some(json!("end"))
        );
        assert_task_completed(&other.join().expect("it is served, too"));
    });
}

#[test]
fn what_the_engine_does_not_enforce_the_queen_does_not_either() {
    let house = shared();
    let tool = json!({"type": "function", "function": {"name": "f",
        "parameters": {"type": "object", "properties": {}}}});
    for more in [
        json!({"response_format": {"type": "json_object"}}),
        json!({"tools": [tool], "tool_choice": "required"}),
    ] {
        let mut body = asks(&more);
        let whole = [("real", &house.direct), (MODEL, &*house.queen)].map(|(model, client)| {
            body["model"] = json!(model);
            let reply = client.post(CHAT, &body).expect("an answer");
            assert_eq!(reply.status, 200, "{}", reply.text);
            reply.json()["choices"][0]["message"].clone()
        });
        assert_eq!(whole[0], whole[1], "{more}");
    }
}
