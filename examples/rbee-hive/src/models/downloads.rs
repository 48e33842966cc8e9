//! Downloads that run: one for each model, however many ask for it.

use std::collections::HashMap;
use std::process::Stdio;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::http::StatusCode;
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};
use tokio::sync::watch;
use tokio::time::timeout;
use tracing::Instrument;
use uuid::Uuid;

use super::progress::Stage;
use super::source::SourceRef;
use crate::error::{ApiError, Result};
use crate::hive::Hive;

/// More at once would only share the line.
const MOST: usize = 8;

#[derive(Debug)]
pub(crate) struct Download {
    pub(crate) id: String,
    reference: SourceRef,
    /// `None` until the source has answered.
    stage: watch::Sender<Option<Stage>>,
}

impl Download {
    pub(crate) fn follow(&self) -> watch::Receiver<Option<Stage>> {
        self.stage.subscribe()
    }
}

#[derive(Debug, Default)]
pub(crate) struct Downloads {
    /// By reference.
    running: Mutex<HashMap<String, Arc<Download>>>,
}

impl Downloads {
    pub(crate) fn get(&self, id: &str) -> Option<Arc<Download>> {
        self.lock()
            .values()
            .find(|download| download.id == id)
            .cloned()
    }

    /// Whether the model with this reference is on its way.
    pub(crate) fn has(&self, model_ref: &str) -> bool {
        let Some(model) = SourceRef::parse(model_ref) else {
            return false;
        };
        self.lock()
            .values()
            .any(|download| download.reference.covers(&model))
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Arc<Download>>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The download of this model: the one that runs, or a new one.
pub(crate) fn start(hive: &Hive, reference: &SourceRef) -> Result<Arc<Download>> {
    let key = reference.to_string();
    let mut running = hive.downloads.lock();
    if let Some(download) = running.get(&key) {
        return Ok(download.clone());
    }
    if hive.stopping.is_cancelled() {
        return Err(ApiError::shutting_down());
    }
    if running.len() >= MOST {
        return Err(ApiError::new(
            StatusCode::TOO_MANY_REQUESTS,
            "SYSTEM_AT_CAPACITY",
            format!("{MOST} downloads run already; ask again when one has ended"),
        ));
    }
    let mut child = spawn(hive, &key)?;
    let download = Arc::new(Download {
        id: Uuid::now_v7().to_string(),
        reference: reference.clone(),
        stage: watch::Sender::new(None),
    });
    running.insert(key.clone(), download.clone());
    drop(running);

    let (hive_, started) = (hive.clone(), download.clone());
    let span = tracing::info_span!(parent: None, "download", model = key);
    let watch = async move {
        let last = match follow(&hive_, &started, &mut child).await {
            Ok(last) => last,
            Err(error) => error.into(),
        };
        let _ = child.kill().await;
        tracing::info!(?last, "download ended");
        hive_.downloads.lock().remove(&key);
        started.stage.send_replace(Some(last));
    };
    hive.tasks.spawn(watch.instrument(span));
    Ok(download)
}

fn spawn(hive: &Hive, model_ref: &str) -> Result<Child> {
    let program = std::env::current_exe()
        .map_err(|error| ApiError::internal(format!("can't find the hive's program: {error}")))?;
    Command::new(program)
        .args(["fetch", model_ref, "--keep-free-bytes"])
        .arg(hive.rules().keep_free_bytes.to_string())
        .arg("--models")
        .arg(hive.catalog.folder())
        .env_remove("RBEE_API_TOKEN")
        .env_remove("LLORCH_API_TOKEN")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| ApiError::internal(format!("can't start the download: {error}")))
}

/// Passes on how far it is; gives how it ended.
async fn follow(hive: &Hive, download: &Download, child: &mut Child) -> Result<Stage> {
    let stdout = child.stdout.take();
    let mut lines = BufReader::new(stdout.expect("it was spawned with a pipe")).lines();
    loop {
        let stage = tokio::select! {
            stage = next(hive, &mut lines) => stage?,
            () = hive.stopping.cancelled() => return Err(ApiError::shutting_down()),
        };
        match stage {
            Stage::Downloading { .. } => {
                download.stage.send_replace(Some(stage));
            }
            Stage::Complete { .. } | Stage::Error { .. } => return Ok(stage),
        }
    }
}

async fn next(hive: &Hive, lines: &mut Lines<BufReader<ChildStdout>>) -> Result<Stage> {
    let failed =
        |message: String| ApiError::new(StatusCode::BAD_GATEWAY, "DOWNLOAD_FAILED", message);
    let limit = hive.rules().download_stall;
    let line = timeout(limit, lines.next_line()).await.map_err(|_| {
        failed(format!(
            "nothing came for {} s; ask again, and it goes on where it stopped",
            limit.as_secs()
        ))
    })?;
    match line {
        Ok(Some(line)) => serde_json::from_str(&line)
            .map_err(|error| ApiError::internal(format!("the download said {line:?}: {error}"))),
        _ => Err(failed("the download's process died; ask again".into())),
    }
}
