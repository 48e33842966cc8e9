//! `rbee-hive fetch`: one model from elsewhere, mostly from the hub, into the models folder.
//!
//! A process of its own, since a transfer that hangs can only be ended from outside: it blocks, and has no
//! time-outs. What was fetched stays and is gone on with the next time.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::Duration;

use axum::http::{Method, StatusCode};
use serde::Deserialize;
use serde_json::json;
use sha2::{Digest, Sha256};
use url::Url;

use super::fetch_web;
use super::hub::{self, HubRef, MAIN};
use super::progress::{Meter, Stage, print};
use super::server::{Answer, Server};
use super::source::SourceRef;
use super::split::Split;
use crate::devices::disk_free_bytes;
use crate::error::{ApiError, Result};

/// Parts of files, below the models folder; hidden, so that no part is taken for a model.
pub(super) const PARTS: &str = ".fetch";
const HUB: &str = "https://huggingface.co";
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
    server: Server,
    /// Of the hub's API, without a slash at its end.
    endpoint: String,
    repository: String,
    revision: String,
    /// Where its files go.
    folder: PathBuf,
    /// Where they are until they are whole.
    parts: PathBuf,
}

/// A file of a repository.
struct Remote {
    name: String,
    url: Url,
    size: u64,
    /// Of the content, in hex; `None` for small files that the hub keeps otherwise.
    sha256: Option<String>,
    /// Where it goes.
    path: PathBuf,
    /// What has come of it.
    part: PathBuf,
}

impl Source {
    fn open(reference: &HubRef, folder: &Path) -> Result<Self> {
        let endpoint = environment("HF_ENDPOINT").unwrap_or_else(|| HUB.to_owned());
        let endpoint = endpoint.trim_end_matches('/').to_owned();
        let at = Url::parse(&endpoint).map_err(|error| {
            ApiError::invalid(format!(
                "HF_ENDPOINT is {endpoint:?}: {error}; it must be a URL"
            ))
        })?;
        let repository = reference.repository.clone();
        let parts = folder
            .join(PARTS)
            .join(format!("models--{}", repository.replace('/', "--")))
            .join("blobs");
        fs::create_dir_all(&parts).map_err(|error| on_disk(&parts, &error))?;
        Ok(Source {
            name: reference.to_string(),
            server: Server::configured(&at, hub_token()),
            endpoint,
            repository,
            revision: reference.revision.as_deref().unwrap_or(MAIN).to_owned(),
            folder: folder.join(reference.folder()),
            parts,
        })
    }

    fn url(&self, path: &str) -> Result<Url> {
        let text = format!("{}/{path}", self.endpoint);
        Url::parse(&text).map_err(|error| ApiError::invalid(format!("{text:?}: {error}")))
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
        let (repository, revision) = (&self.repository, &self.revision);
        let url = self.url(&format!("api/models/{repository}/revision/{revision}"))?;
        let answer = self.server.ask(&Method::GET, &url, None, |_, _| true)?;
        if answer.status() != StatusCode::OK {
            return Err(refused_by_hub(&self.name, answer.status().as_u16()));
        }
        let mut body = answer.response.into_body();
        let info: RepositoryInfo = body.read_json().map_err(|error| {
            download_failed(format!("the hub's list of files of {}: {error}", self.name))
        })?;
        let files = info.siblings.iter().map(|file| file.rfilename.as_str());
        let best = hub::best(hub::model_files(files));
        best.map(str::to_owned).ok_or_else(|| {
            ApiError::model_not_found(format!(
                "{} has no GGUF file on the hub; look for a GGUF version of this model",
                self.name
            ))
        })
    }

