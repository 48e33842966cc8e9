//! How long things may take, and how large they may be.

use std::time::Duration;

use serde::Deserialize;

const GIB: u64 = 1 << 30;

/// How long things may take.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Timeouts {
    /// A request in all, unless it says otherwise, or its answer flows by then.
    #[serde(with = "humantime_serde")]
    pub total: Duration,
    /// The most that a request may ask for, and that an answer may take that flows.
    #[serde(with = "humantime_serde")]
    pub total_max: Duration,
    /// From the dispatch to the first token; `None` leaves it to the total.
    #[serde(with = "humantime_serde")]
    pub first_token: Option<Duration>,
    /// Silence between two pieces of a stream after the first.
    #[serde(with = "humantime_serde")]
    pub between_tokens: Duration,
    /// A client that takes no byte for this long has gone.
    #[serde(with = "humantime_serde")]
    pub client_stall: Duration,
    /// From a client's connection to its first whole request head, or it is closed.
    #[serde(with = "humantime_serde")]
    pub first_request: Duration,
    /// A client's connection without a request, after its first, or it is closed.
    #[serde(with = "humantime_serde")]
    pub idle_connection: Duration,
    /// A TCP connection to a worker.
    #[serde(with = "humantime_serde")]
    pub connect: Duration,
    /// How long the status line of an OpenAI stream waits for the worker's own.
    #[serde(with = "humantime_serde")]
    pub stream_status: Duration,
    /// A stream's silence, to its client, before a keep-alive comment.
    #[serde(with = "humantime_serde")]
    pub keep_alive: Duration,
    /// The load of a model, whatever its size.
    #[serde(with = "humantime_serde")]
    pub load: Duration,
    /// The load of a model, more for each GiB of its size.
    #[serde(with = "humantime_serde")]
    pub load_per_gib: Duration,
    /// A model's way to a hive, without a byte more.
    #[serde(with = "humantime_serde")]
    pub download_stall: Duration,
    /// A hive's start, until its health check answers.
    #[serde(with = "humantime_serde")]
    pub hive_start: Duration,
    /// A call to a hive.
    #[serde(with = "humantime_serde")]
    pub hive_call: Duration,
    /// A health check of a hive or a worker.
    #[serde(with = "humantime_serde")]
    pub health: Duration,
    /// Between SIGTERM and SIGKILL.
    #[serde(with = "humantime_serde")]
    pub stop_grace: Duration,
    /// Running requests at shutdown, before they are cut off.
    #[serde(with = "humantime_serde")]
    pub drain: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        let secs = Duration::from_secs;
        Timeouts {
            total: secs(5 * 60),
            total_max: secs(30 * 60),
            first_token: None,
            between_tokens: secs(60),
            client_stall: secs(60),
            first_request: secs(10),
            idle_connection: secs(120),
            connect: secs(5),
            stream_status: secs(5),
            keep_alive: secs(10),
            load: secs(5 * 60),
            load_per_gib: secs(20),
            download_stall: secs(5 * 60),
            hive_start: secs(30),
            hive_call: secs(15),
            health: secs(5),
            stop_grace: secs(30),
            drain: secs(30),
        }
    }
}

impl Timeouts {
    /// How long the load of a model of `size_bytes` may take.
    #[must_use]
    pub fn load_deadline(&self, size_bytes: u64) -> Duration {
        let gib = size_bytes as f64 / GIB as f64;
        self.load + self.load_per_gib.mul_f64(gib)
    }
}

/// How large things may be.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// A request's body, in bytes.
    pub max_body_bytes: usize,
    /// All requests' bodies that are being read, wait or run, in bytes.
    pub max_bodies_bytes: usize,
    /// How fast a body must come on average, in bytes a second, after `timeouts.client_stall`.
    pub min_body_bytes_per_second: u64,
    /// A worker's unstreamed answer, in bytes.
    pub max_response_bytes: usize,
    /// All unstreamed answers, and large events of streams, that are being collected or wait for their
    /// clients to take them, in bytes.
    pub max_answers_bytes: usize,
    /// One event of a worker's stream, in bytes; `None` for as many as an unstreamed answer may have: a
    /// tool call may come in one event.
    pub max_event_bytes: Option<usize>,
    /// Idle connections kept to one worker by one thread.
    pub max_idle_connections: usize,
    /// Connections of clients; `None` for half of the descriptors that the process may have, 16,384
    /// at most.
    pub max_connections: Option<usize>,
    /// Those of one address (IPv6: of one /64); `None` for half of all, and all for loopback.
    pub max_connections_per_address: Option<usize>,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            max_body_bytes: 64 << 20,
            max_bodies_bytes: 256 << 20,
            min_body_bytes_per_second: 8 << 10,
            max_response_bytes: 64 << 20,
            max_answers_bytes: 256 << 20,
            max_event_bytes: None,
            max_idle_connections: 1024,
            max_connections: None,
            max_connections_per_address: None,
        }
    }
}
