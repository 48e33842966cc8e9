//! What engines write into a stream beside the answer, and how their streams end: a good answer is one
//! whatever its engine adds, and an error is told in the engine's own words.

use rbee_tests::harness::event_engine::chunk;
use rbee_tests::harness::events::{assert_task_completed, assert_task_failed};
use rbee_tests::harness::{Answer, Event, EventEngine, Home, Queen, Reply, Shared, assert_error};
use serde_json::{Value, json};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

const CHAT: &str = "/v1/chat/completions";

fn shared() -> Arc<(Queen, Home)> {
    static QUEEN: Shared<(Queen, Home)> = Shared::new();
    QUEEN.get(|| {
        let home = Home::new();
        let launch = home.queen();
        let launch = launch.config("breaker = { failures = 1000, min_attempts = 1000 }");
        (launch.start(), home)
    })
}

/// An engine with one script, registered for a model of its own.
struct Scripted {
    shared: Arc<(Queen, Home)>,
    engine: EventEngine,
    model: String,
}

impl Scripted {
    #[track_caller]
    fn new(script: impl Fn(&Value) -> Answer + Send + Sync + 'static) -> Self {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let shared = shared();
        let model = format!("file:scripted-{}", COUNT.fetch_add(1, Relaxed));
        let engine = EventEngine::start(script).expect("a port");
        shared.0.register_url(&engine.url(), &model, &json!({}));
        Scripted {
            shared,
            engine,
            model,
        }
    }

    fn answering(answer: Answer) -> Self {
        Self::new(move |_| answer.clone())
    }

    fn queen(&self) -> &Queen {
        &self.shared.0
    }

    fn chat(&self, more: &Value) -> Value {
        let mut body = json!({"model": self.model, "stream": true,
                              "messages": [{"role": "user", "content": "x"}]});
        for (key, value) in more.as_object().into_iter().flatten() {
            body[key] = value.clone();
        }
        body
    }

    /// The chat's stream, event by event, comments too; it ends with `[DONE]`.
    #[track_caller]
    fn events(&self, more: &Value) -> (Vec<Value>, Value) {
        let stream = self.queen().stream(CHAT, &self.chat(more));
        let stream = stream.expect("an answer");
        assert_eq!(stream.status, 200);
        let id = stream.headers["x-job-id"]
            .to_str()
            .expect("an id")
            .to_owned();
        let events = stream.rest();
        (events, self.queen().ended_task(&id))
    }

    #[track_caller]
    fn task(&self) -> Vec<Value> {
        let task = self.chat(&json!({"temperature": 0}));
        let stream = self.queen().stream("/v2/tasks", &task);
        stream.expect("an answer").rest()
    }

    /// Both a chat and a task bring this text, and count as complete.
    #[track_caller]
    fn says(&self, text: &str) {
        let (events, record) = self.events(&json!({}));
        assert_eq!(content(&events), text, "{events:#?}");
        assert_eq!(record["state"], "complete", "{record}");
        assert_eq!(assert_task_completed(&self.task()), text);
    }

    /// Both a chat and a task end with this error.
    #[track_caller]
    fn fails(&self, code: &str, words: &str) {
        let (events, record) = self.events(&json!({}));
        let error = &events.last().expect("an error")["error"];
        assert_eq!(error["rbee_code"], code, "{events:#?}");
        let message = error["message"].as_str().unwrap_or_default();
        assert!(message.contains(words), "{message}");
        assert_eq!(record["state"], "failed", "{record}");
        assert_eq!(record["error"]["code"], code, "{record}");
        assert_task_failed(&self.task(), code, &[words]);
    }
}

fn content(events: &[Value]) -> String {
    let deltas = events
        .iter()
        .filter_map(|event| event["choices"][0]["delta"]["content"].as_str());
    deltas.collect()
}

fn hello() -> Answer {
    Answer::stream().text("Hello").text(" there")
}

#[test]
fn a_stream_that_says_how_it_ended_is_complete_without_done() {
    let forms = [
        hello().finish("stop"),
        hello().finish("stop").usage(5, 2),
        // No blank line behind the last event, or half of a mark.
        hello().raw("data: {\"choices\":[{\"delta\":{},\"finish_reason\":\"stop\"}]}\n"),
        hello().finish("stop").raw("data: [DONE]"),
        // The connection breaks where there was nothing left to say.
        hello().finish("stop").broken(),
    ];
    for form in forms {
        Scripted::answering(form).says("Hello there");
    }
}

