//! A queen in a process of her own.

use super::client::Client;
use super::daemon::Daemon;
use super::home::{Home, MARK};
use super::programs;
use super::stub_engine::{StubClient, StubEngine};
use super::wait::{eventually, until};
use super::{Reply, ports};
use rustix::process::Signal;
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::Duration;

/// How a queen is to be started.
#[derive(Debug)]
pub struct Launch<'h> {
    home: &'h Home,
    program: PathBuf,
    args: Vec<String>,
    env: Vec<(String, String)>,
    config: String,
    workers: String,
    port: Option<u16>,
    database: PathBuf,
}

impl<'h> Launch<'h> {
    pub(super) fn new(home: &'h Home) -> Self {
        Launch {
            home,
            program: programs::queen(),
            args: Vec::new(),
            env: Vec::new(),
            config: String::new(),
            workers: String::new(),
            port: None,
            database: home.path().join("queen.db"),
        }
    }

    /// Another program in place of the queen's, or hers at another place.
    #[must_use]
    pub fn program(mut self, program: &Path) -> Self {
        program.clone_into(&mut self.program);
        self
    }

    /// One more argument.
    #[must_use]
    pub fn arg(mut self, arg: &str) -> Self {
        self.args.push(arg.to_owned());
        self
    }

    /// One more variable, which her hive and its engines inherit.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }

    /// One more line of the configuration file, keys dotted: `timeouts.drain = "1s"`.
    #[must_use]
    pub fn config(mut self, line: &str) -> Self {
        self.config += line;
        self.config.push('\n');
        self
    }

    /// A stub that no hive owns, in the configuration file: each of her lives knows it.
    #[must_use]
    pub fn worker(mut self, stub: &StubEngine, model_ref: &str, slots: usize) -> Self {
        self.workers += &format!(
            "[[workers]]\nurl = \"{}\"\nmodel_ref = \"{model_ref}\"\nslots_total = {slots}\n",
            stub.url()
        );
        self
    }

    /// That port and no other.
    #[must_use]
    pub fn port(mut self, port: u16) -> Self {
        self.port = Some(port);
        self
    }

    /// Another database than the home's.
    #[must_use]
    pub fn database(mut self, database: &Path) -> Self {
        database.clone_into(&mut self.database);
        self
    }

    fn spawn(&self, port: u16) -> Daemon {
        static QUEENS: AtomicU32 = AtomicU32::new(0);
        let number = QUEENS.fetch_add(1, Relaxed);
        let home = self.home;
        let log = home.path().join(format!("queen-{number}.log"));
        let mut command = Command::new(&self.program);
        for (name, _) in std::env::vars().filter(|(name, _)| is_ours(name)) {
            command.env_remove(name);
        }
        command
            .args(["--port", &port.to_string(), "--database"])
            .arg(&self.database)
            .env(MARK, home.mark())
            .env("RBEE_HIVE_MODELS", home.models())
            .env("RBEE_HIVE_STATE", home.path().join("hive"))
            .env("RBEE_HIVE_CONFIG", home.hive_config())
            .envs(self.env.iter().map(|(name, value)| (name, value)))
            .args(&self.args);
        if !self.args.iter().any(|arg| arg == "--bind") {
            command.args(["--bind", "127.0.0.1"]);
        }
        if !self.args.iter().any(|arg| arg == "--config") {
            let config = home.path().join(format!("queen-{number}.toml"));
            // Tables come after all plain keys.
            let text = self.config.clone() + &self.workers;
            fs::write(&config, text).expect("the folder is ours");
            command.arg("--config").arg(config);
        }
        Daemon::spawn("queen-rbee", &mut command, &log).expect("the queen's program runs")
    }

