//! Who may call.

use std::net::Ipv6Addr;
use std::sync::{Arc, PoisonError, RwLock};

use http::header::{AUTHORIZATION, HOST, ORIGIN};
use http::request::Parts;
use http::{HeaderName, HeaderValue};
use subtle::ConstantTimeEq;

use crate::Orchestrator;
use crate::domain::{AllowedOrigin, HiveId, is_loopback};
use crate::error::{Code, Error, Result};

// Made once: a name in text is checked and hashed anew with each look.
static SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");
/// Anthropic's clients show their key so.
static X_API_KEY: HeaderName = HeaderName::from_static("x-api-key");
/// Azure's do.
static API_KEY: HeaderName = HeaderName::from_static("api-key");

/// Who may call: whoever shows the token, or, without one, programs on this machine, but no web
/// page of others. Pages of this machine and of the origins that were allowed may read the answers.
#[derive(Clone)]
pub struct Access {
    token: Option<String>,
    /// They can be changed while requests come in, by any of the clones.
    hosts: Arc<RwLock<Vec<String>>>,
    origins: Arc<RwLock<Vec<AllowedOrigin>>>,
}

impl std::fmt::Debug for Access {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let has_token = self.token.is_some();
        f.debug_struct("Access")
            .field("token", &has_token)
            .field("hosts", &self.hosts)
            .field("origins", &self.origins)
            .finish()
    }
}

impl Access {
    /// Every call but `GET /health` must show this token, as bearer or as `x-api-key` or `api-key`.
    /// Hives may show theirs on their callbacks.
    #[must_use]
    pub fn token(token: impl Into<String>) -> Self {
        Access {
            token: Some(token.into()),
            hosts: Arc::default(),
            origins: Arc::default(),
        }
    }

    /// No token, for servers that listen on loopback only: a request with a foreign `Origin`, or
    /// with a `Host` that is not this machine's, is refused, so that no web page may drive it.
    #[must_use]
    pub fn loopback() -> Self {
        Access {
            token: None,
            hosts: Arc::default(),
            origins: Arc::default(),
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

    /// More origins whose pages may call.
    #[must_use]
    pub fn origins(self, origins: Vec<AllowedOrigin>) -> Self {
        self.set_origins(origins);
        self
    }

    /// Takes other origins in place of those it has, for all its clones.
    pub fn set_origins(&self, origins: Vec<AllowedOrigin>) {
        *self.origins.write().unwrap_or_else(PoisonError::into_inner) = origins;
    }

    /// Looks at what a head tells about its sender.
    ///
    /// A browser tells whom a request is for (`Host`), whose page it is from (`Origin`) and, where it
    /// leaves that out, how far that page is from here (`Sec-Fetch-Site`, Fetch Metadata Request
    /// Headers). With a token only the page matters, and only for what it may read.
    pub(super) fn look<'h>(&self, head: &'h Parts) -> Caller<'h> {
        let mut caller = Caller::default();
        let (mut is_cross_site, mut is_same_site) = (false, false);
        let mut is_named_by_admin = false;
        let mut is_asked_as = |caller: &mut Caller<'h>, host: &'h [u8]| {
            if self.token.is_some() {
                return;
            }
            match self.whose(host) {
                Some(Ours::ThisMachine) => {}
                Some(Ours::NamedByAdmin) => is_named_by_admin = true,
                None => {
                    let cure = "add the name to allowed_hosts, or set a token";
                    caller.is_foreign("Host", host, cure);
                }
            }
        };
        // In one walk, and all of them: who stands before the queen may look at another one (RFC 9112,
        // 3.2).
        for (name, value) in &head.headers {
            let said = value.as_bytes();
            if *name == HOST {
                is_asked_as(&mut caller, said);
            } else if *name == ORIGIN {
                match self.may_call(said) {
                    true => caller.page = Some(value),
                    false => caller.is_foreign("Origin", said, "add it to allowed_origins"),
                }
            } else if *name == SEC_FETCH_SITE {
                is_cross_site |= value == "cross-site";
                is_same_site |= value == "same-site";
            } else if *name == AUTHORIZATION && caller.bearer.is_none() {
                caller.bearer = bearer(said);
            } else if *name == X_API_KEY || *name == API_KEY {
                caller.key.get_or_insert(said.trim_ascii());
            }
        }
        if let Some(target) = head.uri.authority() {
            is_asked_as(&mut caller, target.as_str().as_bytes());
        }
        // All pages on `localhost` are of one site, and on this machine.
        let is_far = is_cross_site || (is_same_site && is_named_by_admin);
        if is_far && self.token.is_none() && caller.page.is_none() {
            let site: &[u8] = match is_cross_site {
                true => b"cross-site",
                false => b"same-site",
            };
            let cure = "a web page may start nothing here; set a token";
            caller.is_foreign("Sec-Fetch-Site", site, cure);
        }
        caller
    }

