//! Hives as the queen deals with them: the client of their HTTP API, their life as processes, and
//! the token that both sides share.
//!
//! [`HiveHandle`] is one registered hive. It decides nothing: the brain says when a hive shall run
//! or stop, and what to ask of it.

mod adoption;
mod claims;
mod client;
mod events;
mod exchange;
mod install;
mod launch;
mod lenient;
mod lifecycle;
mod models;
mod provisioner;
mod token;
mod wire;

pub use claims::PortClaims;
pub use client::{CallTimeouts, HiveClient, Recognition};
pub use events::HiveEvents;
pub use lifecycle::{HiveHandle, HiveOptions, Stopped};
pub use models::DownloadAnswer;
pub use provisioner::{Progress, Provisioner};
pub(crate) use token::bearer;
pub use token::{HiveToken, secret};
pub use wire::{ApiKey, HiveWorker, HiveWorkerState, SpawnAnswer, SpawnRequest};
