//! `GET /v2/tasks/{id}/events`: many readers, who leave and come back where they were.

use rbee_tests::harness::events::{assert_task_completed, assert_task_failed};
use rbee_tests::harness::{Event, EventStream, Home, Launch, Queen, StubEngine, eventually};
use rbee_tests::words;
use serde_json::{Value, json};
use std::thread;
use std::time::Duration;

const SECOND: Duration = Duration::from_secs(1);
const WORDS: u64 = 30;

fn launch<'h>(home: &'h Home, stub: &StubEngine) -> Launch<'h> {
    home.queen().worker(stub, "file:m", 2)
}

fn task() -> Value {
    json!({"model": "file:m", "prompt": "x", "max_tokens": WORDS})
}

/// One event of `/events`, with the text that was read up to it.
#[derive(Debug)]
struct Read {
    id: String,
    event: Value,
    text: String,
}

/// Reads on, up to the end or so many events, from where `text` was read already.
fn read(stream: &mut EventStream, text: &str, most: usize) -> Vec<Read> {
    let mut text = text.to_owned();
    let mut events = Vec::new();
    while events.len() < most {
        let block = stream.read().expect("a whole stream");
        let block = block.expect("[DONE] ends it");
        let event = match block.event {
            Event::Json(event) => event,
            Event::Comment(_) => continue,
            Event::Done => break,
        };
        if event["type"] == "started" {
            text.clear();
        }
        text += event["t"].as_str().unwrap_or_default();
        let id = block.id.unwrap_or_default();
        if event["type"] == "token" {
            let (attempt, offset) = id.split_once('.').expect("a token has an id");
            assert_eq!(attempt, "1", "{event}");
            assert_eq!(offset, text.len().to_string(), "{event}");
        }
        events.push(Read {
            id,
            event,
            text: text.clone(),
        });
    }
    events
}

fn follow(queen: &Queen, job_id: &str, after: Option<&str>) -> EventStream {
    let stream = queen.follow(job_id, after).expect("an answer");
    assert_eq!(stream.status, 200);
    stream
}

/// From each event that was read, on to the same end; what an older attempt left is void.
#[track_caller]
fn can_be_resumed_anywhere(queen: &Queen, job_id: &str) {
    let whole = words::text("x", 1, WORDS);
    let all = read(&mut follow(queen, job_id, None), "", usize::MAX);
    let from = all.iter().find(|read| read.event["type"] == "started");
    assert_eq!(from.expect("it started").event["attempt"], 1);
    for at in all.iter().filter(|read| !read.id.is_empty()) {
        if at.event["type"] == "end" {
            continue;
        }
        let rest = read(
            &mut follow(queen, job_id, Some(&at.id)),
            &at.text,
            usize::MAX,
        );
        let last = rest.last().expect("an end");
        assert_eq!(last.event["type"], "end", "after {}: {rest:#?}", at.id);
        assert_eq!(last.text, whole, "after {}", at.id);
        let restarts = rest.iter().any(|read| read.event["type"] == "started");
        assert_eq!(restarts, at.id.starts_with("0."), "after {}", at.id);
    }
    let void = read(&mut follow(queen, job_id, Some("0.3")), "", usize::MAX);
    assert_eq!(void[0].event["type"], "started", "{void:#?}");
    assert_eq!(void.last().expect("an end").text, whole);
}

#[test]
fn many_readers_get_the_same_text_each_from_where_it_comes() {
    let home = Home::new();
    let stub = home.stub(&["--words", "--itl-ms", "20"]);
    let queen = launch(&home, &stub).start();
    let job_id = queen.submit(&task());
    thread::scope(|scope| {
        for reader in 0..6 {
            let (queen, job_id) = (&queen, &job_id);
            scope.spawn(move || {
                // Each leaves after a few events and comes back.
                let mut stream = follow(queen, job_id, None);
                let mut before = read(&mut stream, "", 3 + 2 * reader);
                drop(stream);
                let at = before.pop().expect("events");
                let after = (!at.id.is_empty()).then_some(at.id.as_str());
                let mut stream = follow(queen, job_id, after);
                let rest = read(&mut stream, &at.text, usize::MAX);
                let last = rest.last().expect("an end");
                assert_eq!(last.event["type"], "end", "{rest:#?}");
                assert_eq!(last.text, words::text("x", 1, WORDS));
            });
        }
    });
    assert_eq!(stub.count("requests"), 1);
    can_be_resumed_anywhere(&queen, &job_id);
}

#[test]
fn after_a_restart_the_stored_result_replays() {
    let home = Home::new();
    let stub = home.stub(&["--words"]);
    let queen = launch(&home, &stub).start();
    let job_id = queen.submit(&task());
    queen.assert_task_ends(&job_id, "complete");
    let before = follow(&queen, &job_id, None).rest();
    queen.kill();
    let queen = launch(&home, &stub).start();
    can_be_resumed_anywhere(&queen, &job_id);
    let after = follow(&queen, &job_id, None).rest();
    let text = words::text("x", 1, WORDS);
    let from = |events: &[Value]| events.iter().position(|e| e["type"] == "started");
    for events in [&before, &after] {
        let from = from(events).expect("it started");
        assert_eq!(assert_task_completed(&events[from..]), text);
    }
    let end = |events: &[Value]| events.last().expect("an end").clone();
    for key in ["tokens_out", "stop_reason"] {
        assert_eq!(end(&before)[key], end(&after)[key], "{key}");
    }
}

