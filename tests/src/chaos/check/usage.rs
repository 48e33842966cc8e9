//! What tenants were charged.

use super::super::log::{Evidence, UsageRow};
use super::{Findings, Rule};
use std::collections::{BTreeMap, BTreeSet};

#[derive(Debug, Default, Clone, PartialEq, Eq)]
struct Sum {
    jobs: u64,
    tokens_in: u64,
    tokens_out: u64,
    inference_ms: u64,
    slot_ms: u64,
}

type Sums<'e> = BTreeMap<(&'e str, &'e str), Sum>;

pub(super) fn check(evidence: &Evidence, findings: &mut Findings) {
    let (told, counted) = (told(&evidence.usage), counted(evidence));
    let all: BTreeSet<_> = told.keys().chain(counted.keys()).collect();
    for who in all {
        let (told, counted) = (told.get(who), counted.get(who));
        let same = told.cloned().unwrap_or_default() == counted.cloned().unwrap_or_default();
        findings.hold(Rule::UsageAddsUp, same, || {
            let (tenant, model) = who;
            format!("{tenant}'s {model}: told {told:?}, the ended tasks make {counted:?}")
        });
    }
}

/// Over all days.
fn told(rows: &[UsageRow]) -> Sums<'_> {
    let mut sums = Sums::new();
    for row in rows {
        let sum = sums.entry((&row.tenant_id, &row.model)).or_default();
        sum.jobs += row.jobs;
        sum.tokens_in += row.tokens_in;
        sum.tokens_out += row.tokens_out;
        sum.inference_ms += row.inference_ms;
        sum.slot_ms += row.slot_ms;
    }
    sums
}

fn counted(evidence: &Evidence) -> Sums<'_> {
    let mut sums = Sums::new();
    for task in evidence.tasks.iter().filter(|task| task.is_ended()) {
        let sum = sums.entry((&task.tenant_id, &task.model)).or_default();
        sum.jobs += 1;
        sum.tokens_in += task.tokens_in.unwrap_or(0);
        sum.tokens_out += task.tokens_out.unwrap_or(0);
        sum.inference_ms += task.inference_ms.unwrap_or(0);
        sum.slot_ms += task.slot_ms.unwrap_or(0);
    }
    sums
}
