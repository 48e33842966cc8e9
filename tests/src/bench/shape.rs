//! The shapes of load, and one measurement of one of them.

use super::leaving;
use super::target::{Programs, Stage, Target};
use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use serde_json::Value;
use std::process::{Command, Stdio};

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Letter {
    A,
    B,
    C,
    D,
}

/// One shape of load.
pub(super) struct Shape {
    pub(super) letter: Letter,
    pub(super) title: String,
    /// Requests or streams at once
    pub(super) concurrency: usize,
    work: Work,
}

enum Work {
    Load(Load),
    /// Clients that leave and engines that die, so many of each
    Leaving(usize),
}

/// What the load generator is asked for.
struct Load {
    /// Flags of the stub engine
    engine: &'static [&'static str],
    stream: bool,
    tokens: u64,
    ramp_ms: u64,
    warmup_s: f64,
    window_s: f64,
}

const PACED_TOKENS: u64 = 128;
const PACED_ITL_MS: u64 = 20;

/// All shapes; `quick` ones only show that everything works.
pub(super) fn shapes(quick: bool) -> Vec<Shape> {
    let (warmup_s, window_s) = if quick { (0.3, 1.0) } else { (1.0, 5.0) };
    let small = |concurrency| Shape {
        letter: Letter::A,
        title: format!("(a) small JSON, {concurrency} at once"),
        concurrency,
        work: Work::Load(Load {
            engine: &[],
            stream: false,
            tokens: 16,
            ramp_ms: 0,
            warmup_s,
            window_s,
        }),
    };
    let fast = Shape {
        letter: Letter::B,
        title: "(b) 64 streams at full speed".into(),
        concurrency: 64,
        work: Work::Load(Load {
            engine: &["--flush-each"],
            stream: true,
            tokens: 256,
            ramp_ms: 0,
            warmup_s,
            window_s,
        }),
    };
    let paced_streams = if quick { 100 } else { 1000 };
    let paced_tokens = if quick { 32 } else { PACED_TOKENS };
    let paced_ms = paced_tokens * PACED_ITL_MS;
    let paced = Shape {
        letter: Letter::C,
        title: format!("(c) {paced_streams} streams, {PACED_ITL_MS} ms a token"),
        concurrency: paced_streams,
        work: Work::Load(Load {
            engine: &["--itl-ms", "20"],
            stream: true,
            tokens: paced_tokens,
            // Spread over one stream's life, so that as many begin at any time.
            ramp_ms: paced_ms,
            warmup_s: paced_ms as f64 / 1e3 + warmup_s,
            window_s: if quick { 1.0 } else { 8.0 },
        }),
    };
    let times = if quick { 10 } else { 100 };
    let leaving = Shape {
        letter: Letter::D,
        title: format!("(d) who leaves and who dies, {times} times each"),
        concurrency: 1,
        work: Work::Leaving(times),
    };
    vec![small(1), small(64), fast, paced, leaving]
}

/// What one measurement found.
pub(super) struct Found {
    pub(super) report: Value,
    /// What went wrong, each in a sentence
    pub(super) problems: Vec<String>,
}

impl Found {
    /// A number of the report by its JSON pointer.
    pub(super) fn number(&self, pointer: &str) -> Option<f64> {
        self.report.pointer(pointer)?.as_f64()
    }
}

impl Shape {
    pub(super) fn measure(&self, programs: &Programs, target: Target) -> Result<Found> {
        match &self.work {
            Work::Load(load) => load.measure(programs, target, self.concurrency),
            Work::Leaving(times) => leaving::measure(programs, target, *times),
        }
    }
}

impl Load {
    fn measure(&self, programs: &Programs, target: Target, concurrency: usize) -> Result<Found> {
        let mut stage = Stage::start(programs, target, self.engine)?;
        // What a proxy sets up once, at its first requests, is not its streams' memory.
        self.generate(programs, &stage, &["--requests", "50", "--tokens", "1"])?;
        let text = |n: f64| format!("{n:.3}");
        let mut args = vec![
            "--tokens".to_owned(),
            self.tokens.to_string(),
            "--concurrency".into(),
            concurrency.to_string(),
            "--duration".into(),
            text(self.window_s),
            "--warmup".into(),
            text(self.warmup_s),
            "--ramp-ms".into(),
            self.ramp_ms.to_string(),
        ];
        if let Some(pid) = stage.proxy_pid() {
            args.extend(["--watch".into(), format!("proxy={pid}")]);
        }
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let report = self.generate(programs, &stage, &args)?;
        let mut problems = wrong_in(&report);
        problems.extend(stage.casualties());
        Ok(Found { report, problems })
    }

    fn generate(&self, programs: &Programs, stage: &Stage, args: &[&str]) -> Result<Value> {
        let mut load = Command::new(&programs.load);
        load.args(["--url", &stage.url, "--model", stage.model]);
        if self.stream {
            load.arg("--stream");
        }
        let out = load.args(args).stderr(Stdio::inherit()).output()?;
        ensure!(out.status.success(), "{load:?}: {}", out.status);
        serde_json::from_slice(&out.stdout).context("the load generator's report")
    }
}

/// Everything in a report that must not be there. Streams that were cut at the window's end and
/// did not end within the drain time count too.
pub(crate) fn wrong_in(report: &Value) -> Vec<String> {
    let mut problems = Vec::new();
    if let Some(errors) = report["errors"].as_object() {
        problems.extend(errors.iter().map(|(kind, n)| format!("{n} × {kind}")));
    }
    for key in [
        "warmup_errors",
        "unfinished",
        "warmup_unfinished",
        "lost_tokens",
        "repeated_tokens",
    ] {
        if report[key].as_u64() != Some(0) {
            problems.push(format!("{key}: {}", report[key]));
        }
    }
    if report["ok"].as_u64().unwrap_or(0) == 0 {
        problems.push("not one request succeeded".into());
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn clean() -> Value {
        json!({"errors": {}, "warmup_errors": 0, "unfinished": 0, "warmup_unfinished": 0,
               "lost_tokens": 0, "repeated_tokens": 0, "ok": 7})
    }

    #[test]
    fn a_clean_report_has_no_problem_and_any_flaw_is_one() {
        assert_eq!(wrong_in(&clean()), Vec::<String>::new());
        for (key, value) in [
            ("errors", json!({"status_500": 2})),
            ("warmup_errors", json!(1)),
            ("unfinished", json!(1)),
            ("lost_tokens", json!(3)),
            ("repeated_tokens", Value::Null),
            ("ok", json!(0)),
        ] {
            let mut report = clean();
            report[key] = value;
            assert_eq!(wrong_in(&report).len(), 1, "{key}");
        }
    }
}
