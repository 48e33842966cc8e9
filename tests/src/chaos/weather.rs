//! What else goes wrong while the queen lives: her worker is too busy, her machine's clock jumps.

use crate::harness::{Launch, StubEngine};
use anyhow::Result;
use std::env;
use std::fs;
use std::path::{Path, PathBuf};

/// Requests that a busy worker refuses: more than the failures that a task may have elsewhere.
const REFUSED: &str = "fault=status_503&fault_times=24";

/// Where a clock jumps to.
const JUMPS: [&str; 4] = ["+8d", "-8d", "+30d", "-30d"];

/// The troubles of the lives that no step of their own ends.
pub(super) struct Weather<'s> {
    stub: &'s StubEngine,
    /// The file that sets the queen's clock, and the library that reads it, where there is one
    clock: Option<(PathBuf, String)>,
}

/// Sets the clock back when it is dropped.
pub(super) struct Jump<'w>(&'w Path);

impl<'s> Weather<'s> {
    pub(super) fn new(stub: &'s StubEngine, folder: &Path) -> Result<Self> {
        let file = folder.join("clock");
        set(&file, "+0")?;
        let library = env::var("RBEE_TEST_FAKETIME").ok();
        Ok(Weather {
            stub,
            clock: library.map(|library| (file, library)),
        })
    }

    /// The only worker, which can go away altogether.
    pub(super) fn stub(&self) -> &StubEngine {
        self.stub
    }

    /// A queen whose clock can be set.
    pub(super) fn over<'h>(&self, queen: Launch<'h>) -> Launch<'h> {
        match &self.clock {
            Some((file, library)) => queen
                .env("LD_PRELOAD", library)
                .env("FAKETIME_TIMESTAMP_FILE", &file.to_string_lossy())
                .env("FAKETIME_NO_CACHE", "1")
                // Who is killed would leave it behind.
                .env("FAKETIME_DISABLE_SHM", "1")
                .env("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
            None => queen,
        }
    }

    /// No trouble: a worker that is still busy would keep the queen from the steps at which she is to die.
    pub(super) fn calm(&self) -> Result<()> {
        self.stub.control("fault=none")
    }

    /// The trouble of that life: each in its turn. It is over when what is returned is dropped.
    pub(super) fn turn(&self, life: usize) -> Result<Option<Jump<'_>>> {
        if life.is_multiple_of(2) {
            self.stub.control(REFUSED)?;
        }
        let Some((file, _)) = &self.clock else {
            return Ok(None);
        };
        set(file, JUMPS[life % JUMPS.len()])?;
        Ok(Some(Jump(file)))
    }
}

impl Drop for Jump<'_> {
    fn drop(&mut self) {
        // The next life says so, if it could not be.
        let _ = set(self.0, "+0");
    }
}

fn set(file: &Path, offset: &str) -> Result<()> {
    // In one step: a reader must never find half of it.
    let new = file.with_extension("new");
    fs::write(&new, offset)?;
    Ok(fs::rename(&new, file)?)
}
