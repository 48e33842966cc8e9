//! Asks a port whether a hive answers there. The hive client proper lives a floor
//! above; a start only needs to know that it is up.

use std::time::Duration;

use http::StatusCode;

use super::HiveTransport;
use crate::http1::Connection;

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
async fn status(transport: &dyn HiveTransport, port: u16, path: &str) -> Option<StatusCode> {
    let stream = transport.connect(port).await.ok()?;
    let host = transport.host();
    let request =
        format!("GET {path} HTTP/1.1\r\nhost: {host}:{port}\r\nconnection: close\r\n\r\n");
    let answer = Connection::new(stream).send(request.as_bytes(), b"").await;
    answer.ok().map(|head| head.status)
}
