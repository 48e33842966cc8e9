//! Proves to a machine who the queen is: with keys from files or from an agent.

use std::fs;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ssh2::{ErrorCode, Session};

use super::quote;
use super::target::{Keys, Target};
use crate::config::SshOptions;
use crate::error::{Code, Error, Result};

/// Keys that are tried: servers hang up on more (`MaxAuthTries` is 6).
const MAX_TRIES: usize = 5;
/// The usual names of keys, the best first.
const USUAL_KEYS: [&str; 3] = ["id_ed25519", "id_ecdsa", "id_rsa"];
const LONGEST_PASSPHRASE: u64 = 1024;
const LARGEST_KEY_BYTES: u64 = 64 << 10;
/// libssh2's codes for a key that the server does not take.
const REFUSED: [i32; 2] = [-18, -19];
/// libssh2's codes for a key that can't be used here: its file, its method, its agent.
const UNUSABLE: [i32; 4] = [-16, -33, -34, -42];

/// What happened to one key.
enum Tried {
    Accepted,
    /// It can't be used, or the server does not take it; with the reason.
    No(String),
}

/// Logs in; says with which key.
///
/// # Errors
/// `HIVE_UNREACHABLE` with every key that was tried, what became of it, and the cure.
pub(super) fn log_in(session: &Session, target: &Target, options: &SshOptions) -> Result<String> {
    let mut login = Login {
        session,
        target,
        options,
        tries: 0,
        failures: Vec::new(),
    };
    let accepted = match &target.keys {
        Keys::Named(key) => login.named(key)?,
        Keys::Configured(keys) => match login.files(keys)? {
            None => login.agent()?,
            accepted => accepted,
        },
        Keys::Usual => match login.agent()? {
            None => login.files(&usual_keys(options))?,
            accepted => accepted,
        },
    };
    accepted.ok_or_else(|| login.refusal())
}

fn usual_keys(options: &SshOptions) -> Vec<PathBuf> {
    let keys = USUAL_KEYS.iter();
    keys.filter_map(|name| options.in_ssh_folder(name))
        .collect()
}

struct Login<'a> {
    session: &'a Session,
    target: &'a Target,
    options: &'a SshOptions,
    tries: usize,
    failures: Vec<String>,
}

impl Login<'_> {
    /// The key that was asked for, and no other; an agent may have it unlocked.
    fn named(&mut self, key: &Path) -> Result<Option<String>> {
        match self.file(key)? {
            None if self.options.passphrase_file.is_none() && is_locked(key) => self.agent(),
            accepted => Ok(accepted),
        }
    }

    fn files(&mut self, keys: &[PathBuf]) -> Result<Option<String>> {
        for key in keys {
            if let Some(accepted) = self.file(key)? {
                return Ok(Some(accepted));
            }
        }
        Ok(None)
    }

    fn file(&mut self, key: &Path) -> Result<Option<String>> {
        let shown = key.display().to_string();
        let tried = match unusable(key) {
            Some(why) => Tried::No(why),
            None if self.tries >= MAX_TRIES => Tried::No("was one too many to try".into()),
            None => self.try_file(key)?,
        };
        Ok(self.noted(shown, tried))
    }

    fn try_file(&mut self, key: &Path) -> Result<Tried> {
        let passphrase = match is_locked(key) {
            true => match self.passphrase()? {
                Some(passphrase) => Some(passphrase),
                None => {
                    let why = "has a pass-phrase; set passphrase_file in [ssh], or add the key to \
                               an agent";
                    return Ok(Tried::No(why.into()));
                }
            },
            false => None,
        };
        self.tries += 1;
        let user = &self.target.user;
        let result = self
            .session
            .userauth_pubkey_file(user, None, key, passphrase.as_deref());
        self.judged(result, passphrase.is_some())
    }

    fn agent(&mut self) -> Result<Option<String>> {
        let Some(socket) = self.options.agent() else {
            let none = "is not there (SSH_AUTH_SOCK is not set)";
            return Ok(self.noted("the agent".into(), Tried::No(none.into())));
        };
        let shown = format!("the agent {}", socket.display());
        let unreached = |error: ssh2::Error| format!("can't be asked: {}", error.message());
        let listed = self.session.agent().and_then(|mut agent| {
            agent.set_identity_path(&socket)?;
            agent.connect()?;
            agent.list_identities()?;
            let identities = agent.identities()?;
            Ok((agent, identities))
        });
        let (agent, identities) = match listed {
            Ok(listed) => listed,
            Err(error) => return Ok(self.noted(shown, Tried::No(unreached(error)))),
        };
        if identities.is_empty() {
            let empty = "has no keys; add one with ssh-add";
            return Ok(self.noted(shown, Tried::No(empty.into())));
        }
        for identity in &identities {
            if self.tries >= MAX_TRIES {
                let rest = "has more keys than may be tried; name one as ssh_key_path";
                self.noted(shown, Tried::No(rest.into()));
                break;
            }
            self.tries += 1;
            let tried = self.judged(agent.userauth(&self.target.user, identity), false)?;
            let key = format!("the agent's key {:?}", identity.comment());
            if let Some(accepted) = self.noted(key, tried) {
                return Ok(Some(accepted));
            }
        }
        Ok(None)
    }

    fn noted(&mut self, key: String, tried: Tried) -> Option<String> {
        match tried {
            Tried::Accepted => Some(key),
            Tried::No(why) => {
                self.failures.push(format!("{key} {why}"));
                None
            }
        }
    }

    fn judged(&self, result: Result<(), ssh2::Error>, had_passphrase: bool) -> Result<Tried> {
        let Err(error) = result else {
            return Ok(Tried::Accepted);
        };
        match error.code() {
            ErrorCode::Session(code) if REFUSED.contains(&code) => {
                Ok(Tried::No("was refused".into()))
            }
            ErrorCode::Session(code) if UNUSABLE.contains(&code) => {
                let cause = match had_passphrase {
                    true => "is the pass-phrase right?",
                    false => "is it a private key?",
                };
                let why = error.message();
                Ok(Tried::No(format!("can't be used: {why}; {cause}")))
            }
            _ => {
                let Target { user, host, .. } = self.target;
                let why = error.message();
                Err(unreachable(format!(
                    "{host} broke off the login as {user}: {why}"
                )))
            }
        }
    }

    fn passphrase(&self) -> Result<Option<String>> {
        let file = self.options.passphrase_file.as_deref();
        file.map(read_passphrase).transpose()
    }

    fn refusal(&self) -> Error {
        let Target {
            user, host, port, ..
        } = self.target;
        let tried = self.failures.join("; ");
        let key = match &self.target.keys {
            Keys::Named(key) => quote::word(&key.to_string_lossy()),
            Keys::Configured(_) | Keys::Usual => Ok("KEY".to_owned()),
        };
        let key = key.unwrap_or_default();
        let place = quote::word(&format!("{user}@{host}")).unwrap_or_default();
        unreachable(format!(
            "{host} accepts none of the keys for {user}: {tried}. Name a key as ssh_key_path, and \
             put its public half there: ssh-copy-id -i {key} -p {port} {place}"
        ))
    }
}

