//! Models on their way to hives: one download for each hive and model, whoever waits for it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::Value;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout_at};

use super::client::HiveClient;
use super::events::HiveEvents;
use super::lenient::{number, text};
use super::models::{DownloadAnswer, MISSING_BYTES, with_shortage};
use crate::config::Config;
use crate::domain::{HiveId, ModelRef};
use crate::error::{Code, Error, Result};

/// Breaks in a row, without a byte between them, after which a download has failed.
const BREAKS: u32 = 5;
const AFTER_BREAK: Duration = Duration::from_secs(1);
/// Failures that are remembered: clients choose what is fetched.
const FAILURES_KEPT: usize = 4096;

/// How far a model is on its way to a hive.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Progress {
    /// The hive was asked.
    Asked,
    /// It comes.
    Downloading {
        /// Bytes that are there.
        bytes_downloaded: u64,
        /// Bytes of the whole model; 0 when unknown.
        bytes_total: u64,
        /// Megabits a second.
        speed_mbps: f64,
    },
    /// The hive has it.
    Complete {
        /// The file on its machine, where the hive tells it.
        local_path: Option<String>,
    },
    /// It did not come.
    Failed(Error),
}

impl Progress {
    /// Whether nothing comes after it.
    #[must_use]
    pub fn is_last(&self) -> bool {
        matches!(self, Progress::Complete { .. } | Progress::Failed(_))
    }

    fn bytes(&self) -> (u64, u64) {
        match self {
            Progress::Downloading {
                bytes_downloaded,
                bytes_total,
                ..
            } => (*bytes_downloaded, *bytes_total),
            _ => (0, 0),
        }
    }
}

type Key = (HiveId, ModelRef);

#[derive(Debug, Default)]
struct Inner {
    running: HashMap<Key, watch::Receiver<Progress>>,
    /// Until when a failure is told again instead of a new try.
    failed: HashMap<Key, (Instant, Error)>,
}

/// All downloads that this queen asked for.
#[derive(Debug)]
pub struct Provisioner {
    inner: Mutex<Inner>,
    config: Config,
}

impl Provisioner {
    /// With the time-outs of a configuration.
    #[must_use]
    pub fn new(config: Config) -> Self {
        Provisioner {
            inner: Mutex::default(),
            config,
        }
    }

    /// What is on its way now, and how far it is.
    #[must_use]
    pub fn running(&self) -> Vec<(HiveId, ModelRef, Progress)> {
        let inner = self.lock();
        let running = inner.running.iter();
        running
            .map(|((hive, model), progress)| {
                (hive.clone(), model.clone(), progress.borrow().clone())
            })
            .collect()
    }

