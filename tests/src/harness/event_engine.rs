//! An engine that is healthy and streams what a test writes down, with pauses where the test says so.

use super::raw_engine::{HEALTHY, read_request};
use anyhow::Result;
use serde_json::{Value, json};
use std::io::{BufReader, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

/// An answer, part by part.
#[derive(Debug, Clone)]
pub struct Answer {
    status: u16,
    kind: &'static str,
    parts: Vec<Part>,
    breaks: bool,
    late: Duration,
}

#[derive(Debug, Clone)]
enum Part {
    Bytes(String),
    Pause(Duration),
}

impl Answer {
    /// A stream of events without any.
    #[must_use]
    pub fn stream() -> Self {
        Answer {
            status: 200,
            kind: "text/event-stream",
            parts: Vec::new(),
            breaks: false,
            late: Duration::ZERO,
        }
    }

    /// A whole answer.
    #[must_use]
    pub fn json(status: u16, body: &Value) -> Self {
        let whole = Answer {
            status,
            kind: "application/json",
            ..Answer::stream()
        };
        whole.raw(&body.to_string())
    }

    /// Sends this as it is.
    #[must_use]
    pub fn raw(mut self, text: &str) -> Self {
        self.parts.push(Part::Bytes(text.to_owned()));
        self
    }

    /// Sends an event.
    #[must_use]
    pub fn event(self, data: &Value) -> Self {
        self.raw(&format!("data: {data}\n\n"))
    }

    /// Sends a chunk of a chat with this delta.
    #[must_use]
    pub fn delta(self, delta: &Value) -> Self {
        self.event(&chunk(0, delta, &Value::Null))
    }

    /// Sends a token of text.
    #[must_use]
    pub fn text(self, text: &str) -> Self {
        self.delta(&json!({"content": text}))
    }

    /// Sends the chunk with which a chat's answer ends.
    #[must_use]
    pub fn finish(self, reason: &str) -> Self {
        self.event(&chunk(0, &json!({}), &json!(reason)))
    }

    /// Sends a chunk of nothing but usage.
    #[must_use]
    pub fn usage(self, prompt: u64, completion: u64) -> Self {
        self.event(&json!({"object": "chat.completion.chunk", "choices": [],
            "usage": {"prompt_tokens": prompt, "completion_tokens": completion}}))
    }

    /// Sends `[DONE]`.
    #[must_use]
    pub fn done(self) -> Self {
        self.raw("data: [DONE]\n\n")
    }

    /// Sends nothing for a while.
    #[must_use]
    pub fn pause(mut self, time: Duration) -> Self {
        self.parts.push(Part::Pause(time));
        self
    }

    /// Closes the connection in place of an orderly end.
    #[must_use]
    pub fn broken(mut self) -> Self {
        self.breaks = true;
        self
    }

    /// Sends nothing at all for a while, not even a status.
    #[must_use]
    pub fn late(mut self, time: Duration) -> Self {
        self.late = time;
        self
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "an engine's silence is what the test is about"
    )]
    fn write(&self, to: &mut TcpStream) -> Result<()> {
        let Answer { status, kind, .. } = self;
        thread::sleep(self.late);
        write!(
            to,
            "HTTP/1.1 {status} Status\r\ncontent-type: {kind}\r\ntransfer-encoding: chunked\r\n\r\n"
        )?;
        for part in &self.parts {
            match part {
                Part::Bytes(text) => write!(to, "{:x}\r\n{text}\r\n", text.len())?,
                Part::Pause(time) => thread::sleep(*time),
            }
        }
        if !self.breaks {
            to.write_all(b"0\r\n\r\n")?;
        }
        Ok(())
    }
}

/// A chunk of a chat's stream.
#[must_use]
pub fn chunk(index: u64, delta: &Value, finish: &Value) -> Value {
    json!({"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m",
           "choices": [{"index": index, "delta": delta, "finish_reason": finish}]})
}

type Script = Box<dyn Fn(&Value) -> Answer + Send + Sync>;

/// Listens until it is dropped.
pub struct EventEngine {
    port: u16,
    shared: Arc<Shared>,
}

struct Shared {
    script: Script,
    requests: Mutex<Vec<Value>>,
    stopped: AtomicBool,
}

impl EventEngine {
    /// Answers each request for tokens as `script` says to its body.
    ///
    /// # Errors
    /// When there is no port.
    pub fn start(script: impl Fn(&Value) -> Answer + Send + Sync + 'static) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let port = listener.local_addr()?.port();
        let shared = Arc::new(Shared {
            script: Box::new(script),
            requests: Mutex::default(),
            stopped: AtomicBool::new(false),
        });
        let accepting = shared.clone();
        thread::spawn(move || {
            for stream in listener.incoming() {
                if accepting.stopped.load(Relaxed) {
                    return;
                }
                let (Ok(stream), shared) = (stream, accepting.clone()) else {
                    continue;
                };
                // An error is a reader that has hung up.
                thread::spawn(move || shared.serve(stream));
            }
        });
        Ok(EventEngine { port, shared })
    }

    /// Where it listens.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// The bodies of the requests for tokens so far.
    #[must_use]
    pub fn requests(&self) -> Vec<Value> {
        let requests = self.shared.requests.lock();
        requests.unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for EventEngine {
    fn drop(&mut self) {
        self.shared.stopped.store(true, Relaxed);
        // Only to wake it up.
        drop(TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)));
    }
}

impl Shared {
    fn serve(&self, stream: TcpStream) -> Result<()> {
        stream.set_nodelay(true)?;
        let mut writer = stream.try_clone()?;
        let mut reader = BufReader::new(stream);
        while let Some(asked) = read_request(&mut reader)? {
            if asked.is_get {
                writer.write_all(HEALTHY)?;
                return Ok(());
            }
            let body: Value = serde_json::from_slice(&asked.body)?;
            let answer = (self.script)(&body);
            let mut requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
            requests.push(body);
            drop(requests);
            answer.write(&mut writer)?;
            if answer.breaks {
                return Ok(());
            }
        }
        Ok(())
    }
}
