//! The one error type: a stable code, what was wrong, and what to do.

use std::borrow::Cow;
use std::time::Duration;

use serde_json::{Map, Value};

/// The library's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $text:literal, $status:literal;)*) => {
        /// Stable names of what can go wrong. New ones may come; none is renamed.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum Code {
            $($(#[$doc])* $name,)*
        }

        impl Code {
            /// The code on the wire.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self { $(Code::$name => $text,)* }
            }

            /// The HTTP status that goes with it.
            #[must_use]
            pub fn status(self) -> u16 {
                match self { $(Code::$name => $status,)* }
            }

            /// Reads a code; `None` for one that is not ours.
            #[must_use]
            pub fn parse(text: &str) -> Option<Self> {
                match text { $($text => Some(Code::$name),)* _ => None }
            }
        }
    };
}

codes! {
    /// The request is malformed.
    InvalidRequest = "INVALID_REQUEST", 400;
    /// A hive's machine can't be reached, is not trusted, lets the queen not in, or is of another
    /// kind.
    PreflightFailed = "PREFLIGHT_FAILED", 400;
    /// No token, or a wrong one.
    Unauthorized = "UNAUTHORIZED", 401;
    /// The caller may not do this.
    Forbidden = "FORBIDDEN", 403;
    /// No such route or thing.
    NotFound = "NOT_FOUND", 404;
    /// No hive has the model and none can fetch it.
    ModelNotFound = "MODEL_NOT_FOUND", 404;
    /// No such hive.
    HiveNotFound = "HIVE_NOT_FOUND", 404;
    /// No such worker.
    WorkerNotFound = "WORKER_NOT_FOUND", 404;
    /// No such task.
    TaskNotFound = "TASK_NOT_FOUND", 404;
    /// The route has other methods.
    MethodNotAllowed = "METHOD_NOT_ALLOWED", 405;
    /// The request came too slowly.
    RequestTimeout = "REQUEST_TIMEOUT", 408;
    /// The thing is in a state that forbids this.
    Conflict = "CONFLICT", 409;
    /// The body is larger than allowed.
    PayloadTooLarge = "PAYLOAD_TOO_LARGE", 413;
    /// The tenant has used up what it may use.
    QuotaExceeded = "QUOTA_EXCEEDED", 429;
    /// Too many requests in too short a time.
    RateLimited = "RATE_LIMITED", 429;
    /// The queue is full.
    SystemAtCapacity = "SYSTEM_AT_CAPACITY", 429;
    /// Nobody wants the answer any more.
    Cancelled = "CANCELLED", 499;
    /// A defect of ours.
    Internal = "INTERNAL", 500;
    /// A later version will do this.
    NotImplemented = "NOT_IMPLEMENTED", 501;
    /// A worker could not be started, or died, or refused.
    WorkerFailed = "WORKER_FAILED", 502;
    /// A hive could not fetch a model.
    DownloadFailed = "DOWNLOAD_FAILED", 502;
    /// A worker answered what no one can read.
    UpstreamInvalid = "UPSTREAM_INVALID", 502;
    /// No worker can take this now.
    NoCapacity = "NO_CAPACITY", 503;
    /// No device has room for the model.
    InsufficientVram = "INSUFFICIENT_VRAM", 503;
    /// The hive could not be started or does not answer.
    HiveUnreachable = "HIVE_UNREACHABLE", 503;
    /// The queen has as many connections, or as much in memory of what clients send, as she may.
    Overloaded = "OVERLOADED", 503;
    /// The model still loads.
    ModelLoading = "MODEL_LOADING", 503;
    /// The queen is going down.
    ShuttingDown = "SHUTTING_DOWN", 503;
    /// It took longer than it was allowed to.
    Timeout = "TIMEOUT", 504;
    /// The request has come by this way before.
    LoopDetected = "LOOP_DETECTED", 508;
    /// A disk has no room for the model.
    InsufficientDisk = "INSUFFICIENT_DISK", 507;
    /// The queen was restarted meanwhile.
    Interrupted = "INTERRUPTED", 500;
    /// Another queen uses the database.
    DatabaseInUse = "DATABASE_IN_USE", 500;
    /// The store can't be read or written.
    StoreFailed = "STORE_FAILED", 500;
}

/// What went wrong, in words and as a code.
///
/// The client is told `message`. `Display` is for logs and shows [`Error::in_full`].
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("{code}: {text}", code = code.as_str(), text = self.in_full())]
pub struct Error {
    /// Which kind.
    pub code: Code,
    /// What was wrong, with what value, and what to do, for the client who asked. A worker's words may
    /// quote the request.
    pub message: String,
    pub(crate) aside: Option<Box<Aside>>,
    /// The field of the request that is to blame.
    pub param: Option<&'static str>,
    /// When to try again.
    pub retry_after: Option<Duration>,
    /// Facts for programs.
    pub details: Option<Box<Map<String, Value>>>,
}

/// What not everybody is told.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Aside {
    /// The message without what it quotes of the request, where that differs.
    kept: Option<String>,
    /// Why, for administrators alone: how an address answered that the queen tried.
    cause: Option<String>,
}

/// 429 and 503 always say when to come back; this is said where nothing better is known.
const DEFAULT_RETRY_AFTER: Duration = Duration::from_secs(5);

