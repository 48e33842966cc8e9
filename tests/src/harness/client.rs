//! A plain HTTP client for tests: every request on a connection of its own unless it is told
//! otherwise, every status an answer.

use super::events::EventStream;
use anyhow::{Context, Result};
use serde_json::Value;
use std::io::Read;
use std::time::Duration;
use ureq::Agent;
use ureq::http::{HeaderMap, Request, Response};

/// Talks to one server.
#[derive(Debug, Clone)]
pub struct Client {
    base: String,
    agent: Agent,
    headers: Vec<(String, String)>,
}

/// A whole answer.
#[derive(Debug, Clone)]
pub struct Reply {
    /// The HTTP status
    pub status: u16,
    /// The answer's headers
    pub headers: HeaderMap,
    /// The body as text
    pub text: String,
}

impl Reply {
    /// The body as JSON; null, if it is none.
    #[must_use]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_default()
    }

    /// A header's value; empty, if there is none.
    #[must_use]
    pub fn header(&self, name: &str) -> &str {
        let value = self.headers.get(name);
        value.and_then(|v| v.to_str().ok()).unwrap_or_default()
    }
}

impl Client {
    /// A client of the server at `base`, `http://host:port`.
    #[must_use]
    pub fn new(base: &str) -> Self {
        Client::with_idle_connections(base, 0)
    }

    /// The same, but connections are kept and used again, also by its clones.
    #[must_use]
    pub fn keeping_alive(base: &str) -> Self {
        Client::with_idle_connections(base, 64)
    }

    fn with_idle_connections(base: &str, most: usize) -> Self {
        const LONGEST_TEST: Duration = Duration::from_secs(120);
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .max_idle_connections(most)
            .max_idle_connections_per_host(most)
            .proxy(None)
            .timeout_global(Some(LONGEST_TEST));
        Client {
            base: base.trim_end_matches('/').to_owned(),
            agent: config.build().into(),
            headers: Vec::new(),
        }
    }

    /// The same client, sending this header too.
    #[must_use]
    pub fn header(&self, name: &str, value: &str) -> Self {
        let mut client = self.clone();
        client.headers.push((name.to_owned(), value.to_owned()));
        client
    }

    /// The server's base URL.
    #[must_use]
    pub fn base(&self) -> &str {
        &self.base
    }

    /// Sends a request and returns when the status line is there.
    ///
    /// # Errors
    /// When there is no HTTP answer at all.
    pub fn open(&self, method: &str, path: &str, body: &[u8]) -> Result<Response<ureq::Body>> {
        let mut req = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.base));
        for (name, value) in &self.headers {
            req = req.header(name, value);
        }
        let what = || format!("{method} {}{path}", self.base);
        if body.is_empty() {
            return self.agent.run(req.body(())?).with_context(what);
        }
        let req = req.header("content-type", "application/json");
        self.agent.run(req.body(body)?).with_context(what)
    }

    /// Sends a request and reads the whole answer.
    ///
    /// # Errors
    /// When there is no answer, or it breaks off.
    pub fn send(&self, method: &str, path: &str, body: &[u8]) -> Result<Reply> {
        let (parts, body) = self.open(method, path, body)?.into_parts();
        let mut bytes = Vec::new();
        body.into_reader().read_to_end(&mut bytes)?;
        Ok(Reply {
            status: parts.status.as_u16(),
            headers: parts.headers,
            text: String::from_utf8_lossy(&bytes).into_owned(),
        })
    }

    /// `POST path` with a JSON body; returns when the headers are there.
    ///
    /// # Errors
    /// When there is no HTTP answer at all.
    pub fn stream(&self, path: &str, body: &Value) -> Result<EventStream> {
        let res = self.open("POST", path, body.to_string().as_bytes())?;
        Ok(EventStream::new(res, false))
    }

    /// Follows a task's events, from the beginning or after one; returns when the headers are there.
    ///
    /// # Errors
    /// When there is no HTTP answer at all.
    pub fn follow(&self, job_id: &str, after: Option<&str>) -> Result<EventStream> {
        let client = match after {
            Some(id) => &self.header("last-event-id", id),
            None => self,
        };
        let res = client.open("GET", &format!("/v2/tasks/{job_id}/events"), &[])?;
        Ok(EventStream::new(res, true))
    }

    /// `GET path`.
    ///
    /// # Errors
    /// As [`Client::send`].
    pub fn get(&self, path: &str) -> Result<Reply> {
        self.send("GET", path, &[])
    }

    /// `DELETE path`.
    ///
    /// # Errors
    /// As [`Client::send`].
    pub fn delete(&self, path: &str) -> Result<Reply> {
        self.send("DELETE", path, &[])
    }

    /// `POST path` with a JSON body.
    ///
    /// # Errors
    /// As [`Client::send`].
    pub fn post(&self, path: &str, body: &Value) -> Result<Reply> {
        self.send("POST", path, body.to_string().as_bytes())
    }
}

/// Checks that a refusal is what the contract says: status, code, a message that names what was
/// wrong, a correlation id, and when to come back where that belongs.
///
/// # Panics
/// When it is not.
#[track_caller]
pub fn assert_error(reply: &Reply, status: u16, code: &str, message_has: &[&str]) {
    let text = &reply.text;
    assert_eq!(reply.status, status, "{text}");
    let error = &reply.json()["error"];
    // OpenAI's endpoints have OpenAI's code, and ours beside it.
    let ours = error.get("rbee_code").unwrap_or(&error["code"]);
    assert_eq!(ours, code, "{text}");
    let message = error["message"].as_str().unwrap_or_default();
    for fragment in message_has {
        assert!(message.contains(fragment), "no {fragment:?} in: {message}");
    }
    let correlation_id = error["correlation_id"].as_str().unwrap_or_default();
    assert_ne!(correlation_id, "", "{text}");
    assert_eq!(reply.header("x-correlation-id"), correlation_id);
    if status == 429 || status == 503 {
        let seconds = reply.header("retry-after").parse::<u64>();
        assert!(seconds.is_ok(), "no Retry-After: {:?}", reply.headers);
    }
}
