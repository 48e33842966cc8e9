//! Turns the machines that you own into one LLM inference endpoint: the brain of `queen-rbee` as
//! a library.
#![warn(missing_docs)]

pub mod domain;
pub mod error;
pub mod hives;
pub mod store;
pub mod transport;

pub use error::{Code, Error, Result};
