//! `rbee-hive fetch https://…`: a file of a web server into the models folder.

use std::fs;
use std::path::{Path, PathBuf};

use axum::http::{Method, StatusCode};
use sha2::{Digest, Sha256};
use url::Url;

use super::fetch::{PARTS, bytes_here, check_room, download_failed, length, lock, on_disk, sha256};
use super::progress::Meter;
use super::server::{Server, refused};
use super::split::Split;
use super::web::{self, WebRef};
use crate::config::is_loopback;
use crate::error::{ApiError, Result};

/// Set, files of servers on loopback come by plain HTTP: for tests.
const PLAIN_LOOPBACK: &str = "RBEE_HIVE_PLAIN_LOOPBACK";

pub(super) fn fetch(reference: &WebRef, folder: &Path, keep_free: u64) -> Result<PathBuf> {
    let first = reference.file(folder);
    let paths = Split::files(&first);
    if paths.len() > 1 && reference.sha256.is_some() {
        let message = format!("{reference} is of several files; a checksum is of one");
        return Err(ApiError::invalid(message));
    }
    let plain_loopback = std::env::var_os(PLAIN_LOOPBACK).is_some();
    let server = Server::named(plain_loopback);
    let files: Vec<WebFile> = paths
        .into_iter()
        .map(|path| WebFile::look_up(&server, reference, path, folder, plain_loopback))
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
            server.transfer(&file.url, file.size, &file.part, &mut meter)?;
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
    fn look_up(
        server: &Server,
        reference: &WebRef,
        path: PathBuf,
        folder: &Path,
        plain_loopback: bool,
    ) -> Result<Self> {
        let relative = path.strip_prefix(WebRef::root(folder)).unwrap_or(&path);
        let mut url = Url::parse(&format!("https://{}", relative.to_string_lossy()))
            .map_err(|error| ApiError::invalid(format!("{reference}: {error}")))?;
        if plain_loopback && url.host_str().is_some_and(is_loopback) {
            url = Url::parse(&url.as_str().replacen("https:", "http:", 1)).unwrap_or(url);
        }
        let answer = server.ask(&Method::HEAD, &url, None, |_, _| true)?;
        if answer.status() != StatusCode::OK {
            return Err(refused(&url, answer.status().as_u16()));
        }
        let size = answer.header("content-length").parse().map_err(|_| {
            download_failed(format!(
                "{url}: the server does not say how long the file is"
            ))
        })?;
        let version = format!("{url} {size} {}", answer.header("etag"));
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
