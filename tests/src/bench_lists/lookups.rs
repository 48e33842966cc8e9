//! Look-ups of single tasks: alone, and while others read lists.

use super::pages::LISTS;
use super::{PAGE, Stage, percentile};
use crate::bench::compared::{Aim, Found};
use crate::harness::Client;
use crate::random::Random;
use anyhow::{Context, Result, ensure};
use rbee_orchestrator::domain::JobId;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::thread;
use std::time::Instant;

/// What a look-up may take, p99, in milliseconds.
const AIM_MS: f64 = 10.0;

/// Clients that read lists meanwhile.
const LISTERS: usize = 16;

pub(super) fn measure(stage: &Stage, quick: bool) -> Result<Vec<Found>> {
    let times = if quick { 500 } else { 3000 };
    let client = Client::keeping_alive(&format!("http://127.0.0.1:{}", stage.queen.port()));
    let tasks = |large: bool| -> Vec<JobId> {
        let wanted = stage
            .filled
            .0
            .iter()
            .filter(|(_, kind)| kind.is_large == large);
        wanted.map(|(job, _)| *job).collect()
    };
    let (small, large) = (tasks(false), tasks(true));
    let of_large = look_up(&client, &large, times / 10)?;
    let alone = look_up(&client, &small, times)?;
    let (over, lists) = (AtomicBool::new(false), AtomicUsize::new(0));
    let beside = thread::scope(|scope| {
        let listers: Vec<_> = (0..LISTERS)
            .map(|number| {
                let (over, lists, client) = (&over, &lists, &client);
                scope.spawn(move || -> Result<()> {
                    let mut at = number;
                    while !over.load(Relaxed) {
                        let query = LISTS[at % LISTS.len()].query;
                        let page = client.get(&format!("/v2/tasks?limit={PAGE}{query}"))?;
                        ensure!(page.status == 200, "{}", page.text);
                        lists.fetch_add(1, Relaxed);
                        at += 1;
                    }
                    Ok(())
                })
            })
            .collect();
        let beside = look_up(&client, &small, times);
        over.store(true, Relaxed);
        for lister in listers {
            lister.join().expect("it does not panic")?;
        }
        beside
    })?;
    ensure!(
        lists.load(Relaxed) > LISTERS,
        "no list was read beside the look-ups"
    );
    let p = |took: &[f64], percent| percentile(&mut took.to_vec(), percent);
    let found = |what, reference, queen, aim| Found {
        what,
        unit: "ms",
        reference,
        queen,
        aim,
    };
    Ok(vec![
        found(
            "a look-up of a result of 1 MB, p99",
            None,
            p(&of_large, 99)?,
            Aim::None,
        ),
        found("a look-up, p50", None, p(&alone, 50)?, Aim::None),
        found("a look-up, p99", None, p(&alone, 99)?, Aim::Below(AIM_MS)),
        found(
            "a look-up while 16 clients read lists, beside one without them, p50",
            Some(p(&alone, 50)?),
            p(&beside, 50)?,
            Aim::None,
        ),
        found(
            "a look-up while 16 clients read lists, beside one without them, p99",
            Some(p(&alone, 99)?),
            p(&beside, 99)?,
            Aim::Below(AIM_MS),
        ),
    ])
}

/// Looks tasks up, one after the other, each by chance; returns what each took in milliseconds.
fn look_up(client: &Client, tasks: &[JobId], times: usize) -> Result<Vec<f64>> {
    let mut random = Random::new(times as u64);
    let last = tasks.len().checked_sub(1).context("there are such tasks")? as u64;
    let mut took = Vec::with_capacity(times);
    for _ in 0..times {
        let job = tasks[random.between(0, last) as usize];
        let start = Instant::now();
        let task = client.get(&format!("/v2/tasks/{job}"))?;
        took.push(start.elapsed().as_secs_f64() * 1e3);
        ensure!(task.status == 200, "{}", task.text);
    }
    Ok(took)
}
