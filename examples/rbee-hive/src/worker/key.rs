//! The key that an engine asks for.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::error::{ApiError, Result};

const RANDOM_BYTES: usize = 32;

/// Known to the engine, this hive and whoever the hive tells its workers to. Its debug form does
/// not show it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct ApiKey(String);

impl ApiKey {
    /// A new one of 256 random bits, in hexadecimal digits.
    pub(crate) fn mint() -> Result<Self> {
        let mut bytes = [0; RANDOM_BYTES];
        getrandom::fill(&mut bytes)
            .map_err(|error| ApiError::internal(format!("no random numbers: {error}")))?;
        Ok(ApiKey(
            bytes.iter().map(|byte| format!("{byte:02x}")).collect(),
        ))
    }

    pub(crate) fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ApiKey(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_differ_fit_into_a_header_and_are_not_shown() {
        let (one, other) = (ApiKey::mint().unwrap(), ApiKey::mint().unwrap());
        assert_ne!(one, other);
        assert_eq!(one.expose().len(), 2 * RANDOM_BYTES);
        assert!(one.expose().bytes().all(|byte| byte.is_ascii_hexdigit()));
        assert_eq!(format!("{one:?}"), "ApiKey(…)");
    }
}
