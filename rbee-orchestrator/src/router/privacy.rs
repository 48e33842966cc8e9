//! What may be kept of a failed attempt: its error without the request's words.

use std::sync::Arc;

use serde::Serialize;
use tokio::task::spawn_blocking;

use super::call::{Call, Payload};
use crate::config::PrivacyConfig;
use crate::domain::TaskInput;
use crate::error::Error;
use crate::relay::redaction::Quotations;

/// A longer request is searched on a thread of its own, so that no other waits for it.
const SEARCHED_HERE: usize = 64 << 10;

/// Whether errors are kept with the words of their requests.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Privacy {
    /// What is asked is stored too.
    AllIsKept,
    WithoutWords,
}

impl Privacy {
    pub(crate) fn of(config: &PrivacyConfig) -> Self {
        match config.store_prompts {
            true => Privacy::AllIsKept,
            false => Privacy::WithoutWords,
        }
    }

    /// An attempt's error, with what may be kept of it.
    pub(super) async fn apply(self, call: Arc<Call>, error: Error) -> Error {
        if let Privacy::AllIsKept = self {
            return error;
        }
        if is_short(&call) {
            return without_words(&call, error);
        }
        let told = error.clone();
        let searched = spawn_blocking(move || without_words(&call, error)).await;
        searched.unwrap_or_else(|_| told.keep("the worker reported an error"))
    }
}

fn is_short(call: &Call) -> bool {
    match &call.payload {
        Payload::OpenAi { body, .. } => body.bytes().len() <= SEARCHED_HERE,
        Payload::Task(_) => call.held.is_none(),
    }
}

fn without_words(call: &Call, error: Error) -> Error {
    let mut quotations = Quotations::of(error.kept());
    read(&call.payload, &mut quotations);
    match quotations.cut_out() {
        Some(kept) => error.keep(kept),
        None => error,
    }
}

fn read(payload: &Payload, quotations: &mut Quotations<'_>) {
    #[derive(Serialize)]
    struct Asked<'a> {
        input: &'a TaskInput,
        stop: &'a [String],
    }
    match payload {
        Payload::OpenAi { body, .. } => quotations.read(body.bytes()),
        Payload::Task(task) => {
            let asked = Asked {
                input: &task.input,
                stop: &task.sampling.stop,
            };
            // Reading can't fail, and what was read from JSON can be written as JSON.
            let _ = serde_json::to_writer(quotations, &asked);
        }
    }
}