    /// Lets a caller in or not; says which hives' token it showed.
    pub(super) fn check(
        &self,
        caller: &Caller<'_>,
        is_callback: bool,
        orchestrator: &Orchestrator,
    ) -> Result<Vec<HiveId>> {
        let hives = match is_callback {
            true => caller
                .bearer
                .map(|token| orchestrator.hives_of_token(token)),
            false => None,
        };
        let hives = hives.unwrap_or_default();
        let Some(token) = &self.token else {
            return caller.refuse_foreign().map(|()| hives);
        };
        let is_right = |shown: &[u8]| bool::from(shown.ct_eq(token.as_bytes()));
        let mut shown = [caller.bearer, caller.key].into_iter().flatten();
        if !hives.is_empty() || shown.clone().any(is_right) {
            return Ok(hives);
        }
        let why = match shown.next() {
            Some(_) => "the token is not the right one",
            None => {
                "this queen asks for a token: send `Authorization: Bearer <token>`, or the token as \
                 `x-api-key` or `api-key`"
            }
        };
        Err(Error::new(Code::Unauthorized, why))
    }

    /// Whether pages of an origin may call.
    fn may_call(&self, origin: &[u8]) -> bool {
        let rest = |scheme: &[u8]| origin.strip_prefix(scheme);
        let host = rest(b"http://").or_else(|| rest(b"https://"));
        if host.and_then(|host| self.whose(host)).is_some() {
            return true;
        }
        let origins = self.origins.read().unwrap_or_else(PoisonError::into_inner);
        origins.iter().any(|allowed| allowed.matches(origin))
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

/// What a request's head tells about its sender. Holds secrets, so it is not shown.
#[derive(Default)]
pub(super) struct Caller<'h> {
    bearer: Option<&'h [u8]>,
    /// A token that other clients than OpenAI's show in a header of its own.
    key: Option<&'h [u8]>,
    page: Option<&'h HeaderValue>,
    /// What it named that is not ours: the header, its value, and the cure.
    foreign: Option<(&'static str, &'h [u8], &'static str)>,
}

impl<'h> Caller<'h> {
    fn is_foreign(&mut self, header: &'static str, value: &'h [u8], cure: &'static str) {
        self.foreign.get_or_insert((header, value, cure));
    }

    /// The origin of the page that it is, if that may call.
    pub(super) fn page(&self) -> Option<&'h HeaderValue> {
        self.page.filter(|_| self.foreign.is_none())
    }

    /// Refuses who named what is not ours; all that can be said of a preflight, which shows no token.
    ///
    /// # Errors
    /// `FORBIDDEN`.
    pub(super) fn refuse_foreign(&self) -> Result<()> {
        let Some((header, value, cure)) = self.foreign else {
            return Ok(());
        };
        let value: String = String::from_utf8_lossy(value).chars().take(80).collect();
        let message = format!("requests with {header} {value:?} are refused; {cure}");
        Err(Error::new(Code::Forbidden, message))
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

fn bearer(authorization: &[u8]) -> Option<&[u8]> {
    let (scheme, token) = authorization.split_at_checked(7)?;
    scheme
        .eq_ignore_ascii_case(b"bearer ")
        .then(|| token.trim_ascii())
}

#[cfg(test)]
mod tests;
