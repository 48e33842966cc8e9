//! Brings a hive's program to another machine.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use sha2::{Digest, Sha256};
use ssh2::{OpenFlags, OpenType};
use tokio::sync::oneshot;

use super::connect;
use super::host::Host;
use super::program::Program;
use super::script::{self, unreachable};
use super::{elf, quote};
use crate::error::{Code, Error, Result};
use crate::transport::Arrived;

/// How much is sent before there is a look at what became of it.
const CHUNK_BYTES: usize = 256 << 10;
/// An upload that grew no more for so long is nobody's; a younger one may be another hive's, or
/// another queen's.
const ABANDONED_MINUTES: u32 = 10;
/// A larger file is no hive.
const LARGEST_BYTES: u64 = 512 << 20;

/// A program's file here, read whole.
struct Binary {
    bytes: Vec<u8>,
    machine: elf::Machine,
    sha256: String,
    cksum: u32,
}

/// Uploads a program to where [`Program`] looks for it first, in place of an older one.
///
/// # Errors
/// `INVALID_REQUEST` for a file that does not run there; `INSUFFICIENT_DISK`; `HIVE_UNREACHABLE`.
/// Nothing is in place then that was not before.
pub(super) async fn install(
    host: &Host,
    file: &Path,
    program: &Program,
    arrived: Arrived,
) -> Result<PathBuf> {
    let path = file.to_path_buf();
    let read = tokio::task::spawn_blocking(move || Binary::read(&path)).await;
    let binary = read.map_err(|error| Error::internal(error.to_string()))??;
    let place = Place::prepare(host, file, &binary, program).await?;
    let uploaded = async {
        upload(host, binary.bytes, &place.upload, arrived).await?;
        place.put(host, &binary.sha256, binary.cksum).await
    };
    let installed = uploaded.await;
    if installed.is_err() {
        place.clear(host).await;
    }
    installed.map(|()| PathBuf::from(place.file))
}

impl Binary {
    fn read(path: &Path) -> Result<Self> {
        let refused = |why: String| {
            let path = path.display();
            Error::invalid(format!("the hive's program {path} {why}"))
        };
        let cant = |error: io::Error| refused(format!("can't be read: {error}"));
        let file = std::fs::File::open(path).map_err(cant)?;
        let mut bytes = Vec::new();
        file.take(LARGEST_BYTES + 1)
            .read_to_end(&mut bytes)
            .map_err(cant)?;
        if bytes.len() as u64 > LARGEST_BYTES {
            return Err(refused("is larger than any hive".into()));
        }
        let machine = elf::Machine::of(&bytes).ok_or_else(|| {
            refused("is no program for Linux (an ELF file); name one that is".into())
        })?;
        Ok(Binary {
            machine,
            sha256: hex(&Sha256::digest(&bytes)),
            cksum: cksum(&bytes),
            bytes,
        })
    }
}

/// Where a program goes.
struct Place {
    file: String,
    upload: String,
}

impl Place {
    async fn prepare(host: &Host, file: &Path, binary: &Binary, to: &Program) -> Result<Self> {
        let (folder, name) = to.place()?;
        let (folder, word) = (quote::path(&folder)?, quote::word(&name)?);
        let body = format!(
            "uname -sm\nmkdir -p {folder} && cd {folder} && pwd || return 1\n\
             df -Pk . | awk 'NR == 2 {{ print $4 }}'\n\
             name={word}\n\
             [ ! -d \"$name\" ] || {{ echo \"$name is a folder there\" >&2; return 1; }}\n\
             for old in \".$name.\"*.upload; do\n\
             [ -z \"$(find \"./$old\" -mmin +{ABANDONED_MINUTES} 2>/dev/null)\" ] || rm -f -- \"$old\"\n\
             done"
        );
        let limit = host.options().command_timeout;
        let said = script::run(host, &body, limit).await?;
        let said = said.ok(host, "making the program's folder")?;
        let mut lines = said.lines();
        let mut line = || lines.next().unwrap_or_default().trim();
        let (system, folder, free) = (line(), line(), line());
        if !binary.machine.runs_on(system) {
            let (host, file, built) = (host.name(), file.display(), binary.machine.name());
            return Err(Error::invalid(format!(
                "{file} is built for Linux {built}, and {host} is {system}; build the hive for it, \
                 or put one there yourself"
            ))
            .detail("reason", "architecture"));
        }
        let needed = binary.bytes.len() as u64 / 1024 + 1;
        if free.parse().is_ok_and(|free: u64| free < needed) {
            let host = host.name();
            return Err(Error::new(
                Code::InsufficientDisk,
                format!("{folder} on {host} has {free} KiB free, and the hive needs {needed}"),
            ));
        }
        let nonce = script::nonce()?;
        Ok(Place {
            file: format!("{folder}/{name}"),
            upload: format!("{folder}/.{name}.{nonce}.upload"),
        })
    }

    /// Puts what was uploaded in place, if it is what was sent.
    async fn put(&self, host: &Host, sha256: &str, cksum: u32) -> Result<()> {
        let (upload, file) = (quote::word(&self.upload)?, quote::word(&self.file)?);
        // SFTP's own rename would not replace a file.
        let body = format!(
            "sum=$(checksum {upload}) || return 1\n\
             case $sum in\n\
             'sha256 {sha256}' | 'cksum {cksum}') ;;\n\
             *) echo \"what arrived is not what was sent ($sum)\" >&2; return 1 ;;\n\
             esac\n\
             chmod 755 {upload} && mv -f -- {upload} {file}"
        );
        let limit = host.options().command_timeout;
        let said = script::run(host, &body, limit).await?;
        said.ok(host, "putting the program in place").map(|_| ())
    }

