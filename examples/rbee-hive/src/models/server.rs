//! Servers that models are fetched from, the hub's among them: redirects that are followed only where that is safe, a
//! token that stays with the server that it is for, transfers that go on where they stopped.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;

use axum::http::{Method, Request, Response, StatusCode, header};
use ureq::unversioned::transport::DefaultConnector;
use ureq::{Agent, Body};
use url::{Origin, Url};

use super::fetch::{READ_SIZE, download_failed, length, on_disk};
use super::progress::Meter;
use super::reach::Reach;
use crate::config::is_loopback;
use crate::error::{ApiError, Result};

const MOST_REDIRECTS: usize = 5;

pub(super) struct Server {
    agent: Agent,
    /// Where plain HTTP is right, beside what is reached by it already.
    plain_loopback: bool,
    /// What is said to one origin, and to no other.
    token: Option<(Origin, String)>,
    /// Whether the hive's administrator set it. Of others nobody is told how a connection failed: who may
    /// name any address could look for open ports by it.
    is_configured: bool,
}

/// What a server said, and where in the end.
pub(super) struct Answer {
    pub(super) at: Url,
    pub(super) response: Response<Body>,
}

impl Answer {
    pub(super) fn status(&self) -> StatusCode {
        self.response.status()
    }

    /// A header's text; empty where it is not there.
    pub(super) fn header(&self, name: &str) -> &str {
        let value = self.response.headers().get(name);
        value.and_then(|value| value.to_str().ok()).unwrap_or("")
    }

    /// Where it points to, if it is a redirect.
    fn location(&self) -> Option<&str> {
        let is_redirect = self.status().is_redirection();
        Some(self.header(header::LOCATION.as_str())).filter(|to| is_redirect && !to.is_empty())
    }
}

impl Server {
    /// A server that callers name.
    pub(super) fn named(plain_loopback: bool) -> Self {
        Self::new(plain_loopback, None, false)
    }

    /// The server that the hive's administrator set, with a bearer token for it and nobody else.
    pub(super) fn configured(at: &Url, token: Option<String>) -> Self {
        Self::new(false, token.map(|token| (at.origin(), token)), true)
    }

    fn new(plain_loopback: bool, token: Option<(Origin, String)>, is_configured: bool) -> Self {
        let config = Agent::config_builder()
            .max_redirects(0)
            .http_status_as_error(false)
            .build();
        Server {
            agent: Agent::with_parts(config, DefaultConnector::default(), Reach::from_env()),
            plain_loopback,
            token,
            is_configured,
        }
    }

    /// Asks, and follows redirects as long as they are safe and `follows` them: it is shown each answer
    /// that is one, with where it points.
    pub(super) fn ask(
        &self,
        method: &Method,
        url: &Url,
        range: Option<&str>,
        mut follows: impl FnMut(&Answer, &Url) -> bool,
    ) -> Result<Answer> {
        let mut at = url.clone();
        for _ in 0..=MOST_REDIRECTS {
            let answer = self.ask_once(method, at.clone(), range)?;
            let Some(location) = answer.location() else {
                return Ok(answer);
            };
            let next = at.join(location).ok();
            let next = next.filter(|next| self.is_safe(&at, next)).ok_or_else(|| {
                let message = format!("{url}: the server points to an address that is not https");
                download_failed(message)
            })?;
            if !follows(&answer, &next) {
                return Ok(answer);
            }
            at = next;
        }
        Err(download_failed(format!(
            "{url}: more than {MOST_REDIRECTS} redirects"
        )))
    }

    fn ask_once(&self, method: &Method, at: Url, range: Option<&str>) -> Result<Answer> {
        let mut request = Request::builder()
            .method(method)
            .uri(at.as_str())
            .header(header::ACCEPT_ENCODING, "identity");
        if let Some(range) = range {
            request = request.header(header::RANGE, range);
        }
        if let Some((origin, token)) = &self.token
            && *origin == at.origin()
        {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        let request = request
            .body(())
            .map_err(|error| ApiError::invalid(format!("{at}: {error}")))?;
        match self.agent.run(request) {
            Ok(response) => Ok(Answer { at, response }),
            Err(error) => Err(self.no_answer(&at, &error)),
        }
    }

    fn no_answer(&self, at: &Url, error: &ureq::Error) -> ApiError {
        let is_out_of_reach = matches!(error, ureq::Error::Io(error)
            if error.kind() == io::ErrorKind::PermissionDenied);
        if self.is_configured || is_out_of_reach {
            return broken(at, &error.to_string());
        }
        eprintln!("fetching {at} failed: {error}");
        broken(
            at,
            "no server answered as one that has files (the hive's log says more)",
        )
    }

    /// Nothing leads from an encrypted connection to a plain one.
    fn is_safe(&self, from: &Url, to: &Url) -> bool {
        let is_loopback = to.host_str().is_some_and(is_loopback);
        match to.scheme() {
            "https" => true,
            "http" => {
                let was_plain = from.scheme() == "http";
                (self.is_configured && was_plain) || (self.plain_loopback && is_loopback)
            }
            _ => false,
        }
    }

    /// Fetches a file of this size into `part`: what is there is gone on with; where the server can't, it
    /// begins anew.
    pub(super) fn transfer(
        &self,
        url: &Url,
        size: u64,
        part: &Path,
        meter: &mut Meter,
    ) -> Result<()> {
        let have = length(part).filter(|have| *have <= size).unwrap_or(0);
        meter.begin();
        if have == size && part.exists() {
            return Ok(());
        }
        let range = format!("bytes={have}-");
        let answer = self.ask(&Method::GET, url, Some(&range), |_, _| true)?;
        let from = match answer.status().as_u16() {
            206 => have,
            200 => 0,
            status => return Err(refused(url, status)),
        };
        let write = |error: &io::Error| on_disk(part, error);
        let opened = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(part);
        let mut file = opened.map_err(|error| write(&error))?;
        file.set_len(from).map_err(|error| write(&error))?;
        file.seek(SeekFrom::Start(from))
            .map_err(|error| write(&error))?;
        meter.update(from);
        let mut body = answer.response.into_body().into_reader().take(size - from);
        let mut buffer = vec![0; READ_SIZE];
        loop {
            match body.read(&mut buffer) {
                Ok(0) => break,
                Ok(read) => {
                    file.write_all(&buffer[..read])
                        .map_err(|error| write(&error))?;
                    meter.update(read as u64);
                }
                Err(error) => return Err(broken(url, &error.to_string())),
            }
        }
        if length(part) != Some(size) {
            return Err(broken(url, "the answer ended too early"));
        }
        file.sync_all().map_err(|error| write(&error))
    }
}

/// What a web server's answer means for whoever asked.
pub(super) fn refused(url: &Url, status: u16) -> ApiError {
    match status {
        404 | 410 => ApiError::model_not_found(format!("there is no {url}")),
        401 | 403 => download_failed(format!(
            "the server refuses {url} ({status}); fetch it yourself and put it into the models folder"
        )),
        status => broken(url, &format!("the server answered {status}")),
    }
}

fn broken(url: &Url, why: &str) -> ApiError {
    download_failed(format!(
        "fetching {url} failed: {why}; ask again, and it goes on where it stopped"
    ))
}
