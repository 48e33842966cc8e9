//! Models that come from web servers.

use std::sync::{Arc, Mutex};

use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Redirect, Response};
use futures_util::{StreamExt, stream};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::net::TcpListener;

use crate::downloads::{ask, fetch, is_listed};
use crate::support::{Home, text};

const MODEL: &[u8] = &[7; 300_000];

/// A server with one file, `/dir/m.gguf`.
struct Server {
    address: String,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    /// How much of the file is sent before the connection breaks; `None` is all.
    cut_at: Mutex<Option<usize>>,
    /// Where the transfers began.
    begins: Mutex<Vec<usize>>,
}

impl Server {
    async fn start() -> Self {
        let shared = Arc::new(Shared::default());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let router = axum::Router::new().fallback(answer);
        let router = router.with_state(shared.clone());
        tokio::spawn(axum::serve(listener, router).into_future());
        Server { address, shared }
    }

    fn reference(&self, path: &str) -> String {
        format!("https://{}/{path}", self.address)
    }

    fn begins(&self) -> Vec<usize> {
        self.shared.begins.lock().unwrap().clone()
    }

    fn cut_at(&self, bytes: Option<usize>) {
        *self.shared.cut_at.lock().unwrap() = bytes;
    }
}

async fn answer(State(shared): State<Arc<Shared>>, request: Request) -> Response {
    match request.uri().path() {
        "/dir/m.gguf" => {}
        "/moved/m.gguf" => return Redirect::temporary("/dir/m.gguf").into_response(),
        "/away/m.gguf" => return Redirect::temporary("http://192.0.2.1/m.gguf").into_response(),
        _ => return StatusCode::NOT_FOUND.into_response(),
    }
    let range = request.headers().get(header::RANGE);
    let range = range.and_then(|range| range.to_str().ok()?.strip_prefix("bytes="));
    let from = range.and_then(|range| range.strip_suffix('-')?.parse().ok());
    let begin = from.unwrap_or(0);
    let mut content = &MODEL[begin..];
    let length = content.len();
    let mut cut = false;
    if request.method() == "GET" {
        shared.begins.lock().unwrap().push(begin);
        if let Some(at) = *shared.cut_at.lock().unwrap() {
            content = &content[..at];
            cut = true;
        }
    }
    let whole = stream::iter([Ok(Bytes::from_static(content))]);
    // The pause lets what was sent arrive before the connection breaks.
    let broken = stream::once(async {
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        Err(std::io::Error::other("cut"))
    })
    .take(usize::from(cut));
    let mut response = Response::new(Body::from_stream(whole.chain(broken)));
    if from.is_some() {
        *response.status_mut() = StatusCode::PARTIAL_CONTENT;
    }
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
    headers.insert(header::ETAG, HeaderValue::from_static("\"v1\""));
    response
}

fn home() -> Home {
    let home = Home::new().env("RBEE_HIVE_PLAIN_LOOPBACK", "1");
    home.configure("keep_free_mib = 0");
    home
}

fn sha256() -> String {
    let hash = Sha256::digest(MODEL);
    hash.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn path_of(done: &Value) -> Vec<u8> {
    std::fs::read(text(done, "local_path")).unwrap()
}

#[tokio::test]
async fn a_file_comes_from_its_address_and_goes_on_after_a_break() {
    let (server, home) = (Server::start().await, home());
    let hive = home.start().await;
    let reference = server.reference("dir/m.gguf");
    server.cut_at(Some(100_000));
    let failed = fetch(&hive, &reference).await;
    assert_eq!(failed["code"], "DOWNLOAD_FAILED", "{failed}");
    server.cut_at(None);
    let done = fetch(&hive, &reference).await;
    assert_eq!(path_of(&done), MODEL, "{done}");
    assert_eq!(server.begins(), [0, 100_000]);
    assert!(is_listed(&hive, &reference).await);
    assert_eq!(ask(&hive, &reference).await.1["download_id"], "cached");
}

#[tokio::test]
async fn a_checksum_is_held_against_what_came_and_against_what_is_here() {
    let (server, home) = (Server::start().await, home());
    let hive = home.start().await;
    let plain = server.reference("dir/m.gguf");
    let wrong = format!("{plain}#sha256={}", "0".repeat(64));
    let failed = fetch(&hive, &wrong).await;
    assert!(
        text(&failed, "message").contains("wrong checksum"),
        "{failed}"
    );
    assert!(!is_listed(&hive, &plain).await);

    let right = format!("{plain}#sha256={}", sha256());
    assert_eq!(path_of(&fetch(&hive, &right).await), MODEL);
    assert_eq!(ask(&hive, &right).await.1["download_id"], "cached");
    let list = hive.get("/v1/models/list").await.unwrap();
    let models = list["models"].as_array().unwrap();
    let model = models.iter().find(|model| model["model_ref"] == plain);
    let aliases = model.unwrap()["aliases"].as_array().unwrap();
    assert!(aliases.contains(&json!(right)), "{aliases:?}");

    let failed = fetch(&hive, &wrong).await;
    assert!(
        text(&failed, "message").contains("another checksum"),
        "{failed}"
    );
    assert!(is_listed(&hive, &plain).await);
}

#[tokio::test]
async fn redirects_are_followed_to_safe_places_only() {
    let (server, home) = (Server::start().await, home());
    let hive = home.start().await;
    let done = fetch(&hive, &server.reference("moved/m.gguf")).await;
    assert_eq!(path_of(&done), MODEL, "{done}");
    let failed = fetch(&hive, &server.reference("away/m.gguf")).await;
    assert!(text(&failed, "message").contains("not https"), "{failed}");
    let (status, missing) = ask(&hive, &server.reference("none.gguf")).await;
    assert_eq!(
        (status, &missing["error"]["code"]),
        (404, &json!("MODEL_NOT_FOUND"))
    );
}

#[tokio::test]
async fn plain_http_is_not_spoken_unless_that_is_set() {
    let server = Server::start().await;
    let home = Home::new();
    let hive = home.start().await;
    let failed = fetch(&hive, &server.reference("dir/m.gguf")).await;
    assert_eq!(failed["code"], "DOWNLOAD_FAILED", "{failed}");
    assert!(server.begins().is_empty());
}
