//! Turns the machines that you own into one LLM inference endpoint: the brain of `queen-rbee` as
//! a library.
#![warn(missing_docs)]

pub mod brain;
pub mod config;
pub mod domain;
pub mod error;
pub mod hives;
#[cfg(feature = "http")]
pub mod http;
mod orchestrator;
mod relay;
mod router;
pub mod scheduler;
pub mod store;
pub mod transport;

pub use config::Config;
pub use error::{Code, Error, Result};
pub use orchestrator::{
    Builder, ModelInfo, OpenAiRequest, Orchestrator, RawHead, RawReply, TaskStream,
    TransportFactory,
};
