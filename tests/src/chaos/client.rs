//! The clients: they submit, ask again, follow, come back, leave and cancel, and write it all down.

use super::log::{Ack, Class, Closed, Connection, EventId, Reading, Seen, What, Wish};
use super::stage::Stage;
use crate::clock::monotonic_ns;
use crate::harness::{Client, EventStream, Reply};
use crate::random::Random;
use serde_json::{Value, json};
use std::collections::VecDeque;
use std::io;
use std::ops::Range;
use std::time::Duration;

/// On whose behalf.
pub(super) const TENANTS: [&str; 2] = ["red", "blue"];

/// Words of an answer.
const WORDS: Range<u64> = 4..30;

/// How deep what a message has beside its text may be nested, so that it can be stored.
const DEEPEST: usize = 122;

/// Tasks that a client leaves open before it follows one to its end.
const MOST_OPEN: usize = 6;

/// How long a client waits before it asks again what was refused.
const REFUSED_PAUSE: Duration = Duration::from_millis(100);

/// One client, with what it has written down.
pub(super) struct Visitor<'s> {
    stage: &'s Stage,
    client: Client,
    random: Random,
    number: u64,
    pub(super) wishes: Vec<Wish>,
    pub(super) readings: Vec<Reading>,
    pub(super) complaints: Vec<String>,
    /// Indices of wishes that were acknowledged and that nobody saw end
    open: VecDeque<usize>,
}

impl<'s> Visitor<'s> {
    pub(super) fn new(stage: &'s Stage, number: u64) -> Self {
        Visitor {
            stage,
            client: stage.client().clone(),
            random: stage.random(number),
            number,
            wishes: Vec::new(),
            readings: Vec::new(),
            complaints: Vec::new(),
            open: VecDeque::new(),
        }
    }

    fn wish(&mut self, class: Class) -> Wish {
        let name = format!("c{}-{}", self.number, self.wishes.len());
        let has_key = class.is_durable() && self.random.percent(60);
        Wish {
            key: has_key.then(|| format!("key-{name}")),
            name,
            class,
            tenant: self.random.pick(&TENANTS),
            words: self.random.between(WORDS.start, WORDS.end),
            acks: Vec::new(),
            cancels: Vec::new(),
            tried_to_cancel: false,
            over_ns: None,
        }
    }

    /// Submits tasks that outlive their connections until it is told to stop, and sees them end.
    pub(super) fn submit_and_follow(mut self) -> Self {
        while !self.stage.is_closing() {
            let class = match self.random.percent(70) {
                true => Class::Async,
                false => Class::Batch,
            };
            let mut wish = self.wish(class);
            self.submit(&mut wish);
            // Some clients ask twice although they were answered.
            if wish.key.is_some() && !wish.acks.is_empty() && self.random.percent(20) {
                self.submit(&mut wish);
            }
            let is_known = !wish.acks.is_empty();
            if is_known && self.random.percent(12) {
                self.cancel(&mut wish);
            }
            self.wishes.push(wish);
            if is_known {
                self.open.push_back(self.wishes.len() - 1);
            }
            if self.open.len() > MOST_OPEN || self.random.percent(30) {
                self.follow_oldest();
            }
        }
        while !self.open.is_empty() {
            self.follow_oldest();
        }
        self
    }

    /// Asks until it is acknowledged. Without a key it asks once only: had the answer been lost,
    /// to ask again would be another task.
    fn submit(&mut self, wish: &mut Wish) {
        let client = headers(&self.client, wish);
        let body = body(wish);
        loop {
            match client.post("/v2/tasks", &body) {
                Ok(reply) if reply.status == 202 => return self.acknowledged(wish, &reply),
                Ok(reply) if matches!(reply.status, 429 | 503) => {
                    if self.stage.closes_within(REFUSED_PAUSE) {
                        return;
                    }
                }
                Ok(reply) => {
                    let (name, text) = (&wish.name, &reply.text);
                    let told = format!("{name} was answered with {}: {text}", reply.status);
                    self.complaints.push(told);
                    self.stage.closes_within(REFUSED_PAUSE);
                    return;
                }
                Err(_) if wish.key.is_none() => return,
                Err(_) if !self.stage.wait_until_up() => return,
                Err(_) => {}
            }
        }
    }

    fn acknowledged(&mut self, wish: &mut Wish, reply: &Reply) {
        let at_ns = monotonic_ns();
        let Some(job_id) = reply.json()["job_id"].as_str().map(str::to_owned) else {
            let told = format!("a 202 without a job: {}", reply.text);
            return self.complaints.push(told);
        };
        self.stage.acknowledged(&job_id, &wish.name);
        wish.acks.push(Ack { job_id, at_ns });
    }

    fn cancel(&mut self, wish: &mut Wish) {
        let Some(ack) = wish.acks.first() else { return };
        let path = format!("/v2/tasks/{}", ack.job_id);
        wish.tried_to_cancel = true;
        // The answer may be lost; what it was then nobody promised.
        let Ok(reply) = self.client.delete(&path) else {
            return;
        };
        match reply.status {
            200 => {
                let state = reply.json()["state"].as_str().map(str::to_owned);
                wish.cancels.push(state.or(Some(reply.text)));
            }
            202 => wish.cancels.push(None),
            status => self.complaints.push(format!(
                "cancelling {} was answered with {status}: {}",
                ack.job_id, reply.text
            )),
        }
    }

