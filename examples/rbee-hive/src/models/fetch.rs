//! `rbee-hive fetch`: one model from elsewhere, mostly from the hub, into the models folder.
//!
//! A process of its own, since a transfer that hangs can only be ended from outside: the hub's
//! client blocks and has no time-outs. What was fetched stays and is gone on with the next time.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::Duration;

use axum::http::StatusCode;
use hf_hub::api::sync::{Api, ApiBuilder, ApiError as HubError, ApiRepo};
use hf_hub::{Cache, Repo, RepoType};
use serde_json::json;
use sha2::{Digest, Sha256};

use super::fetch_web;
use super::hub::{self, HubRef, MAIN};
use super::progress::{Meter, Stage, print};
use super::source::SourceRef;
use super::split::Split;
use crate::devices::disk_free_bytes;
use crate::error::{ApiError, Result};

/// Parts of files, below the models folder; hidden, so that no part is taken for a model.
pub(super) const PARTS: &str = ".fetch";
const LOOK_AT_LOCK: Duration = Duration::from_secs(1);
pub(super) const READ_SIZE: usize = 1 << 20;

/// Fetches, and prints how it goes. Says whether the model is there.
pub(crate) fn run(model_ref: &str, folder: &Path, keep_free: u64) -> bool {
    match fetch(model_ref, folder, keep_free) {
        Ok(local_path) => {
            print(&Stage::Complete { local_path });
            true
        }
        Err(error) => {
            print(&error.into());
            false
        }
    }
}

fn fetch(model_ref: &str, folder: &Path, keep_free: u64) -> Result<PathBuf> {
    match SourceRef::parse(model_ref) {
        Some(SourceRef::Hub(reference)) => fetch_from_hub(&reference, folder, keep_free),
        Some(SourceRef::Web(reference)) => fetch_web::fetch(&reference, folder, keep_free),
        None => Err(ApiError::invalid(format!(
            "{model_ref:?} is not hf:org/repo, hf:org/repo/file, hf:org/repo@revision::file=path or \
             https://host/path"
        ))),
    }
}

fn fetch_from_hub(reference: &HubRef, folder: &Path, keep_free: u64) -> Result<PathBuf> {
    let source = Source::open(reference, folder)?;
    let names = source.names(reference)?;
    let files: Vec<Remote> = names
        .into_iter()
        .map(|name| source.look_up(name))
        .collect::<Result<_>>()?;
    let total = files.iter().map(|file| file.size).sum();
    let mut meter = Meter::new(total);
    let _lock = lock(&files[0].part, &meter)?;
    let here: u64 = files.iter().map(Remote::bytes_here).sum();
    check_room(&source.name, folder, total.saturating_sub(here), keep_free)?;
    meter.report();
    for file in &files {
        if !file.is_here() {
            source.fetch(file, &mut meter)?;
        }
        meter.finished(file.size);
    }
    Ok(files[0].path.clone())
}

pub(super) fn check_room(
    reference: &str,
    folder: &Path,
    needed: u64,
    keep_free: u64,
) -> Result<()> {
    let Some(free) = disk_free_bytes(folder) else {
        return Ok(());
    };
    if needed == 0 || needed.saturating_add(keep_free) <= free {
        return Ok(());
    }
    let message = format!(
        "{reference} needs {needed} more bytes of disk; {free} are free in {}, of which \
         {keep_free} stay free: remove a model, or set keep_free_mib",
        folder.display()
    );
    let status = StatusCode::INSUFFICIENT_STORAGE;
    let details = json!({"needed": needed, "free": free, "keep_free": keep_free});
    Err(ApiError::new(status, "INSUFFICIENT_DISK", message).details(details))
}

/// Held while the process lives: two hives may share a folder. Says that it waits.
pub(super) fn lock(part: &Path, meter: &Meter) -> Result<File> {
    let path = part.with_extension("fetch");
    let opened = fs::create_dir_all(path.parent().unwrap_or(&path))
        .and_then(|()| File::options().create(true).append(true).open(&path))
        .map_err(|error| on_disk(&path, &error))?;
    loop {
        match opened.try_lock() {
            Ok(()) => return Ok(opened),
            Err(fs::TryLockError::WouldBlock) => meter.report(),
            Err(fs::TryLockError::Error(error)) => return Err(on_disk(&path, &error)),
        }
        #[expect(
            clippy::disallowed_methods,
            reason = "this process has no async threads"
        )]
        sleep(LOOK_AT_LOCK);
    }
}

