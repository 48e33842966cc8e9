//! Who may call.

use http::HeaderMap;
use http::header::{AUTHORIZATION, HOST, ORIGIN};
use http::request::Parts;
use subtle::ConstantTimeEq;

use crate::Orchestrator;
use crate::domain::is_loopback;
use crate::error::{Code, Error, Result};

/// Who may call: whoever shows the token, or, without one, programs on this machine, but no web
/// page.
#[derive(Clone)]
pub struct Access {
    token: Option<String>,
    hosts: Vec<String>,
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
            hosts: Vec::new(),
        }
    }

    /// No token, for servers that listen on loopback only: a request with a foreign `Origin`, or
    /// with a `Host` that is not this machine's, is refused, so that no web page may drive it.
    #[must_use]
    pub fn loopback() -> Self {
        Access {
            token: None,
            hosts: Vec::new(),
        }
    }

    /// More names by which this machine may be called.
    #[must_use]
    pub fn hosts(mut self, hosts: Vec<String>) -> Self {
        self.hosts = hosts;
        self
    }

    /// Lets a caller in or not; says whether it showed the hives' token.
    pub(super) fn check(
        &self,
        head: &Parts,
        is_callback: bool,
        orchestrator: &Orchestrator,
    ) -> Result<bool> {
        let shown = bearer(&head.headers);
        let is_hive = is_callback && shown.is_some_and(|token| orchestrator.is_hive_token(token));
        let Some(token) = &self.token else {
            self.refuse_web_pages(head)?;
            return Ok(is_hive);
        };
        let is_right = |shown: &[u8]| bool::from(shown.ct_eq(token.as_bytes()));
        match shown {
            Some(shown) if is_hive || is_right(shown) => Ok(is_hive),
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

    fn refuse_web_pages(&self, head: &Parts) -> Result<()> {
        let header = |name| head.headers.get(name).map(http::HeaderValue::as_bytes);
        let authority = head
            .uri
            .authority()
            .map(|authority| authority.as_str().as_bytes());
        if let Some(host) = header(HOST).or(authority)
            && !self.is_ours(host)
        {
            return Err(forbidden(
                "Host",
                host,
                "add the name to allowed_hosts, or set a token",
            ));
        }
        if let Some(origin) = header(ORIGIN) {
            let rest = |scheme: &[u8]| origin.strip_prefix(scheme);
            let host = rest(b"http://").or_else(|| rest(b"https://"));
            if !host.is_some_and(|host| self.is_ours(host)) {
                return Err(forbidden(
                    "Origin",
                    origin,
                    "set a token to call from web pages",
                ));
            }
        }
        Ok(())
    }

    /// Whether `host` or `host:port` names this machine.
    fn is_ours(&self, host: &[u8]) -> bool {
        let Ok(host) = std::str::from_utf8(host) else {
            return false;
        };
        let name = match host.strip_prefix('[') {
            Some(v6) => v6.split(']').next().unwrap_or_default(),
            None => host.split(':').next().unwrap_or_default(),
        };
        is_loopback(name)
            || self
                .hosts
                .iter()
                .any(|ours| ours.eq_ignore_ascii_case(name))
    }
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
        ] {
            assert!(!refused(&access, &[("host", host)]), "{host}");
        }
        for host in [
            "evil.example",
            "localhost.evil.example:80",
            "10.0.0.1",
            "[fe80::1]",
            "",
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
        ] {
            assert!(refused(&access, &page(origin)), "{origin}");
        }
        assert!(!refused(&access, &[]));
    }
}
