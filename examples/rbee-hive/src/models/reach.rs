//! Addresses at which no model is: link-local ones and the others where clouds tell a machine's secrets to
//! whoever asks from it. A name that resolves to one is not connected to.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use ureq::config::Config;
use ureq::http::Uri;
use ureq::unversioned::resolver::{DefaultResolver, ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::NextTimeout;

/// Addresses, separated by commas, that are connected to all the same.
const ALLOWED: &str = "RBEE_HIVE_ALLOWED_ADDRESSES";

/// Beside the link-local ones, which are AWS's, Azure's and Google's: Alibaba Cloud's, Oracle Cloud's.
const METADATA_V4: [Ipv4Addr; 2] = [
    Ipv4Addr::new(100, 100, 100, 200),
    Ipv4Addr::new(192, 0, 0, 192),
];

/// AWS's, Google's.
const METADATA_V6: [Ipv6Addr; 2] = [
    Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254),
    Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254),
];

/// Resolves names as the system does, and refuses what is not within reach.
#[derive(Debug)]
pub(super) struct Reach {
    system: DefaultResolver,
    allowed: Vec<IpAddr>,
}

impl Reach {
    pub(super) fn from_env() -> Self {
        let allowed = std::env::var(ALLOWED).unwrap_or_default();
        let allowed = allowed.split(',').filter_map(|one| one.trim().parse().ok());
        Reach {
            system: DefaultResolver::default(),
            allowed: allowed.collect(),
        }
    }

    fn check(&self, address: SocketAddr) -> io::Result<()> {
        let ip = plain(address.ip());
        if !is_reserved(ip) || self.allowed.contains(&ip) {
            return Ok(());
        }
        let why = format!(
            "{ip} is a link-local or metadata address, from which nothing is fetched; list it in \
             {ALLOWED} if it is right"
        );
        Err(io::Error::new(io::ErrorKind::PermissionDenied, why))
    }
}

impl Resolver for Reach {
    fn resolve(
        &self,
        uri: &Uri,
        config: &Config,
        timeout: NextTimeout,
    ) -> Result<ResolvedSocketAddrs, ureq::Error> {
        let found = self.system.resolve(uri, config, timeout)?;
        for address in found.iter() {
            self.check(*address)?;
        }
        Ok(found)
    }
}

/// An IPv4 address that is written as an IPv6 address (mapped, or of a translator, RFC 6052) as itself.
fn plain(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) if v6.segments()[..6] == [0x64, 0xff9b, 0, 0, 0, 0] => {
            IpAddr::V4(Ipv4Addr::from_bits(v6.to_bits() as u32))
        }
        other => other,
    }
}

fn is_reserved(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => {
            v4.is_link_local()
                || v4.is_multicast()
                || v4.is_broadcast()
                || v4.octets()[0] == 0
                || METADATA_V4.contains(&v4)
        }
        IpAddr::V6(v6) => {
            v6.is_unicast_link_local()
                || v6.is_multicast()
                || v6.is_unspecified()
                || METADATA_V6.contains(&v6)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reserved_addresses_are_known_however_they_are_written() {
        let reach = |allowed: &str| Reach {
            system: DefaultResolver::default(),
            allowed: allowed.parse().into_iter().collect(),
        };
        let at = |ip: &str| SocketAddr::new(ip.parse().unwrap(), 443);
        for refused in [
            "169.254.169.254",
            "::ffff:169.254.169.254",
            "64:ff9b::a9fe:a9fe",
            "100.100.100.200",
            "fe80::1",
            "fd00:ec2::254",
            "0.0.0.0",
            "::",
            "224.0.0.1",
        ] {
            let error = reach("").check(at(refused)).unwrap_err();
            assert!(error.to_string().contains(ALLOWED), "{refused}: {error}");
        }
        for free in [
            "127.0.0.1",
            "192.168.1.5",
            "10.0.0.1",
            "2001:db8::1",
            "fd00::5",
        ] {
            reach("").check(at(free)).unwrap();
        }
        reach("169.254.169.254")
            .check(at("::ffff:169.254.169.254"))
            .unwrap();
    }
}
