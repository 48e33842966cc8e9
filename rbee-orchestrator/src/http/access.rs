//! Who may call.

use std::net::Ipv6Addr;
use std::sync::{Arc, PoisonError, RwLock};

use http::header::{AUTHORIZATION, HOST, ORIGIN};
use http::request::Parts;
use http::{HeaderMap, HeaderName};
use subtle::ConstantTimeEq;

use crate::Orchestrator;
use crate::domain::{HiveId, is_loopback};
use crate::error::{Code, Error, Result};

// Made once: a name in text is checked and hashed anew with each look.
static SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// Who may call: whoever shows the token, or, without one, programs on this machine, but no web
/// page.
#[derive(Clone)]
pub struct Access {
    token: Option<String>,
    /// They can be changed while requests come in, by any of the clones.
    hosts: Arc<RwLock<Vec<String>>>,
}

impl std::fmt::Debug for Access {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let has_token = self.token.is_some();
        f.debug_struct("Access")
            .field("token", &has_token)
            .field("hosts", &self.hosts)
            .finish()
    }
}

impl Access {
    /// Every call but `GET /health` must show this bearer token. Hives may show theirs on their
    /// callbacks.
    #[must_use]
    pub fn token(token: impl Into<String>) -> Self {
        Access {
            token: Some(token.into()),
            hosts: Arc::default(),
        }
    }

    /// No token, for servers that listen on loopback only: a request with a foreign `Origin`, or
    /// with a `Host` that is not this machine's, is refused, so that no web page may drive it.
    #[must_use]
    pub fn loopback() -> Self {
        Access {
            token: None,
            hosts: Arc::default(),
        }
    }

    /// More names by which this machine may be called.
    #[must_use]
    pub fn hosts(self, hosts: Vec<String>) -> Self {
        self.set_hosts(hosts);
        self
    }

    /// Takes other names in place of those it has, for all its clones.
    pub fn set_hosts(&self, hosts: Vec<String>) {
        *self.hosts.write().unwrap_or_else(PoisonError::into_inner) = hosts;
    }

    /// Lets a caller in or not; says which hives' token it showed.
    pub(super) fn check(
        &self,
        head: &Parts,
        is_callback: bool,
        orchestrator: &Orchestrator,
    ) -> Result<Vec<HiveId>> {
        let hives = match is_callback {
            true => bearer(&head.headers).map(|token| orchestrator.hives_of_token(token)),
            false => None,
        };
        let hives = hives.unwrap_or_default();
        let Some(token) = &self.token else {
            self.refuse_web_pages(head)?;
            return Ok(hives);
        };
        let shown = bearer(&head.headers);
        let is_right = |shown: &[u8]| bool::from(shown.ct_eq(token.as_bytes()));
        match shown {
            Some(shown) if !hives.is_empty() || is_right(shown) => Ok(hives),
            Some(_) => Err(Error::new(
                Code::Unauthorized,
                "the token is not the right one",
            )),
            None => Err(Error::new(
                Code::Unauthorized,
                "this queen asks for a token: send `Authorization: Bearer <token>`",
            )),
        }
    }

