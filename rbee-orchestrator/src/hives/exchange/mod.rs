//! One request to a hive and its whole answer.

#[cfg(feature = "hives")]
mod over_ureq;

use std::io;

use http::StatusCode;

#[cfg(feature = "hives")]
pub(super) use over_ureq::exchange;

/// A whole answer.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) body: Vec<u8>,
}

/// Why there is no answer.
#[derive(Debug)]
pub(super) enum Failure {
    /// Not within the time-out.
    TimedOut,
    /// No connection, or it broke.
    Broken(io::Error),
    /// Something that is not HTTP, or too much of it.
    Garbage(String),
}

/// In a build without hives none can be registered, so nobody calls this.
#[cfg(not(feature = "hives"))]
pub(super) async fn exchange(
    _transport: std::sync::Arc<dyn crate::transport::HiveTransport>,
    _port: u16,
    _request: http::Request<Option<Vec<u8>>>,
    _timeout: std::time::Duration,
) -> Result<Answer, Failure> {
    Err(Failure::Broken(io::ErrorKind::Unsupported.into()))
}
