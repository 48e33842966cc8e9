//! Hives as the library deals with them: its client against fake servers, its local transport and
//! lifecycle against real processes.
#![cfg(unix)]

mod client;
mod fake_hive;
mod lifecycle;
mod local;
mod registry;
