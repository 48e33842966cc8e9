//! What processes use inside the window.

use super::Run;
use super::stats::round;
use crate::proc::{self, Usage};
use serde_json::{Map, Value, json};
use std::rc::Rc;
use std::time::Duration;
use tokio::time::{Instant, sleep_until};

/// A process and its descendants, under a name.
pub(super) struct Watched {
    pub(super) name: String,
    pub(super) pid: u32,
}

impl Watched {
    fn usage(&self) -> Usage {
        proc::usage(&proc::tree(&[self.pid]))
    }
}

/// How often memory is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// What the watched used, this program and the whole machine. `foreign_cores` is what none of them
/// used: noise from outside, if it isn't near 0.
pub(super) async fn watch(run: Rc<Run>, watched: Vec<Watched>) -> Value {
    let before: Vec<u64> = watched.iter().map(|w| w.usage().rss_kb).collect();
    sleep_until(run.from).await;
    let Some(to) = run.to else {
        return Value::Null;
    };
    let busy = proc::machine_busy_s();
    let first: Vec<Usage> = watched.iter().map(Watched::usage).collect();
    let mut peak: Vec<u64> = first.iter().map(|u| u.rss_kb).collect();
    let mut last = first.clone();
    let mut at = run.from;
    while at < to {
        at = (at + LOOK_EVERY).min(to);
        sleep_until(at).await;
        for (i, one) in watched.iter().enumerate() {
            last[i] = one.usage();
            peak[i] = peak[i].max(last[i].rss_kb);
        }
    }
    let window = Instant::now().duration_since(run.from).as_secs_f64();
    let busy = proc::machine_busy_s() - busy;
    let stats = run.stats.borrow();
    let mut out = Map::new();
    let mut ours = 0.0;
    for (i, one) in watched.iter().enumerate() {
        let cpu = (last[i].cpu_s - first[i].cpu_s).max(0.0);
        ours += cpu;
        let per = |n: u64| match n {
            0 => Value::Null,
            n => json!(round(cpu * 1e6 / n as f64, 2)),
        };
        let one_used = json!({
            "cpu_s": round(cpu, 2), "cores": round(cpu / window, 3),
            "cpu_us_per_request": per(stats.done_in_window),
            "cpu_us_per_token": per(stats.tokens_in_window),
            "rss_before_kb": before[i], "rss_peak_kb": peak[i],
            "threads": last[i].threads, "procs": last[i].procs,
        });
        out.insert(one.name.clone(), one_used);
    }
    let foreign = round((busy - ours) / window, 2);
    out.insert("machine_busy_cores".into(), json!(round(busy / window, 2)));
    out.insert("foreign_cores".into(), json!(foreign));
    Value::Object(out)
}
