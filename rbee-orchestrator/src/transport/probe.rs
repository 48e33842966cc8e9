//! Asks a port whether a hive answers there. The hive client proper lives a floor
//! above; a start only needs to know that it is up.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::Empty;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;

use super::HiveTransport;

/// How long one answer may take.
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);

/// Whether `GET /health` or, for older hives, `GET /v1/health` answers with success.
pub(super) async fn answers_health(transport: &dyn HiveTransport, port: u16) -> bool {
    for path in ["/health", "/v1/health"] {
        let answer = tokio::time::timeout(PROBE_TIMEOUT, status(transport, port, path)).await;
        match answer {
            Ok(Some(status)) if status.is_success() => return true,
            Ok(Some(_)) => {}
            Ok(None) | Err(_) => return false,
        }
    }
    false
}

/// The status of one request; `None` if it gets no answer.
async fn status(transport: &dyn HiveTransport, port: u16, path: &str) -> Option<http::StatusCode> {
    let stream = transport.connect(port).await.ok()?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.ok()?;
    let request = http::Request::get(path)
        .header(http::header::HOST, format!("{}:{port}", transport.host()))
        .header(http::header::CONNECTION, "close")
        .body(Empty::<Bytes>::new())
        .ok()?;
    let answer = sender.send_request(request);
    // Driven here and not in a task of its own: dropping the probe ends the connection.
    tokio::pin!(answer, connection);
    let answer = tokio::select! {
        answer = &mut answer => answer,
        // It may have brought the answer with its end.
        _ = &mut connection => answer.await,
    };
    Some(answer.ok()?.status())
}
