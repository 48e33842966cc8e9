//! Who may use how much, who waits and who goes first, and what the refused are told.

use rbee_tests::harness::events::assert_task_completed;
use rbee_tests::harness::{
    Client, EventStream, Home, Launch, Queen, Reply, StubEngine, assert_error, eventually,
};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::thread;
use std::time::Duration;

const SECOND: Duration = Duration::from_secs(1);
const CHAT: &str = "/v1/chat/completions";
const MODEL: &str = "file:m";

/// A home with an engine of one slot, which notes who came.
struct House {
    home: Home,
    stub: StubEngine,
}

impl House {
    fn new() -> Self {
        let home = Home::new();
        let stub = home.stub(&["--words", "--journal"]);
        House { home, stub }
    }

    fn launch(&self) -> Launch<'_> {
        self.home.queen().worker(&self.stub, MODEL, 1)
    }

    fn start(&self, config: &[&str]) -> Queen {
        let lines = config.iter();
        lines
            .fold(self.launch(), |all, line| all.config(line))
            .start()
    }

    /// Takes the only slot; dropped, the stream gives it back.
    #[track_caller]
    fn take_the_slot(&self, queen: &Queen) -> EventStream {
        self.stub.control("itl_ms=20000").expect("a known key");
        let stream = queen.stream("/v2/tasks", &task(2));
        let mut stream = stream.expect("an answer");
        stream.until_type("token");
        self.stub.control("itl_ms=0").expect("a known key");
        stream
    }

    /// The correlation ids of the requests that the engine got, in their order.
    fn came(&self) -> Vec<String> {
        let (noted, _) = self.stub.journal(0).expect("it keeps one");
        let arrived = noted.into_iter().filter(|entry| entry.what == "arrived");
        arrived.map(|entry| entry.correlation_id).collect()
    }
}

fn task(tokens: u64) -> Value {
    json!({"model": MODEL, "prompt": "x", "max_tokens": tokens})
}

fn of(tenant: &str, tokens: u64) -> Value {
    let mut task = task(tokens);
    task["tenant_id"] = json!(tenant);
    task
}

fn batch(mut task: Value) -> Value {
    task["priority"] = json!("batch");
    task
}

fn whole(mut task: Value) -> Value {
    task["stream"] = json!(false);
    task
}

fn named(client: &Client, name: &str) -> Client {
    client.header("x-correlation-id", name)
}

/// Seconds until a refused client may come back.
fn comes_back_in(reply: &Reply) -> u64 {
    let after = reply.header("retry-after").parse();
    after.expect("a refusal says when to come back")
}

#[test]
fn without_tenants_nobody_is_limited_and_usage_is_told_by_name() {
    let house = House::new();
    let queen = house.start(&[]);
    assert_eq!(queen.ask("/v2/tasks", &whole(task(3))).status, 200);
    for _ in 0..2 {
        let reply = queen.ask("/v2/tasks", &whole(of("anyone", 5)));
        assert_eq!(reply.status, 200, "{}", reply.text);
    }
    let tenants = |query: &str| -> Vec<(Value, Value, Value)> {
        let usage = queen.look(&format!("/v2/usage{query}")).json();
        let rows = usage["usage"].as_array().expect("rows").clone();
        let row = |row: &Value| {
            assert_eq!(row["model"], MODEL, "{row}");
            assert_eq!(row["day"].as_str().map(str::len), Some(10), "{row}");
            (
                row["tenant_id"].clone(),
                row["jobs"].clone(),
                row["tokens_out"].clone(),
            )
        };
        rows.iter().map(row).collect()
    };
    let anyone = (json!("anyone"), json!(2), json!(10));
    let mut all = tenants("");
    all.sort_by_key(|(tenant, ..)| tenant.to_string());
    assert_eq!(
        all,
        [anyone.clone(), (json!("default"), json!(1), json!(3))]
    );
    assert_eq!(tenants("?tenant=anyone"), [anyone]);
    assert_eq!(tenants("?since=2999-01-01"), []);
}

