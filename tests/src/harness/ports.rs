//! Ports that nobody listens on.

use std::io;
use std::net::TcpListener;

/// A port that was free a moment ago. Someone may take it before its new owner listens, so
/// whoever starts a process on it tries again with another.
///
/// # Errors
/// When the system has no port left.
pub fn free() -> io::Result<u16> {
    let listener = TcpListener::bind(("127.0.0.1", 0))?;
    Ok(listener.local_addr()?.port())
}
