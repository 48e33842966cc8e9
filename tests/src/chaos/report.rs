//! What a run was, in a few lines.

use super::killer::{ANY_TIME, Kills};
use super::log::{Class, Closed, Evidence};
use crate::harness::Noted;
use std::collections::HashMap;
use std::fmt;
use std::time::Duration;

/// What was done to the queen, and how soon she worked again.
#[derive(Debug)]
pub struct Report {
    /// What decided it
    pub seed: u64,
    /// How often she was killed
    pub kills: usize,
    /// The steps that she never died at
    pub untouched: Vec<&'static str>,
    /// How often her only worker was away
    pub aways: usize,
    /// From the start of a process to the first dispatch of a task that an earlier one had
    /// acknowledged, where the worker was there; shortest first
    pub recoveries: Vec<Duration>,
    struck: String,
    missed: String,
    tasks: String,
}

impl Report {
    pub(super) fn new(seed: u64, kills: &Kills, evidence: &Evidence, arrivals: &[Noted]) -> Self {
        let list = |counts: &std::collections::BTreeMap<&str, usize>| {
            let all = counts.iter().map(|(step, n)| format!("{step} {n}"));
            all.collect::<Vec<_>>().join(", ")
        };
        Report {
            seed,
            kills: kills.count(),
            untouched: kills.untouched(),
            aways: kills.away_ns.len(),
            recoveries: recoveries(&kills.started_ns, evidence, arrivals),
            struck: list(&kills.struck),
            missed: list(&kills.missed),
            tasks: counted(evidence),
        }
    }

    /// The time within which that share of the recoveries was done.
    #[must_use]
    pub fn recovery(&self, share: f64) -> Option<Duration> {
        let last = self.recoveries.len().checked_sub(1)?;
        let at = (last as f64 * share).ceil() as usize;
        self.recoveries.get(at).copied()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "seed {}", self.seed)?;
        writeln!(f, "{} kills: {}", self.kills, self.struck)?;
        if !self.missed.is_empty() {
            writeln!(
                f,
                "never came to, and killed at {ANY_TIME}: {}",
                self.missed
            )?;
        }
        writeln!(f, "the worker was away {} times", self.aways)?;
        writeln!(f, "{}", self.tasks)?;
        let ms = |share| match self.recovery(share) {
            Some(time) => format!("{:.0} ms", time.as_secs_f64() * 1e3),
            None => "–".into(),
        };
        let n = self.recoveries.len();
        write!(
            f,
            "recovery, start of the process to first dispatch: p50 {}, p99 {} ({n} times)",
            ms(0.5),
            ms(0.99)
        )
    }
}

fn counted(evidence: &Evidence) -> String {
    let of = |class| {
        evidence
            .wishes
            .iter()
            .filter(move |wish| wish.class == class)
    };
    let state = |state| {
        let tasks = evidence.tasks.iter();
        tasks.filter(|task| task.state == state).count()
    };
    let again = evidence.tasks.iter().filter(|task| task.attempts > 1);
    let connections = evidence.readings.iter().flat_map(|r| &r.connections);
    let broken = connections.clone().filter(|c| c.closed == Closed::Broken);
    format!(
        "{} asynchronous, {} batch, {} interactive; {} tasks: {} complete, {} cancelled, {} failed, \
         {} with more than one attempt; {} readings over {} connections, {} of them broken",
        of(Class::Async).count(),
        of(Class::Batch).count(),
        of(Class::Stream).count(),
        evidence.tasks.len(),
        state("complete"),
        state("cancelled"),
        state("failed"),
        again.count(),
        evidence.readings.len(),
        connections.count(),
        broken.count(),
    )
}

/// For each start after which the worker was given a task acknowledged before it: how long that
/// took.
fn recoveries(started_ns: &[u64], evidence: &Evidence, arrivals: &[Noted]) -> Vec<Duration> {
    let durable = evidence.wishes.iter().filter(|w| w.class.is_durable());
    let acknowledged: HashMap<&str, u64> = durable
        .filter_map(|wish| Some((wish.name.as_str(), wish.acks.first()?.at_ns)))
        .collect();
    let mut times = Vec::new();
    for (number, &start) in started_ns.iter().enumerate() {
        let end = started_ns.get(number + 1).copied().unwrap_or(u64::MAX);
        if evidence.away_ns.iter().any(|away| away.contains(&start)) {
            continue;
        }
        let first = arrivals.iter().find(|noted| {
            let known = acknowledged.get(noted.correlation_id.as_str());
            noted.what == "arrived"
                && (start..end).contains(&noted.at_ns)
                && known.is_some_and(|at_ns| *at_ns < start)
        });
        times.extend(first.map(|noted| Duration::from_nanos(noted.at_ns - start)));
    }
    times.sort_unstable();
    times
}

#[cfg(test)]
mod tests {
    use super::super::log::{Ack, Wish};
    use super::*;

    #[test]
    fn a_recovery_ends_with_the_first_dispatch_of_an_older_task() {
        let wish = |name: &str, at_ns| Wish {
            name: name.into(),
            class: Class::Async,
            tenant: "red",
            key: None,
            words: 1,
            acks: vec![Ack {
                job_id: name.into(),
                at_ns,
            }],
            cancels: Vec::new(),
            tried_to_cancel: false,
            over_ns: None,
        };
        let evidence = Evidence {
            wishes: vec![wish("old", 50), wish("new", 120)],
            away_ns: vec![180..250, 300..310],
            ..Evidence::default()
        };
        let noted = |at_ns, what: &str, name: &str| Noted {
            at_ns,
            what: what.into(),
            correlation_id: name.into(),
        };
        let arrivals = [
            noted(60, "arrived", "old"),
            noted(110, "closed", "old"),
            noted(130, "arrived", "new"),
            noted(140, "arrived", "old"),
            noted(150, "arrived", "old"),
            noted(260, "arrived", "old"),
        ];
        let found = recoveries(&[10, 100, 200], &evidence, &arrivals);
        assert_eq!(found, [Duration::from_nanos(40)]);
    }
}
