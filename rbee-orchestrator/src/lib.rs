//! Turns the machines that you own into one LLM inference endpoint: the brain of `queen-rbee` as
//! a library.
#![warn(missing_docs)]

pub mod brain;
pub mod config;
pub mod domain;
pub mod error;
pub mod hives;
mod relay;
mod router;
pub mod scheduler;
pub mod store;
pub mod transport;

pub use config::Config;
pub use error::{Code, Error, Result};
