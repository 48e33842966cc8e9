//! TCP connections, and whose fault it is when there is none.

use std::io;
use std::net::{IpAddr, SocketAddr};

use rustix::io::Errno;
use tokio::net::{TcpStream, lookup_host};

use super::HiveStream;
use crate::domain::{Reach, refusal};
use crate::error::{Code, Error};
use crate::seldom::Seldom;

static SAID: Seldom = Seldom::new();

/// Connects without Nagle's delay, which costs 40 ms together with delayed ACKs.
///
/// # Errors
/// `PermissionDenied` for an address that is not within reach; those of the system.
pub(crate) async fn connect_tcp(
    host: &str,
    port: u16,
    reach: &Reach,
) -> io::Result<Box<dyn HiveStream>> {
    let stream = match host.parse::<IpAddr>() {
        Ok(ip) => connect(SocketAddr::new(ip, port), reach).await?,
        Err(_) => connect_by_name(host, port, reach).await?,
    };
    stream.set_nodelay(true)?;
    Ok(Box::new(stream))
}

async fn connect_by_name(host: &str, port: u16, reach: &Reach) -> io::Result<TcpStream> {
    let addresses = match lookup_host((host, port)).await {
        Ok(addresses) => addresses,
        // The resolver needs descriptors too, and does not say that it got none.
        Err(error) => return Err(std::fs::File::open("/dev/null").err().unwrap_or(error)),
    };
    let mut failed: Option<io::Error> = None;
    for address in addresses {
        match connect(address, reach).await {
            Ok(stream) => return Ok(stream),
            // What one of the addresses says of the other side counts more than our own trouble.
            Err(error) if failed.is_none() || shortage(&error).is_none() => failed = Some(error),
            Err(_) => {}
        }
    }
    Err(failed.unwrap_or_else(|| io::Error::other(format!("{host} has no address"))))
}

async fn connect(address: SocketAddr, reach: &Reach) -> io::Result<TcpStream> {
    if !reach.allows(address.ip()) {
        let why = refusal(address.ip());
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, why));
    }
    TcpStream::connect(address).await.map_err(|error| {
        // Over IPv6 it is also said where this machine has no IPv6 at all.
        match Errno::from_io_error(&error) {
            Some(Errno::ADDRNOTAVAIL) if address.is_ipv6() => io::Error::other(error.to_string()),
            _ => error,
        }
    })
}

/// That something was not reached, which is begun with. How its address answered is told to
/// administrators only; what a transport says in an [`Error`] within its own, to all.
pub(crate) fn unreached(code: Code, what: String, why: &io::Error) -> Error {
    let said = why.get_ref().and_then(|why| why.downcast_ref::<Error>());
    match said {
        Some(error) => {
            let message = format!("{what}: {}", error.message);
            let error = error.clone().rephrased(|_| message.clone());
            Error { code, ..error }
        }
        None => Error::new(code, what).because(why.to_string()),
    }
}

/// What the queen herself is short of, if an operation failed for that and not for whom it was to
/// reach.
fn shortage(error: &io::Error) -> Option<&'static str> {
    Some(match Errno::from_io_error(error)? {
        Errno::MFILE => "open files (LimitNOFILE, ulimit -n)",
        Errno::NFILE => "open files of the whole machine (fs.file-max)",
        Errno::NOMEM | Errno::NOBUFS => "memory for connections",
        Errno::ADDRNOTAVAIL => "local ports (net.ipv4.ip_local_port_range)",
        _ => return None,
    })
}

/// A failure that is the queen's own trouble, as an error; nobody else is to be blamed for it. It is
/// logged, but not with each request.
pub(crate) fn own_trouble(error: &io::Error) -> Option<Error> {
    let short_of = shortage(error)?;
    if SAID.is_due() {
        tracing::warn!(%error, "the queen is out of {short_of}: what needs a connection waits");
    }
    let message = format!("the queen is out of {short_of}; ask again");
    Some(Error::new(Code::Overloaded, message).detail(SHORT_OF, short_of))
}

/// Tells such an error from one that somebody else sent.
const SHORT_OF: &str = "queen_is_out_of";

/// Whether an error came from [`own_trouble`].
pub(crate) fn is_own_trouble(error: &Error) -> bool {
    let details = error.details.as_ref();
    error.code == Code::Overloaded && details.is_some_and(|details| details.contains_key(SHORT_OF))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_the_queen_is_short_of_is_her_own_trouble() {
        let own = [Errno::MFILE, Errno::NFILE, Errno::NOMEM, Errno::NOBUFS];
        for errno in own.into_iter().chain([Errno::ADDRNOTAVAIL]) {
            let error = own_trouble(&errno.into()).expect("it is hers");
            assert!(is_own_trouble(&error), "{errno}");
        }
        for errno in [
            Errno::CONNREFUSED,
            Errno::HOSTUNREACH,
            Errno::TIMEDOUT,
            Errno::ACCESS,
        ] {
            assert!(own_trouble(&errno.into()).is_none(), "{errno}");
        }
        assert!(own_trouble(&io::Error::other("x")).is_none());
        assert!(!is_own_trouble(&Error::new(Code::Overloaded, "a hive's")));
    }

    #[tokio::test]
    async fn a_reserved_address_is_not_connected_to() {
        for host in ["169.254.169.254", "2852039166", "fe80::1"] {
            let refused = connect_tcp(host, 80, &Reach::default()).await;
            let kind = refused.map(|_| ()).expect_err(host).kind();
            assert_eq!(kind, io::ErrorKind::PermissionDenied, "{host}");
        }
    }

    #[tokio::test]
    async fn an_ipv6_that_is_not_there_is_not_for_lack_of_ports() {
        // A documentation address (RFC 3849), which no machine can connect to.
        let address = SocketAddr::new([0x2001, 0xdb8, 0, 0, 0, 0, 0, 1].into(), 9);
        let reach = Reach::default();
        let error = connect(address, &reach);
        let error = tokio::time::timeout(std::time::Duration::from_millis(200), error).await;
        if let Ok(Err(error)) = error {
            assert!(own_trouble(&error).is_none(), "{error}");
        }
    }
}
