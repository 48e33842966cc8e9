//! What a later life of the hive must know: a folder with a lock that is held while the hive
//! lives, a file for each worker, and their logs.

use std::collections::HashSet;
use std::fs::{self, DirBuilder, File, Permissions, TryLockError};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep};

use crate::process::ProcessId;
use crate::worker::{ApiKey, Plan};

const LOCK: &str = "hive.lock";
/// Another hive may hold the lock for a moment while it ends what a dead one left.
const LOCK_WAIT: Duration = Duration::from_secs(10);
/// Logs kept of workers that are gone.
const KEPT_LOGS: usize = 20;

/// A worker as it is written down.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct WorkerRecord {
    pub(crate) worker_id: String,
    pub(crate) process: ProcessId,
    pub(crate) url: String,
    pub(crate) port: u16,
    /// Absent in files of older hives, whose engines have none.
    pub(crate) api_key: Option<ApiKey>,
    pub(crate) slots_total: u32,
    pub(crate) plan: Plan,
}

#[derive(Debug)]
pub(crate) struct StateDir {
    path: PathBuf,
    /// Locked until the hive ends, however it ends.
    _lock: File,
}

impl StateDir {
    /// Takes the folder of the hive on this port.
    pub(crate) async fn open(root: &Path, port: u16) -> Result<Self> {
        let path = root.join(port.to_string());
        create(&path).with_context(|| {
            format!(
                "can't make the state folder {}; name another one with --state or RBEE_HIVE_STATE",
                path.display()
            )
        })?;
        let path = fs::canonicalize(path)?;
        let deadline = Instant::now() + LOCK_WAIT;
        loop {
            match lock(&path)? {
                Some(lock) => return Ok(StateDir { path, _lock: lock }),
                None if Instant::now() < deadline => sleep(Duration::from_millis(100)).await,
                None => bail!(
                    "STATE_IN_USE: another hive holds {}; stop it, or use another port or --state",
                    path.display()
                ),
            }
        }
    }

    /// Folders beside this one whose hives are dead. While one is held, its hive can't start.
    pub(crate) fn abandoned_siblings(&self) -> Vec<StateDir> {
        let root = self.path.parent().unwrap_or(&self.path);
        let entries = fs::read_dir(root).into_iter().flatten().flatten();
        entries
            .map(|entry| entry.path())
            .filter(|path| *path != self.path && is_hive_folder(path))
            .filter_map(|path| {
                let lock = lock(&path).ok()??;
                Some(StateDir { path, _lock: lock })
            })
            .collect()
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn log_path(&self, worker_id: &str) -> PathBuf {
        self.path.join("logs").join(file_name(worker_id, "log"))
    }

    pub(crate) fn records(&self) -> Vec<WorkerRecord> {
        let entries = fs::read_dir(self.path.join("workers"));
        let entries = entries.into_iter().flatten().flatten();
        entries
            .filter_map(|entry| serde_json::from_slice(&fs::read(entry.path()).ok()?).ok())
            .collect()
    }

    /// Replaces the file as a whole, so that a crash leaves the old one or the new one. Its key is for
    /// the hive's user alone.
    pub(crate) fn save(&self, record: &WorkerRecord) -> io::Result<()> {
        let path = self.record_path(&record.worker_id);
        let new = path.with_extension("new");
        let mut options = File::options();
        let options = options.write(true).create(true).truncate(true).mode(0o600);
        let mut file = options.open(&new)?;
        file.set_permissions(Permissions::from_mode(0o600))?;
        file.write_all(&serde_json::to_vec_pretty(record)?)?;
        fs::rename(new, path)
    }

    pub(crate) fn remove(&self, worker_id: &str) {
        if let Err(error) = fs::remove_file(self.record_path(worker_id))
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(worker_id, %error, "can't remove the worker's state file");
        }
    }

    /// Removes the oldest logs of workers that are gone.
    pub(crate) fn prune_logs(&self, living: impl Iterator<Item = String>) {
        let keep: HashSet<PathBuf> = living.map(|id| self.log_path(&id)).collect();
        let entries = fs::read_dir(self.path.join("logs"));
        let mut logs: Vec<_> = entries
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.path())
            .filter(|path| path.extension().is_some_and(|e| e == "log") && !keep.contains(path))
            .filter_map(|path| Some((fs::metadata(&path).ok()?.modified().ok()?, path)))
            .collect();
        logs.sort();
        let old = logs.len().saturating_sub(KEPT_LOGS);
        for (_, path) in logs.drain(..old) {
            let _ = fs::remove_file(path.with_extension("log.1"));
            let _ = fs::remove_file(path);
        }
    }

    fn record_path(&self, worker_id: &str) -> PathBuf {
        self.path.join("workers").join(file_name(worker_id, "json"))
    }
}

/// An id may be longer than a file name.
fn file_name(worker_id: &str, extension: &str) -> String {
    const LONGEST: usize = 200;
    match worker_id.get(..LONGEST) {
        None => format!("{worker_id}.{extension}"),
        Some(start) => {
            let mut hasher = DefaultHasher::new();
            worker_id.hash(&mut hasher);
            format!("{start}-{:016x}.{extension}", hasher.finish())
        }
    }
}

fn is_hive_folder(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    name.parse::<u16>().is_ok() && path.join(LOCK).is_file()
}

fn create(path: &Path) -> io::Result<()> {
    for folder in [path.join("workers"), path.join("logs")] {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(folder)?;
    }
    Ok(())
}

/// `None` when another process has it.
fn lock(path: &Path) -> io::Result<Option<File>> {
    let mut options = File::options();
    options.create(true).truncate(false).write(true);
    let file = options.open(path.join(LOCK))?;
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_living_hives_folder_is_no_abandoned_sibling() {
        let root = tempfile::tempdir().unwrap();
        let own = StateDir::open(root.path(), 1).await.unwrap();
        let other = StateDir::open(root.path(), 2).await.unwrap();
        assert!(own.abandoned_siblings().is_empty());
        drop(other);
        assert_eq!(own.abandoned_siblings().len(), 1);
    }

    #[test]
    fn ids_of_any_length_have_file_names_of_their_own() {
        let name = |id: &str| file_name(id, "json");
        assert_eq!(name("w"), "w.json");
        let (a, b) = (
            format!("{}a", "x".repeat(255)),
            format!("{}b", "x".repeat(255)),
        );
        assert!(name(&a).len() < 255);
        assert_ne!(name(&a), name(&b));
    }
}
