//! Records and changes to try a store with.

use std::collections::BTreeMap;
use std::time::Duration;

use uuid::Uuid;

use crate::domain::{
    Attempt, Capabilities, Device, Ending, HiveId, HiveMode, HiveModel, HiveProcess, HiveRecord,
    HiveSpec, JobId, JobKind, JobRecord, JobState, ModelRef, ModelUse, Outcome, PlacedOn, Priority,
    RequestHash, SessionId, SshTarget, StopReason, TenantId, Times, UnixMillis, Usage, WorkerId,
};
use crate::error::{Code, Error};
use crate::store::{JobChange, Submission};

const VALID: &str = "the name is well-formed";

/// When the sample's jobs end.
const ENDED_AT: UnixMillis = UnixMillis(1_700_000_000_020);

/// A job that was just submitted, with a new id.
#[must_use]
pub fn queued_job() -> JobRecord {
    let at = UnixMillis(1_700_000_000_000);
    JobRecord {
        owner: Uuid::from_u128(1),
        correlation_id: "correlation-1".into(),
        ..JobRecord::queued(JobId::mint(), JobKind::Task, model("hf:org/model"), at)
    }
}

/// A job that outlives its submitter and was just submitted, with a new id.
#[must_use]
pub fn asynchronous_job() -> JobRecord {
    JobRecord {
        priority: Priority::Batch,
        asynchronous: true,
        ..queued_job()
    }
}

/// The submission of a job with its request, under a key for a day if it has one.
#[must_use]
pub fn submission(record: JobRecord) -> Submission {
    const DAY: Duration = Duration::from_secs(24 * 60 * 60);
    Submission {
        key_expires_at: record.submitted_at + DAY,
        request: Some(request_of(&record)),
        record,
    }
}

/// The request that [`submission`] gives a job.
pub(super) fn request_of(job: &JobRecord) -> Vec<u8> {
    let text = format!("{{\"prompt\":\"\0 ä {}\"}}", job.id);
    text.into_bytes()
}

/// A job with every field set, with a new id.
#[must_use]
pub fn ended_job() -> JobRecord {
    JobRecord {
        kind: JobKind::Embedding,
        priority: Priority::Batch,
        tenant: tenant("tenant-1"),
        session: Some(SessionId::new("session-1").expect(VALID)),
        asynchronous: true,
        idempotency_key: Some("a key 🐝".into()),
        request_hash: Some(RequestHash(std::array::from_fn(|at| at as u8))),
        owner: Uuid::max(),
        state: JobState::Failed,
        attempt: Attempt::MAX,
        placed: Some(placed()),
        started_at: Some(UnixMillis(1_700_000_000_001)),
        not_before: Some(UnixMillis(1_700_000_000_003)),
        ended_at: Some(UnixMillis(1_700_000_000_002)),
        times: Times {
            inference_ms: 700,
            slot_ms: 800,
        },
        stop: Some(StopReason::MaxTokens),
        usage: Some(Usage {
            tokens_in: 3,
            tokens_out: u64::MAX,
            estimated: true,
        }),
        error_code: Some("WORKER_FAILED".into()),
        error_message: Some("it died".into()),
        result: Some("Once upon".into()),
        thinking: Some("A tale…".into()),
        ..queued_job()
    }
}

/// A hive with every field set.
#[must_use]
pub fn complete_hive(name: &str) -> HiveRecord {
    let map = |key: &str, value: &str| BTreeMap::from([(key.to_owned(), value.to_owned())]);
    HiveRecord {
        spec: HiveSpec {
            mode: HiveMode::Network,
            hostname: "gpu-0.example".into(),
            port: Some(u16::MAX),
            ssh: Some(SshTarget {
                host: "gpu-0".into(),
                port: Some(2222),
                user: Some("rbee".into()),
                key_path: Some("/home/rbee/.ssh/a key".into()),
            }),
            tunnel: true,
            install: true,
            install_path: Some("/opt/rbee".into()),
            backends: vec!["cuda".into(), "cpu".into()],
            devices: BTreeMap::from([("cuda".to_owned(), 2), ("cpu".to_owned(), 1)]),
            labels: map("räck", "'\"\\ 🐝"),
            command: Some("llama".into()),
            git_repo_url: Some("https://example.org/repo.git".into()),
            git_branch: Some("main".into()),
            ..HiveSpec::local(hive_id(name))
        },
        process: Some(HiveProcess {
            port: 9200,
            pid: Some(u32::MAX),
            pid_start_time: Some(u64::MAX),
            started_by_queen: true,
        }),
        capabilities: Some(capabilities()),
        last_seen: Some(UnixMillis(1_700_000_000_123)),
        model_use: BTreeMap::from([(
            model("file:a.gguf"),
            ModelUse {
                last_used: UnixMillis(1_700_000_000_120),
                count: 3,
            },
        )]),
    }
}