    /// Starts her and waits until she answers.
    ///
    /// # Panics
    /// When she does not come up.
    #[must_use]
    #[track_caller]
    pub fn start(&self) -> Queen {
        for _ in 0..3 {
            match self.try_start() {
                Ok(queen) => return queen,
                Err(fallen) => {
                    // The home's port may have been taken in between.
                    let log = &fallen.log;
                    let unlucky = self.port.is_none() && log.to_lowercase().contains("in use");
                    assert!(unlucky, "the queen did not come up:\n{log}");
                }
            }
        }
        panic!("the queen found no free port in three tries");
    }

    /// Starts her once and waits until she answers.
    ///
    /// # Errors
    /// How she ended before that.
    ///
    /// # Panics
    /// When she neither answers nor ends.
    pub fn try_start(&self) -> Result<Queen, Fallen> {
        let port = self.port.unwrap_or_else(free_port);
        let mut daemon = self.spawn(port);
        let client = Client::new(&format!("http://127.0.0.1:{port}"));
        let up = until(Duration::from_secs(20), || match daemon.exited() {
            Some(status) => Some(Err(status)),
            None => {
                let health = client.get("/health").ok()?;
                (health.status == 200).then_some(Ok(()))
            }
        });
        match up {
            Some(Ok(())) => Ok(Queen {
                daemon,
                client,
                port,
            }),
            Some(Err(status)) => Err(Fallen {
                status,
                log: daemon.log(),
            }),
            None => panic!("the queen neither answers nor ends:\n{}", daemon.log()),
        }
    }

    /// Starts her, expecting her to refuse; returns her exit status and what she printed.
    ///
    /// # Panics
    /// When she runs on.
    #[must_use]
    #[track_caller]
    pub fn start_in_vain(&self) -> (ExitStatus, String) {
        let mut daemon = self.spawn(self.port.unwrap_or_else(free_port));
        let status = daemon.wait(Duration::from_secs(10));
        let status = status.expect("she refuses to run");
        (status, daemon.log())
    }
}

/// A queen who ended before she answered.
#[derive(Debug)]
pub struct Fallen {
    /// How
    pub status: ExitStatus,
    /// What she printed
    pub log: String,
}

/// Variables that would leak from the shell, which has real parts, into a test with stubs.
fn is_ours(name: &str) -> bool {
    name.starts_with("QUEEN_") || name.starts_with("RBEE_HIVE_")
}

fn free_port() -> u16 {
    ports::free().expect("the system has a port left")
}

/// Runs until she is dropped, which is SIGTERM.
#[derive(Debug)]
pub struct Queen {
    daemon: Daemon,
    client: Client,
    port: u16,
}

impl std::ops::Deref for Queen {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.client
    }
}

