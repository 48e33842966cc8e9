//! A hive of the old kind: it can't tell what it has, and is to be told a model's file at each spawn.

use serde_json::{Value, json};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

/// The file that it says it has fetched.
pub const FILE: &str = "/old/models/m.gguf";

/// A hive that someone else runs, with the calls of the old ones and one worker to give.
#[derive(Debug)]
pub struct OldHive {
    port: u16,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    /// Where its worker is.
    worker: String,
    /// What its worker speaks, where it says so.
    protocol: Option<&'static str>,
    calls: Mutex<Vec<(String, Value)>>,
    /// The spawn that it was asked for last.
    spawned: Mutex<Option<Value>>,
}

impl OldHive {
    /// Starts one whose worker is at that URL.
    ///
    /// # Panics
    /// When there is no free port.
    #[must_use]
    pub fn start(worker: &str) -> Self {
        Self::serving(worker, None)
    }

    /// The same, with a worker that speaks OpenAI's protocol.
    ///
    /// # Panics
    /// When there is no free port.
    #[must_use]
    pub fn with_openai_worker(worker: &str) -> Self {
        Self::serving(worker, Some("openai"))
    }

    fn serving(worker: &str, protocol: Option<&'static str>) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("there is a free port");
        let port = listener.local_addr().expect("it is bound").port();
        let shared = Arc::new(Shared {
            worker: worker.to_owned(),
            protocol,
            calls: Mutex::default(),
            spawned: Mutex::default(),
        });
        let serving = shared.clone();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let shared = serving.clone();
                // An error means that the queen has gone.
                thread::spawn(move || shared.answer(stream).is_ok());
            }
        });
        OldHive { port, shared }
    }

    /// Its registration.
    #[must_use]
    pub fn registration(&self) -> Value {
        json!({"node_name": "old", "hostname": "127.0.0.1", "port": self.port, "mode": "network",
               "backends": "[\"cpu\"]", "devices": "{\"cpu\":1}"})
    }

    /// The bodies of all calls of a path.
    ///
    /// # Panics
    /// After a panic of another thread.
    #[must_use]
    pub fn calls(&self, path: &str) -> Vec<Value> {
        let calls = self.shared.calls.lock().expect("no panic");
        let calls = calls.iter().filter(|(at, _)| at == path);
        calls.map(|(_, body)| body.clone()).collect()
    }
}

impl Shared {
    /// One request; the connection ends with the answer.
    fn answer(&self, mut stream: TcpStream) -> io::Result<()> {
        let mut reader = BufReader::new(stream.try_clone()?);
        let mut first = String::new();
        reader.read_line(&mut first)?;
        let path = first.split(' ').nth(1).unwrap_or_default().to_owned();
        let mut length = 0;
        loop {
            let mut line = String::new();
            reader.read_line(&mut line)?;
            let line = line.trim().to_ascii_lowercase();
            if line.is_empty() {
                break;
            }
            if let Some(value) = line.strip_prefix("content-length:") {
                length = value.trim().parse().unwrap_or(0);
            }
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body)?;
        let body: Value = serde_json::from_slice(&body).unwrap_or_default();
        let noted = (path.clone(), body.clone());
        self.calls.lock().expect("no panic").push(noted);
        let (status, answer) = self.act(&path, body);
        write!(
            stream,
            "HTTP/1.1 {status} X\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{answer}",
            answer.len()
        )
    }

    fn act(&self, path: &str, body: Value) -> (u16, String) {
        let mut spawned = self.spawned.lock().expect("no panic");
        let answer = match path {
            "/v1/health" => json!({"status": "alive"}),
            "/v1/models/download" => json!({"download_id": "d-1", "local_path": null}),
            "/v1/models/download/progress?id=d-1" => {
                let half = json!({"stage": "downloading", "bytes_downloaded": 50,
                                  "bytes_total": 100, "speed_mbps": 1.0});
                let last = json!({"stage": "complete", "local_path": FILE});
                let events = format!("data: {half}\n\ndata: {last}\n\ndata: [DONE]\n\n");
                return (200, events);
            }
            "/v1/workers/spawn" => {
                let answer = json!({"worker_id": body["worker_id"], "url": self.worker,
                                    "state": "loading"});
                *spawned = Some(body);
                answer
            }
            "/v1/workers/list" => {
                let worker = spawned.as_ref().map(|body| {
                    json!({"id": body["worker_id"], "url": self.worker, "state": "idle",
                           "model_ref": body["model_ref"], "backend": "cpu", "device": 0,
                           "slots_total": 1, "slots_available": 0, "protocol": self.protocol.unwrap_or("rbee")})
                });
                json!({"workers": Vec::from_iter(worker)})
            }
            _ => return (404, String::new()),
        };
        (200, answer.to_string())
    }
}