#[test]
fn a_stream_that_stops_before_its_end_is_none() {
    for form in [
        hello(),
        hello().broken(),
        hello().finish("stop").raw("data: {\"cho"),
    ] {
        Scripted::answering(form).fails("WORKER_FAILED", "broke off");
    }
    // One of two answers has ended.
    let one =
        Answer::stream().event(&json!({"choices": [{"index": 1, "delta": {"content": "a"}}]}));
    let (events, record) =
        Scripted::answering(one.text("b").finish("stop")).events(&json!({"n": 2}));
    let error = &events.last().expect("an error")["error"];
    assert_eq!(error["code"], "WORKER_FAILED", "{events:#?}");
    assert_eq!(record["state"], "failed");
}

#[test]
fn an_error_in_a_stream_is_told_in_the_engines_words_in_every_form() {
    let words = "the GPU is on fire";
    for error in [
        format!("error: {{\"code\":500,\"message\":\"{words}\",\"type\":\"server_error\"}}\n\n"),
        format!("event: error\ndata: {{\"code\":500,\"message\":\"{words}\"}}\n\n"),
        format!("event: error\ndata: {words}\n\n"),
        format!("data: {{\"error\":{{\"code\":500,\"message\":\"{words}\"}}}}\n\n"),
        format!("data: {{\"error\":\"{words}\"}}\n\n"),
        format!("data: {{\"object\":\"error\",\"message\":\"{words}\",\"code\":500}}\n\n"),
        format!("{{\"error\":{{\"message\":\"{words}\"}}}}\n\n"),
    ] {
        for end in ["", "data: [DONE]\n\n"] {
            let first = Answer::stream().raw(&error).raw(end);
            Scripted::answering(first).fails("WORKER_FAILED", words);
            let later = hello().raw(&error).raw(end);
            Scripted::answering(later).fails("WORKER_FAILED", words);
        }
    }
    let callers =
        "error: {\"code\":400,\"message\":\"the request is longer than the context\"}\n\n";
    let scripted = Scripted::answering(Answer::stream().raw(callers));
    scripted.fails("INVALID_REQUEST", "the request is longer than the context");
}

#[test]
fn an_error_under_a_status_that_says_yes_is_an_error() {
    let error = json!({"error": {"message": "the GPU is on fire", "code": 500}});
    let scripted = Scripted::answering(Answer::json(200, &error));
    for stream in [false, true] {
        let reply: Reply = scripted
            .queen()
            .ask(CHAT, &scripted.chat(&json!({"stream": stream})));
        assert_error(&reply, 502, "WORKER_FAILED", &["the GPU is on fire"]);
    }
    assert_task_failed(&scripted.task(), "WORKER_FAILED", &["the GPU is on fire"]);
}

#[test]
fn events_that_say_nothing_reach_nobody() {
    let pings = [
        ": ping\n\n",
        "event: ping\n\n",
        "data:\n\n",
        "data: null\n\n",
        "data: {}\n\n",
        "event: ping\ndata: {}\n\n",
        "event: ping\ndata: {\"type\":\"ping\"}\n\n",
        "event: keepalive\ndata: ping\n\n",
        "retry: 3000\n\n",
    ];
    let all = pings.concat();
    // Each in a write of its own, and all in one with the tokens around them.
    let mut apart = Answer::stream().raw(&all).text("Hello");
    for ping in pings {
        apart = apart.raw(ping);
    }
    for answer in [apart, Answer::stream().raw(&all).text("Hello").raw(&all)] {
        let scripted = Scripted::answering(answer.text(" there").raw(&all).finish("stop").done());
        scripted.says("Hello there");
        let stream = scripted.queen().stream(CHAT, &scripted.chat(&json!({})));
        let mut stream = stream.expect("an answer");
        let mut events = 0;
        while let Some(event) = stream.next() {
            assert!(!matches!(event, Event::Comment(_)), "{event:?}");
            events += 1;
        }
        assert_eq!(events, 4, "two tokens, the end, [DONE]");
        assert_eq!(scripted.engine.requests().len(), 3);
    }
}

