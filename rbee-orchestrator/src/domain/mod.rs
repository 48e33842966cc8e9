//! Plain data that every other module speaks of: no I/O, no clock, no locks.

mod address;
mod event;
mod hive;
mod id;
mod job;
mod model;
mod origin;
mod reserved;
mod task;
mod tenant;
mod time;
mod worker;

pub use address::{host_and_port, is_loopback};
pub use event::{EventId, Narration, StopReason, TaskEvent};
pub use hive::{
    Capabilities, Device, HiveMode, HiveModel, HiveProcess, HiveRecord, HiveSpec, HiveStatus,
    ModelUse, SshTarget,
};
pub use id::{HiveId, JobId, SessionId, TenantId, WorkerId};
pub use job::{
    Attempt, Constraints, Ending, JobFilter, JobKind, JobPage, JobRecord, JobState,
    LISTED_ERROR_CHARS, Outcome, PlacedOn, Priority, RequestHash, Times, Usage,
};
pub use model::ModelRef;
pub use origin::AllowedOrigin;
pub use reserved::Reach;
pub(crate) use reserved::refusal;
pub use task::{RequestOptions, Sampling, TaskInput, TaskRequest};
pub use tenant::{Tenant, TenantLimits, UsageFilter, UsageRow};
pub use time::{JUMP_BELIEVED_AFTER, Mono, Now, UnixMillis};
pub use worker::{
    BreakerNote, BreakerState, Prospect, Worker, WorkerProtocol, WorkerSpec, WorkerState,
};
