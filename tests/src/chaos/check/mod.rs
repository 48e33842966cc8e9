//! Holds what clients wrote down and what the API says in the end against the promises. It only
//! reads: the same evidence gives the same verdict.

mod readings;
mod tasks;
#[cfg(test)]
mod tests;
mod usage;

use super::log::Evidence;
use std::fmt;

/// A promise.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rule {
    /// A task that was acknowledged is there
    NothingLost,
    /// Every task ends
    EverythingEnds,
    /// It ends once: whoever saw an ending saw the one that stands
    OneEnding,
    /// One wish, one task: no idempotency key has two
    OneTask,
    /// A task ends as it should: nothing fails where nobody fails
    RightEnding,
    /// Every reader gets the text gapless and no byte twice within an attempt
    TextOnce,
    /// The text is the worker's, of one attempt only, and the stored result the same
    RightText,
    /// Events come in their order: one `started` an attempt, nothing after the ending
    Order,
    /// Usage is the sum over ended tasks
    UsageAddsUp,
    /// Clients can make sense of every answer
    Sense,
}

/// A promise that was not kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Violation {
    pub(super) rule: Rule,
    pub(super) what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.rule, self.what)
    }
}

/// What was found so far.
#[derive(Default)]
struct Findings(Vec<Violation>);

impl Findings {
    /// Notes a violation unless `kept`; says whether it was.
    fn hold(&mut self, rule: Rule, kept: bool, what: impl FnOnce() -> String) -> bool {
        if !kept {
            self.0.push(Violation { rule, what: what() });
        }
        kept
    }
}

/// Every promise that was not kept.
pub(super) fn check(evidence: &Evidence) -> Vec<Violation> {
    let mut findings = Findings::default();
    for complaint in &evidence.complaints {
        findings.hold(Rule::Sense, false, || complaint.clone());
    }
    tasks::check(evidence, &mut findings);
    readings::check(evidence, &mut findings);
    usage::check(evidence, &mut findings);
    findings.0
}