#[test]
fn a_tenant_who_is_unknown_or_may_not_use_the_model_is_refused() {
    let house = House::new();
    let queen = house.start(&[
        "tenants.red.models = [\"file:m\"]",
        "tenants.blue.models = [\"file:other\"]",
    ]);
    assert_eq!(queen.ask("/v2/tasks", &whole(of("red", 1))).status, 200);
    for tenant in ["blue", "nobody"] {
        let refused = queen.ask("/v2/tasks", &of(tenant, 1));
        assert_error(&refused, 403, "FORBIDDEN", &[tenant]);
        let chat = json!({"model": MODEL, "messages": [{"role": "user", "content": "x"}]});
        let refused = queen.header("x-tenant-id", tenant).post(CHAT, &chat);
        assert_error(&refused.expect("an answer"), 403, "FORBIDDEN", &[tenant]);
        let refused = queen.try_submit(&of(tenant, 1));
        assert_error(&refused, 403, "FORBIDDEN", &[tenant]);
    }
    // What is malformed is told first.
    let malformed = json!({"prompt": "x", "tenant_id": "nobody"});
    let refused = queen.ask("/v2/tasks", &malformed);
    assert_error(&refused, 400, "INVALID_REQUEST", &["model"]);
    assert_eq!(house.came().len(), 1);
}

#[test]
fn a_tenant_has_so_many_tasks_open_at_once() {
    let house = House::new();
    let queen = house.start(&[
        "tenants.red.max_concurrent = 1",
        "tenants.default.weight = 1",
    ]);
    let slot = house.take_the_slot(&queen);
    let first = queen.submit(&of("red", 1));
    let refused = queen.try_submit(&of("red", 1));
    assert_error(&refused, 429, "QUOTA_EXCEEDED", &["red"]);
    assert!(comes_back_in(&refused) >= 1);
    drop(slot);
    queen.assert_task_ends(&first, "complete");
    let next = queen.submit(&of("red", 1));
    queen.assert_task_ends(&next, "complete");
}

#[test]
fn over_quota_work_is_held_back_where_the_policy_says_so() {
    let house = House::new();
    let launch = house.home.queen().worker(&house.stub, MODEL, 4);
    let launch = launch.config("quota_policy = \"queue\"");
    let queen = launch.config("tenants.red.max_concurrent = 1").start();
    house.stub.control("itl_ms=20").expect("a known key");
    let ids = [(); 3].map(|()| queen.submit(&of("red", 5)));
    for job_id in &ids {
        queen.assert_task_ends(job_id, "complete");
    }
    assert_eq!(house.stub.count("max_in_flight"), 1);
}

#[test]
fn a_tenants_tokens_of_a_day_are_counted_over_restarts() {
    let house = House::new();
    let config = ["tenants.red.tokens_per_day = 200"];
    let queen = house.start(&config);
    // Eight tokens of the prompt, as the engine counts them, and a hundred of the answer.
    let first = queen.ask("/v2/tasks", &whole(of("red", 100)));
    assert_eq!(first.status, 200, "{}", first.text);
    let refused = |queen: &Queen| {
        let refused = queen.try_submit(&of("red", 100));
        assert_error(&refused, 429, "QUOTA_EXCEEDED", &["red"]);
        assert!(comes_back_in(&refused) <= 24 * 60 * 60);
    };
    refused(&queen);
    eventually("it is on the disk", 5 * SECOND, || {
        queen.look("/v2/usage?tenant=red").json()["usage"][0]["jobs"] == 1
    });
    queen.kill();
    refused(&house.start(&config));
}

