//! The folder that a queen and her hive live in, with the models that the stub engine serves.

use super::programs;
use super::queen::Launch;
use super::stub_engine::StubEngine;
use super::wait::until;
use crate::proc::{self, Process};
use serde_json::json;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::Duration;
use tempfile::TempDir;

/// Outlives the queens that are started in it. Dropped, it ends every process that came of them.
#[derive(Debug)]
pub struct Home {
    dir: TempDir,
    mark: String,
}

/// The variable that every process started here inherits, with a value of its own for each home.
pub(crate) const MARK: &str = "RBEE_TEST_HOME";

impl Home {
    /// An empty one.
    ///
    /// # Panics
    /// When there is no room for a temporary folder.
    #[must_use]
    pub fn new() -> Self {
        static HOMES: AtomicU32 = AtomicU32::new(0);
        let dir = tempfile::Builder::new().prefix("rbee-test-").tempdir();
        let dir = dir.expect("there is a writable temporary folder");
        let number = HOMES.fetch_add(1, Relaxed);
        let home = Home {
            dir,
            mark: format!("{}-{number}", std::process::id()),
        };
        fs::create_dir(home.models()).expect("the folder is ours");
        fs::write(home.hive_config(), hive_config()).expect("the folder is ours");
        home
    }

    /// Its folder.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Where the hive looks for models.
    #[must_use]
    pub fn models(&self) -> PathBuf {
        self.path().join("models")
    }

    pub(crate) fn hive_config(&self) -> PathBuf {
        self.path().join("hive.toml")
    }

    pub(crate) fn mark(&self) -> &str {
        &self.mark
    }

    /// What a hive's environment needs to use this home, `NAME=VALUE` with blanks between.
    pub(super) fn hive_variables(&self) -> String {
        let (models, config) = (self.models(), self.hive_config());
        format!(
            "RBEE_HIVE_MODELS={} RBEE_HIVE_CONFIG={} {MARK}={}",
            models.display(),
            config.display(),
            self.mark
        )
    }

    /// Puts a model there, served by a stub engine that behaves as the TOML text says. Its file
    /// name is `NAME.stub` for an engine of the protocol `openai`, `NAME.rbee` for `rbee` ones.
    /// Written again, it says how the next engine behaves.
    ///
    /// # Panics
    /// When it cannot be written.
    pub fn add_model(&self, file: &str, behaviour: &str) {
        fs::write(self.models().join(file), behaviour).expect("the folder is ours");
    }

    /// Lets the hive run with its defaults: no stub engines.
    ///
    /// # Panics
    /// When its configuration cannot be written.
    pub fn without_hive_config(&self) {
        fs::write(self.hive_config(), "").expect("the folder is ours");
    }

    /// A queen to be started here.
    #[must_use]
    pub fn queen(&self) -> Launch<'_> {
        Launch::new(self)
    }

    /// A stub engine that no hive owns.
    ///
    /// # Panics
    /// When it does not come up.
    #[must_use]
    pub fn stub(&self, args: &[&str]) -> StubEngine {
        let stub = StubEngine::start(&programs::stub(), args, self.path());
        stub.expect("the stub engine starts")
    }

    /// What runs of the processes that were started here: the queen, her hive, its engines.
    #[must_use]
    pub fn processes(&self) -> Vec<Process> {
        proc::with_env(MARK, &self.mark)
    }

    /// The engines among them.
    #[must_use]
    pub fn engines(&self) -> Vec<Process> {
        let all = self.processes().into_iter();
        all.filter(|p| p.command.contains("--behaviour-file"))
            .collect()
    }

    /// Checks that nothing of a queen that has ended runs on.
    ///
    /// # Panics
    /// When something does.
    #[track_caller]
    pub fn assert_nothing_runs(&self) {
        // Whoever ends a process does not always wait for its last moment.
        let gone = until(Duration::from_secs(2), || {
            self.processes().is_empty().then_some(())
        });
        assert!(gone.is_some(), "still running: {:#?}", self.processes());
    }
}

impl Default for Home {
    fn default() -> Self {
        Home::new()
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        for process in self.processes() {
            proc::kill(process.pid);
        }
    }
}

/// A hive that runs the stub engine for `.stub` and `.rbee` files.
fn hive_config() -> String {
    let stub = programs::stub().to_string_lossy().into_owned();
    let engine = |protocol: &str, extension: &str| {
        let command = json!([
            stub,
            "--host",
            "{host}",
            "--port",
            "{port}",
            "--model",
            "{model_ref}",
            "--slots",
            "{slots}",
            "--behaviour-file",
            "{model_path}"
        ]);
        // A list of strings is the same in JSON and in TOML.
        format!(
            "[engines.stub-{extension}]\ncommand = {command}\nextensions = [\"{extension}\"]\n\
             protocol = \"{protocol}\"\nhealth = \"/health\"\n\n"
        )
    };
    format!(
        "slots = 2\nload_timeout_secs = 4\nstop_grace_secs = 2\n\n{}{}",
        engine("openai", "stub"),
        engine("rbee", "rbee")
    )
}
