//! What a run has counted.

use hdrhistogram::Histogram;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::time::Instant;

/// Nanoseconds in, microseconds out.
pub(crate) struct Hist(Histogram<u64>);

impl Hist {
    pub(crate) fn new() -> Self {
        const TEN_MINUTES_NS: u64 = 600_000_000_000;
        let bounds = Histogram::new_with_bounds(1, TEN_MINUTES_NS, 3);
        Hist(bounds.expect("the bounds are right: 1 < ten minutes, three digits"))
    }

    pub(crate) fn add(&mut self, time: Duration) {
        let ns = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        self.0.saturating_record(ns);
    }

    pub(crate) fn json(&self) -> Value {
        if self.0.is_empty() {
            return Value::Null;
        }
        let us = |ns: f64| (ns / 100.0).round() / 10.0;
        let at = |q| us(self.0.value_at_quantile(q) as f64);
        json!({"p50": at(0.5), "p90": at(0.9), "p99": at(0.99), "p999": at(0.999),
               "max": us(self.0.max() as f64), "mean": us(self.0.mean()), "n": self.0.len()})
    }
}

pub(super) struct Stats {
    pub(super) ttft: Hist,
    pub(super) total: Hist,
    pub(super) gap: Hist,
    pub(super) relay: Hist,
    pub(super) lag: Hist,
    pub(super) requests: u64,
    pub(super) ok: u64,
    pub(super) unfinished: u64,
    pub(super) shed: u64,
    pub(super) errors: BTreeMap<String, u64>,
    pub(super) warmup_errors: u64,
    pub(super) warmup_unfinished: u64,
    pub(super) lost_tokens: u64,
    pub(super) repeated_tokens: u64,
    pub(super) done_in_window: u64,
    pub(super) tokens_in_window: u64,
    pub(super) bytes_in: u64,
    pub(super) bytes_out: u64,
    pub(super) connections: u64,
    pub(super) resent: u64,
    pub(super) last: Instant,
}

impl Stats {
    pub(super) fn new(begin: Instant) -> Self {
        Stats {
            ttft: Hist::new(),
            total: Hist::new(),
            gap: Hist::new(),
            relay: Hist::new(),
            lag: Hist::new(),
            requests: 0,
            ok: 0,
            unfinished: 0,
            shed: 0,
            errors: BTreeMap::new(),
            warmup_errors: 0,
            warmup_unfinished: 0,
            lost_tokens: 0,
            repeated_tokens: 0,
            done_in_window: 0,
            tokens_in_window: 0,
            bytes_in: 0,
            bytes_out: 0,
            connections: 0,
            resent: 0,
            last: begin,
        }
    }

    pub(super) fn all_errors(&self) -> u64 {
        self.errors.values().sum::<u64>() + self.warmup_errors
    }

    /// The report's part that comes from here, for a window of that many seconds.
    pub(super) fn json(&self, window_s: f64) -> Value {
        json!({
            "requests": self.requests, "ok": self.ok, "unfinished": self.unfinished,
            "shed": self.shed, "errors": self.errors, "warmup_errors": self.warmup_errors,
            "warmup_unfinished": self.warmup_unfinished,
            "lost_tokens": self.lost_tokens, "repeated_tokens": self.repeated_tokens,
            "rps": round(self.done_in_window as f64 / window_s, 1),
            "tokens_per_s": round(self.tokens_in_window as f64 / window_s, 0),
            "ttft_us": self.ttft.json(), "total_us": self.total.json(),
            "gap_us": self.gap.json(), "relay_us": self.relay.json(),
            "start_lag_us": self.lag.json(),
            "bytes_in": self.bytes_in, "bytes_out": self.bytes_out,
            "connections": self.connections, "resent": self.resent,
        })
    }
}

pub(super) fn round(x: f64, digits: i32) -> f64 {
    let by = 10f64.powi(digits);
    (x * by).round() / by
}
