//! Lists, page after page.

use super::filled::{Kind, LARGE_TENANT, RARE_MODEL};
use super::{PAGE, Stage, percentile};
use crate::bench::compared::{Aim, Found};
use crate::harness::{Client, Queen};
use crate::proc;
use anyhow::{Context, Result, ensure};
use rbee_orchestrator::domain::JobState;
use serde_json::Value;
use std::time::Instant;

/// What a page may take, in milliseconds.
const AIM_MS: f64 = 20.0;

/// What a page may be, and what the queen may need more for it, in MiB.
const AIM_MIB: f64 = 8.0;

/// A list with few pages is read again until it was so many.
const LEAST_PAGES: usize = 50;

/// A list that is asked for.
pub(super) struct List {
    what: &'static str,
    pub(super) query: &'static str,
    has: fn(&Kind) -> bool,
}

pub(super) const LISTS: [List; 10] = [
    List {
        what: "a page of all tasks, p99",
        query: "",
        has: |_| true,
    },
    List {
        what: "of those of a state that most have, p99",
        query: "&state=complete",
        has: |kind| kind.state == JobState::Complete,
    },
    List {
        what: "of those of a state that few have, p99",
        query: "&state=failed",
        has: |kind| kind.state == JobState::Failed,
    },
    List {
        what: "of those of a state that none has, p99",
        query: "&state=running",
        has: |kind| kind.state == JobState::Running,
    },
    List {
        what: "of those of a model, p99",
        query: "&model=file:common-3.gguf",
        has: |kind| kind.model == "file:common-3.gguf",
    },
    List {
        what: "of those of a model that few have, p99",
        query: "&model=file:rare.gguf",
        has: |kind| kind.model == RARE_MODEL,
    },
    List {
        what: "of those of a tenant, p99",
        query: "&tenant=tenant-3",
        has: |kind| kind.tenant == "tenant-3",
    },
    List {
        what: "of those of a tenant that has none, p99",
        query: "&tenant=nobody",
        has: |kind| kind.tenant == "nobody",
    },
    List {
        what: "of those whose results are 1 MB each, p99",
        query: "&tenant=reports",
        has: |kind| kind.tenant == LARGE_TENANT,
    },
    List {
        what: "of those of a state, a model and a tenant, p99",
        query: "&state=failed&model=file:rare.gguf&tenant=tenant-1",
        has: |kind| {
            kind.state == JobState::Failed && kind.model == RARE_MODEL && kind.tenant == "tenant-1"
        },
    },
];

/// Pages that were read.
#[derive(Default)]
struct Pages {
    took_ms: Vec<f64>,
    /// What the queen computed for all of them
    cpu_ms: f64,
    largest: usize,
    tasks: usize,
}

impl Pages {
    /// What the queen computed for one of them on average, in milliseconds.
    fn cpu(&self) -> f64 {
        self.cpu_ms / self.took_ms.len() as f64
    }
}

pub(super) fn measure(many: &Stage, few: &Stage) -> Result<Vec<Found>> {
    let mut all = Vec::new();
    let (mut largest, mut grown, mut cpu) = (0, 0_u64, Vec::new());
    for list in &LISTS {
        let mut reference = read(&few.queen, few.filled.0.len(), "")?;
        let listed = many.filled.0.iter().filter(|(_, kind)| (list.has)(kind));
        let before = proc::usage(&[many.queen.pid()]).rss_kb;
        proc::forget_peak(many.queen.pid())?;
        let mut pages = read(&many.queen, listed.count(), list.query)?;
        let peak = proc::peak_rss_kb(many.queen.pid());
        grown = grown.max(peak.saturating_sub(before));
        largest = largest.max(pages.largest);
        cpu.push((reference.cpu(), pages.cpu()));
        all.push(Found {
            what: list.what,
            unit: "ms",
            reference: Some(percentile(&mut reference.took_ms, 99)?),
            queen: percentile(&mut pages.took_ms, 99)?,
            aim: Aim::Below(AIM_MS),
        });
    }
    let dearest = cpu.into_iter().max_by(|a, b| a.1.total_cmp(&b.1));
    let (reference, most) = dearest.context("there are lists")?;
    all.push(Found {
        what: "the queen's CPU for a page of the list that takes most",
        unit: "ms",
        reference: Some(reference),
        queen: most,
        aim: Aim::Below(AIM_MS),
    });
    all.push(Found {
        what: "the largest of these pages",
        unit: "MiB",
        reference: None,
        queen: largest as f64 / f64::from(1 << 20),
        aim: Aim::Below(AIM_MIB),
    });
    all.push(Found {
        what: "the queen's memory at most beyond what it was before a list was read",
        unit: "MiB",
        reference: None,
        queen: grown as f64 / 1024.0,
        aim: Aim::Below(AIM_MIB),
    });
    Ok(all)
}

/// Reads a list from its first page to its last, again and again until it was enough pages.
fn read(queen: &Queen, tasks: usize, query: &str) -> Result<Pages> {
    let client = Client::keeping_alive(&format!("http://127.0.0.1:{}", queen.port()));
    let mut pages = Pages::default();
    let cpu = || proc::usage(&[queen.pid()]).cpu_s * 1e3;
    let before = cpu();
    while pages.took_ms.len() < LEAST_PAGES {
        pages.tasks = 0;
        let mut after = None;
        loop {
            after = read_page(&client, query, after.as_deref(), &mut pages)?;
            if after.is_none() {
                break;
            }
        }
        ensure!(
            pages.tasks == tasks,
            "the list {query:?} has {} tasks and not {tasks}",
            pages.tasks
        );
    }
    pages.cpu_ms = cpu() - before;
    Ok(pages)
}

/// Reads a page; returns where the next one begins.
fn read_page(
    client: &Client,
    query: &str,
    after: Option<&str>,
    pages: &mut Pages,
) -> Result<Option<String>> {
    let mut path = format!("/v2/tasks?limit={PAGE}{query}");
    if let Some(after) = after {
        path += "&after=";
        path += after;
    }
    let start = Instant::now();
    let reply = client.get(&path)?;
    pages.took_ms.push(start.elapsed().as_secs_f64() * 1e3);
    ensure!(reply.status == 200, "{path}: {}", reply.text);
    pages.largest = pages.largest.max(reply.text.len());
    let page: Value = serde_json::from_str(&reply.text)?;
    let tasks = page["tasks"].as_array().context("a list has tasks")?;
    pages.tasks += tasks.len();
    Ok(page["next"].as_str().map(str::to_owned))
}