    /// A browser tells whom a request is for (`Host`), whose page it is from (`Origin`) and, where it
    /// leaves that out, how far that page is from here (`Sec-Fetch-Site`, Fetch Metadata Request
    /// Headers).
    fn refuse_web_pages(&self, head: &Parts) -> Result<()> {
        let mut is_named_by_admin = false;
        let mut is_host_ours = |host: &[u8]| {
            match self.whose(host) {
                Some(Ours::ThisMachine) => {}
                Some(Ours::NamedByAdmin) => is_named_by_admin = true,
                None => {
                    let cure = "add the name to allowed_hosts, or set a token";
                    return Err(forbidden("Host", host, cure));
                }
            }
            Ok(())
        };
        let mut is_from_ours = false;
        let (mut is_cross_site, mut is_same_site) = (false, false);
        // In one walk, and all of them: who stands before the queen may look at another one (RFC 9112,
        // 3.2).
        for (name, value) in &head.headers {
            if *name == HOST {
                is_host_ours(value.as_bytes())?;
            } else if *name == ORIGIN {
                let origin = value.as_bytes();
                let rest = |scheme: &[u8]| origin.strip_prefix(scheme);
                let host = rest(b"http://").or_else(|| rest(b"https://"));
                if host.and_then(|host| self.whose(host)).is_none() {
                    let cure = "set a token to call from web pages";
                    return Err(forbidden("Origin", origin, cure));
                }
                is_from_ours = true;
            } else if *name == SEC_FETCH_SITE {
                is_cross_site |= value == "cross-site";
                is_same_site |= value == "same-site";
            }
        }
        if let Some(target) = head.uri.authority() {
            is_host_ours(target.as_str().as_bytes())?;
        }
        // All pages on `localhost` are of one site, and on this machine.
        let is_foreign = is_cross_site || (is_same_site && is_named_by_admin);
        if is_foreign && !is_from_ours {
            let site = if is_cross_site {
                "cross-site"
            } else {
                "same-site"
            };
            let cure = "a web page may start nothing here; set a token";
            return Err(forbidden("Sec-Fetch-Site", site.as_bytes(), cure));
        }
        Ok(())
    }

    /// Whose name an authority has, `host` or `host:port`, if it is this machine's.
    fn whose(&self, authority: &[u8]) -> Option<Ours> {
        let name = host_of(std::str::from_utf8(authority).ok()?)?;
        if is_loopback(name) {
            return Some(Ours::ThisMachine);
        }
        let is_name = |ours: &String| {
            // Brackets may be left out in the configuration.
            let ours = match ours.parse::<Ipv6Addr>() {
                Ok(_) => Some(ours.as_str()),
                Err(_) => host_of(ours),
            };
            ours.is_some_and(|ours| ours.eq_ignore_ascii_case(name))
        };
        let hosts = self.hosts.read().unwrap_or_else(PoisonError::into_inner);
        let is_named = hosts.iter().any(is_name);
        is_named.then_some(Ours::NamedByAdmin)
    }
}

/// By what right a name is this machine's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ours {
    ThisMachine,
    NamedByAdmin,
}

/// The host of an authority without user information (RFC 3986, 3.2; RFC 9110, 7.2), without the
/// brackets of an IPv6 address and the dot that ends an absolute name.
fn host_of(authority: &str) -> Option<&str> {
    let (host, rest) = match authority.strip_prefix('[') {
        Some(address) => {
            let (address, rest) = address.split_once(']')?;
            address.parse::<Ipv6Addr>().ok()?;
            (address, rest)
        }
        None => {
            let end = authority.find(':').unwrap_or(authority.len());
            let (name, rest) = authority.split_at(end);
            (name.strip_suffix('.').unwrap_or(name), rest)
        }
    };
    let is_port = match rest.strip_prefix(':') {
        Some("") => true,
        Some(port) => port.bytes().all(|b| b.is_ascii_digit()) && port.parse::<u16>().is_ok(),
        None => rest.is_empty(),
    };
    (is_port && !host.is_empty()).then_some(host)
}

fn bearer(headers: &HeaderMap) -> Option<&[u8]> {
    let value = headers.get(AUTHORIZATION)?.as_bytes();
    let (scheme, token) = value.split_at_checked(7)?;
    scheme
        .eq_ignore_ascii_case(b"bearer ")
        .then(|| token.trim_ascii())
}

