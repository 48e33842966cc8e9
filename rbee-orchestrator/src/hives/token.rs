//! The token that the queen shows to hives and that they show to her.

use std::fmt;
use std::fs::OpenOptions;
use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;

use hmac::{Hmac, Mac};
use http::HeaderValue;
use sha2::Sha256;
use subtle::ConstantTimeEq;

use crate::domain::HiveId;
use crate::error::{Code, Error, Result};

const RANDOM_BYTES: usize = 32;
const LONGEST: usize = 1024;

/// A bearer token for hives. Its debug form does not show it.
#[derive(Clone, PartialEq, Eq)]
pub struct HiveToken(Arc<str>);

impl HiveToken {
    /// A configured token.
    ///
    /// # Errors
    /// `INVALID_REQUEST` when it is empty, longer than 1024 characters or can't stand in a header.
    pub fn new(text: &str) -> Result<Self> {
        check("the hive token", text)?;
        Ok(HiveToken(text.into()))
    }

    /// A new token of 256 random bits.
    ///
    /// # Errors
    /// `INTERNAL` when the system has no randomness.
    pub fn random() -> Result<Self> {
        let mut bytes = [0; RANDOM_BYTES];
        getrandom::fill(&mut bytes)
            .map_err(|error| Error::internal(format!("no random numbers: {error}")))?;
        Ok(HiveToken(hex(&bytes).into()))
    }

    /// The token kept in a file; a new random one if the file is not there yet. Blocks on the
    /// file system.
    ///
    /// # Errors
    /// `STORE_FAILED` when the file can't be read or written, may be read by others than its owner
    /// (a mode looser than 0600), or holds no such token.
    pub fn load_or_create(path: &Path) -> Result<Self> {
        match create(path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => load(path),
            Err(error) => Err(refused(path, &format!("can't be written: {error}"))),
            Ok(created) => created,
        }
    }

    /// The token for a queen with this database: the configured one (see [`secret`]), else the one
    /// that is kept beside the database. Blocks on the file system.
    ///
    /// # Errors
    /// Those of [`HiveToken::new`], [`HiveToken::load_or_create`] and [`secret`].
    pub fn find(variable: &str, file: Option<&Path>, database: &Path) -> Result<Self> {
        if let Some(configured) = secret(variable, file)? {
            return Self::new(&configured);
        }
        let mut beside = database.as_os_str().to_owned();
        beside.push(".hive-token");
        Self::load_or_create(Path::new(&beside))
    }

    /// The token of one hive: the HMAC-SHA256 of `rbee-hive:NAME` under this secret, in hexadecimal
    /// digits. It opens no other hive and speaks for none.
    #[must_use]
    pub fn for_hive(&self, hive: &HiveId) -> Self {
        let mut mac = Hmac::<Sha256>::new_from_slice(self.0.as_bytes())
            .expect("HMAC takes keys of any length");
        mac.update(b"rbee-hive:");
        mac.update(hive.as_str().as_bytes());
        HiveToken(hex(&mac.finalize().into_bytes()).into())
    }

    /// Whether somebody showed this token; takes as long for any that is as long.
    pub(crate) fn is(&self, shown: &[u8]) -> bool {
        self.0.as_bytes().ct_eq(shown).into()
    }

    /// The token itself.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for HiveToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HiveToken(…)")
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The value of an `Authorization` header; `None` for what can't stand in one.
pub(crate) fn bearer(key: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::try_from(format!("Bearer {key}")).ok()?;
    value.set_sensitive(true);
    Some(value)
}

/// The outer error says that no file could be made, the inner one that no token could.
fn create(path: &Path) -> io::Result<Result<HiveToken>> {
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    let token = match HiveToken::random() {
        Ok(token) => token,
        Err(error) => return Ok(Err(error)),
    };
    let written = writeln!(file, "{}", token.expose()).and_then(|()| file.sync_all());
    if let Err(error) = written {
        // Half a token would lock the next start out.
        let _ = std::fs::remove_file(path);
        return Err(error);
    }
    Ok(Ok(token))
}

fn load(path: &Path) -> Result<HiveToken> {
    let text = read_secret(path)?;
    let is_token = text.len() == 2 * RANDOM_BYTES && text.bytes().all(|b| b.is_ascii_hexdigit());
    if !is_token {
        return Err(refused(
            path,
            "holds no token of 64 hexadecimal digits; stop the hives that use it, then remove the \
             file for a new one",
        ));
    }
    Ok(HiveToken(text.into()))
}

/// A token from an environment variable, else from a file that only its owner may use (mode 0600
/// or stricter), without the blanks around it. Blocks on the file system.
///
/// # Errors
/// `STORE_FAILED` when the file can't be read, may be used by others, or is longer than any token;
/// `INVALID_REQUEST` when the variable or the file is there and holds no token: nothing, only
/// blanks, or what can't stand in a header. The message names it.
pub fn secret(variable: &str, file: Option<&Path>) -> Result<Option<String>> {
    let (source, text) = if let Some(value) = std::env::var_os(variable) {
        // What is not UTF-8 is not printable either.
        (
            variable.to_owned(),
            value.to_string_lossy().trim().to_owned(),
        )
    } else if let Some(file) = file {
        let source = format!("the token's file {}", file.display());
        (source, read_secret(file)?)
    } else {
        return Ok(None);
    };
    check(&source, &text)?;
    Ok(Some(text))
}

/// Refuses what is no token; `source` says where it came from.
fn check(source: &str, text: &str) -> Result<()> {
    let fits = (1..=LONGEST).contains(&text.len());
    if fits && text.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Ok(());
    }
    let is = match text {
        "" => "is blank",
        _ => "can't stand in a header",
    };
    Err(Error::invalid(format!(
        "{source} {is}: a token is 1 to {LONGEST} visible ASCII characters without blanks"
    )))
}

