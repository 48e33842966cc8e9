//! From a name to an authenticated session. Everything here blocks, on the session's own thread.

use std::io;
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};

use rustix::net::sockopt::set_socket_send_buffer_size;
use ssh2::{MethodType, Session};

use super::auth;
use super::known_hosts::{self, KnownHosts, Place, Verdict};
use super::line::{Io, Line};
use super::quote;
use super::target::Target;
use crate::config::{HostKeyPolicy, SshOptions};
use crate::domain::{Reach, SshTarget, refusal};
use crate::error::{Code, Error, Result};

/// How far a connection attempt came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    Reach,
    HostKey,
    LogIn,
}

/// Why there is no session.
#[derive(Debug, Clone)]
pub(super) struct Refused {
    pub(super) stage: Stage,
    pub(super) error: Error,
}

impl Refused {
    pub(super) fn new(stage: Stage, error: Error) -> Self {
        let reason = match stage {
            Stage::Reach => "unreachable",
            Stage::HostKey => "host_key",
            Stage::LogIn => "authentication",
        };
        Refused {
            stage,
            error: error.detail("reason", reason),
        }
    }
}

/// What is known of a session's other end.
#[derive(Debug, Clone, Default)]
pub(super) struct Peer {
    /// Where the connection goes.
    pub(super) address: String,
    /// The type and fingerprint of its key, and why it is trusted.
    pub(super) host_key: String,
    /// Who the queen is there, and by which key.
    pub(super) login: String,
}

/// A session that is ready for channels.
pub(super) struct Connected {
    pub(super) io: Io,
    pub(super) pump: Line,
    pub(super) peer: Peer,
}

/// Makes a session for a driver: non-blocking, with a first channel.
pub(super) fn connect(registered: &SshTarget, options: &SshOptions) -> Result<Connected, Refused> {
    let (session, socket, peer) = log_in(registered, options)?;
    let pump = session.channel_session().map_err(|error| {
        let host = &registered.host;
        let why = format!(
            "{host} refuses every session: {}; set MaxSessions in its sshd_config to 10",
            error.message()
        );
        Refused::new(Stage::LogIn, unreachable(why))
    })?;
    let buffer = options.socket_buffer_bytes;
    if let Err(error) = set_socket_send_buffer_size(&socket, buffer) {
        tracing::debug!(%error, buffer, "the socket keeps its own buffer");
    }
    session.set_blocking(false);
    Ok(Connected {
        io: Io {
            session,
            socket,
            wants_out: false.into(),
        },
        pump: Line::new(pump),
        peer,
    })
}

/// Makes a session in blocking mode, with its socket.
pub(super) fn log_in(
    registered: &SshTarget,
    options: &SshOptions,
) -> Result<(Session, TcpStream, Peer), Refused> {
    let reach = |error| Refused::new(Stage::Reach, error);
    let deadline = Instant::now() + options.connect_timeout;
    let target = Target::resolve(registered, options).map_err(reach)?;
    let (socket, address) = dial(&target, &options.reach, deadline).map_err(reach)?;

    let files = options.known_hosts_files();
    let known = KnownHosts::read(&files).map_err(|error| {
        let error = unreachable(format!("known host keys can't be read: {error}"));
        Refused::new(Stage::HostKey, error)
    })?;
    let session = shake_hands(&socket, &target, &known, deadline)
        .map_err(|why| reach(unreached(&target, format!("it speaks no SSH: {why}"))))?;
    let host_key = check_host_key(&session, &target, &known, options)
        .map_err(|error| Refused::new(Stage::HostKey, error))?;

    session.set_timeout(millis_until(deadline));
    let key = auth::log_in(&session, &target, options)
        .map_err(|error| Refused::new(Stage::LogIn, error))?;
    let login = format!("as {} with {key}", target.user);
    let peer = Peer {
        address,
        host_key,
        login,
    };
    Ok((session, socket, peer))
}

/// A TCP connection to the first of the machine's addresses that takes one.
fn dial(target: &Target, reach: &Reach, deadline: Instant) -> Result<(TcpStream, String)> {
    let Target { host, port, .. } = target;
    let resolved = (host.as_str(), *port).to_socket_addrs();
    let addresses = resolved.map_err(|error| unreached(target, error.to_string()))?;
    let mut last = "it has no address".to_owned();
    for address in addresses {
        if !reach.allows(address.ip()) {
            last = refusal(address.ip());
            continue;
        }
        match dial_one(address, deadline) {
            Ok(socket) => return Ok((socket, format!("{host}:{port}"))),
            Err(error) => last = error.to_string(),
        }
    }
    Err(unreached(target, last))
}

fn unreached(Target { host, port, .. }: &Target, cause: String) -> Error {
    unreachable(format!(
        "{host}:{port} can't be reached; is the machine on, is sshd running there, and are ssh_host and \
         ssh_port right?"
    ))
    .because(cause)
}

fn dial_one(address: SocketAddr, deadline: Instant) -> io::Result<TcpStream> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return Err(io::ErrorKind::TimedOut.into());
    }
    let socket = TcpStream::connect_timeout(&address, left)?;
    socket.set_nodelay(true)?;
    Ok(socket)
}

fn shake_hands(
    socket: &TcpStream,
    target: &Target,
    known: &KnownHosts,
    deadline: Instant,
) -> Result<Session, String> {
    let told = |error: ssh2::Error| error.message().to_owned();
    let mut session = Session::new().map_err(told)?;
    session.set_timeout(millis_until(deadline));
    let types = known.key_types(&target.known_as);
    if !types.is_empty() {
        let supported = session.supported_algs(MethodType::HostKey).map_err(told)?;
        let preferred = preferred(&supported, &types).join(",");
        session
            .method_pref(MethodType::HostKey, &preferred)
            .map_err(told)?;
    }
    let socket = socket.try_clone().map_err(|error| error.to_string())?;
    session.set_tcp_stream(socket);
    session.handshake().map_err(told)?;
    Ok(session)
}

