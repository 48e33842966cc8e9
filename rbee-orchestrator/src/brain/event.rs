//! What the brain is told.

use std::time::Duration;

use crate::domain::{
    Attempt, Capabilities, Constraints, HiveId, JobId, JobKind, ModelRef, Mono, Outcome, Priority,
    SessionId, StopReason, TenantId, UnixMillis, Usage, WorkerId, WorkerSpec,
};
use crate::error::Error;

/// A request as the brain sees it: not what it says, only what decides where it runs.
#[derive(Debug, Clone)]
pub struct JobRequest {
    /// Its identity.
    pub id: JobId,
    /// Which endpoint it came through.
    pub kind: JobKind,
    /// The model as the client named it.
    pub model: String,
    /// Where it may run.
    pub constraints: Constraints,
    /// Whether only a worker that speaks OpenAI's protocol can serve it.
    pub openai_only: bool,
    /// Queue class.
    pub priority: Priority,
    /// Who it is for.
    pub tenant: TenantId,
    /// The conversation it belongs to.
    pub session: Option<SessionId>,
    /// How long it may take in all, unless its answer flows by then.
    pub total_timeout: Duration,
    /// How long it may take in all where its answer flows: longer only if its client did not say.
    pub flowing_timeout: Duration,
    /// How long it may wait for a worker.
    pub queue_timeout: Duration,
    /// When it must have ended, whatever the time-outs say.
    pub deadline: Option<UnixMillis>,
    /// Whether it outlives the connection that submitted it: its total time counts from each
    /// dispatch, and it is tried again even when a part of its answer was made.
    pub asynchronous: bool,
    /// Its dispatches in an earlier life of the queen.
    pub attempts: Attempt,
    /// Those of them that failed by a worker's fault.
    pub failures: u32,
    /// When it was submitted.
    pub submitted_at: UnixMillis,
    /// When it may be dispatched again, after an attempt that failed in an earlier life.
    pub not_before: Option<UnixMillis>,
    /// Memory that it holds while it waits.
    pub bytes: u64,
    /// Tokens that it will use, at most or by estimate: its prompt's and `max_tokens`.
    pub tokens: u64,
}

/// Who is to blame for an attempt that did not complete.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Blame {
    /// The request itself, its client or its deadline: another attempt would not help.
    #[default]
    Request,
    /// The worker: another may do better.
    Worker,
    /// The queen: she is out of descriptors, memory or ports, and another attempt may do better when
    /// she is not.
    Queen,
    /// The worker, which could not be reached: nothing of the request was seen by it.
    Unreached,
    /// The request or the worker: it answered with a whole error. Asked again it would say the
    /// same; another may tell whose fault it is.
    Unclear,
    /// Nobody: [`Action::GiveBack`](super::Action::GiveBack) took the slot, for somebody who waits or since
    /// the worker is stopped.
    GivenBack,
    /// Nobody: the worker has too much to do, and may have said when to come back.
    Load(Option<Duration>),
}

/// In what state an attempt left its worker.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Aftermath {
    /// Ready for the next.
    #[default]
    Clean,
    /// It broke off or did not answer: it needs a check before it gets more.
    Suspect,
    /// It may still compute an answer that nobody waits for: its slot is free when it answers a
    /// check.
    Computing,
}

/// What an attempt brought.
#[derive(Debug, Clone)]
pub struct Report {
    /// How it ended.
    pub outcome: Outcome,
    /// What it used.
    pub usage: Option<Usage>,
    /// The text, where it is kept.
    pub result: Option<String>,
    /// What the model thought before it.
    pub thinking: Option<String>,
    /// Why generation stopped, where the queen reads that.
    pub stop: Option<StopReason>,
    /// From the first token to the end.
    pub inference: Duration,
    /// Whether the client has got a part of the answer.
    pub relayed: bool,
    /// Who is to blame, unless it completed.
    pub blame: Blame,
    /// In what state it left the worker.
    pub aftermath: Aftermath,
}

impl Report {
    /// A report of nothing but an outcome.
    #[must_use]
    pub fn of(outcome: Outcome) -> Self {
        Report {
            outcome,
            usage: None,
            result: None,
            thinking: None,
            stop: None,
            inference: Duration::ZERO,
            relayed: false,
            blame: Blame::Request,
            aftermath: Aftermath::Clean,
        }
    }
}

/// A worker as its hive sees it.
#[derive(Debug, Clone)]
pub struct SeenWorker {
    /// What it is.
    pub spec: WorkerSpec,
    /// What it is doing.
    pub state: SeenState,
}

