//! `rbee-hive fetch https://…`: a file of a web server into the models folder.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use axum::http::{Method, Request, Response, header};
use hf_hub::api::Progress;
use sha2::{Digest, Sha256};
use ureq::{Agent, Body};
use url::Url;

use super::fetch::{
    PARTS, READ_SIZE, bytes_here, check_room, download_failed, length, lock, on_disk, sha256,
};
use super::progress::Meter;
use super::split::Split;
use super::web::{self, WebRef};
use crate::config::is_loopback;
use crate::error::{ApiError, Result};

const MOST_REDIRECTS: usize = 5;
/// Set, files of servers on loopback come by plain HTTP: for tests.
const PLAIN_LOOPBACK: &str = "RBEE_HIVE_PLAIN_LOOPBACK";

pub(super) fn fetch(reference: &WebRef, folder: &Path, keep_free: u64) -> Result<PathBuf> {
    let first = reference.file(folder);
    let paths = Split::files(&first);
    if paths.len() > 1 && reference.sha256.is_some() {
        let message = format!("{reference} is of several files; a checksum is of one");
        return Err(ApiError::invalid(message));
    }
    let server = Server::new();
    let files: Vec<WebFile> = paths
        .into_iter()
        .map(|path| server.look_up(reference, path, folder))
        .collect::<Result<_>>()?;
    let total = files.iter().map(|file| file.size).sum();
    let mut meter = Meter::new(total);
    let _lock = lock(&files[0].part, &meter)?;
    let here: u64 = files.iter().map(WebFile::bytes_here).sum();
    let name = reference.to_string();
    check_room(&name, folder, total.saturating_sub(here), keep_free)?;
    meter.report();
    for file in &files {
        if !file.is_here() {
            server.transfer(file, &mut meter)?;
            file.check(reference, &file.part, &mut meter)?;
            let moved = fs::create_dir_all(file.path.parent().unwrap_or(&file.path))
                .and_then(|()| fs::rename(&file.part, &file.path));
            moved.map_err(|error| on_disk(&file.path, &error))?;
        } else {
            file.check(reference, &file.path, &mut meter)?;
        }
        if let Some(sha256) = &reference.sha256 {
            web::remember_sha256(&file.path, sha256)
                .map_err(|error| on_disk(&file.path, &error))?;
        }
        meter.finished(file.size);
    }
    Ok(first)
}

/// A file on a server.
struct WebFile {
    url: Url,
    size: u64,
    /// Where it goes.
    path: PathBuf,
    /// What has come of it; named for its address and its version there.
    part: PathBuf,
}

impl WebFile {
    fn is_here(&self) -> bool {
        length(&self.path) == Some(self.size)
    }

    fn bytes_here(&self) -> u64 {
        bytes_here(self.size, &self.path, &self.part)
    }

    /// Refuses a file with another checksum than the reference says. A part is thrown away then, what
    /// was here before is not.
    fn check(&self, reference: &WebRef, at: &Path, meter: &mut Meter) -> Result<()> {
        let Some(wanted) = &reference.sha256 else {
            return Ok(());
        };
        let found = sha256(at, meter).map_err(|error| on_disk(at, &error))?;
        if found == *wanted {
            return Ok(());
        }
        if at != self.path {
            let _ = fs::remove_file(at);
            return Err(download_failed(format!(
                "{reference} came with a wrong checksum ({found}) and was thrown away"
            )));
        }
        Err(download_failed(format!(
            "{reference} is here with another checksum ({found}); remove it first"
        )))
    }
}

struct Server {
    agent: Agent,
    plain_loopback: bool,
}

impl Server {
    fn new() -> Self {
        let config = Agent::config_builder()
            .max_redirects(0)
            .http_status_as_error(false)
            .build();
        Server {
            agent: config.into(),
            plain_loopback: std::env::var_os(PLAIN_LOOPBACK).is_some(),
        }
    }

    fn look_up(&self, reference: &WebRef, path: PathBuf, folder: &Path) -> Result<WebFile> {
        let relative = path.strip_prefix(WebRef::root(folder)).unwrap_or(&path);
        let url = Url::parse(&format!("https://{}", relative.to_string_lossy()))
            .map_err(|error| ApiError::invalid(format!("{reference}: {error}")))?;
        let answer = self.ask(&Method::HEAD, &url, 0)?;
        let text = |name: header::HeaderName| {
            let value = answer.headers().get(name);
            value.and_then(|value| value.to_str().ok()).unwrap_or("")
        };
        let size = text(header::CONTENT_LENGTH).parse().map_err(|_| {
            download_failed(format!(
                "{url}: the server does not say how long the file is"
            ))
        })?;
        let version = format!("{url} {size} {}", text(header::ETAG));
        let digest = Sha256::digest(version.as_bytes());
        let name: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        let part = folder
            .join(PARTS)
            .join("https")
            .join(name)
            .with_extension("part");
        Ok(WebFile {
            url,
            size,
            path,
            part,
        })
    }