#[test]
fn comments_keep_a_silent_stream_alive_wherever_it_falls_silent() {
    let home = Home::new();
    let queen = home
        .queen()
        .config("timeouts.keep_alive = \"200ms\"")
        .start();
    let pause = Duration::from_millis(1300);
    let engine = EventEngine::start(move |_| {
        let begun = Answer::stream().delta(&json!({"role": "assistant", "content": ""}));
        let said = begun.pause(pause).text("a").pause(pause).text("b");
        said.finish("stop").done()
    });
    let engine = engine.expect("a port");
    queen.register_url(&engine.url(), "file:slow", &json!({}));
    let ask = json!({"model": "file:slow", "stream": true,
                     "messages": [{"role": "user", "content": "x"}]});
    for path in [CHAT, "/v2/tasks"] {
        let mut stream = queen.stream(path, &ask).expect("an answer");
        assert_eq!(stream.headers["x-accel-buffering"], "no");
        let (mut comments, mut tokens) = ([0; 3], 0);
        while let Some(event) = stream.next() {
            let is_token = |event: &Value| {
                event["type"] == "token" || !content(std::slice::from_ref(event)).is_empty()
            };
            match event {
                Event::Comment(_) => comments[tokens] += 1,
                Event::Json(event) if is_token(&event) => tokens += 1,
                Event::Json(_) | Event::Done => {}
            }
        }
        // Before the first token, between the two, and behind the second.
        assert!(
            comments[..2].iter().all(|count| (3..=7).contains(count)),
            "{path}: {comments:?}"
        );
        assert_eq!((tokens, comments[2]), (2, 0), "{path}: {comments:?}");
    }
}

#[test]
fn a_workers_comments_are_no_life() {
    let home = Home::new();
    let queen = home
        .queen()
        .config("timeouts.between_tokens = \"500ms\"")
        .start();
    let engine = EventEngine::start(move |_| {
        let mut answer = Answer::stream().text("a");
        for _ in 0..100 {
            answer = answer
                .pause(Duration::from_millis(50))
                .raw(": ping\n\nevent: ping\n\n");
        }
        answer.finish("stop").done()
    });
    let engine = engine.expect("a port");
    queen.register_url(&engine.url(), "file:pings", &json!({}));
    let ask = json!({"model": "file:pings", "stream": true,
                     "messages": [{"role": "user", "content": "x"}]});
    let events = queen.stream(CHAT, &ask).expect("an answer").rest();
    let last = &events.last().expect("an error")["error"];
    assert_eq!(last["code"], "TIMEOUT", "{events:#?}");
    let events = queen.stream("/v2/tasks", &ask).expect("an answer").rest();
    assert_task_failed(&events, "TIMEOUT", &["timeouts.between_tokens"]);
}

#[test]
fn a_workers_comments_forbid_no_other_try() {
    let home = Home::new();
    let queen = home.queen().start();
    // Whichever is asked first, its comment has come when it breaks off.
    let engines = [0, 1].map(|_| {
        static TRIES: AtomicUsize = AtomicUsize::new(0);
        let engine = EventEngine::start(|_| match TRIES.fetch_add(1, Relaxed) % 2 {
            0 => Answer::stream()
                .raw(": ping\n\n")
                .pause(Duration::from_millis(100))
                .broken(),
            _ => hello().finish("stop").done(),
        });
        let engine = engine.expect("a port");
        queen.register_url(&engine.url(), "file:twins", &json!({}));
        engine
    });
    let ask = json!({"model": "file:twins", "stream": true,
                     "messages": [{"role": "user", "content": "x"}]});
    let events = queen.stream(CHAT, &ask).expect("an answer").rest();
    assert_eq!(content(&events), "Hello there", "{events:#?}");
    let asked: usize = engines.iter().map(|engine| engine.requests().len()).sum();
    assert_eq!(asked, 2);
}

