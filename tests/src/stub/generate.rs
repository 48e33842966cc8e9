//! One request for tokens, from its body to its answer.

use super::behaviour::{Fault, Protocol};
use super::body::{Ending, Flight, Pace, Stream, Whole, Words};
use super::engine::Engine;
use super::form::{Form, json_inside};
use super::{Answer, reply};
use crate::token::{take_num, value_of};
use bytes::{BufMut, Bytes, BytesMut};
use http_body_util::{BodyExt, Either};
use hyper::body::{Frame, Incoming};
use hyper::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use hyper::{Request, Response, StatusCode};
use memchr::memmem::Finder;
use serde_json::{Value, json};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use tokio::time::{Instant, sleep_until};

/// Given instead of an answer, makes hyper close the connection without a byte.
#[derive(Debug)]
pub(super) struct Closed;

impl fmt::Display for Closed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("closed without a byte, as asked")
    }
}

impl std::error::Error for Closed {}

/// What a request asks for, found without parsing all of it.
struct Asked<'a>(&'a [u8]);

impl Asked<'_> {
    fn number(&self, key: &str) -> Option<u64> {
        let value = value_of(self.0, &Finder::new(key))?;
        take_num(value).map(|(n, _)| n)
    }

    fn says(&self, key: &str) -> bool {
        value_of(self.0, &Finder::new(key)).is_some_and(|value| value.starts_with(b"true"))
    }

    fn max_tokens(&self) -> Option<u64> {
        self.number(r#""max_tokens""#)
            .or_else(|| self.number(r#""max_completion_tokens""#))
    }

    fn text(&self, key: &str) -> Option<String> {
        let body: Value = serde_json::from_slice(self.0).ok()?;
        body[key].as_str().map(str::to_owned)
    }

    /// What is to be answered: the prompt, or the last message.
    fn prompt(&self) -> Option<String> {
        let body: Value = serde_json::from_slice(self.0).ok()?;
        let last = body["messages"].as_array().and_then(|all| all.last());
        let prompt = last.map_or(&body["prompt"], |message| &message["content"]);
        prompt.as_str().map(str::to_owned)
    }

    fn inputs(&self) -> u64 {
        let body: Value = serde_json::from_slice(self.0).unwrap_or_default();
        body["input"].as_array().map_or(1, |list| list.len() as u64)
    }
}

const GARBAGE: &[u8] = b"\x00\xff\xfe not an event \xc3\x28\r\ndata: {\"choices\": oops\n\n";

/// Computes what `form` asks for.
///
/// # Errors
/// `Closed`, when the fault is to close the connection.
pub(super) async fn generate(
    engine: Arc<Engine>,
    form: Form,
    req: Request<Incoming>,
) -> Result<Response<Answer>, Closed> {
    let (parts, mut incoming) = req.into_parts();
    let mut flight = Flight::new(&engine, &parts.headers);
    let mut body = BytesMut::new();
    while let Some(frame) = incoming.frame().await {
        match frame.map(Frame::into_data) {
            Ok(Ok(data)) => body.put(data),
            Ok(Err(_trailers)) => {}
            Err(_) => return Err(Closed), // counted as a disconnect
        }
    }
    let body = body.freeze();
    engine.remember(parts, body.clone());
    let asked = Asked(&body);
    if let Some(refusal) = refusal(&engine, form, &asked) {
        flight.finished = true;
        return Ok(refusal);
    }
    let fault = engine.take_fault();
    if let Some(answer) = instead(fault, &asked, &mut flight) {
        return answer;
    }
    if let Some(slots) = &engine.slots {
        flight.slot = slots.clone().acquire_owned().await.ok();
    }
    if engine.protocol == Protocol::OldRbee {
        return Ok(compute_first(engine, flight, &asked, fault).await);
    }
    if form == Form::Task || asked.says(r#""stream""#) {
        return Ok(stream(&engine, form, flight, &asked, fault));
    }
    Ok(plain(&engine, form, flight, &asked, fault).await)
}

/// What an engine refuses before it computes.
fn refusal(engine: &Engine, form: Form, asked: &Asked<'_>) -> Option<Response<Answer>> {
    let error = |status: StatusCode, kind: &str, message: &str| {
        let error = json!({"message": message, "type": kind, "code": status.as_u16()});
        Some(reply(status, json!({"error": error}).to_string()))
    };
    if engine.is_loading() {
        let status = StatusCode::SERVICE_UNAVAILABLE;
        return error(status, "unavailable_error", "Loading model");
    }
    let needs_all = engine.protocol == Protocol::OldRbee;
    if form == Form::Task && asked.text("job_id").is_none()
        || needs_all && asked.max_tokens().is_none()
    {
        let message = "job_id and max_tokens are required";
        return error(StatusCode::UNPROCESSABLE_ENTITY, "invalid", message);
    }
    let model = || asked.text("model").map(|name| json_inside(&name));
    if engine.strict_model && form != Form::Task && model().as_ref() != Some(&engine.model) {
        return error(
            StatusCode::NOT_FOUND,
            "NotFoundError",
            "The model does not exist.",
        );
    }
    None
}

/// The faults that need no tokens.
fn instead(
    fault: Option<Fault>,
    asked: &Asked<'_>,
    flight: &mut Flight,
) -> Option<Result<Response<Answer>, Closed>> {
    let answer = match fault? {
        Fault::Status(code, retry_after) => {
            failed(code, &format!("the stub says {code}"), retry_after)
        }
        Fault::Quote(code) => {
            let prompt = asked.prompt().unwrap_or_default();
            quoting(code, &format!("the stub can't parse {prompt:?}"))
        }
        Fault::WrongContentType => {
            let mut res = reply(StatusCode::OK, "<html><body>It works!</body></html>");
            let html = HeaderValue::from_static("text/html");
            res.headers_mut().insert(CONTENT_TYPE, html);
            res
        }
        Fault::CloseWithoutAByte => {
            flight.finished = true;
            return Some(Err(Closed));
        }
        _ => return None,
    };
    flight.finished = true;
    Some(Ok(answer))
}

fn quoting(code: u16, message: &str) -> Response<Answer> {
    if code != 200 {
        return failed(code, message, None);
    }
    let event = json!({"error": {"message": message, "type": "server_error"}});
    let event = Bytes::from(format!("data: {event}\n\n"));
    event_stream(Either::Right(Either::Right(event.into())))
}

fn failed(code: u16, message: &str, retry_after: Option<u64>) -> Response<Answer> {
    let kind = match code {
        400 => "invalid_request_error",
        429 => "rate_limit_error",
        _ => "server_error",
    };
    let error = json!({"message": message, "type": kind, "param": "messages", "code": code});
    let status = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut res = reply(status, json!({"error": error}).to_string());
    if let Some(seconds) = retry_after {
        res.headers_mut().insert(RETRY_AFTER, seconds.into());
    }
    res
}

fn event_stream<T>(body: T) -> Response<T> {
    let mut res = Response::new(body);
    let headers = res.headers_mut();
    let content = HeaderValue::from_static("text/event-stream");
    headers.insert(CONTENT_TYPE, content);
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    res
}

fn whole(mut body: Whole, fault: Option<Fault>) -> Either<Whole, super::Full<Bytes>> {
    match fault {
        Some(Fault::HalfEvent(_)) => body.end_with(Ending::Half),
        Some(Fault::DropMidStream(_)) => body.end_with(Ending::Break),
        Some(Fault::DieMidStream(_)) => body.end_with(Ending::Die),
        Some(Fault::HeadersThenNothing) => body.withhold(),
        _ => {}
    }
    Either::Left(body)
}

fn stream(
    engine: &Arc<Engine>,
    form: Form,
    mut flight: Flight,
    asked: &Asked<'_>,
    fault: Option<Fault>,
) -> Response<Answer> {
    if fault == Some(Fault::Garbage) {
        let body = Whole::new(flight, Bytes::from_static(GARBAGE));
        return event_stream(Either::Right(Either::Left(body)));
    }
    let job_id = match form {
        Form::Task => asked.text("job_id"),
        _ => None,
    };
    let cancelled = job_id.as_deref().map(|id| engine.cancellable(id));
    let inside = job_id.as_deref().map(json_inside).unwrap_or_default();
    flight.job_id = job_id;
    let id = engine.counters.requests.load(Relaxed);
    let live = &engine.pace;
    let n = asked.max_tokens().unwrap_or(live.tokens.load(Relaxed));
    let frame = form.frame(
        id,
        &engine.model,
        &inside,
        n,
        asked.says(r#""include_usage""#),
    );
    let flush_each = live.flush_each.load(Relaxed) != 0;
    let pace = Pace::new(Instant::now() + live.ttft(), live.itl(), flush_each);
    let mut body = Stream::new(flight, frame, pace, n);
    body.words = words(engine, asked);
    body.cancelled = cancelled;
    match fault {
        Some(Fault::HalfEvent(after)) => body.end_with(after, Ending::Half),
        Some(Fault::StallAfter(after)) => body.end_with(after, Ending::Stall),
        Some(Fault::DropMidStream(after)) => body.end_with(after, Ending::Break),
        Some(Fault::DieMidStream(after)) => body.end_with(after, Ending::Die),
        Some(Fault::HeadersThenNothing) => {
            body.frame.start = None;
            body.end_with(0, Ending::Stall);
        }
        _ => {}
    }
    event_stream(Either::Left(body))
}

async fn plain(
    engine: &Arc<Engine>,
    form: Form,
    flight: Flight,
    asked: &Asked<'_>,
    fault: Option<Fault>,
) -> Response<Answer> {
    if let Some(Fault::StallAfter(_)) = fault {
        return std::future::pending().await;
    }
    let n = match form {
        Form::Embeddings => asked.inputs(),
        _ => asked
            .max_tokens()
            .unwrap_or(engine.pace.tokens.load(Relaxed)),
    };
    pause(engine, n).await;
    let body = match fault {
        Some(Fault::Garbage) => Bytes::from_static(GARBAGE),
        _ => match words(engine, asked) {
            Some(words) => form.plain(&engine.model, &words.text(n), n),
            None => engine.plain(form, n),
        },
    };
    engine.counters.tokens.fetch_add(n, Relaxed);
    let body = whole(Whole::new(flight, body), fault);
    let mut res = Response::new(Either::Right(body));
    let json = HeaderValue::from_static("application/json");
    res.headers_mut().insert(CONTENT_TYPE, json);
    res
}

/// The words that the answer is made of, if not of numbered tokens.
fn words(engine: &Engine, asked: &Asked<'_>) -> Option<Words> {
    let prompt = asked.prompt().filter(|_| engine.speaks_words)?;
    let generation = engine.next_generation(&prompt);
    Some(Words { prompt, generation })
}

/// Waits for as long as `n` tokens take.
async fn pause(engine: &Engine, n: u64) {
    let between = u32::try_from(n.saturating_sub(1)).unwrap_or(u32::MAX);
    let wait = engine.pace.ttft() + engine.pace.itl() * between;
    if !wait.is_zero() {
        sleep_until(Instant::now() + wait).await;
    }
}

/// An old worker: nothing goes out before all is computed, and nothing stops the computing, not
/// even the client's going away.
async fn compute_first(
    engine: Arc<Engine>,
    flight: Flight,
    asked: &Asked<'_>,
    fault: Option<Fault>,
) -> Response<Answer> {
    let job_id = json_inside(&asked.text("job_id").unwrap_or_default());
    let n = asked.max_tokens().unwrap_or(0);
    let computing = tokio::spawn(async move {
        let alone = engine.computing.clone().lock_owned().await;
        if let Some(Fault::StallAfter(_)) = fault {
            let () = std::future::pending().await;
        }
        pause(&engine, n).await;
        drop(alone);
        engine.counters.tokens.fetch_add(n, Relaxed);
        let frame = Form::Task.frame(0, &engine.model, &job_id, n, false);
        let mut out = frame.start.unwrap_or_default();
        for i in 0..n {
            out += &format!("{}{i},\"t\":\"t{i} {}", frame.before, frame.after);
        }
        out += &frame.end;
        (flight, Bytes::from(out))
    });
    match computing.await {
        Ok((flight, _)) if fault == Some(Fault::Garbage) => {
            let body = Whole::new(flight, Bytes::from_static(GARBAGE));
            event_stream(Either::Right(Either::Left(body)))
        }
        Ok((flight, out)) => event_stream(Either::Right(whole(Whole::new(flight, out), fault))),
        Err(_) => reply(StatusCode::INTERNAL_SERVER_ERROR, "{}"),
    }
}