impl Error {
    /// An error with a code and a message.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        let for_load = matches!(code.status(), 429 | 503);
        Error {
            code,
            message: message.into(),
            aside: None,
            param: None,
            retry_after: for_load.then_some(DEFAULT_RETRY_AFTER),
            details: None,
        }
    }

    /// `INVALID_REQUEST`.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(Code::InvalidRequest, message)
    }

    /// `SHUTTING_DOWN`.
    pub(crate) fn shutting_down() -> Self {
        Self::new(
            Code::ShuttingDown,
            "the queen is shutting down; ask again when she is back",
        )
    }

    /// `INTERNAL`.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(Code::Internal, message)
    }

    /// The message as it may be stored, logged and shown to others: without the request's words, unless
    /// `privacy.store_prompts` is set.
    #[must_use]
    pub fn kept(&self) -> &str {
        let aside = self.aside.as_deref();
        let kept = aside.and_then(|aside| aside.kept.as_deref());
        kept.unwrap_or(&self.message)
    }

    /// Why, for administrators alone.
    pub(crate) fn cause(&self) -> Option<&str> {
        self.aside.as_deref()?.cause.as_deref()
    }

    /// Keeps this in place of its message.
    #[must_use]
    pub(crate) fn keep(mut self, kept: impl Into<String>) -> Self {
        self.aside.get_or_insert_default().kept = Some(kept.into());
        self
    }

    /// The message as it may be logged, with the cause that only administrators may know.
    #[must_use]
    pub fn in_full(&self) -> Cow<'_, str> {
        match self.cause() {
            Some(cause) => format!("{} ({cause})", self.kept()).into(),
            None => self.kept().into(),
        }
    }

    /// With the cause in its message.
    #[cfg(feature = "http")]
    #[must_use]
    pub(crate) fn for_administrators(mut self) -> Self {
        let cause = self.aside.as_mut().and_then(|aside| aside.cause.take());
        match cause {
            Some(cause) => self.rephrased(|why| format!("{why} ({cause})")),
            None => self,
        }
    }

    /// Tells administrators why.
    #[must_use]
    pub(crate) fn because(mut self, cause: impl Into<String>) -> Self {
        self.aside.get_or_insert_default().cause = Some(cause.into());
        self
    }

    /// Says the same in other words, made from the message.
    #[must_use]
    pub(crate) fn rephrased(mut self, words: impl Fn(&str) -> String) -> Self {
        self.message = words(&self.message);
        if let Some(kept) = self.aside.as_mut().and_then(|aside| aside.kept.as_mut()) {
            *kept = words(kept);
        }
        self
    }

    /// Names the field to blame.
    #[must_use]
    pub fn param(mut self, param: &'static str) -> Self {
        self.param = Some(param);
        self
    }

    /// Says when to come back.
    #[must_use]
    pub fn retry_after(mut self, after: Duration) -> Self {
        self.retry_after = Some(after);
        self
    }

    /// Says that clients should not try again by themselves, though it would pass later. OpenAI's
    /// clients are told with `x-should-retry: false`.
    #[must_use]
    pub fn do_not_retry(self) -> Self {
        self.detail(Self::SHOULD_RETRY, false)
    }

    /// Whether clients may try again by themselves.
    #[must_use]
    pub fn should_retry(&self) -> bool {
        let details = self.details.as_ref();
        let said = details.and_then(|details| details.get(Self::SHOULD_RETRY)?.as_bool());
        said.unwrap_or(true)
    }

    const SHOULD_RETRY: &str = "should_retry";

    /// Says that the request is longer than the model's context, or than what a worker takes at once.
    #[must_use]
    pub(crate) fn too_long(self) -> Self {
        self.detail(Self::REASON, Self::TOO_LONG)
    }

    /// Whether the request was too long for the model.
    pub(crate) fn is_too_long(&self) -> bool {
        let details = self.details.as_ref();
        let reason = details.and_then(|details| details.get(Self::REASON));
        reason.is_some_and(|reason| reason == Self::TOO_LONG)
    }

    const REASON: &str = "reason";
    const TOO_LONG: &str = "context_length_exceeded";

    /// Adds a fact for programs.
    #[must_use]
    pub fn detail(mut self, key: &str, value: impl Into<Value>) -> Self {
        self.details
            .get_or_insert_default()
            .insert(key.to_owned(), value.into());
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_what_logs_show_however_it_is_rephrased() {
        let error = Error::new(Code::WorkerFailed, "no 'secret'");
        assert_eq!(error.to_string(), "WORKER_FAILED: no 'secret'");
        let error = error.keep("no […]");
        let error = error
            .rephrased(|why| format!("it said: {why}"))
            .detail("a", 1);
        assert_eq!(error.message, "it said: no 'secret'");
        assert_eq!(error.kept(), "it said: no […]");
        assert_eq!(error.to_string(), "WORKER_FAILED: it said: no […]");
        let error = error.because("refused");
        assert_eq!(error.message, "it said: no 'secret'");
        assert_eq!(error.kept(), "it said: no […]");
        assert_eq!(
            error.to_string(),
            "WORKER_FAILED: it said: no […] (refused)"
        );
    }
}
