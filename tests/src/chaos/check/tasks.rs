//! What became of each wish.

use super::super::log::{Class, Evidence, Task, Wish};
use super::{Findings, Rule};
use crate::words;
use std::collections::HashMap;
use std::ops::Range;

pub(super) fn check(evidence: &Evidence, findings: &mut Findings) {
    let mut by_id: HashMap<&str, &Task> = HashMap::new();
    let mut by_name: HashMap<&str, Vec<&Task>> = HashMap::new();
    let mut by_key: HashMap<(&str, &str), Vec<&Task>> = HashMap::new();
    for task in &evidence.tasks {
        let twin = by_id.insert(&task.job_id, task);
        findings.hold(Rule::OneTask, twin.is_none(), || {
            format!("the list has {} twice", task.job_id)
        });
        by_name.entry(&task.correlation_id).or_default().push(task);
        if let Some(key) = &task.idempotency_key {
            let of_key = by_key.entry((&task.tenant_id, key)).or_default();
            of_key.push(task);
        }
        findings.hold(Rule::EverythingEnds, task.is_ended(), || {
            format!("{} is still {}", task.job_id, task.state)
        });
    }
    for ((tenant, key), tasks) in &by_key {
        findings.hold(Rule::OneTask, tasks.len() == 1, || {
            format!("{tenant}'s key {key} has the tasks {}", ids(tasks))
        });
    }
    for wish in &evidence.wishes {
        let tasks = by_name.remove(wish.name.as_str()).unwrap_or_default();
        one_task(wish, &tasks, findings);
        for ack in &wish.acks {
            let is_there = by_id.contains_key(ack.job_id.as_str());
            // An interactive task is not yet on the disk when its client hears of it.
            findings.hold(
                Rule::NothingLost,
                is_there || !wish.class.is_durable(),
                || {
                    format!(
                        "{} was acknowledged as {} and is gone",
                        wish.name, ack.job_id
                    )
                },
            );
        }
        for task in tasks {
            ending(wish, task, &evidence.away_ns, findings);
        }
    }
    for (name, tasks) in &by_name {
        findings.hold(Rule::OneTask, false, || {
            format!("nobody asked for {name}: {}", ids(tasks))
        });
    }
}

fn ids(tasks: &[&Task]) -> String {
    let ids: Vec<&str> = tasks.iter().map(|task| task.job_id.as_str()).collect();
    ids.join(", ")
}

/// A wish without a key is sent once; one with a key as often as it takes.
fn one_task(wish: &Wish, tasks: &[&Task], findings: &mut Findings) {
    findings.hold(Rule::OneTask, tasks.len() <= 1, || {
        format!("{} became {}", wish.name, ids(tasks))
    });
    let mut acks = wish.acks.iter().map(|ack| ack.job_id.as_str());
    if let Some(first) = acks.next() {
        let same = acks.all(|ack| ack == first);
        findings.hold(Rule::OneTask, same, || {
            format!(
                "{} was acknowledged as two jobs: {:?}",
                wish.name, wish.acks
            )
        });
    }
}

fn ending(wish: &Wish, task: &Task, away_ns: &[Range<u64>], findings: &mut Findings) {
    let id = &task.job_id;
    match task.state.as_str() {
        "complete" => complete(wish, task, findings),
        // Who left, or whose connection broke with the queen, may have been noticed in time.
        "cancelled" => {
            let wanted = wish.tried_to_cancel || wish.class == Class::Stream;
            findings.hold(Rule::RightEnding, wanted, || {
                format!("{id} was cancelled, and nobody wanted that")
            });
        }
        "failed" => {
            // Only a crash or a worker that is away ends tasks here, and only those that belong to
            // a connection.
            let is_right = match task.code() {
                "INTERRUPTED" => true,
                "WORKER_FAILED" | "NO_CAPACITY" => wish.was_open_in(away_ns),
                _ => false,
            };
            let is_right = is_right && wish.class == Class::Stream;
            findings.hold(Rule::RightEnding, is_right, || {
                format!("{id} ({:?}) failed with {}", wish.class, task.code())
            });
        }
        _ => {}
    }
    for told in wish.cancels.iter().flatten() {
        findings.hold(Rule::OneEnding, *told == task.state, || {
            format!("{id} was told to be {told}, and is {}", task.state)
        });
    }
}

fn complete(wish: &Wish, task: &Task, findings: &mut Findings) {
    let id = &task.job_id;
    let text = task.result.as_deref().unwrap_or_default();
    let whole =
        words::generation(text).map(|generation| words::text(&wish.name, generation, wish.words));
    findings.hold(Rule::RightText, whole.as_deref() == Some(text), || {
        format!("{id}'s result is not what the worker said: {text:?}, should be {whole:?}")
    });
    findings.hold(Rule::RightText, task.tokens_out == Some(wish.words), || {
        format!(
            "{id} has {:?} tokens and not {}",
            task.tokens_out, wish.words
        )
    });
    findings.hold(Rule::RightEnding, task.attempts > 0, || {
        format!("{id} is complete without an attempt")
    });
}