/// A repository on the hub at a revision.
struct Source {
    name: String,
    api: Api,
    repository: ApiRepo,
    cache: Cache,
    repo: Repo,
    /// Where its files go.
    folder: PathBuf,
}

/// A file of a repository.
struct Remote {
    name: String,
    size: u64,
    /// Of the content, in hex; `None` for small files that the hub keeps otherwise.
    sha256: Option<String>,
    /// Where it goes.
    path: PathBuf,
    /// Where the hub's client writes it.
    part: PathBuf,
    blob: PathBuf,
}

impl Source {
    fn open(reference: &HubRef, folder: &Path) -> Result<Self> {
        let parts = folder.join(PARTS);
        fs::create_dir_all(&parts).map_err(|error| on_disk(&parts, &error))?;
        let cache = Cache::new(parts.clone());
        let mut api = ApiBuilder::from_env()
            .with_cache_dir(parts)
            .with_progress(false);
        if let Ok(token) = std::env::var("HF_TOKEN")
            && !token.is_empty()
        {
            api = api.with_token(Some(token));
        }
        let revision = reference.revision.as_deref().unwrap_or(MAIN);
        let repo = Repo::with_revision(
            reference.repository.clone(),
            RepoType::Model,
            revision.to_owned(),
        );
        let name = reference.to_string();
        let api = api.build().map_err(|error| failed(&name, &error))?;
        Ok(Source {
            repository: api.repo(repo.clone()),
            folder: folder.join(reference.folder()),
            name,
            api,
            cache,
            repo,
        })
    }

    /// The model's files in the repository, the first part first.
    fn names(&self, reference: &HubRef) -> Result<Vec<String>> {
        let first = match &reference.file {
            Some(file) => file.clone(),
            None => self.choose()?,
        };
        let files = Split::files(Path::new(&first)).into_iter();
        Ok(files
            .map(|file| file.to_string_lossy().into_owned())
            .collect())
    }

    fn choose(&self) -> Result<String> {
        let info = self
            .repository
            .info()
            .map_err(|error| failed(&self.name, &error))?;
        let files = info.siblings.iter().map(|file| file.rfilename.as_str());
        let best = hub::best(hub::model_files(files));
        best.map(str::to_owned).ok_or_else(|| {
            ApiError::model_not_found(format!(
                "{} has no GGUF file on the hub; look for a GGUF version of this model",
                self.name
            ))
        })
    }

    fn look_up(&self, name: String) -> Result<Remote> {
        let about = self
            .api
            .metadata(&self.repository.url(&name))
            .map_err(|error| failed(&format!("{} ({name})", self.name), &error))?;
        let (etag, commit) = (about.etag(), about.commit_hash());
        let is_plain = |text: &str| text.chars().all(|c| c.is_ascii_alphanumeric() || c == '-');
        if etag.is_empty() || !is_plain(etag) || !is_plain(commit) {
            let message = format!("the hub's ETag of {name} is {etag:?}, which is not a hash");
            return Err(download_failed(message));
        }
        let is_sha256 = etag.len() == 64 && etag.chars().all(|c| c.is_ascii_hexdigit());
        let blob = self.cache.repo(self.repo.clone()).blob_path(etag);
        Ok(Remote {
            size: about.size() as u64,
            sha256: is_sha256.then(|| etag.to_ascii_lowercase()),
            path: self.folder.join(&name),
            part: blob.with_extension("part"),
            blob,
            name,
        })
    }