fn capabilities() -> Capabilities {
    Capabilities {
        devices: vec![Device {
            index: 1,
            backend: "cuda".into(),
            name: "A name".into(),
            vram_total_bytes: u64::MAX,
            vram_free_bytes: 1,
        }],
        backends: vec!["cuda".into()],
        models: vec![HiveModel {
            model_ref: model("file:a.gguf"),
            aliases: vec!["a".into()],
            size_bytes: 7,
            vram_bytes: Some(8),
            removable: false,
            local_path: Some("/m/a.gguf".into()),
        }],
        disk_free_bytes: Some(9),
    }
}

/// The dispatch of a job.
#[must_use]
pub fn claimed(job: JobId, attempt: Attempt) -> JobChange {
    JobChange::Claimed {
        job,
        attempt,
        placed: placed(),
        at: UnixMillis(1_700_000_000_010 + i64::from(attempt)),
    }
}

/// The end of a job with a whole answer.
#[must_use]
pub fn finished(job: JobId, attempt: Attempt, result: &str) -> JobChange {
    ended(job, attempt, answer(result))
}

/// The ending of a job with a whole answer.
pub(super) fn answer(result: &str) -> Ending {
    let usage = Usage {
        tokens_in: 5,
        tokens_out: 7,
        estimated: false,
    };
    Ending {
        usage: Some(usage),
        times: Times {
            inference_ms: 11,
            slot_ms: 13,
        },
        result: Some(result.to_owned()),
        thinking: Some(format!("what leads to {result}")),
        stop: Some(StopReason::Eos),
        ..Ending::new(Outcome::Complete, ENDED_AT)
    }
}

/// The end of a job that somebody gave up.
#[must_use]
pub fn cancelled(job: JobId, attempt: Attempt) -> JobChange {
    let error = Error::new(Code::Cancelled, "nobody waits any more");
    let outcome = Outcome::Cancelled(error);
    ended(job, attempt, Ending::new(outcome, ENDED_AT))
}

/// What is kept of the error of [`failed`].
pub(super) const FAILED: &str = "the worker died of '[…]'";

/// The end of a job with an error that quotes its request.
pub(super) fn failed(job: JobId, attempt: Attempt) -> JobChange {
    let error = Error::new(Code::WorkerFailed, "the worker died of 'my words'").keep(FAILED);
    let outcome = Outcome::Failed(error);
    ended(job, attempt, Ending::new(outcome, ENDED_AT))
}

fn ended(job: JobId, attempt: Attempt, ending: Ending) -> JobChange {
    JobChange::Finished {
        job,
        attempt,
        ending: Box::new(ending),
    }
}

/// The submission of a job whose request is not kept.
#[must_use]
pub fn submitted(job: &JobRecord) -> JobChange {
    JobChange::Submitted {
        record: Box::new(job.clone()),
        request: None,
    }
}

/// The retreat of an attempt, whose job waits a while before the next.
#[must_use]
pub fn requeued(job: JobId, attempt: Attempt) -> JobChange {
    JobChange::Requeued {
        job,
        attempt,
        failed: true,
        not_before: Some(UnixMillis(1_700_000_000_015)),
    }
}

pub(super) fn hive_id(name: &str) -> HiveId {
    HiveId::new(name).expect(VALID)
}

pub(super) fn tenant(name: &str) -> TenantId {
    TenantId::new(name).expect(VALID)
}

pub(super) fn model(name: &str) -> ModelRef {
    ModelRef::new(name).expect(VALID)
}

fn placed() -> PlacedOn {
    PlacedOn {
        worker: WorkerId::new("worker-1").expect(VALID),
        hive: Some(hive_id("gpu-0")),
        model: model("hf:org/model"),
        why: "it has the model and a free slot".into(),
    }
}
