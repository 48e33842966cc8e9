//! What passes between the async side and a session's thread.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::oneshot;

use super::command::CommandOutput;
use super::stream::SshStream;

/// What the async side wants of a session.
pub(super) enum Order {
    /// A connection to a port of the machine's loopback address.
    Connect {
        port: u16,
        reply: oneshot::Sender<Result<SshStream, Undone>>,
    },
    /// A run of the machine's shell, which reads this as its input.
    Run {
        script: Bytes,
        reply: oneshot::Sender<Result<CommandOutput, Undone>>,
    },
}

/// Why an order was not carried out.
#[derive(Debug)]
pub(super) enum Undone {
    /// Not begun; another session may.
    Again,
    /// The other side refuses it.
    Refused(io::Error),
    /// The session has ended in the middle of it.
    Broken(Arc<str>),
}

/// What others must know of a session at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Notice {
    /// It takes no more orders; what is under way goes on.
    Retired,
    /// A connection to a port neither begins nor fails.
    Hangs(u16),
    /// It does now, or will never.
    Resumes(u16),
}

impl Order {
    /// Whether somebody still waits for the answer.
    pub(super) fn is_wanted(&self) -> bool {
        match self {
            Order::Connect { reply, .. } => !reply.is_closed(),
            Order::Run { reply, .. } => !reply.is_closed(),
        }
    }

    pub(super) fn refuse(self, why: Undone) {
        match self {
            Order::Connect { reply, .. } => drop(reply.send(Err(why))),
            Order::Run { reply, .. } => drop(reply.send(Err(why))),
        }
    }

    /// What a refused channel means to who asked for it.
    pub(super) fn refusal(&self, why: &str) -> io::Error {
        match self {
            Order::Connect { port, .. } if why.contains("connect failed") => io::Error::new(
                io::ErrorKind::ConnectionRefused,
                format!("nothing listens on port {port} there"),
            ),
            Order::Connect { .. } if why.contains("prohibited") => io::Error::new(
                io::ErrorKind::PermissionDenied,
                "sshd does not allow tunnels; set AllowTcpForwarding yes in its sshd_config",
            ),
            Order::Connect { .. } => io::Error::other(why.to_owned()),
            Order::Run { .. } => io::Error::other(format!(
                "sshd refuses another session ({why}); raise MaxSessions in its sshd_config"
            )),
        }
    }
}
