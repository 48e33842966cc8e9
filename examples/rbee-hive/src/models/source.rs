//! Where a model can be fetched from.

use std::fmt;

use super::hub::HubRef;
use super::web::WebRef;

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
