//! Turns the machines that you own into one LLM inference endpoint: the brain of `queen-rbee` as
//! a library.
//!
//! An [`Orchestrator`] takes tasks, decides where each runs, starts what it needs for that (a hive,
//! which starts an engine with the model), and streams the answer back. It needs no HTTP server; the
//! feature `http`, on by default, has one's API as a service to mount ([`http::HttpApi`]).
//!
//! ```no_run
//! use rbee_orchestrator::Orchestrator;
//! use rbee_orchestrator::domain::{TaskEvent, TaskRequest};
//! use rbee_orchestrator::store::MemoryStore;
//!
//! # async fn answer() -> rbee_orchestrator::Result<()> {
//! let orchestrator = Orchestrator::builder()
//!     .store(MemoryStore::new())
//!     .start()
//!     .await?;
//!
//! let task = TaskRequest::prompt("smollm2", "Once upon a time").max_tokens(20);
//! let mut events = orchestrator.submit(task).await?;
//! while let Some(event) = events.next().await {
//!     match event {
//!         TaskEvent::Token { text, .. } => print!("{text}"),
//!         TaskEvent::Error { error, .. } => return Err(error),
//!         _ => {}
//!     }
//! }
//!
//! // Stops the hives that it started.
//! orchestrator.shutdown().await;
//! # Ok(())
//! # }
//! ```
//!
//! What decides where a request runs, what is kept, and how a hive is reached are traits with
//! implementations to start from: [`scheduler::Scheduler`], [`store::Store`] and
//! [`transport::HiveTransport`]. The repository's `examples/` replaces each of them.
//!
//! # Features
//!
//! All are on by default, and each leaves out what only it needs:
//!
//! - `http`: the HTTP API as a service, and a server for it;
//! - `hives`: the client of hives, with `ureq`. Without it there are no hives, only workers that are
//!   registered;
//! - `ssh`: hives on other machines over SSH, with libssh2 and OpenSSL; takes `hives` along;
//! - `sqlite`: a store in a database, with SQLite, which is built in C.
//!
//! `vendored-openssl`, off by default, builds OpenSSL along.
#![warn(missing_docs)]

pub mod brain;
mod budget;
pub mod config;
pub mod domain;
pub mod error;
mod hashing;
pub mod hives;
#[cfg(feature = "http")]
pub mod http;
mod http1;
mod killpoint;
mod orchestrator;
mod relay;
mod router;
pub mod scheduler;
mod seldom;
pub mod store;
pub mod transport;

pub use config::Config;
pub use error::{Code, Error, Result};
pub use orchestrator::{
    Builder, LogLines, LogQuery, ModelDownload, ModelInfo, OpenAiRequest, Orchestrator, RawHead,
    RawReply, TaskEvents, TaskStream, TransportFactory,
};
