//! A model hub with one repository, `org/repo`, and the URLs and ranges of the real one.

use std::io::{self, BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// A hub that sends no more of a file than its gate lets through.
#[derive(Debug)]
pub struct Hub {
    url: String,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    file: String,
    content: Vec<u8>,
    gate: Mutex<Gate>,
    opened: Condvar,
}

#[derive(Debug, Default)]
struct Gate {
    is_open: bool,
    downloads: usize,
}

impl Hub {
    /// With one file, held back before its second half until [`Hub::open`].
    ///
    /// # Panics
    /// When there is no free port.
    #[must_use]
    pub fn with(file: &str, content: &[u8]) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("there is a free port");
        let address = listener.local_addr().expect("it is bound");
        let shared = Arc::new(Shared {
            file: file.to_owned(),
            content: content.to_vec(),
            gate: Mutex::default(),
            opened: Condvar::new(),
        });
        let serving = shared.clone();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let shared = serving.clone();
                // An error means that the client has gone.
                thread::spawn(move || shared.answer(stream).is_ok());
            }
        });
        Hub {
            url: format!("http://{address}"),
            shared,
        }
    }

    /// For `HF_ENDPOINT`.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Lets everything through.
    ///
    /// # Panics
    /// After a panic of another thread.
    pub fn open(&self) {
        self.shared.gate.lock().expect("no panic").is_open = true;
        self.shared.opened.notify_all();
    }

    /// How often the file was fetched.
    ///
    /// # Panics
    /// After a panic of another thread.
    #[must_use]
    pub fn downloads(&self) -> usize {
        self.shared.gate.lock().expect("no panic").downloads
    }
}

impl Shared {
    /// One request; the connection ends with the answer.
    fn answer(&self, mut stream: TcpStream) -> io::Result<()> {
        let mut lines = BufReader::new(stream.try_clone()?).lines();
        let first = lines.next().unwrap_or(Ok(String::new()))?;
        let path = first.split(' ').nth(1).unwrap_or_default().to_owned();
        let mut range = None;
        for line in lines {
            let line = line?;
            if line.is_empty() {
                break;
            }
            let line = line.to_ascii_lowercase();
            range = line
                .strip_prefix("range: bytes=")
                .map(str::to_owned)
                .or(range);
        }
        if path == "/api/models/org/repo/revision/main" {
            let body = format!(
                r#"{{"siblings":[{{"rfilename":"{}"}}],"sha":"{COMMIT}"}}"#,
                self.file
            );
            return write!(
                stream,
                "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
                body.len()
            );
        }
        if path != format!("/org/repo/resolve/main/{}", self.file) {
            let head = "HTTP/1.1 404 Not Found\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";
            return stream.write_all(head.as_bytes());
        }
        self.send(&mut stream, &range.unwrap_or_else(|| "0-".to_owned()))
    }

    fn send(&self, stream: &mut TcpStream, range: &str) -> io::Result<()> {
        let total = self.content.len();
        let (from, to) = range.split_once('-').unwrap_or((range, ""));
        let from: usize = from.parse().unwrap_or(0);
        let to = to.parse().map_or(total, |last: usize| last + 1).min(total);
        write!(
            stream,
            "HTTP/1.1 206 Partial Content\r\nconnection: close\r\nx-repo-commit: {COMMIT}\r\n\
             etag: \"abc\"\r\ncontent-length: {}\r\ncontent-range: bytes {from}-{}/{total}\r\n\r\n",
            to - from,
            to - 1
        )?;
        if range == "0-0" {
            return stream.write_all(&self.content[..1]);
        }
        let half = (total / 2).clamp(from, to);
        stream.write_all(&self.content[from..half])?;
        let mut gate = self.gate.lock().expect("no panic");
        gate.downloads += 1;
        let open = self.opened.wait_while(gate, |gate| !gate.is_open);
        drop(open.expect("no panic"));
        stream.write_all(&self.content[half..to])
    }
}