    /// Goes on behind what is there; begins anew where the server can't.
    fn transfer(&self, file: &WebFile, meter: &mut Meter) -> Result<()> {
        let have = length(&file.part)
            .filter(|have| *have <= file.size)
            .unwrap_or(0);
        let mut meter = meter;
        meter.init(0, "");
        if have == file.size {
            return Ok(());
        }
        let answer = self.ask(&Method::GET, &file.url, have)?;
        let from = match answer.status().as_u16() {
            206 => have,
            _ => 0,
        };
        let write = |error: &io::Error| on_disk(&file.part, error);
        let opened = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&file.part);
        let mut part = opened.map_err(|error| write(&error))?;
        part.set_len(from).map_err(|error| write(&error))?;
        io::Seek::seek(&mut part, io::SeekFrom::Start(from)).map_err(|error| write(&error))?;
        meter.update(usize::try_from(from).unwrap_or(usize::MAX));
        let mut body = answer.into_body().into_reader().take(file.size - from);
        let mut buffer = vec![0; READ_SIZE];
        loop {
            match body.read(&mut buffer) {
                Ok(0) => break,
                Ok(read) => {
                    part.write_all(&buffer[..read])
                        .map_err(|error| write(&error))?;
                    meter.update(read);
                }
                Err(error) => return Err(broken(&file.url, &error.to_string())),
            }
        }
        match length(&file.part) == Some(file.size) {
            true => part.sync_all().map_err(|error| write(&error)),
            false => Err(broken(&file.url, "the answer ended too early")),
        }
    }

    /// Asks, and follows redirects as long as they are safe.
    fn ask(&self, method: &Method, url: &Url, from: u64) -> Result<Response<Body>> {
        let mut at = url.clone();
        let is_loopback = at.host_str().is_some_and(is_loopback);
        if self.plain_loopback && is_loopback {
            at = Url::parse(&at.as_str().replacen("https:", "http:", 1)).unwrap_or(at);
        }
        for _ in 0..=MOST_REDIRECTS {
            let answer = self.ask_once(method, &at, from)?;
            let location = answer.headers().get(header::LOCATION);
            let location = location.filter(|_| answer.status().is_redirection());
            let Some(location) = location else {
                return checked(url, answer);
            };
            let next = location.to_str().ok().and_then(|to| at.join(to).ok());
            at = next.filter(|next| self.is_safe(next)).ok_or_else(|| {
                let message = format!("{url}: the server points to an address that is not https");
                download_failed(message)
            })?;
        }
        Err(download_failed(format!(
            "{url}: more than {MOST_REDIRECTS} redirects"
        )))
    }

    fn ask_once(&self, method: &Method, url: &Url, from: u64) -> Result<Response<Body>> {
        let request = Request::builder()
            .method(method)
            .uri(url.as_str())
            .header(header::ACCEPT_ENCODING, "identity");
        let request = match from {
            0 => request,
            from => request.header(header::RANGE, format!("bytes={from}-")),
        };
        let request = request
            .body(())
            .map_err(|error| ApiError::invalid(format!("{url}: {error}")))?;
        let answer = self.agent.run(request);
        answer.map_err(|error| broken(url, &error.to_string()))
    }

    fn is_safe(&self, url: &Url) -> bool {
        let is_loopback = url.host_str().is_some_and(is_loopback);
        url.scheme() == "https" || (self.plain_loopback && is_loopback)
    }
}

fn checked(url: &Url, answer: Response<Body>) -> Result<Response<Body>> {
    match answer.status().as_u16() {
        200 | 206 => Ok(answer),
        404 | 410 => Err(ApiError::model_not_found(format!("there is no {url}"))),
        status @ (401 | 403) => Err(download_failed(format!(
            "the server refuses {url} ({status}); fetch it yourself and put it into the models folder"
        ))),
        status => Err(broken(url, &format!("the server answered {status}"))),
    }
}

fn broken(url: &Url, why: &str) -> ApiError {
    download_failed(format!(
        "fetching {url} failed: {why}; ask again, and it goes on where it stopped"
    ))
}
