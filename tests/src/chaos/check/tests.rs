//! Every violation is caught, and nothing else is.

use super::super::log::{
    Ack, Class, Closed, Connection, EventId, Evidence, Reading, Seen, Task, TaskError, UsageRow,
    What, Wish,
};
use super::{Rule, check};
use crate::words;

const NAME: &str = "c0-1";
const JOB: &str = "j1";
const WORDS: u64 = 5;

fn wish(class: Class) -> Wish {
    Wish {
        name: NAME.into(),
        class,
        tenant: "red",
        key: Some("k1".into()),
        words: WORDS,
        acks: vec![Ack {
            job_id: JOB.into(),
            at_ns: 1,
        }],
        cancels: Vec::new(),
        tried_to_cancel: false,
        over_ns: None,
    }
}

/// Complete with its second attempt, the first having been cut off by a crash.
fn task() -> Task {
    Task {
        job_id: JOB.into(),
        state: "complete".into(),
        model: "file:m".into(),
        tenant_id: "red".into(),
        idempotency_key: Some("k1".into()),
        correlation_id: NAME.into(),
        attempts: 2,
        tokens_in: Some(8),
        tokens_out: Some(WORDS),
        inference_ms: Some(20),
        slot_ms: Some(25),
        result: Some(words::text(NAME, 2, WORDS)),
        error: None,
    }
}

fn seen(id: EventId, what: What) -> Seen {
    Seen { id: Some(id), what }
}

/// An attempt's `started` and its tokens from `from` up to `to`.
fn tokens(attempt: u64, from: u64, to: u64) -> Vec<Seen> {
    let mut offset = words::text(NAME, attempt, from).len();
    let token = |index| {
        let text = words::word(NAME, attempt, index);
        offset += text.len();
        seen(EventId { attempt, offset }, What::Token { text, index })
    };
    let start = EventId { attempt, offset: 0 };
    let started = (from == 0).then(|| seen(start, What::Started { attempt }));
    started.into_iter().chain((from..to).map(token)).collect()
}

fn end(attempt: u64) -> Seen {
    let offset = words::text(NAME, attempt, WORDS).len();
    let end = What::End { tokens_out: WORDS };
    seen(EventId { attempt, offset }, end)
}

fn failed(code: &str) -> Seen {
    let what = What::Error { code: code.into() };
    Seen { id: None, what }
}

/// A reader who saw two words of attempt 1, then the queen die, then three words of attempt 2,
/// left, and came back for the rest.
fn reading() -> Reading {
    let after = tokens(2, 2, 3)[0].id;
    let mut rest = tokens(2, 3, WORDS);
    rest.push(end(2));
    let connection = |after, events, closed| Connection {
        after,
        events,
        closed,
    };
    Reading {
        job_id: JOB.into(),
        name: NAME.into(),
        followed: true,
        connections: vec![
            connection(None, tokens(1, 0, 2), Closed::Broken),
            connection(tokens(1, 1, 2)[0].id, tokens(2, 0, 3), Closed::Left),
            connection(after, rest, Closed::Whole),
        ],
    }
}

fn usage() -> UsageRow {
    UsageRow {
        tenant_id: "red".into(),
        model: "file:m".into(),
        jobs: 1,
        tokens_in: 8,
        tokens_out: WORDS,
        inference_ms: 20,
        slot_ms: 25,
    }
}

fn clean() -> Evidence {
    Evidence {
        wishes: vec![wish(Class::Async)],
        readings: vec![reading()],
        complaints: Vec::new(),
        tasks: vec![task()],
        usage: vec![usage()],
        away_ns: Vec::new(),
    }
}

#[track_caller]
fn is_kept(break_it: impl FnOnce(&mut Evidence)) {
    let mut evidence = clean();
    break_it(&mut evidence);
    assert_eq!(check(&evidence), []);
}

/// This breaks this promise, whatever else it breaks.
#[track_caller]
fn breaks(rule: Rule, break_it: impl FnOnce(&mut Evidence)) {
    let mut evidence = clean();
    break_it(&mut evidence);
    let found = check(&evidence);
    let caught = found.iter().any(|violation| violation.rule == rule);
    assert!(caught, "{rule:?} is not among {found:?}");
}

/// Usage of no words: for tasks that have none.
fn without_result(evidence: &mut Evidence, state: &str, code: &str) {
    let task = &mut evidence.tasks[0];
    task.state = state.into();
    task.result = None;
    task.error = Some(TaskError { code: code.into() });
}