/// What a hive says that a worker is doing.
#[derive(Debug, Clone)]
pub enum SeenState {
    /// It loads its model.
    Loading,
    /// It can take work.
    Ready,
    /// It ends, or is to be left alone.
    Stopping,
    /// It died.
    Failed(Error),
}

/// What a hive answered to a spawn.
#[derive(Debug, Clone)]
pub struct Spawned {
    /// The id that the hive gave, which may differ from the minted one.
    pub id: WorkerId,
    /// Host as the hive's machine sees it.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// What the worker is shown as `Authorization`.
    pub authorization: Option<http::HeaderValue>,
}

/// What happened.
#[derive(Debug)]
pub enum Event {
    /// A client wants something.
    Submit(Box<JobRequest>),
    /// A job that [`super::Brain::admit`] let in is durable: it may run.
    Confirm(JobId),
    /// A job that [`super::Brain::admit`] let in could not be stored, or is a repetition: it never
    /// was.
    Withdraw(JobId),
    /// A job that an earlier life left: it was admitted then, and waits again.
    Recover(Box<JobRequest>),
    /// Nobody wants it any more, for this reason.
    Cancel {
        /// The job.
        job: JobId,
        /// What its client is told.
        error: Error,
    },
    /// An attempt whose time is over, unless its answer flows, does not flow.
    NotFlowing {
        /// The job.
        job: JobId,
        /// The attempt.
        attempt: Attempt,
    },
    /// A lease came back.
    AttemptEnded {
        /// The job that had it.
        job: JobId,
        /// Which dispatch.
        attempt: Attempt,
        /// Whose slot.
        worker: WorkerId,
        /// What came of it.
        report: Box<Report>,
    },
    /// A start of a hive was tried.
    HiveStarted {
        /// The hive.
        hive: HiveId,
        /// What came of it.
        result: Result<(), Error>,
    },
    /// The program of a hive that is being started is on its way to its machine.
    HiveInstalling {
        /// The hive.
        hive: HiveId,
        /// How much of it is there; `None` when all is, and the start goes on.
        percent: Option<u8>,
    },
    /// A hive told what it has.
    HiveReport {
        /// The hive.
        hive: HiveId,
        /// Its devices and models; `None` from hives that can't tell.
        capabilities: Option<Capabilities>,
        /// Its workers.
        workers: Vec<SeenWorker>,
    },
    /// A hive did not answer a check.
    HiveMissed {
        /// The hive.
        hive: HiveId,
        /// Why.
        error: Error,
        /// Whether its process is known to have ended, so that there is nothing to wait for.
        gone: bool,
        /// When the check began.
        begun: Mono,
    },
    /// A hive that was to be stopped after its last job has been, or could not be.
    HiveStopped {
        /// The hive.
        hive: HiveId,
        /// What came of it.
        result: Result<(), Error>,
    },
    /// A model has come further on its way to a hive.
    FetchProgress {
        /// The hive.
        hive: HiveId,
        /// The model, as it was asked for.
        model: ModelRef,
        /// Bytes that are there.
        bytes_downloaded: u64,
        /// Bytes of the whole model; 0 when unknown.
        bytes_total: u64,
    },
    /// A model has come to a hive, or will not.
    Fetched {
        /// The hive.
        hive: HiveId,
        /// The model, as it was asked for.
        model: ModelRef,
        /// The file on the hive's machine, where the hive tells it; why there is none.
        result: Result<Option<String>, Error>,
    },
    /// A hive answered to a spawn.
    SpawnAnswered {
        /// The minted id.
        worker: WorkerId,
        /// What the hive said.
        result: Result<Spawned, Error>,
    },
    /// A worker died, or its load failed.
    WorkerFailed {
        /// The worker.
        worker: WorkerId,
        /// Why.
        error: Error,
    },
    /// A worker was asked whether it answers.
    WorkerChecked {
        /// The worker.
        worker: WorkerId,
        /// Whether it did.
        answers: bool,
        /// When it was asked.
        begun: Mono,
    },
    /// A worker told what it serves.
    WorkerServes {
        /// The worker.
        worker: WorkerId,
        /// The names of its models; `None` if it can't tell.
        names: Option<Vec<String>>,
    },
    /// A worker that was to be stopped was not: its hive refuses it for good.
    WorkerNotStopped {
        /// The worker.
        worker: WorkerId,
        /// What the hive says.
        error: Error,
    },
    /// A worker that was to be stopped is gone.
    WorkerStopped {
        /// The worker.
        worker: WorkerId,
    },
    /// Time has passed.
    Tick,
    /// The shell is awake. Once one came, another must follow within [`super::PULSE`]: a gap says
    /// that the queen stood still.
    Pulse,
}
