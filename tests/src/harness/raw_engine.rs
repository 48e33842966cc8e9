//! An engine that is healthy and answers requests for tokens with bytes that a test writes down,
//! whether or not they are HTTP.

use anyhow::Result;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::thread;

pub(super) const HEALTHY: &[u8] =
    b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{}";

/// More of an answer is not sent: enough to show that its reader does not stop.
const ENDLESS_BYTES: usize = 64 << 20;

/// Listens until it is dropped.
#[derive(Debug)]
pub struct RawEngine {
    port: u16,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    /// Sent once for each request.
    answer: Vec<u8>,
    /// Sent again and again behind it.
    rest: Vec<u8>,
    connections: AtomicUsize,
    requests: AtomicUsize,
    most_sent: AtomicUsize,
    stopped: AtomicBool,
}

impl RawEngine {
    /// Answers each request with `answer`, then with `rest` until its reader hangs up. Without a
    /// `rest` the connection stays open for the next request.
    ///
    /// # Errors
    /// When there is no port.
    pub fn start(answer: impl Into<Vec<u8>>, rest: impl Into<Vec<u8>>) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let port = listener.local_addr()?.port();
        let shared = Arc::new(Shared {
            answer: answer.into(),
            rest: rest.into(),
            connections: AtomicUsize::new(0),
            requests: AtomicUsize::new(0),
            most_sent: AtomicUsize::new(0),
            stopped: AtomicBool::new(false),
        });
        let accepting = shared.clone();
        thread::spawn(move || {
            for stream in listener.incoming() {
                if accepting.stopped.load(Relaxed) {
                    return;
                }
                let (Ok(stream), shared) = (stream, accepting.clone()) else {
                    continue;
                };
                // An error is a reader that has hung up.
                thread::spawn(move || shared.serve(stream));
            }
        });
        Ok(RawEngine { port, shared })
    }

    /// Where it listens.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Requests for tokens so far.
    #[must_use]
    pub fn requests(&self) -> usize {
        self.shared.requests.load(Relaxed)
    }

    /// Connections that brought such a request.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.shared.connections.load(Relaxed)
    }

    /// The longest answer that was taken, in bytes.
    #[must_use]
    pub fn most_sent(&self) -> usize {
        self.shared.most_sent.load(Relaxed)
    }
}

impl Drop for RawEngine {
    fn drop(&mut self) {
        self.shared.stopped.store(true, Relaxed);
        // Only to wake it up.
        drop(TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)));
    }
}

impl Shared {
    fn serve(&self, stream: TcpStream) -> Result<()> {
        stream.set_nodelay(true)?;
        let mut writer = stream.try_clone()?;
        let mut reader = BufReader::new(stream);
        let mut first = true;
        while let Some(asked) = read_request(&mut reader)? {
            if asked.is_get {
                writer.write_all(HEALTHY)?;
                return Ok(());
            }
            self.requests.fetch_add(1, Relaxed);
            self.connections.fetch_add(first.into(), Relaxed);
            first = false;
            writer.write_all(&self.answer)?;
            if self.rest.is_empty() {
                continue;
            }
            let mut sent = self.answer.len();
            while sent < ENDLESS_BYTES && !self.stopped.load(Relaxed) {
                self.most_sent.fetch_max(sent, Relaxed);
                writer.write_all(&self.rest)?;
                sent += self.rest.len();
            }
            return Ok(());
        }
        Ok(())
    }
}

/// A request, as far as an engine needs it.
pub(super) struct Asked {
    /// Whether it is a GET, which is for the engine's health
    pub(super) is_get: bool,
    pub(super) body: Vec<u8>,
}

/// The next request; nothing at the end of the connection.
pub(super) fn read_request(reader: &mut BufReader<TcpStream>) -> Result<Option<Asked>> {
    let (mut is_get, mut length) = (false, 0);
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Ok(None);
        }
        let line = line.trim().to_ascii_lowercase();
        is_get |= line.starts_with("get ");
        if let Some(value) = line.strip_prefix("content-length:") {
            length = value.trim().parse()?;
        }
        if line.is_empty() {
            let mut body = vec![0; length];
            reader.read_exact(&mut body)?;
            return Ok(Some(Asked { is_get, body }));
        }
    }
}
