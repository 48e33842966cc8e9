//! What the queen is short of herself is nobody else's failure.

use std::io::Write;
use std::time::{Duration, Instant};

use rbee_tests::harness::{Home, Queen, eventually, raw};
use rustix::process::{Pid, Resource, Rlimit, prlimit};
use serde_json::{Value, json};

/// Sets how many files the queen may have open from now on.
fn allow_files(queen: &Queen, most: u64) {
    let pid = i32::try_from(queen.pid()).ok().and_then(Pid::from_raw);
    let limit = Rlimit {
        current: Some(most),
        maximum: prlimit_maximum(queen),
    };
    prlimit(pid, Resource::Nofile, limit).expect("the queen is ours");
}

/// Her hard limit, which only root could raise again.
fn prlimit_maximum(queen: &Queen) -> Option<u64> {
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", queen.pid()));
    let limits = limits.expect("Linux tells them");
    let line = limits
        .lines()
        .find(|line| line.starts_with("Max open files"));
    line.and_then(|line| line.split_ascii_whitespace().nth(4)?.parse().ok())
}

#[test]
fn out_of_descriptors_no_task_fails_and_no_worker_is_suspected() {
    let home = Home::new();
    let queen = home
        .queen()
        .config("hives.check_interval = \"100ms\"")
        .config("breaker.failures = 2")
        .config("retry.attempts_async = 2")
        .start();
    let stub = home.stub(&["--tokens", "2"]);
    queen.register(&stub, "file:m", &json!({"slots_total": 2}));
    let batch = json!({"model": "file:m", "prompt": "x", "priority": "batch", "max_tokens": 2});
    // A connection of their own, which is kept: she can take no new one then.
    let mut line = raw::connect(&queen).expect("the queen listens");
    let mut ask = |method: &str, path: &str, body: &str| -> (u16, Value) {
        let length = body.len();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {length}\r\n\r\n"
        );
        line.write_all((head + body).as_bytes())
            .expect("it is read");
        let (status, text) = raw::answer(&mut line).expect("an answer");
        let body = text.split_once("\r\n\r\n").map_or("", |(_, body)| body);
        (status, serde_json::from_str(body).unwrap_or_default())
    };
    let batch = batch.to_string();
    assert_eq!(ask("POST", "/v2/tasks", &batch).0, 202);
    eventually("it has run", Duration::from_secs(30), || queen.is_idle());
    // An idle connection to a worker is kept for three seconds.
    let over = Instant::now() + Duration::from_secs(4);
    eventually("no connection is left", Duration::from_secs(30), || {
        Instant::now() > over
    });
    allow_files(&queen, 3);
    let jobs: Vec<String> = (0..5)
        .map(|_| {
            let (status, task) = ask("POST", "/v2/tasks", &batch);
            assert_eq!(status, 202, "{task}");
            task["job_id"].as_str().expect("an id").to_owned()
        })
        .collect();
    let mut task = |id: &String| ask("GET", &format!("/v2/tasks/{id}"), "").1;
    // Each has met the trouble more often than it may fail.
    eventually("all have been tried", Duration::from_secs(60), || {
        jobs.iter()
            .all(|id| task(id)["attempts"].as_u64() > Some(2))
    });
    for id in &jobs {
        let task = task(id);
        assert_ne!(task["state"], "failed", "{task}");
    }
    let lines = queen
        .log()
        .matches("the queen is out of open files")
        .count();
    assert!((1..20).contains(&lines), "{lines} lines: {}", queen.log());
    allow_files(&queen, prlimit_maximum(&queen).unwrap_or(1024));
    eventually("all are done", Duration::from_secs(60), || {
        jobs.iter().all(|id| task(id)["state"] == "complete")
    });
    assert!(!queen.log().contains("does not answer"), "{}", queen.log());
    assert!(queen.is_idle(), "{:?}", queen.workers());
}