/// The algorithms of keys that are known come first: a machine has several keys, and one that
/// nobody has noted would look like a stranger's.
fn preferred<'a>(supported: &[&'a str], known_types: &[String]) -> Vec<&'a str> {
    let is_known = |algorithm: &str| {
        // One key, three ways to sign with it.
        let key_type = match algorithm {
            "rsa-sha2-256" | "rsa-sha2-512" => "ssh-rsa",
            other => other,
        };
        known_types.iter().any(|known| known == key_type)
    };
    let (mut first, rest): (Vec<&str>, Vec<&str>) =
        supported.iter().partition(|algorithm| is_known(algorithm));
    first.extend(rest);
    first
}

/// Says which key it is and why it is trusted.
fn check_host_key(
    session: &Session,
    target: &Target,
    known: &KnownHosts,
    options: &SshOptions,
) -> Result<String> {
    let (key, _) = session
        .host_key()
        .ok_or_else(|| unreachable(format!("{} has shown no host key", target.host)))?;
    let kind = known_hosts::key_type(key).unwrap_or_default();
    let shown = format!("{kind} {}", known_hosts::fingerprint(key));
    let name = &target.known_as;
    match known.check(name, key) {
        Verdict::Known => Ok(format!("{shown} is known")),
        Verdict::Unknown => match options.host_keys {
            HostKeyPolicy::Strict => Err(unknown(target, &shown, options)),
            HostKeyPolicy::AcceptNew => {
                let files = options.known_hosts_files();
                let file = files.first().ok_or_else(|| no_file(&shown))?;
                known_hosts::append(file, name, key).map_err(|error| {
                    let file = file.display();
                    unreachable(format!("the host key can't be added to {file}: {error}"))
                })?;
                let file = file.display();
                tracing::warn!(host = name.full, key = shown, %file, "a new host key was accepted");
                Ok(format!("{shown} is new and was added to {file}"))
            }
        },
        Verdict::Changed(place) => Err(changed(target, &shown, &place)),
        Verdict::Revoked(Place { file, line }) => {
            let (name, file) = (&name.full, file.display());
            Err(unreachable(format!(
                "the host key of {name}, {shown}, is revoked in {file}:{line}: whoever shows it \
                 must not be trusted; give the machine a new key"
            )))
        }
    }
}

fn unknown(target: &Target, shown: &str, options: &SshOptions) -> Error {
    let name = &target.known_as.full;
    let files = options.known_hosts_files();
    let Some(file) = files.first() else {
        return no_file(shown);
    };
    let (scan, file) = (scan(target), file.display());
    unreachable(format!(
        "the host key of {name}, {shown}, is unknown: it is not in {file}. Compare it with what \
         the machine itself says (ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub there); if it \
         is the same, run: {scan} >> {file}"
    ))
}

fn changed(target: &Target, shown: &str, place: &Place) -> Error {
    let name = &target.known_as.full;
    let Place { file, line } = place;
    let (scan, file) = (scan(target), file.display());
    let quoted = quote::word(name).unwrap_or_default();
    unreachable(format!(
        "the host key of {name} has changed: it shows {shown}, and {file}:{line} has another. \
         Someone may be in between, or the machine was set up anew. If you know that it was, run: \
         ssh-keygen -R {quoted} -f {file}; {scan} >> {file}"
    ))
}

fn no_file(shown: &str) -> Error {
    unreachable(format!(
        "the host key {shown} can't be looked up: there is no known_hosts file, for want of a \
         home; set known_hosts in [ssh]"
    ))
}

/// The command that fetches a machine's keys.
fn scan(target: &Target) -> String {
    let host = quote::word(&target.host).unwrap_or_default();
    format!("ssh-keyscan -p {} {host}", target.port)
}

fn millis_until(deadline: Instant) -> u32 {
    let left = deadline.saturating_duration_since(Instant::now());
    // 0 would mean no time-out at all.
    let least = Duration::from_millis(1);
    u32::try_from(left.max(least).as_millis()).unwrap_or(u32::MAX)
}

fn unreachable(message: String) -> Error {
    Error::new(Code::HiveUnreachable, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reserved_address_is_not_dialled_whatever_its_name() {
        let deadline = Instant::now() + Duration::from_secs(5);
        // A whole number is resolved like a name.
        for host in ["169.254.7.7", "2851997447"] {
            let registered = SshTarget {
                host: host.into(),
                user: Some("me".into()),
                ..SshTarget::default()
            };
            let options = SshOptions {
                home: Some("/nowhere".into()),
                ..SshOptions::default()
            };
            let target = Target::resolve(&registered, &options).expect("a target");
            let error = dial(&target, &options.reach, deadline).expect_err("no connection");
            assert!(!error.message.contains("169.254.7.7 is"), "{error}");
            assert!(error.to_string().contains("allowed_addresses"), "{error}");
        }
    }

    #[test]
    fn the_algorithms_of_known_keys_come_first() {
        let supported = [
            "ssh-ed25519",
            "ecdsa-sha2-nistp256",
            "rsa-sha2-512",
            "ssh-rsa",
        ];
        let sorted = preferred(&supported, &["ssh-rsa".into()]);
        assert_eq!(
            sorted,
            [
                "rsa-sha2-512",
                "ssh-rsa",
                "ssh-ed25519",
                "ecdsa-sha2-nistp256"
            ]
        );
    }
}
