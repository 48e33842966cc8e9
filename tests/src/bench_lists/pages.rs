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

/// How often each list is read. Of a page the best time counts: the others tell of the machine's other work.
const READINGS: usize = 3;

/// A list with few pages is read again until it was so many, for the average of the CPU.
const LEAST_PAGES: usize = 50;

/// A list that is asked for.
pub(super) struct List {
    what: &'static str,
    pub(super) query: &'static str,
    has: fn(&Kind) -> bool,
}

pub(super) const LISTS: [List; 10] = [
    List {
        what: "the slowest page of all tasks",
        query: "",
        has: |_| true,
    },
    List {
        what: "of those of a state that most have",
        query: "&state=complete",
        has: |kind| kind.state == JobState::Complete,
    },
    List {
        what: "of those of a state that few have",
        query: "&state=failed",
        has: |kind| kind.state == JobState::Failed,
    },
    List {
        what: "of those of a state that none has",
        query: "&state=running",
        has: |kind| kind.state == JobState::Running,
    },
    List {
        what: "of those of a model",
        query: "&model=file:common-3.gguf",
        has: |kind| kind.model == "file:common-3.gguf",
    },
    List {
        what: "of those of a model that few have",
        query: "&model=file:rare.gguf",
        has: |kind| kind.model == RARE_MODEL,
    },
    List {
        what: "of those of a tenant",
        query: "&tenant=tenant-3",
        has: |kind| kind.tenant == "tenant-3",
    },
    List {
        what: "of those of a tenant that has none",
        query: "&tenant=nobody",
        has: |kind| kind.tenant == "nobody",
    },
    List {
        what: "of those whose results are 1 MB each",
        query: "&tenant=reports",
        has: |kind| kind.tenant == LARGE_TENANT,
    },
    List {
        what: "of those of a state, a model and a tenant",
        query: "&state=failed&model=file:rare.gguf&tenant=tenant-1",
        has: |kind| {
            kind.state == JobState::Failed && kind.model == RARE_MODEL && kind.tenant == "tenant-1"
        },
    },
];

/// Pages that were read.
#[derive(Default)]
struct Pages {
    /// What each reading took
    took_ms: Vec<f64>,
    /// What each page took at best
    best_ms: Vec<f64>,
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

    /// What the page took at best that took longest, in milliseconds.
    fn slowest(&self) -> f64 {
        self.best_ms.iter().copied().fold(0.0, f64::max)
    }
}

pub(super) fn measure(many: &Stage, few: &Stage) -> Result<Vec<Found>> {
    let mut all = Vec::new();
    let (mut largest, mut grown, mut cpu) = (0, 0_u64, Vec::new());
    let (mut took, mut reference_took) = (Vec::new(), Vec::new());
    for list in &LISTS {
        let reference = read(&few.queen, few.filled.0.len(), "")?;
        let listed = many.filled.0.iter().filter(|(_, kind)| (list.has)(kind));
        let before = proc::usage(&[many.queen.pid()]).rss_kb;
        proc::forget_peak(many.queen.pid())?;
        let pages = read(&many.queen, listed.count(), list.query)?;
        let peak = proc::peak_rss_kb(many.queen.pid());
        grown = grown.max(peak.saturating_sub(before));
        largest = largest.max(pages.largest);
        cpu.push((reference.cpu(), pages.cpu()));
        all.push(Found {
            what: list.what,
            unit: "ms",
            reference: Some(reference.slowest()),
            queen: pages.slowest(),
            aim: Aim::Below(AIM_MS),
        });
        reference_took.extend(reference.took_ms);
        took.extend(pages.took_ms);
    }
    all.push(Found {
        what: "any of these pages, each reading counted, p99",
        unit: "ms",
        reference: Some(percentile(&mut reference_took, 99)?),
        queen: percentile(&mut took, 99)?,
        aim: Aim::Below(AIM_MS),
    });
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
    for reading in 1.. {
        pages.tasks = 0;
        let (mut after, mut page) = (None, 0);
        loop {
            after = read_page(&client, query, after.as_deref(), page, &mut pages)?;
            page += 1;
            if after.is_none() {
                break;
            }
        }
        ensure!(
            pages.tasks == tasks,
            "the list {query:?} has {} tasks and not {tasks}",
            pages.tasks
        );
        if reading >= READINGS && pages.took_ms.len() >= LEAST_PAGES {
            break;
        }
    }
    pages.cpu_ms = cpu() - before;
    Ok(pages)
}

/// Reads the page with this number; returns where the next one begins.
fn read_page(
    client: &Client,
    query: &str,
    after: Option<&str>,
    number: usize,
    pages: &mut Pages,
) -> Result<Option<String>> {
    let mut path = format!("/v2/tasks?limit={PAGE}{query}");
    if let Some(after) = after {
        path += "&after=";
        path += after;
    }
    let start = Instant::now();
    let reply = client.get(&path)?;
    let took = start.elapsed().as_secs_f64() * 1e3;
    pages.took_ms.push(took);
    match pages.best_ms.get_mut(number) {
        Some(best) => *best = best.min(took),
        None => pages.best_ms.push(took),
    }
    ensure!(reply.status == 200, "{path}: {}", reply.text);
    pages.largest = pages.largest.max(reply.text.len());
    let page: Value = serde_json::from_str(&reply.text)?;
    let tasks = page["tasks"].as_array().context("a list has tasks")?;
    pages.tasks += tasks.len();
    Ok(page["next"].as_str().map(str::to_owned))
}