#[test]
fn a_reader_goes_on_with_the_next_attempt_after_a_crash() {
    let home = Home::new();
    let stub = home.stub(&["--words", "--itl-ms", "30"]);
    let queen = launch(&home, &stub).start();
    let job_id = queen.submit(&task());
    let mut stream = follow(&queen, &job_id, None);
    while stream.until_type("token")["i"] != 4 {}
    let at = stream.last_id.clone().expect("tokens have ids");
    queen.kill();
    drop(stream);
    let queen = launch(&home, &stub).start();
    let stream = follow(&queen, &job_id, Some(&at));
    let events = stream.rest();
    let from = events.iter().position(|e| e["type"] == "started");
    let attempt = &events[from.expect("it starts again")..];
    assert_eq!(attempt[0]["attempt"], 2, "{events:#?}");
    assert_eq!(assert_task_completed(attempt), words::text("x", 2, WORDS));
    assert_eq!(queen.task(&job_id)["attempts"], 2);
}

#[test]
fn whoever_reads_along_an_interactive_task_sees_it_end_with_its_connection() {
    let home = Home::new();
    let stub = home.stub(&["--words", "--itl-ms", "30"]);
    let queen = launch(&home, &stub).start();
    let mut own = queen.stream("/v2/tasks", &task()).expect("an answer");
    let started = own.until_type("started");
    let job_id = started["job_id"].as_str().expect("an id");
    let mut along = follow(&queen, job_id, None);
    along.until_type("token");
    drop(own);
    assert_task_failed(&along.rest(), "CANCELLED", &[]);
    let late = follow(&queen, job_id, None);
    assert_task_failed(&late.rest(), "CANCELLED", &[]);
}

#[test]
fn a_reader_who_leaves_stops_nothing_and_one_who_does_not_read_delays_nobody() {
    let home = Home::new();
    let stub = home.stub(&["--words", "--itl-ms", "2"]);
    let queen = launch(&home, &stub).start();
    let mut long = task();
    long["max_tokens"] = json!(300);
    let job_id = queen.submit(&long);
    let idle = follow(&queen, &job_id, None);
    let mut leaves = follow(&queen, &job_id, None);
    leaves.until_type("token");
    drop(leaves);
    queen.assert_task_ends(&job_id, "complete");
    drop(idle);
    assert_eq!(stub.count("disconnects"), 0);
}

#[test]
fn a_reader_who_is_sent_away_as_too_slow_comes_back_without_a_gap() {
    const MANY: u64 = 2000;
    let home = Home::new();
    // It waits for the first word, and then they come faster than one by one.
    let stub = home.stub(&["--words", "--ttft-ms", "500"]);
    let launch = launch(&home, &stub).config("replay.max_lag_bytes = 20");
    let queen = launch.start();
    let mut long = task();
    long["max_tokens"] = json!(MANY);
    let job_id = queen.submit(&long);
    let (mut text, mut after, mut times_sent_away) = (String::new(), None, 0);
    loop {
        let mut stream = follow(&queen, &job_id, after.as_deref());
        let mut last = Value::Null;
        while let Some(Event::Json(event)) = stream.next() {
            text += event["t"].as_str().unwrap_or_default();
            last = event;
        }
        if last["type"] == "end" {
            break;
        }
        assert_eq!(last["action"], "reader_too_slow", "{last}");
        after = stream.last_id.clone();
        times_sent_away += 1;
    }
    assert!(times_sent_away > 0, "she waits for everybody");
    assert_eq!(text, words::text("x", 1, MANY));
    assert_eq!(stub.count("requests"), 1);
}

#[test]
fn of_an_openai_request_only_its_states_can_be_followed() {
    let home = Home::new();
    let stub = home.stub(&["--itl-ms", "20"]);
    let queen = launch(&home, &stub).start();
    let chat = json!({"model": "file:m", "messages": [{"role": "user", "content": "x"}],
                      "max_tokens": 20, "stream": true});
    let own = queen.stream("/v1/chat/completions", &chat);
    let own = own.expect("an answer");
    let job_id = own.headers["x-job-id"].to_str().expect("an id").to_owned();
    let along = follow(&queen, &job_id, None);
    assert!(!own.rest().is_empty());
    for events in [along.rest(), follow(&queen, &job_id, None).rest()] {
        let kinds: Vec<&str> = events.iter().filter_map(|e| e["type"].as_str()).collect();
        assert!(!kinds.contains(&"token"), "{events:#?}");
        assert!(kinds.contains(&"started"), "{events:#?}");
        assert_eq!(kinds.last(), Some(&"end"), "{events:#?}");
    }
    let task = queen.task(&job_id);
    assert_eq!(task["result"], Value::Null, "{task}");
    assert_eq!(task["tokens_out"], 20, "{task}");
}

#[test]
fn the_events_of_a_failed_task_replay_its_error() {
    let home = Home::new();
    let stub = home.stub(&["--words"]);
    stub.control("fault=status_400").expect("a known fault");
    let queen = launch(&home, &stub).start();
    let job_id = queen.submit(&task());
    let task = queen.assert_task_ends(&job_id, "failed");
    let code = task["error"]["code"].as_str().expect("a code").to_owned();
    assert_task_failed(&follow(&queen, &job_id, None).rest(), &code, &[]);
    queen.kill();
    let queen = launch(&home, &stub).start();
    assert_task_failed(&follow(&queen, &job_id, None).rest(), &code, &[]);
    let unknown = queen.look("/v2/tasks/nonsense/events");
    rbee_tests::harness::assert_error(&unknown, 404, "TASK_NOT_FOUND", &["nonsense"]);
    eventually("nothing runs", SECOND, || stub.count("in_flight") == 0);
}