fn last_events(evidence: &mut Evidence) -> &mut Vec<Seen> {
    let last = evidence.readings[0].connections.last_mut();
    &mut last.expect("the reading has connections").events
}

#[test]
fn what_kept_every_promise_passes() {
    is_kept(|_| {});
    is_kept(|e| e.readings.clear());
    is_kept(|e| *e = Evidence::default());
}

#[test]
fn an_acknowledged_task_that_is_gone() {
    breaks(Rule::NothingLost, |e| e.tasks.clear());
    // An interactive one may be: nothing was promised before its end.
    is_kept(|e| {
        *e = Evidence {
            wishes: vec![wish(Class::Stream)],
            ..Evidence::default()
        };
    });
}

#[test]
fn a_task_that_never_ends() {
    breaks(Rule::EverythingEnds, |e| {
        e.tasks[0].state = "running".into();
    });
    breaks(Rule::EverythingEnds, |e| {
        e.readings[0].connections.truncate(1);
    });
}

#[test]
fn a_second_ending() {
    // Seen complete with one attempt, and then with another, or no longer.
    breaks(Rule::OneEnding, |e| e.tasks[0].attempts = 3);
    breaks(Rule::OneEnding, |e| e.tasks[0].attempts = 1);
    breaks(Rule::OneEnding, |e| {
        without_result(e, "cancelled", "CANCELLED");
    });
    breaks(Rule::OneEnding, |e| {
        let mut events = tokens(3, 0, WORDS);
        events.push(end(3));
        let closed = Closed::Whole;
        let after = end(2).id;
        let connections = &mut e.readings[0].connections;
        connections.push(Connection {
            after,
            events,
            closed,
        });
    });
    breaks(Rule::OneEnding, |e| {
        let events = last_events(e);
        events.pop();
        events.push(failed("WORKER_FAILED"));
    });
    breaks(Rule::OneEnding, |e| {
        last_events(e).pop();
    });
    breaks(Rule::Order, |e| last_events(e).push(end(2)));
    breaks(Rule::OneEnding, |e| {
        e.wishes[0].cancels = vec![Some("cancelled".into())];
    });
}

#[test]
fn two_tasks_of_one_wish() {
    let twin = || Task {
        job_id: "j2".into(),
        ..task()
    };
    breaks(Rule::OneTask, |e| e.tasks.push(twin()));
    breaks(Rule::OneTask, |e| {
        // Of one key, although the correlation ids differ.
        e.tasks.push(Task {
            correlation_id: "c0-2".into(),
            ..twin()
        });
        e.wishes.push(Wish {
            name: "c0-2".into(),
            acks: Vec::new(),
            ..wish(Class::Async)
        });
    });
    breaks(Rule::OneTask, |e| e.tasks.push(task()));
    breaks(Rule::OneTask, |e| {
        e.wishes[0].acks.push(Ack {
            job_id: "j2".into(),
            at_ns: 2,
        });
    });
    breaks(Rule::OneTask, |e| e.wishes.clear());
}

#[test]
fn an_ending_that_nobody_asked_for() {
    breaks(Rule::RightEnding, |e| {
        without_result(e, "cancelled", "");
    });
    breaks(Rule::RightEnding, |e| {
        without_result(e, "failed", "WORKER_FAILED");
    });
    breaks(Rule::RightEnding, |e| {
        without_result(e, "failed", "INTERRUPTED");
    });
    breaks(Rule::RightEnding, |e| e.tasks[0].attempts = 0);
    is_kept(|e| {
        without_result(e, "cancelled", "CANCELLED");
        e.wishes[0].tried_to_cancel = true;
        e.wishes[0].cancels = vec![None, Some("cancelled".into())];
        let events = last_events(e);
        events.pop();
        events.push(failed("CANCELLED"));
    });
    // The crash may have come between a stream's end and its commit.
    is_kept(|e| {
        e.wishes[0].class = Class::Stream;
        without_result(e, "failed", "INTERRUPTED");
    });
}

