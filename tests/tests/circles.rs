//! A queen who is her own worker, or the worker of one of hers.

use rbee_tests::harness::{Home, Queen, assert_error};
use serde_json::{Value, json};

const CHAT: &str = "/v1/chat/completions";
const MODEL: &str = "file:model";

fn register(queen: &Queen, port: u16, host: &str) -> rbee_tests::harness::Reply {
    let worker = json!({"url": format!("http://{host}:{port}"), "model_ref": MODEL,
                        "slots_total": 64});
    queen.ask("/v2/workers/register", &worker)
}

fn chat(stream: bool) -> Value {
    json!({"model": MODEL, "messages": [{"role": "user", "content": "x"}], "stream": stream})
}

#[test]
fn a_queen_does_not_take_herself_for_a_worker() {
    let home = Home::new();
    let queen = home.queen().start();
    for host in ["127.0.0.1", "localhost"] {
        let refused = register(&queen, queen.port(), host);
        assert_error(&refused, 400, "INVALID_REQUEST", &["herself"]);
    }
    assert_eq!(queen.workers().len(), 0);
}

#[test]
fn a_request_goes_around_a_circle_of_queens_a_few_times_at_most() {
    let homes = [Home::new(), Home::new()];
    let queens = homes.each_ref().map(|home| home.queen().start());
    for (queen, other) in [(0, 1), (1, 0)] {
        let reply = register(&queens[queen], queens[other].port(), "127.0.0.1");
        assert_eq!(reply.status, 200, "{}", reply.text);
    }
    for stream in [false, true] {
        let reply = queens[0].ask(CHAT, &chat(stream));
        assert_error(&reply, 508, "LOOP_DETECTED", &[]);
    }
    let task = json!({"model": MODEL, "prompt": "x", "stream": false});
    assert_error(
        &queens[0].ask("/v2/tasks", &task),
        508,
        "LOOP_DETECTED",
        &[],
    );
    let jobs: usize = queens.iter().map(|queen| queen.tasks("").len()).sum();
    assert!(jobs <= 3 * 5, "three requests became {jobs} jobs");
}

#[test]
fn a_request_that_has_gone_a_long_way_is_refused() {
    let home = Home::new();
    let queen = home.queen().start();
    let asked = |hops: &str| {
        let client = queen.header("x-rbee-hops", hops);
        client.post(CHAT, &chat(false)).expect("an answer")
    };
    assert_error(&asked("5"), 508, "LOOP_DETECTED", &["5"]);
    assert_error(&asked("many"), 400, "INVALID_REQUEST", &["many"]);
    assert_error(&asked("4"), 404, "MODEL_NOT_FOUND", &[]);
}
