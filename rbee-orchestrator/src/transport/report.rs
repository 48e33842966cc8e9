//! What a look at a machine found, for a person to read and act on.

use serde::Serialize;

/// How one thing stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// As it should be.
    Ok,
    /// A hive may work all the same, or later.
    Warning,
    /// No hive can work there until this is cured.
    Failed,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Item {
    /// What was looked at: `reachable`, `disk` and the like. Stable.
    pub name: &'static str,
    /// How it stands.
    pub status: Status,
    /// What was found.
    pub message: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cure: Option<String>,
}

impl Item {
    /// Nothing to do.
    pub fn ok(name: &'static str, message: impl Into<String>) -> Self {
        Item {
            name,
            status: Status::Ok,
            message: message.into(),
            cure: None,
        }
    }

    /// Something to look after.
    pub fn warning(
        name: &'static str,
        message: impl Into<String>,
        cure: impl Into<String>,
    ) -> Self {
        Item {
            status: Status::Warning,
            cure: Some(cure.into()),
            ..Item::ok(name, message)
        }
    }

    /// Something to cure first.
    pub fn failed(name: &'static str, message: impl Into<String>, cure: impl Into<String>) -> Self {
        Item {
            status: Status::Failed,
            cure: Some(cure.into()),
            ..Item::ok(name, message)
        }
    }
}

/// Everything that was looked at, in that order. It ends where a failure leaves nothing to look
/// at.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// The things, each once.
    pub items: Vec<Item>,
}

impl Report {
    /// The first thing that must be cured before a hive can work there.
    #[must_use]
    pub fn failure(&self) -> Option<&Item> {
        self.items.iter().find(|item| item.status == Status::Failed)
    }

    /// One thing by its name.
    #[must_use]
    pub fn item(&self, name: &str) -> Option<&Item> {
        self.items.iter().find(|item| item.name == name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_tells_its_first_failure_and_omits_empty_cures() {
        let report = Report {
            items: vec![
                Item::ok("reachable", "yes"),
                Item::warning("disk", "3 GiB are free", "free some"),
                Item::failed("architecture", "riscv64", "build for it"),
            ],
        };
        assert_eq!(report.failure().map(|item| item.name), Some("architecture"));
        assert_eq!(
            report.item("disk").map(|item| item.status),
            Some(Status::Warning)
        );
        let json = serde_json::to_value(&report).expect("plain data");
        assert_eq!(
            json["items"][0],
            serde_json::json!({"name": "reachable", "status": "ok", "message": "yes"})
        );
    }
}
