//! What readers get, whenever they come and wherever they were.

use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use super::*;
use crate::domain::{JobId, JobRecord, JobState, ModelRef, StopReason, UnixMillis, WorkerId};

fn started(attempt: Attempt) -> TaskEvent {
    TaskEvent::Started {
        model: ModelRef::new("file:m").unwrap(),
        started_at: UnixMillis(0),
        worker: WorkerId::new("w").unwrap(),
        attempt,
    }
}

fn end() -> TaskEvent {
    TaskEvent::End {
        tokens_out: 1,
        decode_time_ms: 0,
        stop_reason: StopReason::Eos,
        stop_sequence_matched: None,
    }
}

fn journal() -> Arc<Journal> {
    Arc::new(Journal::new(Arc::new(TextBudget::new(1 << 20))))
}

/// All that a reader gets now, in short.
fn read(reader: &mut Reader) -> Vec<String> {
    let mut cx = Context::from_waker(Waker::noop());
    let mut got = Vec::new();
    while let Poll::Ready(read) = reader.poll_read(&mut cx) {
        let (id, event) = match read {
            Read::Event(id, event) => (id, event),
            Read::TooSlow(id, _) => {
                got.push(format!("{id} too slow"));
                break;
            }
            Read::End => {
                got.push("over".into());
                break;
            }
            Read::Closed => {
                got.push("closed".into());
                break;
            }
        };
        got.push(match event {
            TaskEvent::Started { attempt, .. } => format!("{id} started {attempt}"),
            TaskEvent::Token { text, index } => format!("{id} {index} {text}"),
            TaskEvent::Thinking { text } => format!("{id} ({text})"),
            TaskEvent::End { .. } => format!("{id} end"),
            TaskEvent::Error { .. } => format!("{id} error"),
            _ => format!("{id} note"),
        });
    }
    got
}

fn reader(journal: &Arc<Journal>, after: Option<&str>) -> Reader {
    let after = after.map(|text| text.parse().unwrap());
    Reader::new(journal.clone(), after, 16)
}

#[test]
fn readers_get_the_same_text_whenever_they_come() {
    let journal = journal();
    let mut early = reader(&journal, None);
    journal.note(TaskEvent::Queued {
        position: 0,
        wait: None,
    });
    assert_eq!(read(&mut early), ["0.0 note"]);
    journal.begin(1, started(1));
    journal.add("Hé").unwrap();
    assert_eq!(read(&mut early), ["1.0 started 1", "1.3 0 Hé"]);
    journal.add("llo").unwrap();
    assert_eq!(read(&mut early), ["1.6 1 llo"]);
    let all = ["0.0 note", "1.0 started 1", "1.6 0 Héllo"];
    assert_eq!(read(&mut reader(&journal, None)), all);
    journal.end(vec![end()]);
    assert_eq!(read(&mut early), ["1.6 end", "over"]);
}

#[test]
fn a_reader_goes_on_where_it_was_and_never_inside_a_character() {
    let journal = journal();
    journal.begin(1, started(1));
    journal.add("aéb").unwrap();
    assert_eq!(read(&mut reader(&journal, Some("1.1"))), ["1.4 0 éb"]);
    assert_eq!(read(&mut reader(&journal, Some("1.2"))), ["1.4 0 éb"]);
    assert!(read(&mut reader(&journal, Some("1.4"))).is_empty());
    assert!(read(&mut reader(&journal, Some("1.99"))).is_empty());
}

#[test]
fn thinking_is_told_before_the_text_and_has_places_of_its_own() {
    let journal = journal();
    journal.begin(1, started(1));
    let mut live = reader(&journal, None);
    journal.add_thinking("Hé").unwrap();
    assert_eq!(read(&mut live), ["1.0 started 1", "1.0.3 (Hé)"]);
    journal.add("a").unwrap();
    assert_eq!(read(&mut live), ["1.1.3 0 a"]);
    journal.add_thinking("m").unwrap();
    assert_eq!(read(&mut live), ["1.1.4 (m)"]);
    let all = ["1.0 started 1", "1.0.4 (Hém)", "1.1.4 0 a"];
    assert_eq!(read(&mut reader(&journal, None)), all);
    assert_eq!(
        read(&mut reader(&journal, Some("1.0.2"))),
        ["1.0.4 (ém)", "1.1.4 0 a"]
    );
    assert!(read(&mut reader(&journal, Some("1.1.4"))).is_empty());
    // A new attempt makes it void, as it does the text.
    journal.begin(2, started(2));
    journal.add("b").unwrap();
    assert_eq!(read(&mut live), ["2.0 started 2", "2.1 0 b"]);
    assert_eq!(journal.thinking(), None);
}

