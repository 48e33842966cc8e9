//! A folder with a fake hive's program, and the promise that no process of it is left behind.

use std::fs;
use std::net::TcpListener;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rbee_orchestrator::domain::{HiveId, HiveProcess, HiveSpec};
use rbee_orchestrator::hives::{CallTimeouts, HiveHandle, HiveOptions, HiveToken, PortClaims};
use rbee_orchestrator::transport::{HiveCommand, LocalTransport};

/// One test's fake hives. Dropped, it asserts that none of them runs, and ends those that do.
pub(crate) struct FakeHives {
    folder: tempfile::TempDir,
    /// A port that was free a moment ago.
    pub(crate) port: u16,
    pub(crate) token: HiveToken,
}

impl FakeHives {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().expect("temp dir is writable");
        let program = folder.path().join("fake_hive.py");
        fs::write(program, include_str!("fake_hive.py")).expect("temp dir is writable");
        let token = HiveToken::random().expect("there is randomness");
        FakeHives {
            folder,
            port: free_port(),
            token,
        }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn template(&self, mode: &str) -> Vec<String> {
        let program = self.path("fake_hive.py").display().to_string();
        let marker = self.path("marker").display().to_string();
        let port = "{port}".to_owned();
        let python = "python3".to_owned();
        let [p, m, f] = ["--port", "--mode", "--marker"].map(str::to_owned);
        vec![python, program, p, port, m, mode.to_owned(), f, marker]
    }

    pub(crate) fn command(&self, mode: &str) -> HiveCommand {
        let token = self.token.expose().to_owned();
        HiveCommand {
            template: self.template(mode),
            install_path: None,
            port: self.port,
            queen_url: None,
            env: vec![
                ("RBEE_API_TOKEN".into(), token.clone()),
                ("LLORCH_API_TOKEN".into(), token),
            ],
            log_file: self.path("hive.log"),
            start_timeout: Duration::from_secs(30),
        }
    }

    pub(crate) fn options(&self, mode: &str) -> HiveOptions {
        HiveOptions {
            template: self.template(mode),
            port: self.port,
            upload_dir: None,
            queen_url: Some("http://127.0.0.1:8080".into()),
            token: self.token.clone(),
            log_file: self.path("hive.log"),
            start_timeout: Duration::from_secs(30),
            stop_grace: Duration::from_secs(10),
            timeouts: CallTimeouts::default(),
            claims: PortClaims::default(),
        }
    }

    pub(crate) fn handle(&self, options: HiveOptions, stored: Option<HiveProcess>) -> HiveHandle {
        let spec = HiveSpec::local(HiveId::localhost());
        HiveHandle::new(&spec, stored, Arc::new(LocalTransport::new()), options)
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.path("hive.log")).unwrap_or_default()
    }

    /// Pids of live processes that name this folder in their command line.
    pub(crate) fn processes(&self) -> Vec<i32> {
        let ours = self.folder.path().display().to_string();
        let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
        let pids = entries.filter_map(|e| e.file_name().to_str()?.parse().ok());
        let is_ours = |pid: &i32| {
            // A zombie's command line is empty.
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            String::from_utf8_lossy(&line).contains(&ours)
        };
        pids.filter(is_ours).collect()
    }
}

impl Drop for FakeHives {
    fn drop(&mut self) {
        let left = self.processes();
        for pid in &left {
            if let Some(pid) = rustix::process::Pid::from_raw(*pid) {
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
        }
        if !std::thread::panicking() {
            assert_eq!(left, Vec::<i32>::new(), "processes are left behind");
        }
    }
}

pub(crate) fn free_port() -> u16 {
    let socket = TcpListener::bind(("127.0.0.1", 0)).expect("there is a free port");
    socket.local_addr().expect("it is bound").port()
}

/// Waits for something to come true, and fails after 20 s.
pub(crate) async fn eventually(what: &str, mut is_true: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !is_true() {
        assert!(Instant::now() < deadline, "it never came true: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