/// Why a key's file is not even tried.
fn unusable(key: &Path) -> Option<String> {
    let meta = match key.metadata() {
        Err(error) => return Some(format!("can't be read: {error}")),
        Ok(meta) if !meta.is_file() => return Some("is no file".into()),
        Ok(meta) => meta,
    };
    let mode = meta.permissions().mode() & 0o777;
    // As ssh does: such a key may be in anybody's hands.
    (mode & 0o077 != 0).then(|| {
        format!(
            "may be used by others (mode {mode:04o}); run: chmod 600 {}",
            key.display()
        )
    })
}

/// Whether a private key needs a pass-phrase.
fn is_locked(key: &Path) -> bool {
    let mut text = String::new();
    let read =
        fs::File::open(key).and_then(|file| file.take(LARGEST_KEY_BYTES).read_to_string(&mut text));
    read.is_ok() && is_locked_text(&text)
}

fn is_locked_text(text: &str) -> bool {
    let body: String = text
        .lines()
        .map(str::trim)
        .filter(|line| !line.contains('-') && !line.contains(':'))
        .collect();
    match text.contains("BEGIN OPENSSH PRIVATE KEY") {
        // "openssh-key-v1\0", then the cipher's name with its length (PROTOCOL.key of OpenSSH).
        true => STANDARD.decode(body).is_ok_and(|key| {
            let cipher = key.get(15..).and_then(super::known_hosts::key_type);
            cipher.is_some_and(|cipher| cipher != "none")
        }),
        false => text.contains("ENCRYPTED"),
    }
}

fn read_passphrase(file: &Path) -> Result<String> {
    let refused = |why: String| {
        let file = file.display();
        unreachable(format!("the pass-phrase's file {file} {why}"))
    };
    let cant = |error: std::io::Error| refused(format!("can't be read: {error}"));
    let opened = fs::File::open(file).map_err(cant)?;
    let mode = opened.metadata().map_err(cant)?.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        let shown = file.display();
        let why = format!("may be used by others (mode {mode:04o}); run: chmod 600 {shown}");
        return Err(refused(why));
    }
    let mut text = String::new();
    let read = opened
        .take(LONGEST_PASSPHRASE + 1)
        .read_to_string(&mut text);
    match read.map_err(cant)? as u64 > LONGEST_PASSPHRASE {
        true => Err(refused("is longer than any pass-phrase".into())),
        false => Ok(text.trim_end_matches(['\r', '\n']).to_owned()),
    }
}

fn unreachable(message: String) -> Error {
    Error::new(Code::HiveUnreachable, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(cipher: &str) -> String {
        let length = u32::try_from(cipher.len()).expect("short");
        let body = [
            b"openssh-key-v1\0",
            &length.to_be_bytes()[..],
            cipher.as_bytes(),
            b"the rest",
        ]
        .concat();
        let body = STANDARD.encode(body);
        format!("-----BEGIN OPENSSH PRIVATE KEY-----\n{body}\n-----END OPENSSH PRIVATE KEY-----\n")
    }

    #[test]
    fn a_key_with_a_pass_phrase_is_told_from_one_without() {
        assert!(is_locked_text(&key("aes256-ctr")));
        assert!(!is_locked_text(&key("none")));
        let old = "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: x\n";
        assert!(is_locked_text(old));
        assert!(!is_locked_text("-----BEGIN RSA PRIVATE KEY-----\nAAAA\n"));
    }

    #[test]
    fn a_key_or_pass_phrase_that_others_may_read_is_refused_with_the_cure() {
        let file = tempfile::NamedTempFile::new().expect("temp dir is writable");
        fs::write(file.path(), "s3cret words\n").expect("written");
        let read = read_passphrase(file.path()).expect("mode is 0600");
        assert_eq!(read, "s3cret words");
        let loose = fs::Permissions::from_mode(0o640);
        fs::set_permissions(file.path(), loose).expect("it is ours");
        let error = read_passphrase(file.path()).expect_err("0640 is too loose");
        assert!(error.message.contains("chmod 600"), "{error}");
        assert!(!error.message.contains("s3cret"), "{error}");
        assert!(unusable(file.path()).is_some_and(|why| why.contains("0640")));
        assert!(unusable(Path::new("/nowhere/key")).is_some());
    }
}
