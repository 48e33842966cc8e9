//! A hive in a folder of its own, a queen that takes callbacks, and waiting without hoping.

use std::fs::{self, File};
use std::future::Future;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use axum::extract::Request;
use axum::http::StatusCode;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::sync::mpsc;

pub(crate) const DEADLINE: Duration = Duration::from_secs(30);
/// More than any test waits for.
const MOST_CALLBACKS: usize = 64;

/// Asks again and again until there is an answer.
pub(crate) async fn until<T, F: Future<Output = Option<T>>>(
    what: &str,
    mut ask: impl FnMut() -> F,
) -> T {
    let deadline = Instant::now() + DEADLINE;
    loop {
        if let Some(answer) = ask().await {
            return answer;
        }
        assert!(Instant::now() < deadline, "in vain: {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Folders and settings that outlive a hive's process.
pub(crate) struct Home {
    pub(crate) dir: TempDir,
    env: Vec<(String, String)>,
}

impl Home {
    /// A models folder with one stub model, `ok.stub`, and a configuration with the stub engine.
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("models")).unwrap();
        let home = Home {
            dir,
            env: Vec::new(),
        };
        home.model("ok.stub", "ok");
        home.configure("stop_grace_secs = 5");
        home
    }

    /// Writes the configuration: these lines and the stub engine.
    pub(crate) fn configure(&self, lines: &str) {
        self.configure_engine(lines, "");
    }

    /// The same, with more lines for the stub engine.
    pub(crate) fn configure_engine(&self, lines: &str, more: &str) {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/hive/stub_engine.py");
        let text = format!(
            "{lines}\n[engines.stub]\nextensions = [\"stub\"]\nhealth = \"/alive\"\n\
             command = [\"python3\", {script:?}, \"{{port}}\", \"{{model_path}}\", \
             \"{{model_ref}}\", \"{{slots}}x{{context}}={{context_total}}\"]\n{more}\n\
             [engines.stub.env]\nFLAVOUR = \"port {{port}}\"\n"
        );
        fs::write(self.path("hive.toml"), text).unwrap();
    }

    pub(crate) fn model(&self, name: &str, words: &str) {
        let path = self.path("models").join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, words).unwrap();
    }

    #[must_use]
    pub(crate) fn env(mut self, name: &str, value: impl Into<String>) -> Self {
        self.env.push((name.to_owned(), value.into()));
        self
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The daemon's command with nothing from this process's own environment that matters.
    pub(crate) fn command(&self, args: &[&str]) -> Command {
        // Without the terminal that the tests may have: a hive that has one ends with it.
        let mut command = Command::new("/usr/bin/setsid");
        command.arg(env!("CARGO_BIN_EXE_rbee-hive"));
        for name in [
            "RBEE_API_TOKEN",
            "LLORCH_API_TOKEN",
            "QUEEN_CALLBACK_URL",
            "RBEE_WORKER_HOST",
            "RUST_LOG",
            "HF_TOKEN",
            "HF_ENDPOINT",
            "HF_HOME",
        ] {
            command.env_remove(name);
        }
        command
            .arg("daemon")
            .args(args)
            .env("RBEE_HIVE_MODELS", self.path("models"))
            .env("RBEE_HIVE_STATE", self.path("state"))
            .env("RBEE_HIVE_CONFIG", self.path("hive.toml"))
            .envs(self.env.iter().map(|(name, value)| (name, value)));
        command
    }

    pub(crate) async fn start(&self) -> Hive {
        self.start_on(free_port()).await
    }

    pub(crate) async fn start_on(&self, port: u16) -> Hive {
        let log = self.path(&format!("hive-{port}.log"));
        let log = File::options().create(true).append(true).open(log).unwrap();
        let child = self
            .command(&["--port", &port.to_string()])
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        let token = self.env.iter().find(|(name, _)| name == "RBEE_API_TOKEN");
        let mut hive = Hive {
            child,
            port,
            token: token.map(|(_, token)| token.clone()),
            client: reqwest::Client::builder().no_proxy().build().unwrap(),
        };
        let deadline = Instant::now() + DEADLINE;
        while hive.get("/health").await.is_none() {
            let log = || fs::read_to_string(self.path(&format!("hive-{port}.log"))).unwrap();
            assert!(hive.child.try_wait().unwrap().is_none(), "{}", log());
            assert!(Instant::now() < deadline, "{}", log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        hive
    }

    /// Processes that hives of this home started and that live.
    pub(crate) fn engines(&self) -> Vec<u32> {
        let mark = format!("RBEE_HIVE_WORKER={}/", self.path("state").display());
        let entries = fs::read_dir("/proc").unwrap().flatten();
        let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        pids.filter(|&pid| {
            let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            let mut variables = environment.split(|&byte| byte == 0);
            variables.any(|v| v.starts_with(mark.as_bytes())) && is_alive(pid)
        })
        .collect()
    }

    pub(crate) async fn no_engine_is_left(&self) {
        until("no engine is left", async || {
            self.engines().is_empty().then_some(())
        })
        .await;
    }
}

/// Nothing stays behind, even when a test panics.
impl Drop for Home {
    fn drop(&mut self) {
        for pid in self.engines() {
            signal(pid, Signal::KILL);
        }
    }
}

pub(crate) struct Hive {
    child: Child,
    pub(crate) port: u16,
    token: Option<String>,
    client: reqwest::Client,
}

impl Hive {
    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }

    pub(crate) fn request(&self, method: &str, path: &str) -> reqwest::RequestBuilder {
        let method = method.parse().unwrap();
        let request = self
            .client
            .request(method, self.url(path))
            .timeout(DEADLINE);
        match &self.token {
            Some(token) => request.bearer_auth(token),
            None => request,
        }
    }

    /// The answer's body, when the hive answers and it is a good answer.
    pub(crate) async fn get(&self, path: &str) -> Option<Value> {
        let answer = self.request("GET", path).send().await.ok()?;
        answer.error_for_status().ok()?.json().await.ok()
    }

    pub(crate) async fn post(&self, path: &str, body: &Value) -> (StatusCode, Value) {
        let answer = self.request("POST", path).json(body).send().await.unwrap();
        (answer.status(), answer.json().await.unwrap())
    }

    pub(crate) async fn spawn(&self, id: &str, model_ref: &str) -> Value {
        let body = json!({"worker_id": id, "model_ref": model_ref});
        let (status, answer) = self.post("/v1/workers/spawn", &body).await;
        assert_eq!(status, 200, "{answer}");
        answer
    }

    pub(crate) async fn stop_worker(&self, id: &str) -> (StatusCode, Value) {
        self.post("/v1/workers/shutdown", &json!({"worker_id": id}))
            .await
    }

    pub(crate) async fn workers(&self) -> Vec<Value> {
        let list = self.get("/v1/workers/list").await.unwrap();
        list["workers"].as_array().unwrap().clone()
    }

    pub(crate) async fn worker(&self, id: &str) -> Option<Value> {
        let mut workers = self.workers().await.into_iter();
        workers.find(|worker| worker["id"] == id)
    }

    pub(crate) async fn worker_in(&self, id: &str, state: &str) -> Value {
        until(&format!("worker {id} is {state}"), async || {
            self.worker(id)
                .await
                .filter(|worker| worker["state"] == state)
        })
        .await
    }

    pub(crate) async fn worker_gone(&self, id: &str) {
        until(&format!("worker {id} is gone"), async || {
            self.worker(id).await.is_none().then_some(())
        })
        .await;
    }

    pub(crate) fn signal(&self, which: Signal) {
        signal(self.child.id(), which);
    }

    pub(crate) async fn exited(&mut self) -> ExitStatus {
        let child = std::cell::RefCell::new(&mut self.child);
        until("the hive ends", async || {
            child.borrow_mut().try_wait().unwrap()
        })
        .await
    }

    pub(crate) async fn kill_dash_nine(mut self) {
        self.signal(Signal::KILL);
        self.exited().await;
    }
}

impl Drop for Hive {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What the queen was told: path, `Authorization`, body.
pub(crate) type Callback = (String, String, Value);

/// A queen who takes callbacks and nothing else. The first one she refuses, so that each test
/// shows that the hive tries again.
pub(crate) async fn queen() -> (String, mpsc::Receiver<Callback>) {
    let (send, receive) = mpsc::channel(MOST_CALLBACKS);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let refused = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let take = move |request: Request| {
        let (send, refused) = (send.clone(), refused.clone());
        async move {
            if !refused.swap(true, std::sync::atomic::Ordering::Relaxed) {
                return StatusCode::SERVICE_UNAVAILABLE;
            }
            let header = request.headers().get("authorization");
            let token = header
                .map_or("", |value| value.to_str().unwrap())
                .to_owned();
            let path = request.uri().path().to_owned();
            let body = axum::body::to_bytes(request.into_body(), 1 << 20).await;
            let body = serde_json::from_slice(&body.unwrap()).unwrap();
            let _ = send.send((path, token, body)).await;
            StatusCode::OK
        }
    };
    let router = axum::Router::new().fallback(take);
    tokio::spawn(axum::serve(listener, router).into_future());
    (url, receive)
}

pub(crate) async fn next(callbacks: &mut mpsc::Receiver<Callback>) -> Callback {
    let next = tokio::time::timeout(DEADLINE, callbacks.recv()).await;
    next.expect("a callback comes").unwrap()
}

pub(crate) fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

pub(crate) fn is_alive(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat
        .rsplit_once(')')
        .map_or("X", |(_, rest)| rest.trim_start());
    !state.starts_with(['Z', 'X'])
}

pub(crate) fn signal(pid: u32, which: Signal) {
    let pid = Pid::from_raw(pid.try_into().unwrap()).unwrap();
    let _ = kill_process(pid, which);
}

pub(crate) fn pid(worker: &Value) -> u32 {
    worker["pid"].as_u64().unwrap().try_into().unwrap()
}

/// The status of a call to an engine, with its key if it has one.
pub(crate) async fn status(worker: &Value, path: &str, key: Option<&str>) -> u16 {
    let mut request = reqwest::Client::new().get(format!("{}{path}", text(worker, "url")));
    if let Some(key) = key {
        request = request.bearer_auth(key);
    }
    request.send().await.unwrap().status().as_u16()
}

pub(crate) fn text<'v>(value: &'v Value, name: &str) -> &'v str {
    value[name]
        .as_str()
        .unwrap_or_else(|| panic!("{name} in {value}"))
}
