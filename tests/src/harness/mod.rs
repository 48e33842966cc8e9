//! Starts real processes, talks to them, and leaves none behind.

pub mod client;
pub mod daemon;
pub mod ports;
pub mod stub_engine;
pub mod wait;

pub use client::{Client, Reply};
pub use daemon::Daemon;
pub use stub_engine::StubEngine;
pub use wait::{eventually, until};
