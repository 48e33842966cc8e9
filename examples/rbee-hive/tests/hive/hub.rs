//! A hub with the real one's URLs: a list of files, redirects to where the content is, ranges.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU16, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};

use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures_util::{StreamExt, stream};
use serde_json::json;
use sha2::{Digest, Sha256};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// One repository, `org/repo`.
pub(crate) struct Hub {
    pub(crate) url: String,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    files: BTreeMap<String, Vec<u8>>,
    /// Every request's answer while it is not 0.
    status: AtomicU16,
    /// How much of a content is sent before the connection breaks; 0 is all.
    cut_at: AtomicUsize,
    /// Whether the hub lies about the checksum.
    lies: bool,
    /// Held back until a permit is there.
    gate: Option<Semaphore>,
    /// Whether contents are on another host.
    is_elsewhere: bool,
    /// Ranges of contents that were asked for, and the tokens they came with.
    asked: Mutex<Vec<(u64, String)>>,
    /// What came with a token: the hub's own calls, and looks at contents.
    shown: Mutex<Vec<String>>,
}

impl Hub {
    pub(crate) async fn with(files: &[(&str, &[u8])]) -> Self {
        Self::start(files, Shared::default()).await
    }

    pub(crate) async fn that_lies(files: &[(&str, &[u8])]) -> Self {
        let lies = true;
        let shared = Shared {
            lies,
            ..Shared::default()
        };
        Self::start(files, shared).await
    }

    /// Has its contents on another host, as the real one has.
    pub(crate) async fn with_contents_elsewhere(files: &[(&str, &[u8])]) -> Self {
        let shared = Shared {
            is_elsewhere: true,
            ..Shared::default()
        };
        Self::start(files, shared).await
    }

    /// Paths of all calls that came with a token.
    pub(crate) fn shown_tokens_at(&self) -> Vec<String> {
        self.shared.shown.lock().unwrap().clone()
    }

    /// Sends no content before [`Hub::open`].
    pub(crate) async fn that_waits(files: &[(&str, &[u8])]) -> Self {
        let shared = Shared {
            gate: Some(Semaphore::new(0)),
            ..Shared::default()
        };
        Self::start(files, shared).await
    }

    async fn start(files: &[(&str, &[u8])], shared: Shared) -> Self {
        let files = files
            .iter()
            .map(|&(name, content)| (name.to_owned(), content.to_vec()));
        let shared = Arc::new(Shared {
            files: files.collect(),
            ..shared
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let router = axum::Router::new()
            .fallback(answer)
            .with_state(shared.clone());
        tokio::spawn(axum::serve(listener, router).into_future());
        Hub { url, shared }
    }

    pub(crate) fn answer_all_with(&self, status: u16) {
        self.shared.status.store(status, Relaxed);
    }

    pub(crate) fn cut_at(&self, bytes: usize) {
        self.shared.cut_at.store(bytes, Relaxed);
    }

    pub(crate) fn open(&self) {
        self.shared.gate.as_ref().unwrap().add_permits(1000);
    }

    /// Where transfers began; looks of one byte do not count.
    pub(crate) fn begins(&self) -> Vec<u64> {
        let asked = self.shared.asked.lock().unwrap();
        asked.iter().map(|(from, _)| *from).collect()
    }

    pub(crate) fn tokens(&self) -> Vec<String> {
        let asked = self.shared.asked.lock().unwrap();
        asked.iter().map(|(_, token)| token.clone()).collect()
    }
}

async fn answer(State(hub): State<Arc<Shared>>, request: Request) -> Response {
    let status = hub.status.load(Relaxed);
    if status != 0 {
        return StatusCode::from_u16(status).unwrap().into_response();
    }
    let path = request.uri().path();
    if request.headers().contains_key(header::AUTHORIZATION) {
        hub.shown.lock().unwrap().push(path.to_owned());
    }
    if path == "/api/models/org/repo/revision/main" {
        let names = hub.files.keys().map(|name| json!({"rfilename": name}));
        return axum::Json(json!({"siblings": names.collect::<Vec<_>>(), "sha": COMMIT}))
            .into_response();
    }
    if let Some(name) = path.strip_prefix("/content/") {
        return content(&hub, &hub.files[name], request.headers()).await;
    }
    let resolved = path.strip_prefix("/org/repo/resolve/");
    let name = resolved.and_then(|rest| Some(rest.split_once('/')?.1));
    let Some((name, content)) = name.and_then(|name| hub.files.get_key_value(name)) else {
        return StatusCode::NOT_FOUND.into_response();
    };
    let host = request.headers()[header::HOST].to_str().unwrap();
    let host = match hub.is_elsewhere {
        true => host.replace("127.0.0.1", "localhost"),
        false => host.to_owned(),
    };
    let etag = match hub.lies {
        true => "f".repeat(64),
        false => sha256(content),
    };
    let headers = [
        ("x-repo-commit", COMMIT.to_owned()),
        ("x-linked-etag", format!("\"{etag}\"")),
        ("location", format!("http://{host}/content/{name}")),
    ];
    (StatusCode::FOUND, headers).into_response()
}

async fn content(hub: &Shared, content: &[u8], headers: &HeaderMap) -> Response {
    let text = |name| {
        let value = headers.get(name);
        value.map_or("", |value| value.to_str().unwrap()).to_owned()
    };
    let range = text(header::RANGE);
    let (from, to) = range["bytes=".len()..].split_once('-').unwrap();
    let from: usize = from.parse().unwrap();
    let to = to.parse().map_or(content.len(), |last: usize| last + 1);
    if from >= content.len() {
        return StatusCode::RANGE_NOT_SATISFIABLE.into_response();
    }
    let is_look = range == "bytes=0-0";
    let mut end = to;
    if !is_look {
        let token = text(header::AUTHORIZATION);
        hub.asked.lock().unwrap().push((from as u64, token));
        if let Some(gate) = &hub.gate {
            let _permit = gate.acquire().await.unwrap();
        }
        let cut_at = hub.cut_at.load(Relaxed);
        if cut_at != 0 {
            end = cut_at.min(to);
        }
    }
    let is_cut = end < to;
    let sent = Bytes::copy_from_slice(&content[from..end]);
    let broken = || std::io::Error::other("cut");
    // The pause lets what was sent arrive before the connection breaks.
    let rest = stream::once(async move {
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        Err(broken())
    });
    let body = stream::once(async { Ok(sent) }).chain(rest.take(usize::from(is_cut)));
    let headers = [
        (header::CONTENT_LENGTH, (to - from).to_string()),
        (
            header::CONTENT_RANGE,
            format!("bytes {from}-{}/{}", to - 1, content.len()),
        ),
    ];
    (
        StatusCode::PARTIAL_CONTENT,
        headers,
        Body::from_stream(body),
    )
        .into_response()
}

fn sha256(content: &[u8]) -> String {
    let hash = Sha256::digest(content);
    hash.iter().map(|byte| format!("{byte:02x}")).collect()
}
