//! Log lines: the newest of every worker and of the hive itself in memory, all of them in files.

mod book;
mod file;

use std::io;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::prelude::*;

pub(crate) use book::{Line, LogBook};
pub(crate) use file::{Source, follow};

use crate::cli::LogFormat;

/// Standard error (which may be closed by now: no complaint) for people and machines, the book for `GET /v1/logs`.
pub(crate) fn init_tracing(format: LogFormat, book: &LogBook) {
    let filter = EnvFilter::try_from_env("RUST_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let to_book = tracing_subscriber::fmt::layer()
        .with_ansi(false)
        .with_target(false)
        .with_writer(BookWriter(book.clone()));
    let human = (format == LogFormat::Human).then(|| {
        tracing_subscriber::fmt::layer()
            .with_target(false)
            .log_internal_errors(false)
            .with_ansi(io::IsTerminal::is_terminal(&io::stderr()))
            .with_writer(io::stderr)
    });
    let json = (format == LogFormat::Json).then(|| {
        tracing_subscriber::fmt::layer()
            .json()
            .log_internal_errors(false)
            .with_writer(io::stderr)
    });
    tracing_subscriber::registry()
        .with(filter)
        .with(to_book)
        .with(human)
        .with(json)
        .init();
}

/// Writes the hive's own lines into the book.
struct BookWriter(LogBook);

impl io::Write for BookWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        for line in String::from_utf8_lossy(bytes).lines() {
            self.0.push(None, line);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for BookWriter {
    type Writer = BookWriter;

    fn make_writer(&'a self) -> BookWriter {
        BookWriter(self.0.clone())
    }
}
