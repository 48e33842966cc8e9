//! The state of one stub engine: its pace and faults, which may change while it runs, and what it
//! has counted.

use super::Args;
use super::behaviour::{Behaviour, Fault, Protocol};
use super::form::{Form, json_inside, numbers};
use super::journal::Journal;
use crate::proc;
use bytes::Bytes;
use hyper::header::AUTHORIZATION;
use hyper::http::request::Parts;
use hyper::{Request, StatusCode};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::sync::atomic::{AtomicU16, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{Semaphore, oneshot};
use tokio::time::Instant;

/// One listening port.
pub(super) struct Engine {
    pub(super) port: u16,
    /// The name it serves, as the inside of a JSON string
    pub(super) model: String,
    pub(super) protocol: Protocol,
    pub(super) strict_model: bool,
    /// The value of an `Authorization` header that it wants, if it wants one
    wanted: Option<String>,
    pub(super) slots: Option<Arc<Semaphore>>,
    slots_total: usize,
    /// An old worker computes one answer at a time and hears nothing meanwhile.
    pub(super) computing: Arc<tokio::sync::Mutex<()>>,
    pub(super) counters: Counters,
    pub(super) pace: LivePace,
    /// Whether it answers in words that follow from the prompt
    pub(super) speaks_words: bool,
    /// How often each prompt was computed, if it speaks words
    generations: Mutex<HashMap<String, u64>>,
    pub(super) journal: Option<Journal>,
    /// When it is ready; never, if nothing
    ready_at: Option<Instant>,
    /// `/health` answers this; 0: what is true
    health: AtomicU16,
    faults: Mutex<Faults>,
    last: Mutex<Option<(Parts, Bytes)>>,
    plain: Mutex<HashMap<(Form, u64), Bytes>>,
    jobs: Mutex<HashMap<String, oneshot::Sender<()>>>,
}

/// Counted since the start or the last `/reset`.
#[derive(Default)]
pub(super) struct Counters {
    pub(super) requests: AtomicU64,
    pub(super) in_flight: AtomicU64,
    pub(super) max_in_flight: AtomicU64,
    pub(super) finished: AtomicU64,
    pub(super) disconnects: AtomicU64,
    pub(super) tokens: AtomicU64,
    pub(super) connections: AtomicU64,
    pub(super) not_found: AtomicU64,
    pub(super) health: AtomicU64,
    pub(super) cancels: AtomicU64,
}

/// The pace, which `/control` changes.
#[derive(Default)]
pub(super) struct LivePace {
    pub(super) tokens: AtomicU64,
    ttft_us: AtomicU64,
    itl_us: AtomicU64,
    pub(super) flush_each: AtomicU64,
}

impl LivePace {
    pub(super) fn ttft(&self) -> Duration {
        Duration::from_micros(self.ttft_us.load(Relaxed))
    }

    pub(super) fn itl(&self) -> Duration {
        Duration::from_micros(self.itl_us.load(Relaxed))
    }
}

/// What goes wrong, and with how many more requests.
#[derive(Default)]
struct Faults {
    fault: Option<Fault>,
    left: Option<u64>,
}

/// Tokens of an answer when neither the request nor the behaviour sets a number.
const DEFAULT_TOKENS: u64 = 16;

fn us(ms: f64) -> u64 {
    (ms * 1e3) as u64
}

/// A lock whose holder panicked still holds plain data.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Engine {
    pub(super) fn new(port: u16, args: &Args, behaviour: &Behaviour) -> Self {
        let slots = args.slots.or(behaviour.slots);
        let pace = LivePace::default();
        let tokens = args.tokens.or(behaviour.tokens).unwrap_or(DEFAULT_TOKENS);
        let ttft = args.ttft_ms.or(behaviour.ttft_ms).unwrap_or(0.0);
        let itl = args.itl_ms.or(behaviour.itl_ms).unwrap_or(0.0);
        pace.tokens.store(tokens, Relaxed);
        pace.ttft_us.store(us(ttft), Relaxed);
        pace.itl_us.store(us(itl), Relaxed);
        pace.flush_each.store(args.flush_each.into(), Relaxed);
        let load = Duration::from_millis(behaviour.load_ms);
        Engine {
            port,
            model: json_inside(&args.model),
            protocol: args.protocol.unwrap_or(behaviour.protocol),
            strict_model: behaviour.strict_model,
            wanted: args.api_key.as_ref().map(|key| format!("Bearer {key}")),
            slots: slots.map(|n| Arc::new(Semaphore::new(n))),
            slots_total: slots.unwrap_or(1),
            computing: Arc::default(),
            counters: Counters::default(),
            pace,
            speaks_words: args.words,
            generations: Mutex::default(),
            journal: args.journal.then(Journal::default),
            ready_at: (!behaviour.hang_while_loading).then(|| Instant::now() + load),
            health: AtomicU16::new(0),
            faults: Mutex::new(Faults {
                fault: behaviour.fault,
                left: behaviour.fault_times,
            }),
            last: Mutex::default(),
            plain: Mutex::default(),
            jobs: Mutex::default(),
        }
    }

    pub(super) fn is_loading(&self) -> bool {
        self.ready_at.is_none_or(|at| Instant::now() < at)
    }

    pub(super) fn health(&self) -> StatusCode {
        self.counters.health.fetch_add(1, Relaxed);
        let forced = StatusCode::from_u16(self.health.load(Relaxed));
        match forced {
            Ok(status) => status,
            Err(_) if self.is_loading() => StatusCode::SERVICE_UNAVAILABLE,
            Err(_) => StatusCode::OK,
        }
    }

    pub(super) fn lets_in<B>(&self, req: &Request<B>) -> bool {
        let shown = req.headers().get(AUTHORIZATION);
        let wanted = self.wanted.as_ref();
        wanted.is_none_or(|wanted| shown.is_some_and(|shown| shown == wanted))
    }

    /// The fault that the next request gets.
    pub(super) fn take_fault(&self) -> Option<Fault> {
        let mut faults = lock(&self.faults);
        let fault = faults.fault?;
        match &mut faults.left {
            Some(0) => return None,
            Some(left) => *left -= 1,
            None => {}
        }
        Some(fault)
    }

    pub(super) fn remember(&self, parts: Parts, body: Bytes) {
        *lock(&self.last) = Some((parts, body));
    }

    /// The last request for tokens, as it arrived.
    pub(super) fn last_request(&self) -> Value {
        let last = lock(&self.last);
        let Some((parts, body)) = &*last else {
            return Value::Null;
        };
        let headers = parts.headers.iter().map(|(name, value)| {
            let value = String::from_utf8_lossy(value.as_bytes());
            (name.to_string(), Value::from(value))
        });
        json!({"method": parts.method.as_str(), "path": parts.uri.to_string(),
               "headers": headers.collect::<serde_json::Map<_, _>>(),
               "body": String::from_utf8_lossy(body)})
    }

    pub(super) fn plain(&self, form: Form, n: u64) -> Bytes {
        let mut plain = lock(&self.plain);
        let answer = plain.entry((form, n));
        let new = || form.plain(&self.model, &numbers(n), n);
        answer.or_insert_with(new).clone()
    }

    /// How often this prompt has been computed, this time too.
    pub(super) fn next_generation(&self, prompt: &str) -> u64 {
        let mut generations = lock(&self.generations);
        let count = generations.entry(prompt.to_owned()).or_default();
        *count += 1;
        *count
    }

    /// Makes a stream cancellable under its job's name; a later one of that name replaces it.
    pub(super) fn cancellable(&self, job_id: &str) -> oneshot::Receiver<()> {
        let (cancel, cancelled) = oneshot::channel();
        lock(&self.jobs).insert(job_id.to_owned(), cancel);
        cancelled
    }

    pub(super) fn cancel(&self, job_id: &str) -> bool {
        self.counters.cancels.fetch_add(1, Relaxed);
        let job = lock(&self.jobs).remove(job_id);
        job.is_some_and(|cancel| cancel.send(()).is_ok())
    }

    pub(super) fn forget(&self, job_id: &str) {
        // The entry may be a newer stream's: that one still has its receiver.
        let mut jobs = lock(&self.jobs);
        if jobs.get(job_id).is_some_and(oneshot::Sender::is_closed) {
            jobs.remove(job_id);
        }
    }

    /// What llama-server tells about itself, as far as anyone asks.
    pub(super) fn props(&self) -> Value {
        json!({"total_slots": self.slots_total, "model_alias": self.model,
               "default_generation_settings": {"n_ctx": 4096}})
    }

    pub(super) fn stats(&self) -> Value {
        let n = |counter: &AtomicU64| counter.load(Relaxed);
        let c = &self.counters;
        let usage = proc::usage(&[std::process::id()]);
        json!({
            "requests": n(&c.requests), "in_flight": n(&c.in_flight),
            "max_in_flight": n(&c.max_in_flight), "finished": n(&c.finished),
            "disconnects": n(&c.disconnects), "tokens": n(&c.tokens),
            "connections": n(&c.connections), "not_found": n(&c.not_found),
            "health": n(&c.health), "cancels": n(&c.cancels),
            "cpu_s": usage.cpu_s, "rss_kb": usage.rss_kb,
        })
    }

    pub(super) fn reset(&self) {
        let c = &self.counters;
        for counter in [
            &c.requests,
            &c.finished,
            &c.disconnects,
            &c.tokens,
            &c.connections,
            &c.not_found,
            &c.health,
            &c.cancels,
        ] {
            counter.store(0, Relaxed);
        }
        c.max_in_flight.store(c.in_flight.load(Relaxed), Relaxed);
    }

    /// Changes what the query's pairs name: pace, faults, health.
    pub(super) fn control(&self, query: &str) -> Result<(), String> {
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair
                .split_once('=')
                .ok_or_else(|| format!("no '=' in {pair}"))?;
            let number = || -> Result<f64, String> {
                let number = value.parse::<f64>().ok().filter(|n| *n >= 0.0);
                number.ok_or_else(|| format!("not a number: {pair}"))
            };
            match key {
                "tokens" => self.pace.tokens.store(number()? as u64, Relaxed),
                "ttft_ms" => self.pace.ttft_us.store(us(number()?), Relaxed),
                "itl_ms" => self.pace.itl_us.store(us(number()?), Relaxed),
                "flush_each" => self.pace.flush_each.store(number()? as u64, Relaxed),
                "health" => self.health.store(number()? as u16, Relaxed),
                "fault" if value == "none" => *lock(&self.faults) = Faults::default(),
                "fault" => lock(&self.faults).fault = Some(value.parse()?),
                "fault_times" => lock(&self.faults).left = Some(number()? as u64),
                _ => return Err(format!("unknown key: {key}")),
            }
        }
        Ok(())
    }
}