fn read_secret(path: &Path) -> Result<String> {
    let unreadable = |error: io::Error| refused(path, &format!("can't be read: {error}"));
    let file = std::fs::File::open(path).map_err(unreadable)?;
    let mode = file.metadata().map_err(unreadable)?.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        let shown = path.display();
        return Err(refused(
            path,
            &format!("may be used by others (mode {mode:04o}); run: chmod 600 {shown}"),
        ));
    }
    let mut text = String::new();
    let read = file.take(LONGEST as u64 + 1).read_to_string(&mut text);
    match read.map_err(unreadable)? {
        length if length > LONGEST => Err(refused(path, "is longer than any token")),
        _ => Ok(text.trim().to_owned()),
    }
}

fn refused(path: &Path, why: &str) -> Error {
    let path = path.display();
    Error::new(Code::StoreFailed, format!("the token's file {path} {why}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, Permissions};

    #[test]
    fn a_token_is_made_once_and_only_its_owner_may_read_it() {
        let folder = tempfile::tempdir().expect("temp dir is writable");
        let path = folder.path().join("queen.db.hive-token");
        let token = HiveToken::load_or_create(&path).expect("made");
        assert_eq!(token.expose().len(), 64);
        assert_eq!(HiveToken::load_or_create(&path).expect("read"), token);
        let mode = path.metadata().expect("it is there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(format!("{token:?}"), "HiveToken(…)");
    }

    #[test]
    fn a_file_that_others_may_read_is_refused_with_the_cure() {
        let folder = tempfile::tempdir().expect("temp dir is writable");
        let path = folder.path().join("token");
        HiveToken::load_or_create(&path).expect("made");
        fs::set_permissions(&path, Permissions::from_mode(0o640)).expect("it is ours");
        let error = HiveToken::load_or_create(&path).expect_err("0640 is too loose");
        assert!(
            error.message.contains("0640") && error.message.contains("chmod 600"),
            "{error}"
        );
    }

    #[test]
    fn an_empty_or_garbled_file_is_refused_and_kept() {
        let folder = tempfile::tempdir().expect("temp dir is writable");
        for content in ["", "\n", "abc", &"g".repeat(64)] {
            let path = folder.path().join("token");
            fs::write(&path, content).expect("written");
            fs::set_permissions(&path, Permissions::from_mode(0o600)).expect("it is ours");
            let error = HiveToken::load_or_create(&path).expect_err(content);
            assert_eq!(error.code, Code::StoreFailed);
            // A temporary folder's name may have a part of it.
            assert!(!error.message.contains(&"g".repeat(64)), "{error}");
            assert_eq!(fs::read_to_string(&path).expect("still there"), content);
        }
        let error = HiveToken::load_or_create(Path::new("/nowhere/token")).expect_err("no folder");
        assert!(error.message.contains("/nowhere/token"), "{error}");
    }

    #[test]
    fn each_hive_has_a_token_that_tells_nothing_of_the_others() {
        let secret = HiveToken::new("s3cret").expect("a token");
        let of = |name: &str| secret.for_hive(&HiveId::new(name).expect("an id"));
        // printf rbee-hive:gpu-0 | openssl dgst -sha256 -hmac s3cret
        let expected = "ef154d693d740ea675b8ef072b3c778bb3416b489b8fc6ed8fc04528d6c1a13d";
        assert_eq!(of("gpu-0").expose(), expected);
        assert_ne!(of("gpu-0"), of("gpu-1"));
        assert!(of("gpu-0").is(expected.as_bytes()) && !of("gpu-1").is(expected.as_bytes()));
    }

    #[test]
    fn a_configured_token_must_fit_a_header() {
        assert!(HiveToken::new("s3cret").is_ok());
        for bad in ["", "a b", "a\nb", "ä"] {
            assert!(HiveToken::new(bad).is_err(), "{bad:?}");
        }
    }
}
