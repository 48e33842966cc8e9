//! `/v2/logs`.

use bytes::Bytes;
use http::Response;
use serde_json::json;

use super::body::Body;
use super::openai::event_stream;
use super::{Context, read};
use crate::domain::{HiveId, WorkerId};
use crate::error::{Error, Result};
use crate::orchestrator::LogQuery;
use crate::relay::sse;

const DEFAULT_TAIL: usize = 200;
const LONGEST_TAIL: usize = 10_000;

/// `GET /v2/logs`.
pub(super) async fn logs(context: &Context<'_>) -> Result<Response<Body>> {
    let node = read::query(context, "node").map(HiveId::new).transpose();
    let worker = read::query(context, "worker_id")
        .map(WorkerId::new)
        .transpose();
    let query = LogQuery {
        node: node
            .map_err(|error| error.param("node"))?
            .unwrap_or_else(HiveId::localhost),
        worker: worker.map_err(|error| error.param("worker_id"))?,
        tail: tail(read::query(context, "tail").as_deref())?,
        follow: follow(read::query(context, "follow").as_deref())?,
    };
    let lines = context.orchestrator.logs(&query).await?;
    let keep_alive = context.orchestrator.config().timeouts.keep_alive;
    Ok(event_stream(Body::logs(lines, keep_alive)))
}

fn tail(given: Option<&str>) -> Result<usize> {
    let Some(text) = given else {
        return Ok(DEFAULT_TAIL);
    };
    let number = text.parse().ok();
    number
        .filter(|lines| *lines <= LONGEST_TAIL)
        .ok_or_else(|| {
            Error::invalid(format!("tail is {text:?}, must be 0 to {LONGEST_TAIL}")).param("tail")
        })
}

fn follow(given: Option<&str>) -> Result<bool> {
    match given {
        None | Some("false" | "0") => Ok(false),
        Some("true" | "1") => Ok(true),
        Some(text) => {
            let message = format!("follow is {text:?}, must be true or false");
            Err(Error::invalid(message).param("follow"))
        }
    }
}

/// A line as an event.
pub(super) fn event(line: &str) -> Bytes {
    sse::encode(line.replace(['\r', '\n'], " ").as_bytes())
}

/// A comment, for people who look at the stream: the lines come from the hive's log file.
pub(super) fn from_file(why: &Error) -> Bytes {
    let why = why.in_full().replace(['\r', '\n'], " ");
    format!(": from the hive's log file, since {why}\n\n").into()
}

/// What is said when the hive's stream breaks.
pub(super) fn broken(error: &Error) -> Bytes {
    let told = json!({
        "type": "error",
        "code": error.code.as_str(),
        "message": error.in_full(),
    });
    sse::encode(told.to_string().as_bytes())
}
