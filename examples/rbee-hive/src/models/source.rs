//! References to models, and where those can be fetched from.

use std::fmt;

use super::hub::HubRef;
use super::web::WebRef;
use crate::error::{ApiError, Result};

/// A reference to something that is elsewhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum SourceRef {
    Hub(HubRef),
    Web(WebRef),
}

impl SourceRef {
    /// `None` for a reference to something that must be here.
    pub(crate) fn parse(model_ref: &str) -> Option<Self> {
        let hub = HubRef::parse(model_ref).map(SourceRef::Hub);
        hub.or_else(|| WebRef::parse(model_ref).map(SourceRef::Web))
    }

    /// Whether a model with the reference `other` may be meant by this one.
    pub(super) fn covers(&self, other: &SourceRef) -> bool {
        match (self, other) {
            (SourceRef::Hub(this), SourceRef::Hub(other)) => this.covers(other),
            (SourceRef::Web(this), SourceRef::Web(other)) => this.covers(other),
            _ => false,
        }
    }
}

/// The whole reference: what is to be checked is another download.
impl fmt::Display for SourceRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SourceRef::Hub(hub) => hub.fmt(f),
            SourceRef::Web(web) => match &web.sha256 {
                Some(sha256) => write!(f, "{web}#sha256={sha256}"),
                None => web.fmt(f),
            },
        }
    }
}

/// Refuses names that no model may have.
pub(super) fn check_name(name: &str) -> Result<()> {
    let problem = if name.trim().is_empty() {
        "is empty"
    } else if name.chars().count() > 512 {
        "is longer than 512 characters"
    } else if name.chars().any(char::is_control) {
        "has control characters"
    } else if name.split(['/', '\\', ':', '=']).any(|part| part == "..") {
        "has a '..' path segment"
    } else {
        return Ok(());
    };
    let shown: String = name.chars().take(80).collect();
    Err(ApiError::invalid(format!("model {shown:?} {problem}")))
}