    /// Makes sure that a hive has a model: joins the download that runs, or gives the work of a new
    /// one, to be run beside. Its progress ends early when the work is dropped. When the hive's disk
    /// is short, `make_room` is asked once to make so many bytes of room. It is complete once `report`
    /// has ended, which makes the model known.
    ///
    /// # Errors
    /// The last failure, if it is younger than `hives.retry_after`.
    pub fn ensure_model_available<M, F, R>(
        self: &Arc<Self>,
        client: HiveClient,
        model: &ModelRef,
        make_room: M,
        report: R,
    ) -> Result<(
        watch::Receiver<Progress>,
        Option<impl Future<Output = ()> + Send + use<M, F, R>>,
    )>
    where
        M: FnOnce(u64) -> F + Send,
        F: Future<Output = Result<(), String>> + Send,
        R: Future<Output = ()> + Send,
    {
        let key = (client.hive().clone(), model.clone());
        let mut inner = self.lock();
        let now = Instant::now();
        inner.failed.retain(|_, (until, _)| *until > now);
        if let Some(progress) = inner.running.get(&key) {
            return Ok((progress.clone(), None));
        }
        if let Some((until, error)) = inner.failed.get(&key) {
            return Err(error.clone().retry_after(*until - now));
        }
        let (progress, follow) = watch::channel(Progress::Asked);
        inner.running.insert(key.clone(), follow.clone());
        let running = Running {
            provisioner: self.clone(),
            key,
        };
        let work = async move {
            let model = running.key.1.clone();
            let config = &running.provisioner.config;
            let mut fetched = fetch(&client, &model, config, &progress).await;
            if let Err(error) = &mut fetched
                && let Some(missing) = missing_bytes(error)
            {
                match make_room(missing).await {
                    Ok(()) => fetched = fetch(&client, &model, config, &progress).await,
                    Err(why) => {
                        error.message += "; ";
                        error.message += &why;
                    }
                }
            }
            let last = match fetched {
                Ok(local_path) => {
                    report.await;
                    Progress::Complete { local_path }
                }
                Err(error) => {
                    tracing::warn!(hive = %client.hive(), %model, %error, "a download failed");
                    Progress::Failed(error)
                }
            };
            running.end(&last);
            progress.send_replace(last);
        };
        Ok((follow, Some(work)))
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How much room the hive's disk lacks, if that is why it did not fetch the model.
fn missing_bytes(error: &Error) -> Option<u64> {
    let details = error.details.as_ref()?;
    let missing = details.get(MISSING_BYTES)?.as_u64();
    missing.filter(|_| error.code == Code::InsufficientDisk)
}

/// A download that is listed. Dropped, it is not any more.
struct Running {
    provisioner: Arc<Provisioner>,
    key: Key,
}

impl Running {
    fn end(&self, last: &Progress) {
        let mut inner = self.provisioner.lock();
        inner.running.remove(&self.key);
        if let Progress::Failed(error) = last
            && inner.failed.len() < FAILURES_KEPT
        {
            let until = Instant::now() + self.provisioner.config.hives.retry_after;
            inner
                .failed
                .insert(self.key.clone(), (until, error.clone()));
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.provisioner.lock().running.remove(&self.key);
    }
}

/// Asks, follows, and asks again when the hive or the way to it breaks: it goes on where it was.
async fn fetch(
    client: &HiveClient,
    model: &ModelRef,
    config: &Config,
    progress: &watch::Sender<Progress>,
) -> Result<Option<String>> {
    let mut breaks = 0;
    loop {
        let before = progress.borrow().bytes().0;
        let error = match attempt(client, model, config, progress).await {
            Ok(local_path) => return Ok(local_path),
            Err(Stopped::ForGood(error)) => return Err(error),
            Err(Stopped::Broken(error)) => error,
        };
        if progress.borrow().bytes().0 > before {
            breaks = 0;
        }
        breaks += 1;
        if breaks == BREAKS {
            return Err(error);
        }
        tracing::debug!(hive = %client.hive(), %model, %error, "a download is taken up again");
        sleep(AFTER_BREAK).await;
    }
}

/// Why an attempt ended without the model.
enum Stopped {
    /// The hive says so, or it stalls.
    ForGood(Error),
    /// The hive or the way to it is gone for a moment.
    Broken(Error),
}

impl From<Error> for Stopped {
    fn from(error: Error) -> Self {
        match error.code {
            // One that goes down may come back at once.
            Code::HiveUnreachable | Code::ShuttingDown => Stopped::Broken(error),
            _ => Stopped::ForGood(error),
        }
    }
}

async fn attempt(
    client: &HiveClient,
    model: &ModelRef,
    config: &Config,
    progress: &watch::Sender<Progress>,
) -> Result<Option<String>, Stopped> {
    let id = match client.download(model).await? {
        DownloadAnswer::Cached(local_path) => return Ok(local_path),
        DownloadAnswer::Started(id) => id,
    };
    let id: String = url::form_urlencoded::byte_serialize(id.as_bytes()).collect();
    let path = format!("/v1/models/download/progress?id={id}");
    let mut events = match client.events(&path).await {
        Ok(events) => events,
        // It ended meanwhile; asking again tells how.
        Err(error) if matches!(error.code, Code::NotFound | Code::NotImplemented) => {
            return Err(Stopped::Broken(error));
        }
        Err(error) => return Err(error.into()),
    };
    follow(client, model, &mut events, config, progress).await
}

/// Passes the progress on until the end, as long as there is some.
async fn follow(
    client: &HiveClient,
    model: &ModelRef,
    events: &mut HiveEvents,
    config: &Config,
    progress: &watch::Sender<Progress>,
) -> Result<Option<String>, Stopped> {
    let mut moved = Instant::now();
    loop {
        let (have, total) = progress.borrow().bytes();
        // Once all is there the hive checks it, which takes longer the more there is.
        let patience = match total > 0 && have >= total {
            true => config.timeouts.load_deadline(total),
            false => config.timeouts.download_stall,
        };
        let next = timeout_at(moved + patience, events.next()).await;
        let stalled = || {
            let hive = client.hive();
            let said = format!("the download of {model} to {hive} stood still for {patience:?}");
            Stopped::ForGood(Error::new(Code::Timeout, said))
        };
        let broken = || client.unreachable("ended the download's progress before its end");
        let data = next.map_err(|_| stalled())?;
        let data = data.unwrap_or_else(|| Err(broken()))?;
        let event: Value = serde_json::from_slice(&data).unwrap_or_default();
        match text(&event, &["stage"]).as_deref() {
            Some("complete") => return Ok(text(&event, &["local_path"])),
            Some("error") => return Err(failure(client, &event).into()),
            Some("downloading") => {
                let now = Progress::Downloading {
                    bytes_downloaded: number(&event, &["bytes_downloaded"]).unwrap_or(0),
                    bytes_total: number(&event, &["bytes_total"]).unwrap_or(0),
                    speed_mbps: event["speed_mbps"].as_f64().unwrap_or(0.0),
                };
                if now.bytes().0 != have {
                    moved = Instant::now();
                }
                progress.send_replace(now);
            }
            _ if data == "[DONE]" => return Err(broken().into()),
            _ => {}
        }
    }
}

fn failure(client: &HiveClient, event: &Value) -> Error {
    let said = text(event, &["code"]);
    let code = said.as_deref().and_then(Code::parse);
    let message = text(event, &["message"]).unwrap_or_default();
    let error = client.error(
        code.unwrap_or(Code::DownloadFailed),
        &format!("could not fetch it: {message}"),
    );
    with_shortage(error, &event["details"])
}
