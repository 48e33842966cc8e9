//! Host keys that are trusted, as OpenSSH keeps them (sshd(8), "SSH_KNOWN_HOSTS FILE FORMAT").

use std::fs::OpenOptions;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use hmac::{Hmac, Mac};
use sha1::Sha1;
use sha2::{Digest, Sha256};

use super::wildcard;

/// A larger file is none that people and `ssh` wrote.
const LARGEST_BYTES: u64 = 16 << 20;

/// The name under which a machine's keys are kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct HostName {
    /// `host`, or `[host]:port` for another port than 22.
    pub(super) full: String,
    /// `host` alone, which OpenSSH takes for any port.
    bare: String,
}

impl HostName {
    pub(super) fn new(host: &str, port: u16) -> Self {
        let bare = host.to_ascii_lowercase();
        let full = match port {
            22 => bare.clone(),
            _ => format!("[{bare}]:{port}"),
        };
        HostName { full, bare }
    }

    /// A name of the configuration's own (`HostKeyAlias`).
    pub(super) fn alias(alias: &str) -> Self {
        HostName::new(alias, 22)
    }
}

/// One key of one line.
#[derive(Debug)]
struct Entry {
    hosts: String,
    revoked: bool,
    key: Vec<u8>,
    file: PathBuf,
    line: usize,
}

/// Where a line stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) file: PathBuf,
    pub(super) line: usize,
}

/// What the files say of a key.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It is the machine's.
    Known,
    /// They have no key of the machine.
    Unknown,
    /// They have another one.
    Changed(Place),
    /// It must not be trusted any more.
    Revoked(Place),
}

/// All keys of all files.
#[derive(Debug, Default)]
pub(super) struct KnownHosts(Vec<Entry>);

impl KnownHosts {
    /// Reads the files; those that are not there have no keys.
    pub(super) fn read(files: &[PathBuf]) -> io::Result<Self> {
        let mut entries = Vec::new();
        for file in files {
            let text = read(file).map_err(|error| {
                io::Error::new(error.kind(), format!("{}: {error}", file.display()))
            })?;
            for (index, line) in text.lines().enumerate() {
                entries.extend(entry(line, file, index + 1));
            }
        }
        Ok(KnownHosts(entries))
    }

    /// Judges the key that a machine has shown.
    pub(super) fn check(&self, name: &HostName, key: &[u8]) -> Verdict {
        let of = |name: &str| {
            let name = name.to_owned();
            self.0
                .iter()
                .filter(move |entry| names(&entry.hosts, &name))
        };
        let own = || of(&name.full).chain(of(&name.bare));
        if let Some(entry) = own().find(|entry| entry.revoked && entry.key == key) {
            return Verdict::Revoked(entry.place());
        }
        if own().any(|entry| !entry.revoked && entry.key == key) {
            return Verdict::Known;
        }
        // A key of another type is another key: whoever is in between could choose the type.
        match of(&name.full).find(|entry| !entry.revoked) {
            Some(entry) => Verdict::Changed(entry.place()),
            None => Verdict::Unknown,
        }
    }

    /// The types of the machine's known keys: these the machine shall be asked for.
    pub(super) fn key_types(&self, name: &HostName) -> Vec<String> {
        let fits =
            |entry: &&Entry| names(&entry.hosts, &name.full) || names(&entry.hosts, &name.bare);
        let known = self.0.iter().filter(|entry| !entry.revoked).filter(fits);
        known.filter_map(|entry| key_type(&entry.key)).collect()
    }
}

impl Entry {
    fn place(&self) -> Place {
        Place {
            file: self.file.clone(),
            line: self.line,
        }
    }
}

