//! Addresses at which no hive, worker or model is: link-local ones, where clouds tell a machine's
//! secrets to whoever asks from it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use url::{Host, Url};

use crate::error::{Error, Result};

/// Where clouds tell machines about themselves, beside the link-local addresses (those are AWS's,
/// Azure's and Google's): Alibaba Cloud's, Oracle Cloud's.
const METADATA_V4: [Ipv4Addr; 2] = [
    Ipv4Addr::new(100, 100, 100, 200),
    Ipv4Addr::new(192, 0, 0, 192),
];

/// The same over IPv6: AWS's, Google's.
const METADATA_V6: [Ipv6Addr; 2] = [
    Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254),
    Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254),
];

/// Which reserved addresses may be used all the same. None by default.
#[derive(Debug, Clone, Default)]
pub struct Reach {
    allowed: Arc<[IpAddr]>,
}

impl Reach {
    /// One that allows these.
    #[must_use]
    pub fn allowing(addresses: &[IpAddr]) -> Self {
        let addresses = addresses.iter().map(IpAddr::to_canonical);
        Reach {
            allowed: addresses.collect(),
        }
    }

    /// Whether an address may be connected to.
    #[must_use]
    pub fn allows(&self, address: IpAddr) -> bool {
        let address = embedded(address.to_canonical());
        !is_reserved(address) || self.allowed.contains(&address)
    }

    /// Refuses a host that is a reserved address; what a name means is seen when it is connected to.
    ///
    /// # Errors
    /// `INVALID_REQUEST`.
    pub fn check_host(&self, host: &str) -> Result<()> {
        let bare = host.trim_matches(['[', ']']);
        let address = match bare.parse::<Ipv6Addr>() {
            Ok(v6) => Some(IpAddr::V6(v6)),
            // Whole and hexadecimal numbers are addresses too.
            Err(_) => match Host::parse(bare) {
                Ok(Host::Ipv4(v4)) => Some(IpAddr::V4(v4)),
                _ => None,
            },
        };
        match address.filter(|address| !self.allows(*address)) {
            Some(address) => Err(Error::invalid(refusal(address))),
            None => Ok(()),
        }
    }

    /// Refuses a model that is to be fetched from such a host.
    ///
    /// # Errors
    /// `INVALID_REQUEST`.
    pub(crate) fn check_model(&self, model: &str) -> Result<()> {
        let url = model.starts_with("https:").then(|| Url::parse(model).ok());
        match url.flatten().as_ref().and_then(Url::host_str) {
            Some(host) => self.check_host(host).map_err(|error| error.param("model")),
            None => Ok(()),
        }
    }
}

/// What is told of a reserved address.
pub(crate) fn refusal(address: IpAddr) -> String {
    format!(
        "{address} is a link-local or metadata address, which is not connected to; list it in \
         allowed_addresses of the queen's configuration if it is right"
    )
}

/// An IPv4 address that an IPv6 address of a translator (NAT64, RFC 6052) stands for.
fn embedded(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V6(v6) if v6.segments()[..6] == [0x64, 0xff9b, 0, 0, 0, 0] => {
            IpAddr::V4(Ipv4Addr::from_bits(v6.to_bits() as u32))
        }
        other => other,
    }
}

fn is_reserved(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => v4.is_link_local() || METADATA_V4.contains(&v4),
        IpAddr::V6(v6) => v6.is_unicast_link_local() || METADATA_V6.contains(&v6),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn link_local_and_metadata_addresses_are_refused_in_every_spelling() {
        let reach = Reach::default();
        for host in [
            "169.254.169.254",
            "169.254.0.1",
            "2852039166",
            "0xa9fea9fe",
            "169.254.43518",
            "fe80::1",
            "[febf::1]",
            "::ffff:169.254.169.254",
            "64:ff9b::a9fe:a9fe",
            "fd00:ec2::254",
            "100.100.100.200",
        ] {
            assert!(reach.check_host(host).is_err(), "{host}");
        }
        for host in [
            "127.0.0.1",
            "localhost",
            "::1",
            "10.0.0.1",
            "192.168.1.2",
            "gpu-0.lan",
            "fd00::1",
            "100.100.100.100",
        ] {
            assert!(reach.check_host(host).is_ok(), "{host}");
        }
        for model in [
            "https://169.254.169.254/m.gguf",
            "https://x@[fe80::1]:1/m.gguf",
        ] {
            assert!(reach.check_model(model).is_err(), "{model}");
        }
        for model in ["https://host/m.gguf", "hf:169.254.169.254/m", "file:m"] {
            assert!(reach.check_model(model).is_ok(), "{model}");
        }
    }

    #[test]
    fn one_that_is_listed_is_allowed_and_no_other() {
        let listed = "169.254.7.7".parse().expect("an address");
        let reach = Reach::allowing(&[listed]);
        assert!(reach.check_host("::ffff:169.254.7.7").is_ok());
        assert!(reach.check_host("169.254.7.8").is_err());
    }
}
