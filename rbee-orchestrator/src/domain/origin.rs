//! Whose pages may call.

use serde::Deserialize;

use crate::error::{Error, Result};

/// An origin whose pages may call (RFC 6454), `https://chat.example`, or every origin of a scheme that
/// is an app's own, `app://`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct AllowedOrigin {
    scheme: String,
    /// Host and port; none for all of the scheme.
    authority: Option<String>,
}

impl AllowedOrigin {
    /// Reads `scheme://host`, `scheme://host:port` or `scheme://`.
    ///
    /// # Errors
    /// `INVALID_REQUEST` for what is no origin, or would let in any page of the web.
    pub fn new(text: &str) -> Result<Self> {
        let wrong = |why: &str| Err(Error::invalid(format!("origin {text:?} {why}")));
        match text {
            "*" => return wrong("would let every web page in; name the pages' origins"),
            "null" => {
                return wrong(
                    "is what files and sandboxed pages of everybody say; serve the page over http",
                );
            }
            _ => {}
        }
        let form = "must be scheme://host, scheme://host:port, or an app's scheme:// alone";
        let Some((scheme, authority)) = text.split_once("://") else {
            return wrong(form);
        };
        let in_scheme = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'-' | b'.');
        if !scheme.starts_with(|c: char| c.is_ascii_alphabetic()) || !scheme.bytes().all(in_scheme)
        {
            return wrong(form);
        }
        let is_graphic = authority.bytes().all(|b| b.is_ascii_graphic());
        if !is_graphic || authority.contains(['/', '?', '#', '@', '*', ',']) {
            return wrong("has more than scheme, host and port, or a *; leave the path out");
        }
        let scheme = scheme.to_ascii_lowercase();
        // Browsers leave it out.
        let usual_port = match &*scheme {
            "http" => ":80",
            "https" => ":443",
            _ if authority.is_empty() => {
                return Ok(AllowedOrigin {
                    scheme,
                    authority: None,
                });
            }
            _ => "",
        };
        let authority = authority.strip_suffix(usual_port).unwrap_or(authority);
        if authority.is_empty() || authority.starts_with(':') {
            return wrong("needs a host");
        }
        Ok(AllowedOrigin {
            scheme,
            authority: Some(authority.to_ascii_lowercase()),
        })
    }

    /// Whether the value of an `Origin` header is meant.
    #[must_use]
    pub fn matches(&self, origin: &[u8]) -> bool {
        let Some((scheme, rest)) = origin.split_at_checked(self.scheme.len()) else {
            return false;
        };
        let is_scheme = scheme.eq_ignore_ascii_case(self.scheme.as_bytes());
        let authority = rest.strip_prefix(b"://").filter(|_| is_scheme);
        authority.is_some_and(|authority| match &self.authority {
            Some(ours) => authority.eq_ignore_ascii_case(ours.as_bytes()),
            None => true,
        })
    }
}

impl TryFrom<String> for AllowedOrigin {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        AllowedOrigin::new(&text).map_err(|error| error.message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_means_itself_and_an_apps_scheme_all_of_its_pages() {
        for (allowed, origin, is_meant) in [
            ("https://chat.example", "https://chat.example", true),
            ("https://Chat.Example:443", "https://chat.example", true),
            ("http://chat.example:80", "http://chat.example", true),
            ("http://[fd00::1]:3000", "http://[fd00::1]:3000", true),
            ("https://chat.example", "http://chat.example", false),
            ("https://chat.example", "https://chat.example:8443", false),
            ("https://chat.example", "https://chat.example.evil", false),
            ("https://chat.example", "https://evil@chat.example", false),
            ("https://chat.example", "https", false),
            ("tauri://localhost", "tauri://localhost", true),
            ("tauri://localhost", "tauri://other", false),
            ("app://", "app://obsidian.md", true),
            ("app://", "app://.", true),
            ("vscode-webview://", "vscode-webview://0a1b2c", true),
            ("app://", "apps://x", false),
            ("app://", "https://app://", false),
            ("app://", "null", false),
        ] {
            let read = AllowedOrigin::new(allowed).expect(allowed);
            assert_eq!(
                read.matches(origin.as_bytes()),
                is_meant,
                "{allowed} {origin}"
            );
        }
    }

    #[test]
    fn what_would_let_in_everybody_or_is_no_origin_is_refused() {
        for (wrong, named) in [
            ("*", "every web page"),
            ("null", "sandboxed"),
            ("https://", "needs a host"),
            ("http://", "needs a host"),
            ("http://:80", "needs a host"),
            ("https://*.example", "a *"),
            ("https://chat.example/", "leave the path out"),
            ("https://me@chat.example", "scheme, host and port"),
            ("chat.example", "scheme://host"),
            ("://x", "scheme://host"),
            ("a b://x", "scheme://host"),
            ("", "scheme://host"),
        ] {
            let error = AllowedOrigin::new(wrong).expect_err(wrong);
            assert!(error.message.contains(named), "{error}");
        }
    }
}