#[test]
fn what_a_tenant_used_of_several_models_adds_up_over_a_restart() {
    let house = House::new();
    let other = house.home.stub(&["--words"]);
    let start = || {
        let launch = house.home.queen().worker(&house.stub, MODEL, 4);
        let launch = launch.worker(&other, "file:other", 4);
        launch.config("tenants.red.tokens_per_day = 200").start()
    };
    let queen = start();
    let of_other = |tokens| {
        let mut task = of("red", tokens);
        task["model"] = json!("file:other");
        task
    };
    // Eight tokens of each prompt, as the engine counts them, and these of the answers.
    for task in [of("red", 80), of_other(80)] {
        let done = queen.ask("/v2/tasks", &whole(task));
        assert_eq!(done.status, 200, "{}", done.text);
    }
    eventually("both are on the disk", 5 * SECOND, || {
        let usage = queen.look("/v2/usage?tenant=red").json();
        usage["usage"]
            .as_array()
            .is_some_and(|rows| rows.len() == 2)
    });
    queen.kill();
    let refused = start().try_submit(&of("red", 80));
    assert_error(&refused, 429, "QUOTA_EXCEEDED", &["red"]);
}

#[test]
fn a_crowd_with_one_key_is_one_task_where_the_tenant_may_have_only_one() {
    let house = House::new();
    let queen = house.start(&["tenants.red.max_concurrent = 1"]);
    let mut wish = of("red", 50);
    wish["idempotency_key"] = json!("crowd");
    let ids: BTreeSet<String> = thread::scope(|scope| {
        let asking: Vec<_> = (0..16)
            .map(|_| scope.spawn(|| queen.submit(&wish)))
            .collect();
        let answers = asking.into_iter();
        answers
            .map(|asked| asked.join().expect("it is accepted"))
            .collect()
    });
    assert_eq!(ids.len(), 1, "{ids:?}");
}

#[test]
fn a_refused_request_leaves_no_record() {
    let house = House::new();
    let queen = house.start(&["tenants.red.max_concurrent = 1"]);
    let refused = queen.ask("/v2/tasks", &whole(of("nobody", 1)));
    assert_error(&refused, 403, "FORBIDDEN", &["nobody"]);
    assert_eq!(queen.tasks("").len(), 0);
    assert_eq!(queen.look("/v2/usage").json()["usage"], json!([]));
}

#[test]
fn a_tenants_requests_and_tokens_of_a_minute_are_limited() {
    let house = House::new();
    let queen = house.start(&[
        "tenants.red.requests_per_minute = 3",
        "tenants.blue.tokens_per_minute = 400",
    ]);
    for _ in 0..3 {
        assert_eq!(queen.ask("/v2/tasks", &whole(of("red", 1))).status, 200);
    }
    let refused = queen.ask("/v2/tasks", &of("red", 1));
    assert_error(&refused, 429, "RATE_LIMITED", &["red"]);
    assert!((1..=60).contains(&comes_back_in(&refused)));
    // What may be needed is taken up front.
    let first = queen.ask("/v2/tasks", &whole(of("blue", 250)));
    assert_eq!(first.status, 200, "{}", first.text);
    let refused = queen.ask("/v2/tasks", &of("blue", 250));
    assert_error(&refused, 429, "RATE_LIMITED", &["blue"]);
    let chat = json!({"model": MODEL, "messages": [{"role": "user", "content": "x"}],
                      "max_tokens": 250});
    let refused = queen.header("x-tenant-id", "blue").post(CHAT, &chat);
    let refused = refused.expect("an answer");
    assert_error(&refused, 429, "RATE_LIMITED", &[]);
    assert_eq!(refused.json()["error"]["type"], "rate_limit_error");
}

#[test]
fn a_full_queue_refuses_each_class_by_itself_and_says_when_to_come_back() {
    let house = House::new();
    let queen = house.start(&["queue.capacity_interactive = 1", "queue.capacity_batch = 1"]);
    let slot = house.take_the_slot(&queen);
    let interactive = queen.submit(&task(1));
    let waits = queen.submit(&batch(task(1)));
    for refused in [
        queen.try_submit(&task(1)),
        queen.ask("/v2/tasks", &task(1)),
        queen.ask("/v2/tasks", &whole(task(1))),
        queen.ask("/v2/tasks", &batch(task(1))),
    ] {
        assert_error(&refused, 429, "SYSTEM_AT_CAPACITY", &[]);
        assert!((1..=3600).contains(&comes_back_in(&refused)));
    }
    drop(slot);
    for job_id in [interactive, waits] {
        queen.assert_task_ends(&job_id, "complete");
    }
}