    fn fetch(&self, file: &Remote, meter: &mut Meter) -> Result<()> {
        // The hub refuses to go on behind the end of a file.
        let is_whole = length(&file.part) == Some(file.size);
        if is_whole {
            fs::rename(&file.part, &file.blob).map_err(|error| on_disk(&file.blob, &error))?;
        } else {
            if length(&file.part).is_some_and(|length| length > file.size) {
                let _ = fs::remove_file(&file.part);
            }
            self.repository
                .download_with_progress(&file.name, &mut *meter)
                .map_err(|error| failed(&self.name, &error))?;
        }
        self.check(file, meter)?;
        let moved = fs::create_dir_all(file.path.parent().unwrap_or(&file.path))
            .and_then(|()| fs::rename(&file.blob, &file.path));
        moved.map_err(|error| on_disk(&file.path, &error))
    }

    fn check(&self, file: &Remote, meter: &mut Meter) -> Result<()> {
        let is_good = match &file.sha256 {
            Some(wanted) => {
                let found =
                    sha256(&file.blob, meter).map_err(|error| on_disk(&file.blob, &error))?;
                found == *wanted
            }
            None => length(&file.blob) == Some(file.size),
        };
        if is_good {
            return Ok(());
        }
        let _ = fs::remove_file(&file.blob);
        Err(download_failed(format!(
            "{} of {} came with a wrong checksum and was thrown away; ask for it again",
            file.name, self.name
        )))
    }
}

/// How much there is of a file: all of it, or what has come so far.
pub(super) fn bytes_here(size: u64, path: &Path, part: &Path) -> u64 {
    match length(path) == Some(size) {
        true => size,
        false => length(part).unwrap_or(0).min(size),
    }
}

impl Remote {
    fn is_here(&self) -> bool {
        length(&self.path) == Some(self.size)
    }

    fn bytes_here(&self) -> u64 {
        bytes_here(self.size, &self.path, &self.part)
    }
}

pub(super) fn length(path: &Path) -> Option<u64> {
    fs::metadata(path).ok().map(|about| about.len())
}

/// Ticks while it reads: whoever watches must not take a long check for a stall.
pub(super) fn sha256(path: &Path, meter: &mut Meter) -> io::Result<String> {
    let (mut file, mut hash) = (File::open(path)?, Sha256::new());
    let mut buffer = vec![0; READ_SIZE];
    loop {
        match file.read(&mut buffer)? {
            0 => break,
            read => hash.update(&buffer[..read]),
        }
        meter.tick();
    }
    let bytes = hash.finalize();
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

fn disk_full(what: &str) -> ApiError {
    let status = StatusCode::INSUFFICIENT_STORAGE;
    let message = format!("the disk is full; there is no room for {what}: remove a model");
    ApiError::new(status, "INSUFFICIENT_DISK", message)
}

pub(super) fn on_disk(path: &Path, error: &io::Error) -> ApiError {
    if error.kind() == io::ErrorKind::StorageFull {
        return disk_full(&path.display().to_string());
    }
    ApiError::internal(format!("can't write {}: {error}", path.display()))
}

pub(super) fn download_failed(message: String) -> ApiError {
    ApiError::new(StatusCode::BAD_GATEWAY, "DOWNLOAD_FAILED", message)
}

/// What the hub's answer means for whoever asked.
fn failed(what: &str, error: &HubError) -> ApiError {
    let status = match error {
        HubError::RequestError(error) => match **error {
            ureq::Error::StatusCode(status) => Some(status),
            _ => None,
        },
        HubError::IoError(error) if error.kind() == io::ErrorKind::StorageFull => {
            return disk_full(what);
        }
        _ => None,
    };
    match status {
        Some(404) => ApiError::model_not_found(format!("the hub has no {what}")),
        // What the hub says to a stranger of a repository that is not there.
        Some(401) => ApiError::model_not_found(format!(
            "the hub has no {what} that this hive may see (401): it is not there, or private; if it \
             is there, give the hive a token in HF_TOKEN"
        )),
        Some(403) => download_failed(format!(
            "the hub refuses {what} (403): accept its terms on the hub, and give the hive a token \
             in HF_TOKEN"
        )),
        _ => download_failed(format!(
            "fetching {what} failed: {error}; ask again, and it goes on where it stopped"
        )),
    }
}
