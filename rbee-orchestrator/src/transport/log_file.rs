//! The file that a hive writes its output to.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// A larger file is put aside at the next start.
const ROTATE_ABOVE_BYTES: u64 = 10 << 20;
/// How much of a file's end is looked at for its last lines.
const TAIL_BYTES: u64 = 1 << 20;
/// A longer line is cut.
const LONGEST_LINE: usize = 4096;

/// Opens a log for appending, readable by its owner only; one that has grown past 10 MB becomes
/// `<name>.1` first. Blocks.
pub(super) fn open(path: &Path) -> io::Result<File> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    if path
        .metadata()
        .is_ok_and(|meta| meta.len() > ROTATE_ABOVE_BYTES)
    {
        std::fs::rename(path, previous(path))?;
    }
    OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(path)
}

fn previous(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".1");
    name.into()
}

/// The last lines that were written behind the byte `from`, oldest first; none if there is no
/// such file. Blocks.
pub(super) fn tail(path: &Path, from: u64, lines: usize) -> io::Result<Vec<String>> {
    let mut file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        opened => opened?,
    };
    let begin = from.max(file.metadata()?.len().saturating_sub(TAIL_BYTES));
    file.seek(SeekFrom::Start(begin))?;
    let mut bytes = Vec::new();
    file.take(TAIL_BYTES).read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    let mut found: Vec<String> = text.lines().map(cut).collect();
    if begin > from && !found.is_empty() {
        // It begins in the middle of a line.
        found.remove(0);
    }
    Ok(found.split_off(found.len().saturating_sub(lines)))
}

fn cut(line: &str) -> String {
    line.chars().take(LONGEST_LINE).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn a_large_log_is_put_aside_and_a_small_one_goes_on() {
        let folder = tempfile::tempdir().expect("temp dir is writable");
        let path = folder.path().join("logs/hive.log");
        let mut log = open(&path).expect("the folder is made");
        log.write_all(b"one\n").expect("written");
        let mut log = open(&path).expect("opened again");
        log.write_all(b"two\n").expect("written");
        assert_eq!(tail(&path, 0, 10).expect("read"), ["one", "two"]);
        assert_eq!(tail(&path, 4, 10).expect("read"), ["two"]);
        assert_eq!(tail(&path, 0, 1).expect("read"), ["two"]);

        log.set_len(ROTATE_ABOVE_BYTES + 1).expect("grown");
        open(&path).expect("opened anew");
        assert_eq!(path.metadata().expect("it is there").len(), 0);
        assert!(folder.path().join("logs/hive.log.1").is_file());
    }

    #[test]
    fn a_log_that_is_not_there_has_no_lines() {
        let none = tail(Path::new("/nowhere/hive.log"), 0, 10).expect("no error");
        assert!(none.is_empty());
    }

    #[test]
    fn only_the_end_of_a_long_log_is_read() {
        let folder = tempfile::tempdir().expect("temp dir is writable");
        let path = folder.path().join("hive.log");
        let mut log = open(&path).expect("opened");
        let line = format!("{}\n", "x".repeat(99));
        log.write_all(line.repeat(20_000).as_bytes())
            .expect("written");
        let lines = tail(&path, 0, usize::MAX).expect("read");
        assert!((10_000..10_500).contains(&lines.len()), "{}", lines.len());
        assert!(lines.iter().all(|line| line.len() == 99));
    }
}