fn read(file: &Path) -> io::Result<String> {
    let opened = match std::fs::File::open(file) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(String::new()),
        opened => opened?,
    };
    let mut bytes = Vec::new();
    opened.take(LARGEST_BYTES).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn entry(text: &str, file: &Path, line: usize) -> Option<Entry> {
    let mut words = text.split_ascii_whitespace();
    let first = words.next().filter(|word| !word.starts_with('#'))?;
    let (revoked, hosts) = match first {
        "@revoked" => (true, words.next()?),
        // Certificates are not asked for.
        "@cert-authority" => return None,
        hosts => (false, hosts),
    };
    let (_type, key) = (words.next()?, words.next()?);
    Some(Entry {
        hosts: hosts.to_owned(),
        revoked,
        key: STANDARD.decode(key).ok()?,
        file: file.to_owned(),
        line,
    })
}

/// Whether a line's first field means this name.
fn names(hosts: &str, name: &str) -> bool {
    match hosts.strip_prefix("|1|") {
        Some(hashed) => is_hash_of(hashed, name),
        None => {
            let hosts = hosts.to_ascii_lowercase();
            wildcard::any_fits(hosts.split(','), name)
        }
    }
}

/// `salt|HMAC-SHA1(salt, name)`, both in base64.
fn is_hash_of(hashed: &str, name: &str) -> bool {
    let decoded = hashed
        .split_once('|')
        .and_then(|(salt, hash)| Some((STANDARD.decode(salt).ok()?, STANDARD.decode(hash).ok()?)));
    let Some((salt, hash)) = decoded else {
        return false;
    };
    Hmac::<Sha1>::new_from_slice(&salt).is_ok_and(|mut mac| {
        mac.update(name.as_bytes());
        mac.verify_slice(&hash).is_ok()
    })
}

/// The name of its algorithm, with which a key begins (RFC 4253, section 6.6).
pub(super) fn key_type(key: &[u8]) -> Option<String> {
    let (length, rest) = key.split_first_chunk::<4>()?;
    let length = usize::try_from(u32::from_be_bytes(*length)).ok()?;
    String::from_utf8(rest.get(..length)?.to_vec()).ok()
}

/// A key's fingerprint as `ssh-keygen -l` shows it.
pub(super) fn fingerprint(key: &[u8]) -> String {
    format!("SHA256:{}", STANDARD_NO_PAD.encode(Sha256::digest(key)))
}

/// Appends a key to a file, which is made if need be, with its folder.
pub(super) fn append(file: &Path, name: &HostName, key: &[u8]) -> io::Result<()> {
    if let Some(folder) = file.parent().filter(|folder| !folder.is_dir()) {
        let mut builder = std::fs::DirBuilder::new();
        builder.recursive(true).mode(0o700).create(folder)?;
    }
    let kind = key_type(key).ok_or(io::ErrorKind::InvalidData)?;
    let mut opened = OpenOptions::new()
        .create(true)
        .append(true)
        .read(true)
        .mode(0o600)
        .open(file)?;
    let mut line = format!("{} {kind} {}\n", name.full, STANDARD.encode(key));
    if !ends_with_newline(&mut opened)? {
        line.insert(0, '\n');
    }
    // One write: another queen may append at the same time.
    opened.write_all(line.as_bytes())
}

