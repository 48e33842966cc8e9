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
    files: Vec<(String, Vec<u8>)>,
    gate: Mutex<Gate>,
    opened: Condvar,
}

#[derive(Debug, Default)]
struct Gate {
    is_open: bool,
    downloads: usize,
    /// The answer to every request, while there is one.
    refusal: Option<u16>,
    /// How many bytes of a file come before the connection breaks.
    cut_at: Option<usize>,
    /// Where the transfers began.
    begins: Vec<usize>,
    lies: bool,
}

impl Hub {
    /// With one file, held back before its second half until [`Hub::open`].
    ///
    /// # Panics
    /// When there is no free port.
    #[must_use]
    pub fn with(file: &str, content: &[u8]) -> Self {
        Self::with_files(&[(file, content)])
    }

    /// The same with several files.
    ///
    /// # Panics
    /// When there is no free port.
    #[must_use]
    pub fn with_files(files: &[(&str, &[u8])]) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("there is a free port");
        let address = listener.local_addr().expect("it is bound");
        let shared = Arc::new(Shared {
            files: files
                .iter()
                .map(|(file, content)| ((*file).to_owned(), content.to_vec()))
                .collect(),
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
        self.change(|gate| gate.is_open = true);
    }

    /// Answers every request with that status, or none.
    ///
    /// # Panics
    /// After a panic of another thread.
    pub fn refuse(&self, status: Option<u16>) {
        self.change(|gate| gate.refusal = status);
    }

    /// Breaks each connection after so many bytes of a file, or none.
    ///
    /// # Panics
    /// After a panic of another thread.
    pub fn cut_at(&self, bytes: Option<usize>) {
        self.change(|gate| gate.cut_at = bytes);
    }

    /// Gives a wrong checksum from now on.
    ///
    /// # Panics
    /// After a panic of another thread.
    pub fn lie(&self) {
        self.change(|gate| gate.lies = true);
    }

    /// Where the transfers began, the first one first.
    ///
    /// # Panics
    /// After a panic of another thread.
    #[must_use]
    pub fn begins(&self) -> Vec<usize> {
        self.shared.gate.lock().expect("no panic").begins.clone()
    }

    fn change(&self, change: impl FnOnce(&mut Gate)) {
        change(&mut self.shared.gate.lock().expect("no panic"));
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
        let refusal = self.gate.lock().expect("no panic").refusal;
        if let Some(status) = refusal {
            let head = "connection: close\r\ncontent-length: 0";
            return write!(stream, "HTTP/1.1 {status} No\r\n{head}\r\n\r\n");
        }
        if path == "/api/models/org/repo/revision/main" {
            let files = self.files.iter();
            let files: Vec<String> = files
                .map(|(file, _)| format!(r#"{{"rfilename":"{file}"}}"#))
                .collect();
            let files = files.join(",");
            let body = format!(r#"{{"siblings":[{files}],"sha":"{COMMIT}"}}"#);
            return write!(
                stream,
                "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
                body.len()
            );
        }
        let file = path.strip_prefix("/org/repo/resolve/main/");
        let file = file.and_then(|file| self.files.iter().find(|(name, _)| name == file));
        let Some((name, content)) = file else {
            let head = "HTTP/1.1 404 Not Found\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";
            return stream.write_all(head.as_bytes());
        };
        if first.starts_with("HEAD ") {
            let length = content.len();
            let head = format!("connection: close\r\netag: \"v1\"\r\ncontent-length: {length}");
            return write!(stream, "HTTP/1.1 200 OK\r\n{head}\r\n\r\n");
        }
        let range = range.unwrap_or_else(|| "0-".to_owned());
        self.send(&mut stream, name, content, &range)
    }

    fn send(
        &self,
        stream: &mut TcpStream,
        name: &str,
        content: &[u8],
        range: &str,
    ) -> io::Result<()> {
        let total = content.len();
        // A checksum is 64 digits; anything else is not taken for one.
        let etag = match self.gate.lock().expect("no panic").lies {
            true => "0".repeat(64),
            false => name.chars().filter(char::is_ascii_alphanumeric).collect(),
        };
        let (from, to) = range.split_once('-').unwrap_or((range, ""));
        let from: usize = from.parse().unwrap_or(0);
        let to = to.parse().map_or(total, |last: usize| last + 1).min(total);
        write!(
            stream,
            "HTTP/1.1 206 Partial Content\r\nconnection: close\r\nx-repo-commit: {COMMIT}\r\n\
             etag: \"{etag}\"\r\ncontent-length: {}\r\ncontent-range: bytes {from}-{}/{total}\r\n\r\n",
            to - from,
            to - 1
        )?;
        if range == "0-0" {
            return stream.write_all(&content[..1]);
        }
        let half = (total / 2).clamp(from, to);
        let cut_at = {
            let mut gate = self.gate.lock().expect("no panic");
            gate.begins.push(from);
            gate.cut_at
        };
        if let Some(cut) = cut_at {
            return stream.write_all(&content[from..cut.clamp(from, to)]);
        }
        stream.write_all(&content[from..half])?;
        let mut gate = self.gate.lock().expect("no panic");
        gate.downloads += 1;
        let open = self.opened.wait_while(gate, |gate| !gate.is_open);
        drop(open.expect("no panic"));
        stream.write_all(&content[half..to])
    }
}
