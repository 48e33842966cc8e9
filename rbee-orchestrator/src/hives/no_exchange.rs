//! In place of the client, where the library is built without it: no hive can be registered then, so
//! nobody calls.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use http::{Request, StatusCode};

use crate::transport::HiveTransport;

#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) body: Vec<u8>,
}

#[derive(Debug)]
pub(super) enum Failure {
    TimedOut,
    Broken(io::Error),
    Garbage(String),
}

pub(super) async fn exchange(
    _transport: Arc<dyn HiveTransport>,
    _port: u16,
    _request: Request<Option<Vec<u8>>>,
    _timeout: Duration,
) -> Result<Answer, Failure> {
    Err(Failure::Broken(io::ErrorKind::Unsupported.into()))
}