impl Queen {
    /// Where she listens.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Her process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.daemon.pid()
    }

    /// What she printed so far.
    #[must_use]
    pub fn log(&self) -> String {
        self.daemon.log()
    }

    /// How she ended, if she does within that time.
    pub fn ended(&mut self, within: Duration) -> Option<ExitStatus> {
        self.daemon.wait(within).ok()
    }

    /// Ends her with SIGKILL: she can put nothing in order.
    pub fn kill(mut self) {
        self.daemon.kill();
    }

    /// Asks her to end with `signal`, and waits.
    ///
    /// # Panics
    /// When she does not end, or not with success.
    #[track_caller]
    pub fn stop(mut self, signal: Signal) {
        self.daemon.signal(signal);
        let status = self.daemon.wait(Duration::from_secs(30));
        let status = status.expect("a signal ends her");
        assert!(status.success(), "{status}: {}", self.log());
    }

    /// `POST`s and reads the answer, which must come.
    ///
    /// # Panics
    /// When none comes.
    #[track_caller]
    pub fn ask(&self, path: &str, body: &Value) -> Reply {
        self.client.post(path, body).expect("the queen answers")
    }

    /// `GET`s and reads the answer, which must come.
    ///
    /// # Panics
    /// When none comes.
    #[track_caller]
    pub fn look(&self, path: &str) -> Reply {
        self.client.get(path).expect("the queen answers")
    }

    /// Her workers, as she lists them.
    ///
    /// # Panics
    /// When she does not list any.
    #[track_caller]
    pub fn workers(&self) -> Vec<Value> {
        let list = self.look("/v2/workers/list").json();
        let workers = list["workers"].as_array();
        workers.expect("a list of workers").clone()
    }

    /// The stub engine behind the only worker that serves `model_ref`.
    ///
    /// # Panics
    /// When there is none.
    #[track_caller]
    pub fn stub_behind(&self, model_ref: &str) -> StubClient {
        let workers = self.workers();
        let mut ours = workers.iter().filter(|w| w["model_ref"] == model_ref);
        let worker = ours.next();
        let worker = worker.unwrap_or_else(|| panic!("no worker for {model_ref}: {workers:#?}"));
        StubClient::new(worker["url"].as_str().expect("a worker has a URL"))
    }

    /// Registers a stub that no hive owns, under its model's reference, and waits until the queen
    /// finds it healthy.
    ///
    /// # Panics
    /// When she does not.
    #[track_caller]
    pub fn register(&self, stub: &StubEngine, model_ref: &str, more: &Value) {
        self.register_url(stub.url(), model_ref, more);
    }

    /// The same for any engine.
    ///
    /// # Panics
    /// As [`Queen::register`].
    #[track_caller]
    pub fn register_url(&self, url: &str, model_ref: &str, more: &Value) {
        let mut worker = json!({"url": url, "model_ref": model_ref});
        for (key, value) in more.as_object().into_iter().flatten() {
            worker[key] = value.clone();
        }
        let reply = self.ask("/v2/workers/register", &worker);
        assert_eq!(reply.status, 200, "{}", reply.text);
        let id = reply.json()["worker_id"].clone();
        eventually(
            "a registered worker is idle",
            Duration::from_secs(10),
            || {
                let workers = self.workers();
                let mut ours = workers.iter().filter(|w| w["worker_id"] == id);
                ours.any(|w| w["state"] == "idle")
            },
        );
    }

    /// Whether every slot of every worker is free.
    #[must_use]
    #[track_caller]
    pub fn is_idle(&self) -> bool {
        let workers = self.workers();
        let is_free = |w: &Value| w["state"] == "idle" && w["slots_available"] == w["slots_total"];
        workers.iter().all(is_free)
    }

    /// Checks that every slot is free again within a second.
    ///
    /// # Panics
    /// When one is not.
    #[track_caller]
    pub fn assert_no_slot_leaked(&self) {
        let free = until(Duration::from_secs(1), || self.is_idle().then_some(()));
        assert!(free.is_some(), "not free: {:#?}", self.workers());
    }

    /// Checks that nothing runs on a model's workers within a second, where tests share her. A
    /// worker that is left alone for a while is idle too, although none of its slots is to be had.
    ///
    /// # Panics
    /// When something does.
    #[track_caller]
    pub fn assert_no_slot_leaked_of(&self, model_ref: &str) {
        let mut workers = Vec::new();
        let free = until(Duration::from_secs(1), || {
            workers = self.workers();
            workers.retain(|w| w["model_ref"] == model_ref);
            workers.iter().all(|w| w["state"] == "idle").then_some(())
        });
        assert!(free.is_some(), "not free: {workers:#?}");
    }

    /// The state of a task, once it is `wanted`.
    ///
    /// # Panics
    /// When it does not become so within a second.
    #[track_caller]
    pub fn assert_task_becomes(&self, job_id: &str, wanted: &str) -> Value {
        let path = format!("/v2/tasks/{job_id}");
        let task = until(Duration::from_secs(1), || {
            let task = self.look(&path).json();
            (task["state"] == wanted).then_some(task)
        });
        task.unwrap_or_else(|| panic!("not {wanted}: {}", self.look(&path).text))
    }
}
