//! What is kept of a request: of what its worker's errors quote of it, nothing, unless prompts are stored.

use rbee_tests::harness::{Home, Launch, Queen, StubEngine};
use rustix::process::Signal;
use serde_json::{Value, json};
use std::fs;

const PROMPT: &str = "an ultramarine zebra\nsays \"Grüße\" to 4711";

/// Words of it that nothing else here has.
const WORDS: [&str; 4] = ["ultramarine", "zebra", "Grüße", "4711"];

fn launch<'h>(home: &'h Home, stub: &StubEngine) -> Launch<'h> {
    let launch = home.queen().worker(stub, "file:m", 1);
    launch.env("RUST_LOG", "debug")
}

fn has_words(text: &str) -> bool {
    WORDS.iter().any(|word| text.contains(word))
}

/// Asks in every way, with every form of error that quotes the prompt; checks that whoever asked is told
/// all of it.
fn ask(queen: &Queen, stub: &StubEngine) {
    let chat = |stream: bool| json!({"model": "file:m", "messages": [{"role": "user", "content": PROMPT}], "stream": stream});
    let task = json!({"model": "file:m", "prompt": PROMPT});
    for (path, body) in [
        ("/v1/chat/completions", chat(false)),
        ("/v1/chat/completions", chat(true)),
        ("/v2/tasks", task),
    ] {
        for fault in ["quote=400", "quote=500", "quote=200"] {
            if fault == "quote=200" && body["stream"] == false {
                continue;
            }
            stub.control(&format!("fault={fault}")).expect("a stub");
            let told = queen.ask(path, &body).text;
            for word in WORDS {
                assert!(told.contains(word), "{path}, {fault}: no {word} in {told}");
            }
        }
    }
}

/// The errors of the tasks, as the queen tells them now.
fn errors(queen: &Queen) -> Vec<String> {
    let told = |task: &Value| {
        let id = task["job_id"].as_str().expect("an id");
        queen.task(id)["error"]["message"].to_string()
    };
    queen.tasks("limit=100").iter().map(told).collect()
}

/// The database's bytes, with those that have not moved to their place yet.
fn database(home: &Home) -> String {
    let read = |file: &str| fs::read(home.path().join(file)).unwrap_or_default();
    let bytes = [read("queen.db"), read("queen.db-wal")].concat();
    assert!(!bytes.is_empty());
    String::from_utf8_lossy(&bytes).into_owned()
}

#[test]
fn what_an_error_quotes_of_the_request_is_told_and_not_kept() {
    let home = Home::new();
    let stub = home.stub(&[]);
    let queen = launch(&home, &stub).start();
    ask(&queen, &stub);
    for error in errors(&queen) {
        assert!(error.contains("the stub can't parse"), "{error}");
        assert!(error.contains("[…]") && !has_words(&error), "{error}");
    }
    let listed = queen.look("/v2/tasks").text + &queen.look("/v2/workers/list").text;
    assert!(!has_words(&listed), "{listed}");
    assert!(!has_words(&database(&home)));
    let log = queen.log();
    assert!(log.contains("the stub can't parse"), "{log}");
    assert!(!has_words(&log), "{log}");
    queen.stop(Signal::TERM);

    let queen = launch(&home, &stub).start();
    let errors = errors(&queen);
    assert_eq!(errors.len(), 8);
    assert!(!errors.iter().any(|error| has_words(error)), "{errors:?}");
}

#[test]
fn where_prompts_are_stored_errors_are_kept_whole() {
    let home = Home::new();
    let stub = home.stub(&[]);
    let queen = launch(&home, &stub)
        .config("privacy.store_prompts = true")
        .start();
    ask(&queen, &stub);
    for error in errors(&queen) {
        assert!(has_words(&error) && !error.contains("[…]"), "{error}");
    }
    assert!(has_words(&database(&home)));
    assert!(has_words(&queen.log()));
}

#[test]
fn a_tasks_follower_is_told_what_its_record_does_not_keep() {
    let home = Home::new();
    let stub = home.stub(&["--itl-ms", "20"]);
    let queen = launch(&home, &stub).start();
    let first = json!({"model": "file:m", "prompt": "x", "max_tokens": 50});
    let first = queen.submit(&first);
    let mut events = queen.follow(&first, None).expect("an answer");
    events.until_type("token");
    stub.control("fault=quote=400").expect("a stub");
    let prompt = format!("{PROMPT} {}", "x ".repeat(100_000));
    let id = queen.submit(&json!({"model": "file:m", "prompt": prompt}));
    let mut events = queen.follow(&id, None).expect("an answer");
    let told = events.until_type("error").to_string();
    assert!(has_words(&told), "{told}");
    let ended = queen.assert_task_ends(&id, "failed");
    let kept = ended["error"]["message"].as_str().expect("a message");
    assert!(kept.contains("the stub can't parse"), "{kept}");
    assert!(!has_words(kept) && !has_words(&queen.log()), "{kept}");
}
