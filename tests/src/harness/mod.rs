//! Starts real processes, talks to them, and leaves none behind.

pub mod client;
pub mod daemon;
pub mod event_engine;
pub mod events;
pub mod first_database;
pub mod home;
pub mod hub;
pub mod old_hive;
pub mod ports;
pub mod programs;
pub mod queen;
pub mod raw;
pub mod raw_engine;
pub mod shared;
pub mod small_disk;
pub mod sshd;
pub mod stub_engine;
pub mod tasks;
pub mod wait;

pub use client::{Client, Reply, assert_error};
pub use daemon::Daemon;
pub use event_engine::{Answer, EventEngine};
pub use events::{Block, Event, EventStream};
pub use home::Home;
pub use hub::Hub;
pub use old_hive::OldHive;
pub use queen::{Fallen, Launch, Queen};
pub use raw_engine::RawEngine;
pub use shared::Shared;
pub use small_disk::SmallDisk;
pub use sshd::Sshd;
pub use stub_engine::{Noted, StubClient, StubEngine};
pub use wait::{eventually, until};
