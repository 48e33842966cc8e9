//! Names of things: checked when they are made, cheap to clone.

use std::borrow::Borrow;
use std::fmt;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, LazyLock, Mutex};

use serde::{Deserialize, Serialize};
use uuid::{ContextV7, Timestamp, Uuid};

use super::UnixMillis;
use crate::error::{Error, Result};

fn check(what: &str, text: &str, longest: usize) -> Result<()> {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
    let starts_well = !text.starts_with(['.', '-']);
    if (1..=longest).contains(&text.len()) && starts_well && text.bytes().all(allowed) {
        return Ok(());
    }
    let shown: String = text.chars().take(80).collect();
    Err(Error::invalid(format!(
        "{what} {shown:?} must be 1 to {longest} characters of A-Z a-z 0-9 . _ - and not start \
         with a dot or a dash"
    )))
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $what:literal, $longest:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(Arc<str>);

        impl $name {
            /// Checks and takes a name.
            ///
            /// # Errors
            /// `INVALID_REQUEST` when it is empty, too long, or has other characters than
            /// `A-Z a-z 0-9 . _ -`, or starts with a dot or a dash.
            pub fn new(text: impl AsRef<str>) -> Result<Self> {
                check($what, text.as_ref(), $longest)?;
                Ok(Self(text.as_ref().into()))
            }

            /// The name as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $name {
            type Error = Error;
            fn try_from(text: String) -> Result<Self> {
                Self::new(text)
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.as_str().to_owned()
            }
        }
    };
}

id!(
    /// A machine with a hive on it; `node` on the wire.
    HiveId, "a hive's name", 64
);
id!(
    /// One running engine.
    WorkerId, "a worker's id", 256
);
id!(
    /// Who a job is for.
    TenantId, "a tenant's id", 64
);
id!(
    /// A conversation: jobs that may share a prompt cache.
    SessionId, "a session's id", 256
);

impl HiveId {
    /// The hive that the queen starts on her own machine.
    pub const LOCALHOST: &str = "localhost";

    /// The hive named `localhost`.
    #[must_use]
    pub fn localhost() -> Self {
        Self(Self::LOCALHOST.into())
    }
}

impl WorkerId {
    /// A new random id.
    #[must_use]
    pub fn mint() -> Self {
        Self(format!("worker-{}", Uuid::new_v4().simple()).into())
    }
}

impl TenantId {
    /// The tenant of requests that name none.
    pub const DEFAULT: &str = "default";
}

impl Default for TenantId {
    fn default() -> Self {
        static DEFAULT: LazyLock<TenantId> = LazyLock::new(|| TenantId(TenantId::DEFAULT.into()));
        DEFAULT.clone()
    }
}

/// A job's identity: a version 7 UUID, so that ids sort by the time of submission.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct JobId(pub Uuid);

impl JobId {
    /// A new id, larger than every one that this process made before.
    #[must_use]
    pub fn mint() -> Self {
        static CONTEXT: Mutex<AssertUnwindSafe<ContextV7>> =
            Mutex::new(AssertUnwindSafe(ContextV7::new()));
        let now = UnixMillis::now().0.max(0).cast_unsigned();
        let nanos = (now % 1000) as u32 * 1_000_000;
        Self(Uuid::new_v7(Timestamp::from_unix(
            &CONTEXT,
            now / 1000,
            nanos,
        )))
    }

    /// The bound between the ids that were made before that time and those since.
    #[must_use]
    pub fn bound(at: UnixMillis) -> Self {
        const LAST: i64 = (1 << 48) - 1;
        // The first 48 bits of a version 7 UUID are its time, see RFC 9562.
        Self(Uuid::from_u128(
            u128::from(at.0.clamp(0, LAST).cast_unsigned()) << 80,
        ))
    }

    /// Reads an id; `None` if it is not a UUID.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Uuid::try_parse(text).ok().map(Self)
    }
}

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.hyphenated().fmt(f)
    }
}

impl fmt::Debug for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_take_names_and_refuse_what_could_be_shell_or_path() {
        for good in ["gpu-0", "a", "_x", "0.1-b", &"x".repeat(64)] {
            assert!(HiveId::new(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            "-rf",
            ".hidden",
            "a b",
            "a\nb",
            "a/b",
            "ä",
            "$(x)",
            &"x".repeat(65),
        ] {
            let error = HiveId::new(bad).unwrap_err();
            assert_eq!(error.code.as_str(), "INVALID_REQUEST", "{bad}");
        }
        assert!(WorkerId::new("x".repeat(256)).is_ok());
    }

    #[test]
    fn job_ids_sort_by_the_order_they_were_made_in() {
        let ids: Vec<JobId> = (0..1000).map(|_| JobId::mint()).collect();
        assert!(ids.windows(2).all(|pair| pair[0] < pair[1]));
        assert_eq!(JobId::parse(&ids[0].to_string()), Some(ids[0]));
    }

    #[test]
    fn a_bound_parts_the_ids_of_two_milliseconds() {
        let at = UnixMillis::now();
        let minute = std::time::Duration::from_secs(60);
        assert!(JobId::mint() < JobId::bound(at + minute));
        assert!(JobId::bound(at) <= JobId::mint());
        assert_eq!(JobId::bound(UnixMillis(-1)), JobId(Uuid::nil()));
        assert!(JobId::bound(UnixMillis(i64::MAX)) > JobId::mint());
    }
}
