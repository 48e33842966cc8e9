//! Who may call: the holder of the token, or, on a loopback bind without one, any program of this
//! machine but no web page.

use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::Next;
use axum::response::Response;
use subtle::ConstantTimeEq;
use url::Url;

use crate::config::is_loopback;
use crate::error::{ApiError, Result};
use crate::hive::Hive;

pub(super) async fn gate(
    State(hive): State<Hive>,
    request: Request,
    next: Next,
) -> Result<Response> {
    match &hive.settings.token {
        Some(token) => check_token(request.headers(), token)?,
        None => refuse_web_pages(&request)?,
    }
    Ok(next.run(request).await)
}

fn check_token(headers: &HeaderMap, token: &str) -> Result<()> {
    let given = headers
        .get(header::AUTHORIZATION)
        .and_then(|value| value.as_bytes().split_at_checked("Bearer ".len()))
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case(b"Bearer "))
        .map(|(_, given)| given);
    match given {
        Some(given) if bool::from(given.ct_eq(token.as_bytes())) => Ok(()),
        Some(_) => Err(unauthorized("the bearer token is not this hive's")),
        None => Err(unauthorized("send the header Authorization: Bearer TOKEN")),
    }
}

fn unauthorized(message: &str) -> ApiError {
    ApiError::new(StatusCode::UNAUTHORIZED, "UNAUTHORIZED", message)
}

/// A page of another site has a foreign origin; one that rebound its name, a foreign host.
fn refuse_web_pages(request: &Request) -> Result<()> {
    let header = |name| {
        let value = request.headers().get(name)?;
        Some(value.to_str().unwrap_or("invalid").to_owned())
    };
    let host = header(header::HOST).map(|host| format!("http://{host}"));
    for (name, value) in [("Origin", header(header::ORIGIN)), ("Host", host)] {
        if let Some(value) = value
            && !is_local(&value)
        {
            return Err(ApiError::new(
                StatusCode::FORBIDDEN,
                "FORBIDDEN",
                format!("{name} {value:?} is not of this machine; give the hive a token"),
            ));
        }
    }
    Ok(())
}

fn is_local(url: &str) -> bool {
    let parsed = Url::parse(url).ok();
    parsed.is_some_and(|url| url.host_str().is_some_and(is_loopback))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_this_machine_are_local() {
        for local in [
            "http://localhost:3000",
            "http://127.0.0.1:9200",
            "http://[::1]:1",
        ] {
            assert!(is_local(local), "{local}");
        }
        for foreign in [
            "https://evil.example",
            "null",
            "http://localhost.evil.example",
            "",
        ] {
            assert!(!is_local(foreign), "{foreign}");
        }
    }
}