fn forbidden(header: &str, value: &[u8], cure: &str) -> Error {
    let value: String = String::from_utf8_lossy(value).chars().take(80).collect();
    let message = format!("requests with {header} {value:?} are refused without a token; {cure}");
    Error::new(Code::Forbidden, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(access: &Access, headers: &[(&str, &str)]) -> bool {
        let mut request = http::Request::get("/v2/tasks");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        access
            .refuse_web_pages(&request.body(()).unwrap().into_parts().0)
            .is_err()
    }

    #[test]
    fn only_this_machine_by_its_own_names_gets_in_without_a_token() {
        let access = Access::loopback().hosts(vec!["queen.lan".into()]);
        for host in [
            "localhost",
            "LOCALHOST:80",
            "127.0.0.1:8080",
            "127.1.2.3",
            "[::1]:8080",
            "queen.lan:1",
            "queen.lan.",
            "localhost.:80",
            "localhost:",
            "[::ffff:127.0.0.1]:80",
            "[0:0:0:0:0:0:0:1]",
        ] {
            assert!(!refused(&access, &[("host", host)]), "{host}");
        }
        for host in [
            "evil.example",
            "localhost.evil.example:80",
            "10.0.0.1",
            "[fe80::1]",
            "",
            ":80",
            ".",
            "localhost..",
            "user@localhost",
            "localhost:80@evil.example",
            "localhost:evil.example",
            "localhost:65536",
            "localhost:+1",
            "localhost ",
            "localhost,evil.example",
            "localhost/x",
            "[::1]evil.example",
            "[::1",
            "::1",
            "[localhost]",
            "[::1%25lo]",
            "0.0.0.0",
            "[::]",
            "%6cocalhost",
        ] {
            assert!(refused(&access, &[("host", host)]), "{host}");
        }
        let page = |origin| [("host", "localhost"), ("origin", origin)];
        for origin in [
            "http://localhost:3000",
            "https://127.0.0.1",
            "http://queen.lan",
        ] {
            assert!(!refused(&access, &page(origin)), "{origin}");
        }
        for origin in [
            "http://evil.example",
            "null",
            "file://",
            "https://localhost.evil.example",
            "http://localhost@evil.example",
            "http://localhost/",
            "",
        ] {
            assert!(refused(&access, &page(origin)), "{origin}");
        }
        assert!(!refused(&access, &[]));
    }

    #[test]
    fn every_authority_that_is_given_must_be_ours() {
        let access = Access::loopback();
        let two = [("host", "localhost"), ("host", "evil.example")];
        assert!(refused(&access, &two));
        let origins = [
            ("origin", "http://localhost"),
            ("origin", "http://evil.example"),
        ];
        assert!(refused(&access, &origins));
        let asks = |target: &str, host: &str| {
            let request = http::Request::get(target).header("host", host);
            let head = request.body(()).unwrap().into_parts().0;
            access.refuse_web_pages(&head).is_err()
        };
        assert!(!asks("http://localhost:8080/v1/models", "localhost:8080"));
        assert!(asks("http://evil.example/v1/models", "localhost:8080"));
        assert!(asks("http://localhost:8080/v1/models", "evil.example"));
    }

    #[test]
    fn a_page_that_does_not_say_whose_it_is_is_refused_by_its_distance() {
        let access = Access::loopback().hosts(vec!["queen.corp.example".into()]);
        let with = |host, site| [("host", host), ("sec-fetch-site", site)];
        for (host, site, is_refused) in [
            ("localhost", "cross-site", true),
            ("localhost", "same-site", false),
            ("localhost", "same-origin", false),
            ("localhost", "none", false),
            ("queen.corp.example", "same-site", true),
            ("queen.corp.example", "cross-site", true),
            ("queen.corp.example", "same-origin", false),
        ] {
            assert_eq!(
                refused(&access, &with(host, site)),
                is_refused,
                "{host} {site}"
            );
        }
        let page = |origin| {
            let host = ("host", "127.0.0.1:8080");
            [host, ("origin", origin), ("sec-fetch-site", "cross-site")]
        };
        assert!(!refused(&access, &page("http://localhost:3000")));
        assert!(refused(&access, &page("http://evil.example")));
    }
}