fn ends_with_newline(file: &mut std::fs::File) -> io::Result<bool> {
    if file.metadata()?.len() == 0 {
        return Ok(true);
    }
    let mut last = [0];
    file.seek(SeekFrom::End(-1))?;
    file.read_exact(&mut last)?;
    Ok(last == *b"\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(kind: &str, body: u8) -> Vec<u8> {
        let length = u32::try_from(kind.len()).expect("short");
        [&length.to_be_bytes()[..], kind.as_bytes(), &[body; 32]].concat()
    }

    fn known(lines: &[String]) -> KnownHosts {
        let folder = tempfile::tempdir().expect("temp dir is writable");
        let file = folder.path().join("known_hosts");
        std::fs::write(&file, lines.join("\n")).expect("written");
        KnownHosts::read(&[file, "/nowhere".into()]).expect("readable")
    }

    fn line(hosts: &str, key: &[u8]) -> String {
        let kind = key_type(key).expect("made with one");
        format!("{hosts} {kind} {} a comment", STANDARD.encode(key))
    }

    #[test]
    fn a_key_is_known_by_name_port_and_pattern() {
        let (a, b) = (key("ssh-ed25519", 1), key("ssh-ed25519", 2));
        let known = known(&[
            "# comment".into(),
            "garbage".into(),
            line("Gpu-0.lan,10.0.0.7", &a),
            line("[10.0.0.8]:2222", &a),
            line("*.rack,!bad.rack", &a),
        ]);
        let check = |host, port, key: &[u8]| known.check(&HostName::new(host, port), key);
        for (host, port) in [
            ("gpu-0.LAN", 22),
            ("10.0.0.7", 22),
            ("10.0.0.8", 2222),
            ("x.rack", 22),
            // OpenSSH takes a key without a port for any port.
            ("10.0.0.7", 2200),
        ] {
            assert_eq!(check(host, port, &a), Verdict::Known, "{host}:{port}");
        }
        assert!(matches!(check("10.0.0.8", 2222, &b), Verdict::Changed(place) if place.line == 4));
        for (host, port) in [("10.0.0.8", 22), ("bad.rack", 22), ("10.0.0.7", 2200)] {
            assert_eq!(check(host, port, &b), Verdict::Unknown, "{host}:{port}");
        }
    }

    #[test]
    fn a_hashed_name_is_found() {
        let a = key("ssh-ed25519", 1);
        let salt = [7; 20];
        let mut mac = Hmac::<Sha1>::new_from_slice(&salt).expect("any length");
        mac.update(b"[gpu-1]:2222");
        let hash = STANDARD.encode(mac.finalize().into_bytes());
        let known = known(&[line(&format!("|1|{}|{hash}", STANDARD.encode(salt)), &a)]);
        let check = |port| known.check(&HostName::new("gpu-1", port), &a);
        assert_eq!(check(2222), Verdict::Known);
        assert_eq!(check(22), Verdict::Unknown);
    }

    #[test]
    fn another_type_of_key_is_a_change_and_a_revoked_one_is_refused() {
        let (ed, rsa) = (key("ssh-ed25519", 1), key("ssh-rsa", 1));
        let name = HostName::new("gpu", 22);
        let known = known(&[
            line("gpu", &ed),
            format!("@revoked {}", line("*", &rsa)),
            format!("@cert-authority {}", line("*", &key("ssh-rsa", 3))),
        ]);
        assert_eq!(known.key_types(&name), ["ssh-ed25519"]);
        let changed = known.check(&name, &key("ecdsa-sha2-nistp256", 1));
        assert!(matches!(changed, Verdict::Changed(_)), "{changed:?}");
        let revoked = known.check(&name, &rsa);
        assert!(matches!(revoked, Verdict::Revoked(_)), "{revoked:?}");
        assert_eq!(known.check(&name, &ed), Verdict::Known);
    }

    #[test]
    fn a_new_key_is_appended_on_a_line_of_its_own() {
        let folder = tempfile::tempdir().expect("temp dir is writable");
        let file = folder.path().join(".ssh/known_hosts");
        let (a, b) = (key("ssh-ed25519", 1), key("ssh-ed25519", 2));
        let (gpu, rack) = (HostName::new("gpu", 2222), HostName::new("rack", 22));
        append(&file, &gpu, &a).expect("made");
        let text = std::fs::read_to_string(&file).expect("made");
        std::fs::write(&file, text.trim_end()).expect("written");
        append(&file, &rack, &b).expect("appended");
        let known = KnownHosts::read(&[file]).expect("readable");
        assert_eq!(known.check(&gpu, &a), Verdict::Known);
        assert_eq!(known.check(&rack, &b), Verdict::Known);
    }

    #[test]
    fn a_fingerprint_is_as_ssh_keygen_shows_it() {
        let key = "AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl";
        let key = STANDARD.decode(key).expect("GitHub's key");
        assert_eq!(key_type(&key).as_deref(), Some("ssh-ed25519"));
        let shown = "SHA256:+DiY3wvvV6TuJJhbpZisF/zLDA0zPMSvHdkr4UvCOqU";
        assert_eq!(fingerprint(&key), shown);
    }
}
