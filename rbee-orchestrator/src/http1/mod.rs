//! The client of HTTP/1.1 that workers and hives are asked by: a connection, read strictly.

mod chunked;
mod connection;
mod head;

use tokio::io::{AsyncRead, AsyncWrite};

pub(crate) use connection::Connection;
pub(crate) use head::{Head, SendError};

/// A byte stream to a port of a hive's machine.
pub trait HiveStream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> HiveStream for T {}
