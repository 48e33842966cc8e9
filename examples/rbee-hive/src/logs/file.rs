//! A worker's log file. The engine writes to it directly, so that it outlives the hive; the hive
//! reads along and keeps the file small.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::LogBook;
use super::book::LONGEST_LINE;

/// A file this long is moved to `NAME.1` and begun anew.
const ROTATE_AT: u64 = 10 << 20;
/// What is read of a file that was there before.
const CATCH_UP: u64 = 256 << 10;
/// Most that is read in one go, so that a flood can't keep the reader from rotating.
const READ_AT_ONCE: u64 = 4 << 20;
const POLL: Duration = Duration::from_millis(200);

/// What is read, and whose words it holds.
pub(crate) struct Source {
    pub(crate) path: PathBuf,
    pub(crate) worker: String,
    /// What the book must not show, whatever the engine prints of its settings.
    pub(crate) secret: Option<String>,
}

impl Source {
    fn note(&self, book: &LogBook, line: &str) {
        let worker = Some(&*self.worker);
        match &self.secret {
            Some(secret) if line.contains(secret) => {
                book.push(worker, &line.replace(secret, "…"));
            }
            _ => book.push(worker, line),
        }
    }
}

/// Copies new lines of the file into the book until cancelled, and then what is left of them.
pub(crate) async fn follow(source: Source, book: LogBook, end: CancellationToken) {
    let mut reader = Reader::new(source.path.clone());
    loop {
        let ending = end.is_cancelled();
        let read = tokio::task::spawn_blocking(move || {
            let lines = reader.poll(ROTATE_AT);
            (reader, lines)
        });
        let Ok((returned, lines)) = read.await else {
            return;
        };
        reader = returned;
        match lines {
            Ok(lines) => lines.iter().for_each(|line| source.note(&book, line)),
            Err(error) => {
                tracing::warn!(worker_id = source.worker, %error, "can't read the worker's log");
                return;
            }
        }
        if ending {
            if let Some(line) = reader.rest() {
                source.note(&book, &line);
            }
            return;
        }
        tokio::select! {
            () = end.cancelled() => {}
            () = tokio::time::sleep(POLL) => {}
        }
    }
}

struct Reader {
    path: PathBuf,
    file: Option<File>,
    offset: u64,
    /// A line whose end has not been written yet.
    begun: Vec<u8>,
}

impl Reader {
    fn new(path: PathBuf) -> Self {
        Reader {
            path,
            file: None,
            offset: 0,
            begun: Vec::new(),
        }
    }

    fn poll(&mut self, rotate_at: u64) -> io::Result<Vec<String>> {
        let mut file = match self.file.take() {
            Some(file) => file,
            None => {
                let file = OpenOptions::new().read(true).write(true).open(&self.path)?;
                self.offset = file.metadata()?.len().saturating_sub(CATCH_UP);
                file
            }
        };
        let length = file.metadata()?.len();
        // Someone else emptied it.
        self.offset = self.offset.min(length);
        file.seek(SeekFrom::Start(self.offset))?;
        let mut bytes = Vec::new();
        self.offset += (&mut file).take(READ_AT_ONCE).read_to_end(&mut bytes)? as u64;
        let lines = self.lines(&bytes);
        if self.offset >= rotate_at {
            rotate(&self.path, &file)?;
            self.offset = 0;
        }
        self.file = Some(file);
        Ok(lines)
    }

    /// Engines draw progress bars with carriage returns: each is a line too.
    fn lines(&mut self, bytes: &[u8]) -> Vec<String> {
        let mut lines = Vec::new();
        let mut parts = bytes.split(|byte| matches!(byte, b'\n' | b'\r')).peekable();
        while let Some(part) = parts.next() {
            let room = LONGEST_LINE.saturating_sub(self.begun.len());
            self.begun.extend_from_slice(&part[..part.len().min(room)]);
            if parts.peek().is_some() {
                lines.extend(self.rest());
            }
        }
        lines
    }

    fn rest(&mut self) -> Option<String> {
        let line = String::from_utf8_lossy(&self.begun).into_owned();
        self.begun.clear();
        (!line.is_empty()).then_some(line)
    }
}

/// The engine holds the file open for appending, so it can't be renamed: it is copied and emptied.
/// What the engine writes between the two is lost.
fn rotate(path: &Path, file: &File) -> io::Result<()> {
    let mut older = path.as_os_str().to_owned();
    older.push(".1");
    fs::copy(path, older)?;
    file.set_len(0)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn lines_come_whole_and_once_over_a_rotation() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("w.log");
        let mut options = OpenOptions::new();
        let mut engine = options.append(true).create(true).open(&path).unwrap();
        let mut reader = Reader::new(path.clone());

        engine.write_all(b"loading 1%\rloading 100%\nhalf").unwrap();
        let lines = reader.poll(8).unwrap();
        assert_eq!(lines, ["loading 1%", "loading 100%"]);
        assert_eq!(fs::metadata(&path).unwrap().len(), 0);
        assert!(folder.path().join("w.log.1").exists());

        engine.write_all(b" a line\n").unwrap();
        assert_eq!(reader.poll(1 << 20).unwrap(), ["half a line"]);
        assert!(reader.rest().is_none());
    }
}