    fn follow_oldest(&mut self) {
        let Some(oldest) = self.open.pop_front() else {
            return;
        };
        let wish = &self.wishes[oldest];
        let (job_id, name) = (wish.acks[0].job_id.clone(), wish.name.clone());
        self.follow(job_id, name);
    }

    /// Follows others' tasks until it is told to stop.
    pub(super) fn read_along(mut self) -> Self {
        while !self.stage.closes_within(Duration::from_millis(10)) {
            if let Some((job_id, name)) = self.stage.any_acknowledged(&mut self.random) {
                self.follow(job_id, name);
            }
        }
        self
    }

    /// Reads a task's events to the end, coming back whenever the connection breaks, and leaving
    /// now and then to come back too.
    fn follow(&mut self, job_id: String, name: String) {
        let mut connections = Vec::new();
        let mut after = None;
        loop {
            let leaves_after = match self.random.percent(15) {
                true => self.random.between(1, 12) as usize,
                false => usize::MAX,
            };
            let text = after.map(|id: EventId| id.to_string());
            let connection = match self.client.follow(&job_id, text.as_deref()) {
                Ok(stream) => read(stream, after, leaves_after),
                Err(_) => Connection {
                    after,
                    events: Vec::new(),
                    closed: Closed::Broken,
                },
            };
            let newest = connection.events.iter().rev().find_map(|seen| seen.id);
            after = newest.or(after);
            let closed = connection.closed.clone();
            connections.push(connection);
            let goes_on = match closed {
                Closed::Whole | Closed::Wrong(_) => false,
                Closed::Broken => self.stage.wait_until_up(),
                Closed::Left => true,
            };
            if !goes_on {
                break;
            }
        }
        self.readings.push(Reading {
            job_id,
            name,
            followed: true,
            connections,
        });
    }

    /// Streams interactive tasks until it is told to stop.
    pub(super) fn stream(mut self) -> Self {
        while !self.stage.is_closing() {
            let mut wish = self.wish(Class::Stream);
            let leaves_after = match self.random.percent(15) {
                true => self.random.between(1, 12) as usize,
                false => usize::MAX,
            };
            let sent = headers(&self.client, &wish).stream("/v2/tasks", &body(&wish));
            match sent {
                Ok(stream) if matches!(stream.status, 429 | 503) => {
                    self.stage.closes_within(REFUSED_PAUSE);
                }
                Ok(stream) => {
                    let job_id = stream.headers.get("x-job-id");
                    let job_id = job_id.and_then(|id| id.to_str().ok()).unwrap_or_default();
                    let (job_id, at_ns) = (job_id.to_owned(), monotonic_ns());
                    let connection = read(stream, None, leaves_after);
                    wish.over_ns = Some(monotonic_ns());
                    self.readings.push(Reading {
                        job_id: job_id.clone(),
                        name: wish.name.clone(),
                        followed: false,
                        connections: vec![connection],
                    });
                    wish.acks.push(Ack { job_id, at_ns });
                }
                Err(_) => {
                    self.stage.wait_until_up();
                }
            }
            self.wishes.push(wish);
        }
        self
    }
}

fn headers(client: &Client, wish: &Wish) -> Client {
    let client = client.header("x-correlation-id", &wish.name);
    let client = match &wish.key {
        Some(key) => client.header("idempotency-key", key),
        None => client,
    };
    match wish.class {
        Class::Async => client.header("prefer", "respond-async"),
        Class::Batch | Class::Stream => client,
    }
}

fn body(wish: &Wish) -> Value {
    let mut body = json!({"model": super::MODEL, "max_tokens": wish.words,
                          "tenant_id": wish.tenant});
    if wish.class.is_durable() && wish.words.is_multiple_of(4) {
        let deep = (0..DEEPEST).fold(json!(0), |inside, _| json!([inside]));
        body["messages"] = json!([{"role": "user", "content": wish.name, "extra": deep}]);
    } else {
        body["prompt"] = json!(wish.name);
    }
    if wish.class == Class::Batch {
        body["priority"] = json!("batch");
    }
    body
}

/// Reads up to the end of the connection, or leaves after that many events.
fn read(mut stream: EventStream, after: Option<EventId>, leaves_after: usize) -> Connection {
    let mut events = Vec::new();
    let closed = match stream.status {
        200 => loop {
            if events.len() >= leaves_after {
                break Closed::Left;
            }
            match stream.read() {
                Ok(Some(block)) => match What::read(&block.event) {
                    Some(what) => events.push(Seen {
                        id: block.id.as_deref().and_then(EventId::parse),
                        what,
                    }),
                    None => break Closed::Whole,
                },
                Ok(None) => break Closed::Wrong("an end without [DONE]".into()),
                Err(e) if e.kind() == io::ErrorKind::InvalidData => {
                    break Closed::Wrong(e.to_string());
                }
                Err(_) => break Closed::Broken,
            }
        },
        status => Closed::Wrong(format!("status {status}")),
    };
    Connection {
        after,
        events,
        closed,
    }
}