#[test]
fn an_event_may_be_as_large_as_an_answer() {
    let size = 3 << 20;
    let arguments = json!({"text": "A".repeat(size)}).to_string();
    let call = json!({"tool_calls": [{"index": 0, "id": "t", "type": "function",
                                      "function": {"name": "write", "arguments": arguments}}]});
    let answer = Answer::stream().delta(&call).finish("tool_calls").done();
    let (events, record) = Scripted::answering(answer).events(&json!({}));
    let came = &events[0]["choices"][0]["delta"]["tool_calls"][0]["function"]["arguments"];
    assert!(*came == arguments, "{} events", events.len());
    assert_eq!(record["state"], "complete", "{record}");
    let text = "B".repeat(size);
    let answer = Answer::stream().text(&text).finish("stop").done();
    assert!(assert_task_completed(&Scripted::answering(answer).task()) == text);
}

#[test]
fn an_event_that_is_too_large_is_told_and_not_tried_again() {
    let home = Home::new();
    let queen = home
        .queen()
        .config("limits.max_event_bytes = 100000")
        .start();
    let long = "A".repeat(200_000);
    let engine = EventEngine::start(move |_| Answer::stream().text(&long)).expect("a port");
    queen.register_url(&engine.url(), "file:long", &json!({}));
    let task = json!({"model": "file:long", "prompt": "x"});
    let events = queen.stream("/v2/tasks", &task).expect("an answer").rest();
    assert_task_failed(&events, "UPSTREAM_INVALID", &["limits.max_event_bytes"]);
    assert_eq!(engine.requests().len(), 1);
}

#[test]
fn counts_that_cannot_be_read_are_none_and_the_answer_stands() {
    for usage in [
        json!({"prompt_tokens": -1, "completion_tokens": -1, "total_tokens": -1}),
        json!({"prompt_tokens": null, "completion_tokens": null}),
        json!({"prompt_tokens": "many", "completion_tokens": [2]}),
        json!([]),
        json!({}),
        json!("none"),
        json!(false),
    ] {
        let told = json!({"choices": [], "usage": usage});
        let streamed = hello().finish("stop").event(&told).done();
        let scripted = Scripted::answering(streamed);
        scripted.says("Hello there");
        let (_, record) = scripted.events(&json!({}));
        assert_eq!(record["tokens_out"], 2, "{usage}: {record}");
        assert_eq!(record["usage_estimated"], true, "{usage}: {record}");
        let message = json!({"role": "assistant", "content": "Hello there"});
        let choice = json!({"index": 0, "finish_reason": "stop", "message": message});
        let whole = json!({"choices": [choice], "usage": usage});
        let scripted = Scripted::answering(Answer::json(200, &whole));
        let reply = scripted
            .queen()
            .ask(CHAT, &scripted.chat(&json!({"stream": false})));
        assert_eq!((reply.status, reply.json()), (200, whole), "{usage}");
    }
}