#[test]
fn the_oldest_batch_task_gives_way_where_the_policy_says_so() {
    let house = House::new();
    let queen = house.start(&[
        "queue.capacity_interactive = 1",
        "queue.when_full = \"drop-oldest-batch\"",
    ]);
    let slot = house.take_the_slot(&queen);
    let batches = [(); 2].map(|()| queen.submit(&batch(task(1))));
    let interactive = [(); 2].map(|()| queen.submit(&task(1)));
    let dropped = queen.assert_task_ends(&batches[0], "failed");
    assert_eq!(dropped["error"]["code"], "SYSTEM_AT_CAPACITY", "{dropped}");
    drop(slot);
    for job_id in interactive.iter().chain([&batches[1]]) {
        queen.assert_task_ends(job_id, "complete");
    }
}

#[test]
fn interactive_tasks_go_before_batch_ones() {
    let house = House::new();
    let queen = house.start(&[]);
    let slot = house.take_the_slot(&queen);
    let submit = |name: &str, task: &Value| {
        let client = named(&queen, name).header("prefer", "respond-async");
        client
            .post("/v2/tasks", task)
            .expect("an answer")
            .accepted()
    };
    let ids = [
        submit("batch-1", &batch(task(1))),
        submit("batch-2", &batch(task(1))),
        submit("now-1", &task(1)),
        submit("now-2", &task(1)),
    ];
    let positions = ids
        .each_ref()
        .map(|id| queen.task(id)["queue_position"].clone());
    assert_eq!(positions, [2, 3, 0, 1]);
    drop(slot);
    for id in &ids {
        queen.assert_task_ends(id, "complete");
    }
    let came = house.came();
    assert_eq!(came[1..], ["now-1", "now-2", "batch-1", "batch-2"]);
}

#[test]
fn a_tenant_with_few_tasks_does_not_wait_for_one_with_many() {
    let house = House::new();
    let queen = house.start(&[
        "tenants.red.weight = 1",
        "tenants.blue.weight = 1",
        "tenants.default.weight = 1",
    ]);
    let slot = house.take_the_slot(&queen);
    let submit = |tenant: &str| {
        let client = named(&queen, tenant).header("prefer", "respond-async");
        let reply = client.post("/v2/tasks", &of(tenant, 4));
        reply.expect("an answer").accepted()
    };
    let mut ids: Vec<String> = (0..10).map(|_| submit("red")).collect();
    ids.extend([(); 2].map(|()| submit("blue")));
    drop(slot);
    for id in &ids {
        queen.assert_task_ends(id, "complete");
    }
    let came = house.came();
    let last = came.iter().rposition(|name| name == "blue");
    // In turns it is the fourth or fifth, behind the one that had the slot.
    assert!(last.is_some_and(|at| at <= 6), "{came:?}");
}

#[test]
fn whoever_waits_is_told_the_position_as_it_changes() {
    let house = House::new();
    let queen = house.start(&[]);
    let slot = house.take_the_slot(&queen);
    let wait = || queen.stream("/v2/tasks", &task(2)).expect("an answer");
    let mut first = wait();
    assert_eq!(first.until_type("queued")["position"], 0);
    let mut second = wait();
    let queued = second.until_type("queued");
    assert_eq!(queued["position"], 1);
    let job_id = queued["job_id"].as_str().expect("an id");
    let waiting = queen.task(job_id);
    assert_eq!(waiting["queue_position"], 1, "{waiting}");
    drop(first);
    while second.until_type("queued")["position"] != 0 {}
    drop(slot);
    let mut events = vec![second.until_type("started")];
    events.extend(second.rest());
    assert_task_completed(&events);
    let ended = queen.task(job_id);
    assert_eq!(ended["queue_position"], Value::Null, "{ended}");
}
