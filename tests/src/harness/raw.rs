//! Requests byte by byte, where it matters when a connection closes or what exactly was sent.

use super::client::Client;
use anyhow::{Context, Result};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

/// A connection of its own to the client's server.
///
/// # Errors
/// When nobody listens there.
pub fn connect(client: &Client) -> Result<TcpStream> {
    let address = client.base().trim_start_matches("http://");
    let stream = TcpStream::connect(address).with_context(|| address.to_owned())?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(Duration::from_secs(60)))?;
    stream.set_write_timeout(Some(Duration::from_secs(60)))?;
    Ok(stream)
}

/// Sends a whole request and returns the connection, nothing read yet. Without a `host` among the
/// headers, the address is it.
///
/// # Errors
/// When it cannot be sent.
pub fn post(
    client: &Client,
    path: &str,
    headers: &[(&str, &str)],
    body: &str,
) -> Result<TcpStream> {
    post_on(connect(client)?, client, path, headers, body)
}

/// The same, on a connection that is there.
///
/// # Errors
/// When it cannot be sent.
pub fn post_on(
    mut stream: TcpStream,
    client: &Client,
    path: &str,
    headers: &[(&str, &str)],
    body: &str,
) -> Result<TcpStream> {
    let mut head = format!("POST {path} HTTP/1.1\r\nconnection: close\r\n");
    if !headers.iter().any(|(name, _)| *name == "host") {
        let host = client.base().trim_start_matches("http://");
        head += &format!("host: {host}\r\n");
    }
    for (name, value) in headers {
        head += &format!("{name}: {value}\r\n");
    }
    let length = body.len();
    head += &format!("content-type: application/json\r\ncontent-length: {length}\r\n\r\n");
    stream.write_all((head + body).as_bytes())?;
    Ok(stream)
}

/// Reads a whole answer, up to its `content-length` or the connection's end; returns the status
/// and all of the text.
///
/// # Errors
/// When it is no HTTP answer.
pub fn answer(stream: &mut TcpStream) -> Result<(u16, String)> {
    let mut text = String::new();
    let mut piece = [0; 4096];
    let read = loop {
        match stream.read(&mut piece) {
            Ok(0) => break Ok(()),
            Ok(n) => text += &String::from_utf8_lossy(&piece[..n]),
            Err(e) => break Err(e),
        }
        if is_whole(&text) {
            break Ok(());
        }
    };
    let status = text.split(' ').nth(1).and_then(|code| code.parse().ok());
    match (status, read) {
        // A server that refuses a body may reset the connection after its answer.
        (Some(status), _) => Ok((status, text)),
        (None, Err(e)) => Err(e).context("no answer"),
        (None, Ok(())) => anyhow::bail!("no HTTP answer: {text:?}"),
    }
}

/// Whether the body has the length that the head tells; a server need not close.
fn is_whole(text: &str) -> bool {
    let Some((head, body)) = text.split_once("\r\n\r\n") else {
        return false;
    };
    let lines = head.lines().map(str::to_ascii_lowercase);
    let mut lengths = lines.filter_map(|line| {
        let length = line.strip_prefix("content-length:")?;
        length.trim().parse::<usize>().ok()
    });
    lengths.next().is_some_and(|length| body.len() >= length)
}