#[test]
fn a_new_attempt_makes_earlier_text_void() {
    let journal = journal();
    journal.begin(1, started(1));
    journal.add("void").unwrap();
    let mut on = reader(&journal, None);
    assert_eq!(read(&mut on), ["1.0 started 1", "1.4 0 void"]);
    journal.begin(2, started(2));
    journal.add("new").unwrap();
    assert_eq!(read(&mut on), ["2.0 started 2", "2.3 0 new"]);
    let from_old = read(&mut reader(&journal, Some("1.2")));
    assert_eq!(from_old, ["2.0 started 2", "2.3 0 new"]);
    let from_start = read(&mut reader(&journal, None));
    assert_eq!(from_start, ["1.0 started 1", "2.0 started 2", "2.3 0 new"]);
}

#[test]
fn a_reader_that_falls_behind_is_sent_away_and_a_late_one_is_not() {
    let journal = journal();
    journal.begin(1, started(1));
    let mut on = reader(&journal, None);
    read(&mut on);
    journal.add(&"x".repeat(17)).unwrap();
    assert_eq!(read(&mut on), ["1.0 too slow"]);
    let back = read(&mut reader(&journal, Some("1.0")));
    assert_eq!(back, [format!("1.17 0 {}", "x".repeat(17))]);
}

#[test]
fn text_is_bounded_in_all_and_given_back() {
    let budget = Arc::new(TextBudget::new(10));
    let first = Journal::new(budget.clone());
    let second = Journal::new(budget.clone());
    first.add("123456").unwrap();
    assert_eq!(second.add("12345").unwrap_err().code, Code::NoCapacity);
    first.begin(2, started(2));
    second.add("12345").unwrap();
    drop(second);
    assert!(budget.take(10));
}

#[test]
fn a_record_replays_as_the_events_were() {
    let mut job = crate::store::testing::ended_job();
    job.state = JobState::Complete;
    job.attempt = 3;
    job.result = Some("Once é".into());
    job.thinking = None;
    let shown_of = |job: &JobRecord, after: Option<&str>| {
        let after = after.map(|text| text.parse().unwrap());
        let events = replay(job, after).into_iter();
        let events = events.map(|(id, event)| match event {
            TaskEvent::Token { text, .. } => format!("{id} {text}"),
            TaskEvent::Thinking { text } => format!("{id} ({text})"),
            TaskEvent::Started { .. } => format!("{id} started"),
            _ => format!("{id} end"),
        });
        events.collect::<Vec<_>>()
    };
    let told = job.clone();
    let shown = |after| shown_of(&told, after);
    let all = ["3.0 started", "3.7 Once é", "3.7 end"];
    assert_eq!(shown(None), all);
    assert_eq!(shown(Some("2.5")), all);
    assert_eq!(shown(Some("3.5")), ["3.7 é", "3.7 end"]);
    assert_eq!(shown(Some("3.7")), ["3.7 end"]);
    job.thinking = Some("Hm".into());
    let all = ["3.0 started", "3.0.2 (Hm)", "3.7.2 Once é", "3.7.2 end"];
    assert_eq!(shown_of(&job, None), all);
    assert_eq!(
        shown_of(&job, Some("3.5.1")),
        ["3.5.2 (m)", "3.7.2 é", "3.7.2 end"]
    );
    let failed = crate::store::testing::ended_job();
    let events = replay(&failed, None);
    assert!(matches!(events.last(), Some((_, TaskEvent::Error { .. }))));
    assert_eq!(failed.id, JobId::parse(&failed.id.to_string()).unwrap());
}