#[test]
fn a_usage_chunk_is_known_by_what_it_has_and_comes_to_those_who_ask() {
    let counts = json!({"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7});
    let forms = [
        json!({"choices": [], "usage": counts}),
        json!({"usage": counts}),
        // LiteLLM's.
        json!({"choices": [{"index": 0, "delta": {}}], "usage": counts}),
        json!({"choices": [{"index": 0, "delta": {"content": null, "role": null},
                            "finish_reason": null}], "usage": counts}),
    ];
    for form in forms {
        let scripted = Scripted::answering(hello().finish("stop").event(&form).done());
        let (events, record) = scripted.events(&json!({}));
        assert_eq!(events.len(), 3, "{events:#?}");
        assert_eq!(
            (&record["tokens_in"], &record["tokens_out"]),
            (&json!(5), &json!(2))
        );
        assert_eq!(record["usage_estimated"], false, "{record}");
        let asks = json!({"stream_options": {"include_usage": true}});
        let (events, _) = scripted.events(&asks);
        assert_eq!(events.last(), Some(&form));
    }
}

#[test]
fn one_usage_chunk_for_each_choice_adds_up() {
    let of = |index: u64| json!({"choices": [{"index": index, "delta": {"content": "a"}}]});
    let end =
        |index: u64| json!({"choices": [{"index": index, "delta": {}, "finish_reason": "stop"}]});
    let answer = Answer::stream().event(&of(0)).event(&of(1));
    let answer = answer
        .event(&end(0))
        .usage(5, 2)
        .event(&of(1))
        .event(&end(1))
        .usage(5, 3);
    let scripted = Scripted::answering(answer.done());
    let (events, record) = scripted.events(&json!({"n": 2}));
    assert_eq!(events.len(), 5, "{events:#?}");
    assert_eq!(
        (&record["tokens_in"], &record["tokens_out"]),
        (&json!(10), &json!(5))
    );
}

#[test]
fn timings_come_through_as_they_would_directly() {
    let timings = json!({"prompt_n": 5, "predicted_n": 2, "predicted_ms": 0.5});
    let last = chunk(0, &json!({}), &json!("stop"));
    let with = |mut event: Value| {
        event["timings"] = timings.clone();
        event
    };
    let usage = json!({"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 2}});
    // llama-server moves them to the usage chunk, when that is asked for.
    let answer = hello().event(&last).event(&with(usage.clone())).done();
    let scripted = Scripted::answering(answer);
    let (events, _) = scripted.events(&json!({}));
    assert_eq!(events.len(), 3, "{events:#?}");
    assert_eq!(events[2], with(last.clone()));
    let (events, _) = scripted.events(&json!({"stream_options": {"include_usage": true}}));
    assert_eq!(events[2..], [last.clone(), with(usage)]);
    // Where they are not moved, they stay.
    let answer = hello().event(&with(last.clone())).usage(5, 2).done();
    let (events, _) = Scripted::answering(answer).events(&json!({}));
    assert_eq!(events[2..], [with(last)]);
}

/// An engine whose model thinks for a second in ten steps, in a field of this name, before it says two
/// words.
fn thinker(field: &'static str) -> Answer {
    let mut answer = Answer::stream().delta(&json!({"role": "assistant", "content": null}));
    for step in 0..10 {
        let delta = json!({field: format!("step {step} ")});
        answer = answer.delta(&delta).pause(Duration::from_millis(100));
    }
    answer
        .text("Yes")
        .text(".")
        .finish("stop")
        .usage(5, 12)
        .done()
}

/// An engine whose model writes a tool call for a second.
fn caller() -> Answer {
    let call = |more: Value| json!({"tool_calls": [more]});
    let begin = json!({"index": 0, "id": "t", "type": "function",
                       "function": {"name": "write", "arguments": ""}});
    let mut answer = Answer::stream().delta(&call(begin));
    for _ in 0..10 {
        let piece = json!({"index": 0, "function": {"arguments": "abc"}});
        answer = answer.delta(&call(piece)).pause(Duration::from_millis(100));
    }
    answer.finish("tool_calls").usage(5, 11).done()
}

#[test]
fn thinking_and_tool_calls_are_tokens_for_every_clock() {
    let home = Home::new();
    let launch = home.queen().config("timeouts.first_token = \"500ms\"");
    let queen = launch.config("timeouts.between_tokens = \"700ms\"").start();
    for (name, answer) in [
        ("deepseek", thinker("reasoning_content")),
        ("vllm", thinker("reasoning")),
        ("caller", caller()),
    ] {
        let model = format!("file:{name}");
        let engine = EventEngine::start(move |_| answer.clone()).expect("a port");
        queen.register_url(&engine.url(), &model, &json!({}));
        let ask = json!({"model": model, "stream": true,
                         "messages": [{"role": "user", "content": "x"}]});
        for path in [CHAT, "/v2/tasks"] {
            let stream = queen.stream(path, &ask).expect("an answer");
            let id = stream.headers["x-job-id"]
                .to_str()
                .expect("an id")
                .to_owned();
            let events = stream.rest();
            let record = queen.ended_task(&id);
            assert_eq!(record["state"], "complete", "{name} {path} {record}");
            let inference = record["inference_ms"].as_u64().unwrap_or_default();
            assert!((900..10_000).contains(&inference), "{name} {path} {record}");
            let rates = events
                .iter()
                .filter_map(|event| event["tokens_per_sec"].as_f64());
            for rate in rates {
                assert!((0.5..13.0).contains(&rate), "{name}: {rate} tokens/s");
            }
        }
        assert_eq!(
            engine.requests().len(),
            2,
            "{name}: nothing was tried again"
        );
    }
}

#[test]
fn thinking_is_told_apart_and_kept_beside_the_result() {
    let thought: String = (0..10).map(|step| format!("step {step} ")).collect();
    for field in ["reasoning_content", "reasoning"] {
        let scripted = Scripted::answering(thinker(field));
        let queen = scripted.queen();
        let events = scripted.task();
        assert_eq!(assert_task_completed(&events), "Yes.");
        let told = |events: &[Value]| -> String {
            let thinking = events.iter().filter(|event| event["type"] == "thinking");
            thinking.filter_map(|event| event["t"].as_str()).collect()
        };
        assert_eq!(told(&events), thought);
        let task = scripted.chat(&json!({"stream": null}));
        let id = queen.submit(&task);
        // Who follows it live, from any place, and who reads it later gets the same.
        let mut live = queen.follow(&id, None).expect("an answer");
        live.until_type("thinking");
        let place = live.last_id.clone().expect("an id");
        let rest = live.rest();
        assert_eq!(format!("step 0 {}", told(&rest)), thought);
        let record = queen.assert_task_ends(&id, "complete");
        assert_eq!(
            (&record["result"], &record["thinking"]),
            (&json!("Yes."), &json!(thought))
        );
        let later = queen.follow(&id, Some(&place)).expect("an answer").rest();
        assert_eq!(format!("step 0 {}", told(&later)), thought);
        let all = queen.follow(&id, None).expect("an answer").rest();
        assert_eq!(
            (told(&all), assert_task_completed(&all)),
            (thought.clone(), "Yes.".into())
        );
        let listed = queen.tasks(&format!("model={}", scripted.model));
        assert!(
            listed.iter().all(|task| task.get("thinking").is_none()),
            "{listed:#?}"
        );
    }
}

#[test]
fn a_model_that_thinks_until_it_is_cut_off_has_said_so() {
    let thinks = json!({"reasoning_content": "Hm."});
    let answer = Answer::stream()
        .delta(&thinks)
        .delta(&thinks)
        .finish("length")
        .done();
    let scripted = Scripted::answering(answer);
    let mut task = scripted.chat(&json!({}));
    task["stream"] = json!(false);
    let task = scripted.queen().ask("/v2/tasks", &task).json();
    assert_eq!(task["state"], "complete", "{task}");
    assert_eq!(
        (&task["result"], &task["thinking"]),
        (&json!(""), &json!("Hm.Hm."))
    );
    assert_eq!(
        (&task["stop_reason"], &task["tokens_out"]),
        (&json!("MAX_TOKENS"), &json!(2))
    );
}

/// FastAPI's refusal of a field that it does not know; it shows what it was sent.
fn unknown_field(name: &str, body: &Value) -> Answer {
    let detail = json!({"type": "extra_forbidden", "loc": ["body", name], "input": body,
                        "msg": "Extra inputs are not permitted"});
    Answer::json(422, &json!({"detail": [detail]}))
}

#[test]
fn an_engine_that_refuses_stream_options_is_asked_without_and_remembered() {
    let scripted = Scripted::new(|body| match body.get("stream_options") {
        Some(_) => unknown_field("stream_options", body),
        None => hello().finish("stop").done(),
    });
    let (events, record) = scripted.events(&json!({}));
    assert_eq!(content(&events), "Hello there", "{events:#?}");
    assert_eq!(
        (&record["tokens_out"], &record["usage_estimated"]),
        (&json!(2), &json!(true))
    );
    assert_eq!(scripted.engine.requests().len(), 2);
    scripted.says("Hello there");
    let requests = scripted.engine.requests();
    assert_eq!(requests.len(), 4, "it was remembered: {requests:#?}");
    assert!(
        requests[2..]
            .iter()
            .all(|body| body.get("stream_options").is_none())
    );
    // Who asks for it himself is told what the engine says.
    let asks = scripted.chat(&json!({"stream_options": {"include_usage": true}}));
    let reply = scripted.queen().ask(CHAT, &asks);
    assert_eq!(reply.status, 422, "{}", reply.text);
    assert!(
        reply.text.contains("Extra inputs are not permitted"),
        "{}",
        reply.text
    );
}

#[test]
fn a_refusal_for_another_reason_teaches_nothing() {
    let scripted = Scripted::new(|body| match body.get("nonsense") {
        Some(_) => unknown_field("nonsense", body),
        None => hello().finish("stop").usage(5, 2).done(),
    });
    let reply = scripted
        .queen()
        .ask(CHAT, &scripted.chat(&json!({"nonsense": 1})));
    assert_eq!(reply.status, 422, "{}", reply.text);
    let (_, record) = scripted.events(&json!({}));
    assert_eq!(record["usage_estimated"], false, "{record}");
    let requests = scripted.engine.requests();
    let last = requests.last().expect("a request");
    assert_eq!(last["stream_options"]["include_usage"], true, "{last}");
}

#[test]
fn a_stream_that_flows_is_ended_by_silence_or_by_what_its_client_set() {
    let home = Home::new();
    let launch = home.queen().config("timeouts.total = \"1s\"");
    let queen = launch.config("timeouts.total_max = \"6s\"").start();
    let step = Duration::from_millis(100);
    let of = |steps: usize| (0..steps).fold(Answer::stream(), |all, _| all.text("a").pause(step));
    let late = Answer::stream()
        .pause(Duration::from_secs(3))
        .text("late")
        .finish("stop")
        .done();
    let mut engines = Vec::new();
    for (model, answer) in [
        ("file:flows", of(25).finish("stop").done()),
        ("file:endless", of(200)),
        ("file:late", late),
    ] {
        let engine = EventEngine::start(move |_| answer.clone()).expect("a port");
        queen.register_url(&engine.url(), model, &json!({}));
        engines.push(engine);
    }
    let ask = |model: &str| {
        json!({"model": model, "stream": true,
                                   "messages": [{"role": "user", "content": "x"}]})
    };
    let whole = "a".repeat(25);
    let events = queen
        .stream(CHAT, &ask("file:flows"))
        .expect("an answer")
        .rest();
    assert_eq!(content(&events), whole);
    let events = queen
        .stream("/v2/tasks", &ask("file:flows"))
        .expect("an answer")
        .rest();
    assert_eq!(assert_task_completed(&events), whole);
    let id = queen.submit(&ask("file:flows"));
    assert_eq!(queen.assert_task_ends(&id, "complete")["attempts"], 1);
    // What its client set holds, as a time or as a deadline.
    let mut hurried = ask("file:flows");
    hurried["timeout_ms"] = json!(1500);
    let events = queen
        .stream("/v2/tasks", &hurried)
        .expect("an answer")
        .rest();
    assert_task_failed(&events, "TIMEOUT", &["1500 ms"]);
    let with_time = queen.header("x-request-timeout-ms", "1500");
    let events = with_time
        .stream(CHAT, &ask("file:flows"))
        .expect("an answer")
        .rest();
    assert_eq!(events.last().expect("an error")["error"]["code"], "TIMEOUT");
    // None flows for ever, and what does not flow has its time.
    let events = queen
        .stream("/v2/tasks", &ask("file:endless"))
        .expect("an answer")
        .rest();
    assert_task_failed(&events, "TIMEOUT", &["6 s", "timeouts.total_max"]);
    let events = queen
        .stream("/v2/tasks", &ask("file:late"))
        .expect("an answer")
        .rest();
    assert_task_failed(&events, "TIMEOUT", &["1 s"]);
    queen.assert_no_slot_leaked();
}

#[test]
fn a_worker_that_lets_a_request_wait_without_a_byte_is_waited_for() {
    let home = Home::new();
    let launch = home.queen().config("timeouts.keep_alive = \"200ms\"");
    let launch = launch.config("timeouts.stream_status = \"300ms\"");
    let queen = launch.config("timeouts.between_tokens = \"500ms\"").start();
    let late = Duration::from_millis(1500);
    let answer = hello().finish("stop").done().late(late);
    let engine = EventEngine::start(move |_| answer.clone()).expect("a port");
    queen.register_url(&engine.url(), "file:router", &json!({}));
    let ask = json!({"model": "file:router", "stream": true,
                     "messages": [{"role": "user", "content": "x"}]});
    let reply = queen.ask(CHAT, &ask);
    assert_eq!(reply.status, 200, "{}", reply.text);
    assert!(reply.text.starts_with(": keep-alive\n\n"), "{}", reply.text);
    let events = queen.stream(CHAT, &ask).expect("an answer").rest();
    assert_eq!(content(&events), "Hello there");
    let events = queen.stream("/v2/tasks", &ask).expect("an answer").rest();
    assert_eq!(assert_task_completed(&events), "Hello there");
    assert_eq!(engine.requests().len(), 3, "nothing was tried again");
}