#[test]
fn a_worker_that_is_away_ends_only_what_belongs_to_a_connection() {
    let fails_while_away = |e: &mut Evidence, class| {
        e.wishes[0].class = class;
        e.wishes[0].over_ns = Some(5);
        without_result(e, "failed", "WORKER_FAILED");
        let events = last_events(e);
        events.pop();
        events.push(failed("WORKER_FAILED"));
    };
    is_kept(|e| {
        fails_while_away(e, Class::Stream);
        e.away_ns.push(5..9);
    });
    breaks(Rule::RightEnding, |e| {
        fails_while_away(e, Class::Stream);
        e.away_ns.push(6..9);
    });
    breaks(Rule::RightEnding, |e| {
        fails_while_away(e, Class::Async);
        e.away_ns.push(0..9);
    });
}

#[test]
fn a_byte_lost_or_repeated() {
    breaks(Rule::TextOnce, |e| {
        last_events(e).remove(0);
    });
    breaks(Rule::TextOnce, |e| {
        let again = tokens(2, 2, 3);
        last_events(e).splice(0..0, again);
    });
    breaks(Rule::TextOnce, |e| last_events(e)[0].id = None);
    breaks(Rule::TextOnce, |e| {
        if let What::Token { index, .. } = &mut last_events(e)[1].what {
            *index += 1;
        }
    });
    // Text that is cut otherwise on a replay is right all the same.
    is_kept(|e| {
        let events = last_events(e);
        let id = events[1].id;
        let text: String = (3..WORDS).map(|i| words::word(NAME, 2, i)).collect();
        let what = What::Token { text, index: 0 };
        events.splice(0..2, [Seen { id, what }]);
    });
}

#[test]
fn a_text_that_is_not_the_workers() {
    breaks(Rule::RightText, |e| {
        e.tasks[0].result = Some(words::text(NAME, 2, WORDS - 1));
    });
    breaks(Rule::RightText, |e| e.tasks[0].result = None);
    breaks(Rule::RightText, |e| {
        e.tasks[0].result = Some(words::text(NAME, 1, WORDS));
    });
    breaks(Rule::RightText, |e| e.tasks[0].tokens_out = Some(4));
    breaks(Rule::RightText, |e| {
        // A word of attempt 1 among those of attempt 2.
        let other = words::word(NAME, 1, 3);
        if let What::Token { text, .. } = &mut last_events(e)[0].what {
            *text = other;
        }
    });
}

#[test]
fn an_attempt_whose_number_is_given_out_twice() {
    breaks(Rule::RightText, |e| {
        let connections = &mut e.readings[0].connections;
        // Computed anew after the crash, though still attempt 1 as far as the reader knows.
        let mut offset = words::text(NAME, 1, 2).len();
        let text = words::word(NAME, 7, 2);
        offset += text.len();
        let what = What::Token { text, index: 2 };
        let resumed = Connection {
            after: connections[0].events[1].id,
            events: vec![seen(EventId { attempt: 1, offset }, what)],
            closed: Closed::Broken,
        };
        connections.insert(1, resumed);
    });
}

#[test]
fn an_attempt_that_starts_twice() {
    breaks(Rule::Order, |e| {
        let again = tokens(2, 0, 0);
        last_events(e).splice(0..0, again);
    });
}

#[test]
fn usage_that_does_not_add_up() {
    breaks(Rule::UsageAddsUp, |e| e.usage[0].jobs = 2);
    breaks(Rule::UsageAddsUp, |e| e.usage[0].tokens_out += WORDS);
    breaks(Rule::UsageAddsUp, |e| e.usage[0].tokens_in = 0);
    breaks(Rule::UsageAddsUp, |e| e.usage[0].inference_ms += 1);
    breaks(Rule::UsageAddsUp, |e| e.usage[0].slot_ms += 1);
    breaks(Rule::UsageAddsUp, |e| e.usage.clear());
    breaks(Rule::UsageAddsUp, |e| e.usage[0].tenant_id = "blue".into());
    // The sum may be split over days.
    is_kept(|e| {
        let nothing = UsageRow {
            jobs: 0,
            tokens_in: 3,
            tokens_out: 0,
            inference_ms: 0,
            slot_ms: 0,
            ..usage()
        };
        e.usage[0].tokens_in -= 3;
        e.usage.push(nothing);
    });
}

#[test]
fn an_answer_that_makes_no_sense() {
    breaks(Rule::Sense, |e| e.complaints.push("status 500".into()));
    breaks(Rule::Sense, |e| {
        let connection = &mut e.readings[0].connections[0];
        connection.closed = Closed::Wrong("half an event".into());
    });
}