    /// The hub tells of a file in its own first answer, which mostly points to another server with the content.
    fn look_up(&self, name: String) -> Result<Remote> {
        let (repository, revision) = (&self.repository, &self.revision);
        let url = self.url(&format!("{repository}/resolve/{revision}/{name}"))?;
        let (mut linked_etag, mut linked_size) = (String::new(), None);
        let looks_on = |answer: &Answer, next: &Url| {
            if answer.at.origin() == url.origin() && linked_etag.is_empty() {
                linked_etag = hash_of(answer.header("x-linked-etag"));
                linked_size = answer.header("x-linked-size").parse::<u64>().ok();
            }
            let is_elsewhere = next.origin() != url.origin();
            !(is_elsewhere && !linked_etag.is_empty() && linked_size.is_some())
        };
        let answer = self
            .server
            .ask(&Method::GET, &url, Some("bytes=0-0"), looks_on)?;
        let status = answer.status();
        if !(status.is_success() || status.is_redirection()) {
            let what = format!("{} ({name})", self.name);
            return Err(refused_by_hub(&what, status.as_u16()));
        }
        let etag = [answer.header("x-linked-etag"), answer.header("etag")].map(hash_of);
        let etag = [linked_etag]
            .into_iter()
            .chain(etag)
            .find(|etag| !etag.is_empty());
        let etag = etag.unwrap_or_default();
        if etag.is_empty() || !etag.chars().all(|c| c.is_ascii_alphanumeric() || c == '-') {
            let message = format!("the hub's ETag of {name} is {etag:?}, which is not a hash");
            return Err(download_failed(message));
        }
        let in_range = answer.header("content-range").rsplit_once('/');
        let in_range = in_range.and_then(|(_, size)| size.parse().ok());
        let told = || answer.header("content-length").parse().ok();
        let whole = || told().filter(|_| status == StatusCode::OK);
        let size = linked_size
            .or(in_range)
            .or_else(whole)
            .ok_or_else(|| download_failed(format!("the hub does not say how long {name} is")))?;
        let is_sha256 = etag.len() == 64 && etag.chars().all(|c| c.is_ascii_hexdigit());
        Ok(Remote {
            url,
            size,
            sha256: is_sha256.then(|| etag.to_ascii_lowercase()),
            path: self.folder.join(&name),
            part: self.parts.join(&etag).with_extension("part"),
            name,
        })
    }

    fn fetch(&self, file: &Remote, meter: &mut Meter) -> Result<()> {
        self.server
            .transfer(&file.url, file.size, &file.part, meter)?;
        self.check(file, meter)?;
        let moved = fs::create_dir_all(file.path.parent().unwrap_or(&file.path))
            .and_then(|()| fs::rename(&file.part, &file.path));
        moved.map_err(|error| on_disk(&file.path, &error))
    }

    fn check(&self, file: &Remote, meter: &mut Meter) -> Result<()> {
        let Some(wanted) = &file.sha256 else {
            return Ok(());
        };
        let found = sha256(&file.part, meter).map_err(|error| on_disk(&file.part, &error))?;
        if found == *wanted {
            return Ok(());
        }
        let _ = fs::remove_file(&file.part);
        Err(download_failed(format!(
            "{} of {} came with a wrong checksum and was thrown away; ask for it again",
            file.name, self.name
        )))
    }
}

/// What the hub tells of a repository.
#[derive(Deserialize)]
struct RepositoryInfo {
    siblings: Vec<RepositoryFile>,
}

#[derive(Deserialize)]
struct RepositoryFile {
    rfilename: String,
}

/// The hash that an ETag is, weak or not.
fn hash_of(etag: &str) -> String {
    etag.trim().trim_start_matches("W/").replace('"', "")
}

/// The hub's token, where the hub's own programs look for it. A blank one is none.
fn hub_token() -> Option<String> {
    let in_home = || environment("HOME").map(|home| Path::new(&home).join(".cache/huggingface"));
    let file = || {
        let path = environment("HF_TOKEN_PATH").map(PathBuf::from);
        let home = || environment("HF_HOME").map(PathBuf::from).or_else(in_home);
        let path = path.or_else(|| home().map(|home| home.join("token")))?;
        fs::read_to_string(path).ok()
    };
    let token = environment("HF_TOKEN").or_else(file)?;
    let token = token.trim();
    let is_token = !token.is_empty() && token.bytes().all(|byte| byte.is_ascii_graphic());
    is_token.then(|| token.to_owned())
}

fn environment(name: &str) -> Option<String> {
    let value = std::env::var(name).ok()?;
    let value = value.trim();
    (!value.is_empty()).then(|| value.to_owned())
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
fn refused_by_hub(what: &str, status: u16) -> ApiError {
    match status {
        404 => ApiError::model_not_found(format!("the hub has no {what}")),
        // What the hub says to a stranger of a repository that is not there.
        401 => ApiError::model_not_found(format!(
            "the hub has no {what} that this hive may see (401): it is not there, or private; if it \
             is there, give the hive a token in HF_TOKEN"
        )),
        403 => download_failed(format!(
            "the hub refuses {what} (403): accept its terms on the hub, and give the hive a token \
             in HF_TOKEN"
        )),
        status => download_failed(format!(
            "fetching {what} failed: the hub answered {status}; ask again, and it goes on where it \
             stopped"
        )),
    }
}
