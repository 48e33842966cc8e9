//! The events of a job that has ended, told again from its record.

use crate::domain::{EventId, JobRecord, JobState, StopReason, TaskEvent};
use crate::error::{Code, Error};

/// A reader gets at most so much text in one event, in bytes.
const MAX_PIECE: usize = 64 << 10;

/// The next piece of what is left of a text, and the place behind it.
pub(super) fn piece(rest: &str, place: &mut usize) -> String {
    let end = floor_char_boundary(rest, MAX_PIECE);
    *place += end;
    rest[..end].to_owned()
}

/// The last place up to `at` where a character begins.
pub(super) fn floor_char_boundary(text: &str, at: usize) -> usize {
    let at = at.min(text.len());
    (0..=at)
        .rev()
        .find(|at| text.is_char_boundary(*at))
        .unwrap_or(0)
}

/// The events of a job that has ended, as far as its record tells them, after a place.
pub(crate) fn replay(job: &JobRecord, after: Option<EventId>) -> Vec<(EventId, TaskEvent)> {
    let attempt = job.attempt;
    let text = job.result.as_deref().unwrap_or_default();
    let thinking = job.thinking.as_deref().unwrap_or_default();
    let start = after.filter(|after| after.attempt == attempt);
    let mut events = Vec::new();
    let mut at = EventId {
        attempt,
        ..EventId::default()
    };
    match start {
        Some(start) => {
            at.offset = floor_char_boundary(text, start.offset);
            at.thinking = floor_char_boundary(thinking, start.thinking);
        }
        None => {
            if let (Some(placed), Some(started_at)) = (&job.placed, job.started_at) {
                let started = TaskEvent::Started {
                    model: job.model.clone(),
                    started_at,
                    worker: placed.worker.clone(),
                    attempt,
                };
                events.push((at, started));
            }
        }
    }
    while at.thinking < thinking.len() {
        let text = piece(&thinking[at.thinking..], &mut at.thinking);
        events.push((at, TaskEvent::Thinking { text }));
    }
    let mut index = 0;
    while at.offset < text.len() {
        let text = piece(&text[at.offset..], &mut at.offset);
        events.push((at, TaskEvent::Token { text, index }));
        index += 1;
    }
    events.push((at, ending(job)));
    events
}

/// How a job ended, as its record tells it.
fn ending(job: &JobRecord) -> TaskEvent {
    match (job.state, job.stop) {
        (JobState::Complete, stop) => TaskEvent::End {
            tokens_out: job.usage.map_or(0, |usage| usage.tokens_out),
            decode_time_ms: job.times.inference_ms,
            stop_reason: stop.unwrap_or(StopReason::Eos),
            stop_sequence_matched: None,
        },
        _ => {
            let code = job.error_code.as_deref().and_then(Code::parse);
            let message = job.error_message.clone().unwrap_or_default();
            TaskEvent::Error {
                job: job.id,
                error: Error::new(code.unwrap_or(Code::Internal), message),
            }
        }
    }
}