    /// After a failure; a leftover that can't be removed now is removed by the next upload.
    async fn clear(&self, host: &Host) {
        let Ok(upload) = quote::word(&self.upload) else {
            return;
        };
        let limit = host.options().command_timeout;
        let cleared = script::run(host, &format!("rm -f -- {upload}"), limit).await;
        if let Err(error) = cleared {
            tracing::debug!(host = host.name(), %error, "an interrupted upload is left behind");
        }
    }
}

/// Uploads on a session of its own: what libssh2 does for SFTP blocks, and here it may. Dropped
/// midway, the session ends.
async fn upload(host: &Host, bytes: Vec<u8>, to: &str, arrived: Arrived) -> Result<()> {
    let (reply, answer) = oneshot::channel();
    let line = Arc::new(CutOnDrop::default());
    let (target, options, to) = (
        host.target().clone(),
        Arc::clone(host.options()),
        to.to_owned(),
    );
    let socket = Arc::downgrade(&line);
    let send = move || {
        let (session, connected, _) =
            connect::log_in(&target, &options).map_err(|refused| refused.error)?;
        // Nobody waits any more: what follows fails at once.
        match socket.upgrade() {
            Some(line) => line.set(&connected),
            None => return Err(unreachable("the upload was given up".into())),
        }
        session.set_timeout(u32::try_from(options.upload_stall.as_millis()).unwrap_or(u32::MAX));
        send_file(&session, &bytes, &to, &*arrived).map_err(|error| {
            let host = &target.host;
            unreachable(format!("the upload to {to} on {host} broke off: {error}"))
        })
    };
    std::thread::Builder::new()
        .name("ssh upload".into())
        .spawn(move || drop(reply.send(send())))
        .map_err(|error| Error::internal(format!("no thread for an upload: {error}")))?;
    let sent = answer.await;
    drop(line);
    sent.unwrap_or_else(|_| Err(Error::internal("an upload's thread has gone")))
}

/// A connection that ends when nobody waits for it any more.
#[derive(Default)]
struct CutOnDrop(Mutex<Option<TcpStream>>);

impl CutOnDrop {
    fn set(&self, socket: &TcpStream) {
        let mut kept = self.0.lock().unwrap_or_else(|poison| poison.into_inner());
        *kept = socket.try_clone().ok();
    }
}

impl Drop for CutOnDrop {
    fn drop(&mut self) {
        let kept = self
            .0
            .get_mut()
            .unwrap_or_else(|poison| poison.into_inner());
        if let Some(socket) = kept.take() {
            let _ = socket.shutdown(Shutdown::Both);
        }
    }
}

fn send_file(
    session: &ssh2::Session,
    bytes: &[u8],
    to: &str,
    arrived: &dyn Fn(u8),
) -> io::Result<()> {
    let sftp = session.sftp()?;
    let flags = OpenFlags::WRITE | OpenFlags::CREATE | OpenFlags::EXCLUSIVE;
    let mut file = sftp.open_mode(Path::new(to), flags, 0o600, OpenType::File)?;
    let mut sent = 0;
    for chunk in bytes.chunks(CHUNK_BYTES) {
        file.write_all(chunk)?;
        sent += chunk.len();
        arrived(u8::try_from(sent * 100 / bytes.len()).unwrap_or(100));
    }
    // Not every server can; the checksum tells all the same.
    let _ = file.fsync();
    file.close()?;
    Ok(())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The checksum of POSIX's `cksum`.
fn cksum(bytes: &[u8]) -> u32 {
    let table: [u32; 256] = std::array::from_fn(|index| {
        (0..8).fold((index as u32) << 24, |crc, _| match crc >> 31 {
            0 => crc << 1,
            _ => (crc << 1) ^ 0x04C1_1DB7,
        })
    });
    let step = |crc: u32, byte: u8| (crc << 8) ^ table[usize::from((crc >> 24) as u8 ^ byte)];
    let crc = bytes.iter().fold(0, |crc, byte| step(crc, *byte));
    let mut length = bytes.len();
    let mut crc = crc;
    while length > 0 {
        crc = step(crc, length as u8);
        length >>= 8;
    }
    !crc
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_are_those_of_the_utilities() {
        // `printf 123456789 | cksum`, and `printf '' | cksum`.
        assert_eq!(cksum(b"123456789"), 930_766_865);
        assert_eq!(cksum(b""), 4_294_967_295);
        let empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(hex(&Sha256::digest(b"")), empty);
    }

    #[test]
    fn a_file_that_is_no_program_is_refused() {
        let file = tempfile::NamedTempFile::new().expect("temp dir is writable");
        std::fs::write(file.path(), "#!/bin/sh\n").expect("written");
        let error = Binary::read(file.path()).err().expect("a script");
        assert!(error.message.contains("ELF"), "{error}");
        let own = std::env::current_exe().expect("it runs");
        if cfg!(target_os = "linux") {
            Binary::read(&own).expect("a program");
        }
    }
}
